"""An attribution field in one picture: the section, and what speaks for and against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.geometry import Vec3

_LINEAR = 0.01
"""Relative contribution below which colours are linear, and above which logarithmic."""


def draw_field(
    image: NDArray[np.uint8],
    relative: NDArray[np.float32],
    voxel: Vec3,
    title: str,
    path: Path,
) -> None:
    """Draw a section beside its attribution field; blue speaks for, red against.

    Parameters
    ----------
    image : uint8 array, (x, y, z)
        Grey levels of the patch.
    relative : float32 array, (x, y, z)
        Contributions, from -1 to 1.
    voxel : Vec3
        Whose prediction is explained; its section is drawn.
    title : str
        What stands above.
    path : Path
        PNG that is written.
    """
    figure = Figure(figsize=(11, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    # Arrays are x, y; a picture's rows are y.
    left.imshow(image[:, :, voxel.z].T, cmap="gray", vmin=0, vmax=255)
    left.plot(voxel.x, voxel.y, "o", markersize=9, markerfacecolor="none", color="#ffb000")
    scale = SymLogNorm(linthresh=_LINEAR, vmin=-1, vmax=1)
    field = right.imshow(relative[:, :, voxel.z].T, cmap="RdBu", norm=scale)
    right.plot(voxel.x, voxel.y, "o", markersize=9, markerfacecolor="none", color="#000000")
    figure.colorbar(field, ax=right, label="contribution / largest", shrink=0.85)
    for axes in (left, right):
        axes.set_xlabel("x [voxel]")
    left.set_ylabel("y [voxel]")
    figure.savefig(path, metadata={"Software": None})
