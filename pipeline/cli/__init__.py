"""The command ``em``: a module for each kind of command."""

from pipeline.cli import runs  # noqa: I001  (the order of the help)
from pipeline.cli import aligning, care, looks, connectome, exporting, kubernetes, learning
from pipeline.cli.app import app, main

__all__ = [
    "aligning",
    "app",
    "care",
    "connectome",
    "exporting",
    "kubernetes",
    "learning",
    "looks",
    "main",
    "runs",
]
