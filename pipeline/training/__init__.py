"""Training of nets: samplers, augmentations, losses, the trainer, export.

`pipeline.training.run` is what `em train` does.
"""
