"""The wiring diagram in pictures: a matrix and its sums, and a neuron with its synapses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.contact_sheet import Camera, render
from pipeline.specs import Mesh

_SURFACE = (1000, 900)
_INPUT, _OUTPUT, _CELL = "#0090c8", "#e07800", "#3a3a3a"


def draw_census(
    path: Path,
    matrix: NDArray[np.int64],
    *,
    inputs: NDArray[np.uint64],
    outputs: NDArray[np.uint64],
    sizes_um3: NDArray[Any],
    title: str,
) -> None:
    """Draw who synapses onto whom, how many synapses segments have, how large clefts are.

    Parameters
    ----------
    path : Path
        PNG that is written.
    matrix : int64 array, (pre, post)
        Synapses of the segments that have most.
    inputs, outputs : uint64 array, (n,)
        Synapses onto, and from, each segment.
    sizes_um3 : float64 array, (n,)
        Volume of each cleft [um^3].
    title : str
        What stands above.
    """
    figure = Figure(figsize=(13, 6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    parts = figure.subplot_mosaic([["matrix", "degree"], ["matrix", "size"]])
    axes = parts["matrix"]
    axes.set_xlabel("postsynaptic segments, most synapses first")
    axes.set_ylabel("presynaptic segments, most synapses first")
    if matrix.any():
        shown = np.ma.masked_equal(matrix, 0)
        drawn = axes.imshow(
            shown, cmap="viridis", norm=LogNorm(1, max(2, int(matrix.max())))
        )
        figure.colorbar(drawn, ax=axes, label="synapses", shrink=0.7)
    axes = parts["degree"]
    most = int(max([1, *inputs.tolist(), *outputs.tolist()]))
    bins = np.arange(0.5, most + 1.5, max(1, most // 40))
    for sums, label, color in (
        (inputs, "onto a segment", _INPUT),
        (outputs, "from a segment", _OUTPUT),
    ):
        axes.hist(sums, bins.tolist(), histtype="step", label=label, color=color)
    axes.set_xlabel("synapses")
    axes.set_ylabel("segments")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    axes = parts["size"]
    if len(sizes_um3):
        low, high = np.log10(sizes_um3.min()), np.log10(sizes_um3.max())
        bins = np.logspace(low - 0.05, high + 0.05, 40)
        axes.hist(sizes_um3, bins.tolist(), color=_CELL)
        axes.set_xscale("log")
    axes.set_xlabel("volume of the cleft as found [um^3]")
    axes.set_ylabel("synapses")
    figure.savefig(path, metadata={"Software": None})


def draw_neuron(
    path: Path,
    shadows: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    start_nm: NDArray[Any],
    stop_nm: NDArray[Any],
    inputs_nm: NDArray[np.float64],
    outputs_nm: NDArray[np.float64],
    title: str,
    surface: Mesh | None = None,
) -> None:
    """Draw a neuron and its synapses: its surface, and the shadows along z and along y.

    Parameters
    ----------
    path : Path
        PNG that is written.
    shadows : (int64 array, (x, y), int64 array, (x, z))
        How many voxels lie behind one another.
    start_nm, stop_nm : array, (3,)
        The box that they show [nm].
    inputs_nm, outputs_nm : float64 array, (n, 3)
        Places of synapses onto and from it [nm].
    title : str
        What stands above.
    surface : Mesh or None
        Its surface mesh; the shadows are drawn alone without one.
    """
    figure = Figure(
        figsize=(13, 7) if surface else (12, 6.5), dpi=130, layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{title}: {len(inputs_nm)} synapses onto it, {len(outputs_nm)} from it",
        fontsize=11,
    )
    sites = ((inputs_nm, "onto it", _INPUT), (outputs_nm, "from it", _OUTPUT))
    if surface is None:
        parts = figure.subplot_mosaic([["z", "y"]])
    else:
        parts = figure.subplot_mosaic(
            [["surface", "z"], ["surface", "y"]], width_ratios=[1.6, 1]
        )
        _draw_surface(parts["surface"], surface, sites)
    for axes, shadow, down, name in (
        (parts["z"], shadows[0], 1, "y"),
        (parts["y"], shadows[1], 2, "z"),
    ):
        _draw_shadow(axes, shadow, start_nm, stop_nm, down)
        for places, label, color in sites:
            at = places / 1000
            axes.plot(at[:, 0], at[:, down], "o", color=color, markersize=5, label=label)
        axes.set_xlabel("x [um]")
        axes.set_ylabel(f"{name} [um]")
    parts["surface" if surface else "z"].legend(frameon=False, loc="upper right")
    figure.savefig(path, metadata={"Software": None})


def _draw_surface(
    axes: Axes,
    surface: Mesh,
    sites: Sequence[tuple[NDArray[np.float64], str, str]],
) -> None:
    """Draw a surface mesh from the side, and the synapses before it, hidden ones too."""
    low, high = (f(surface.vertices, axis=0).astype(float) for f in (np.min, np.max))
    camera = Camera.around(low, high, _SURFACE)
    axes.imshow(render({1: surface}, camera))
    for places, label, color in sites:
        seen = camera.project(places)
        axes.plot(
            *(seen[:, 0], seen[:, 1], "o"),
            color=color,
            markersize=7,
            markeredgecolor="white",
            label=label,
        )
    axes.set_xlim(0, camera.size[0])
    axes.set_ylim(camera.size[1], 0)
    axes.axis("off")


def _draw_shadow(
    axes: Axes,
    shadow: NDArray[np.int64],
    start_nm: NDArray[Any],
    stop_nm: NDArray[Any],
    down: int,
) -> None:
    low, high = start_nm / 1000, stop_nm / 1000
    # Thin places are as well seen as thick ones by the root.
    axes.imshow(
        np.sqrt(shadow).T,
        cmap="Greys",
        extent=(low[0], high[0], high[down], low[down]),
        aspect="equal",
        interpolation="nearest",
    )
