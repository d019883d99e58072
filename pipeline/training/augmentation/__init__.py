"""What goes wrong with sections, done on purpose (Macrina et al. 2021, Methods).

`plan` says which sections of a volume a patch shows and how each has moved, `warp` where
in its section each voxel lies, `grey` what becomes of the greys. All is planned before
anything is drawn, so that a patch is drawn once, whatever was done to it. Every function
takes a generator first, changes nothing in place, and draws the same for the same one.
"""
