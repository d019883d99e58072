"""Training of nets: samplers, augmentations, losses, the trainer, export."""
