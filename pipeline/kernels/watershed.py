"""Watershed basins of affinities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Halo
from pipeline.kernels import _cpp
from pipeline.kernels.placement import Placement, data_errors
from pipeline.kernels.threads import require_threads

WATERSHED_HALO = Halo.of(after=1)
"""A voxel's edges to its successors are stored with the successors."""

MASKED_WATERSHED_HALO = Halo.of(before=1, after=1)
"""With a mask one must also know whether the predecessors are masked out."""


def watershed(
    affinities: NDArray[Any],
    *,
    box: Bbox,
    read_box: Bbox,
    bounds: Bbox,
    low: float,
    high: float,
    base: int = 0,
    size_threshold: int = 0,
    dust: int = 0,
    mask: NDArray[Any] | None = None,
    threads: int = 1,
) -> NDArray[np.uint64]:
    """Label a chunk with its part of the watershed basins of the whole volume, merged.

    Each voxel chooses the greatest of its six edges, if its affinity is above ``low``.
    Basins are joined by the edges that an end chose and by all of affinity ``high`` or
    more. Edges are in a strict total order, by affinity, then by the position in the
    volume of their upper voxel (z, y, x), then by axis; so plateaus need no rule of
    their own and every chunk chooses as the whole would. `basin_graph` finds the edges
    that join basins across the faces of chunks.

    Then basins merge by size-dependent single linkage (Zlateski & Seung 2015), as far as
    the chunk decides it: the greatest edges between basins, in descending order, join
    their two sides unless both hold ``size_threshold`` voxels. A side that touches a face
    of the chunk within the bounds is open: it may grow, so it waits, and what would merge
    with it waits too, unless the one is large already and the other does not wait. Only
    edges within the chunk are looked at, and of these the maximum spanning forest, as no
    other edge can merge anything. What is merged or dropped here is so in the whole.

    Parameters
    ----------
    affinities : uint8, float16 or float32 array, (x, y, z, 3)
        Channel `a` at a voxel joins it to its predecessor along axis `a`. Any memory
        order; Fortran order is the fastest.
    box : Bbox
        Chunk to label.
    read_box : Bbox
        Box of the arrays: the chunk with `WATERSHED_HALO`, clipped to the bounds; with
        `MASKED_WATERSHED_HALO` if there is a mask.
    bounds : Bbox
        Bounds of the volume; edges across them do not exist.
    low : float
        A voxel with no affinity above this is background.
    high : float
        Affinities from here on join whatever was chosen; above 1 none does.
    base : int
        Number below the first label, such as `IdLayout.base`.
    size_threshold : int
        Two sides of this size or more stay apart; 0 merges nothing [voxel].
    dust : int
        What is smaller, and waits for nothing, becomes background [voxel].
    mask : uint8 or bool array, (x, y, z), optional
        0 masks a voxel out: it has no edges.
    threads : int
        Threads to use; the labels do not depend on it.

    Returns
    -------
    uint64 array, (x, y, z)
        Labels of the chunk, in Fortran order: ``base + 1 + p`` for what has its first
        voxel at the place p in the chunk, x fastest; 0 is background.

    Raises
    ------
    ValueError
        If the thresholds are not 0 <= low < high, a size is negative, or there is no
        thread.
    GeometryError
        If the boxes do not fit one another.
    DataError
        If the affinities have another dtype or shape, are NaN or outside [0, 1].
    """
    require_thresholds(low, high)
    require_sizes(size_threshold, dust)
    require_threads(threads)
    halo = WATERSHED_HALO if mask is None else MASKED_WATERSHED_HALO
    placement = Placement(box, read_box, bounds, halo)
    # Memory from numpy lies in large pages where the system has them.
    labels = np.empty(box.shape.astuple(), np.uint64, order="F")
    with data_errors():
        _cpp.watershed(
            placement.affinities(affinities),
            placement.origin,
            placement.core,
            placement.corners,
            None if mask is None else placement.mask(mask),
            low,
            high,
            size_threshold,
            dust,
            base,
            threads,
            labels,
        )
    return labels


def require_sizes(size_threshold: int, dust: int) -> None:
    """Check the sizes of a linkage.

    Raises
    ------
    ValueError
        If one is negative.
    """
    if size_threshold < 0 or dust < 0:
        raise ValueError(
            f"size threshold {size_threshold} and dust {dust} count voxels; give 0 or more"
        )


def require_thresholds(low: float, high: float) -> None:
    """Check the thresholds of a watershed.

    Raises
    ------
    ValueError
        If they are not 0 <= low < high.
    """
    if not 0 <= low < high:
        raise ValueError(
            f"watershed thresholds low {low} and high {high} do not satisfy 0 <= low < high"
        )
