"""Nets, and how they run over layers.

What is imported here reads configurations and counts boxes without torch; `load_model` is
in `pipeline.nets.model` and `predict` in `pipeline.nets.inference`, which load it.
"""

from pipeline.nets.config import NEAREST, Head, ModelConfig
from pipeline.nets.patches import patches_touching, peak_bytes, read_box

__all__ = ["NEAREST", "Head", "ModelConfig", "patches_touching", "peak_bytes", "read_box"]
