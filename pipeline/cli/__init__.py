"""The command ``em``: a module for each kind of command."""

from pipeline.cli import runs  # noqa: I001  (the order of the help)
from pipeline.cli import (
    aligning,
    joining,
    care,
    looks,
    connectome,
    exporting,
    kubernetes,
    learning,
)
from pipeline.cli.app import app, main

__all__ = [
    "aligning",
    "app",
    "care",
    "connectome",
    "exporting",
    "joining",
    "kubernetes",
    "learning",
    "looks",
    "main",
    "runs",
]
