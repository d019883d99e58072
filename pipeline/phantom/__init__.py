"""Synthetic neuropil with perfect truth, of any size, any chunk of it on its own.

Everything is a function of a seed and an absolute position, so a chunk is bit for bit
the crop of any larger region. `tissue` says which neurite is where, `partition` turns
that into voxels, `appearance` into gray values, and `Phantom` is what one asks.
"""

from pipeline.phantom.phantom import Phantom

__all__ = ["Phantom"]
