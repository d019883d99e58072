"""Watershed basins of affinities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Halo
from pipeline.kernels import _cpp
from pipeline.kernels.placement import Placement, data_errors

WATERSHED_HALO = Halo.of(after=1)
"""A voxel's edges to its successors are stored with the successors."""


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
    """Label a chunk with its part of the watershed basins of the whole volume.

    Each voxel chooses the greatest of its six edges, if its affinity is above ``low``.
    Basins are joined by the edges that an end chose and by all of affinity ``high`` or
    more. Edges are in a strict total order, by affinity, then by the position in the
    volume of their upper voxel (z, y, x), then by axis; so plateaus need no rule of
    their own and every chunk chooses as the whole would. `basin_graph` finds the edges
    that join basins across the faces of chunks.

    Parameters
    ----------
    affinities : uint8 or float32 array, (x, y, z, 3)
        Channel `a` at a voxel joins it to its predecessor along axis `a`.
    box : Bbox
        Chunk to label.
    read_box : Bbox
        Box of the array: the chunk with `WATERSHED_HALO`, clipped to the bounds.
    bounds : Bbox
        Bounds of the volume; edges across them do not exist.
    low : float
        A voxel with no affinity above this is background.
    high : float
        Affinities from here on join whatever was chosen; above 1 none does.
    base : int
        Number below the first label, such as `IdLayout.base`.

    Returns
    -------
    uint64 array, (x, y, z)
        Labels of the chunk, in Fortran order: ``base + 1 + p`` for the basin whose first
        voxel has the place p in the chunk, x fastest; 0 is background.

    Raises
    ------
    ValueError
        If the thresholds are not 0 <= low < high.
    GeometryError
        If the boxes do not fit one another.
    DataError
        If the affinities have another dtype or shape, are NaN or outside [0, 1].
    """
    require_thresholds(low, high)
    placement = Placement(box, read_box, bounds, WATERSHED_HALO)
    with data_errors():
        return _cpp.watershed(
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
