"""What chunks know of the basins of the whole volume."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Halo
from pipeline.kernels import _cpp
from pipeline.kernels.placement import Placement, data_errors, scale_of
from pipeline.kernels.tables import Columns, column
from pipeline.kernels.threads import require_threads
from pipeline.kernels.watershed import require_thresholds

BASIN_GRAPH_HALO = Halo.of(before=1, after=1)
"""Whether an edge across a lower face is on depends on what the voxel below it chose,
and that on the edges to the successors of that voxel."""

MASKED_BASIN_GRAPH_HALO = Halo.of(before=2, after=1)
"""With a mask it also depends on whether the predecessors of that voxel are masked out."""


@dataclass(frozen=True, eq=False)
class BasinGraph(Columns):
    """Basins cut at chunk faces: their sizes, what joins them, their greatest edges.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Basins, ascending.
    sizes : uint64 array, (n,)
        Voxels of each.
    anchors : uint64 array, (n,)
        Place in the volume of the first voxel of each, x fastest.
    faces : uint8 array, (n,)
        Faces of the chunk within the bounds that each touches: bit a for the lower face
        of axis a, bit 3 + a for the upper one.
    joins : uint64 array, (j, 2)
        Pairs, smaller id first, that are one basin of the volume; ascending.
    pairs : uint64 array, (m, 2)
        Pairs within the chunk in contact by an affinity above ``low``, smaller id first;
        the greatest edge comes first.
    affinities : uint64 array, (m,)
        Fixed-point affinity of the greatest edge between each pair.
    keys : uint64 array, (m,)
        Place of that edge in the order of all edges of equal affinity.
    cross_pairs, cross_affinities, cross_keys : uint64 arrays
        The same for pairs across a lower face that are no joins.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "basin"))
    sizes: NDArray[np.uint64] = field(metadata=column(np.uint64, "basin"))
    anchors: NDArray[np.uint64] = field(metadata=column(np.uint64, "basin"))
    faces: NDArray[np.uint8] = field(metadata=column(np.uint8, "basin"))
    joins: NDArray[np.uint64] = field(metadata=column(np.uint64, "join", width=2))
    pairs: NDArray[np.uint64] = field(metadata=column(np.uint64, "pair", width=2))
    affinities: NDArray[np.uint64] = field(metadata=column(np.uint64, "pair"))
    keys: NDArray[np.uint64] = field(metadata=column(np.uint64, "pair"))
    cross_pairs: NDArray[np.uint64] = field(metadata=column(np.uint64, "cross", width=2))
    cross_affinities: NDArray[np.uint64] = field(metadata=column(np.uint64, "cross"))
    cross_keys: NDArray[np.uint64] = field(metadata=column(np.uint64, "cross"))
    scale: int


def basin_graph(
    labels: NDArray[Any],
    affinities: NDArray[Any],
    *,
    box: Bbox,
    read_box: Bbox,
    bounds: Bbox,
    low: float,
    high: float,
    mask: NDArray[Any] | None = None,
    size_threshold: int | None = None,
    threads: int = 1,
) -> BasinGraph:
    """Measure the basins of a chunk and the edges that it owns between them.

    A chunk owns the edges whose upper voxel it holds, so every edge is seen once.

    Parameters
    ----------
    labels : unsigned array, (x, y, z)
        Basins from `watershed`, with ids that no two chunks share; 0 is background.
        Read only within the chunk and one plane below it.
    affinities : uint8, float16 or float32 array, (x, y, z, 3)
        What the basins were made from; any memory order, Fortran order is the fastest.
    box : Bbox
        Chunk to measure.
    read_box : Bbox
        Box of the arrays: the chunk with `BASIN_GRAPH_HALO`, clipped to the bounds; with
        `MASKED_BASIN_GRAPH_HALO` if there is a mask.
    bounds : Bbox
        Bounds of the volume.
    low, high : float
        Thresholds that the basins were made with.
    mask : uint8 or bool array, (x, y, z), optional
        That which the basins were made with.
    size_threshold : int or None
        Keep only edges by which `merge_basins` with this threshold may merge anything:
        of those within the chunk between two basins that are not both of this size
        [voxel] a maximum spanning forest. None keeps the greatest edge of every pair.
    threads : int
        Threads to use; the graph does not depend on it.

    Returns
    -------
    BasinGraph
        The chunk's part of the basin graph.

    Raises
    ------
    ValueError
        If the thresholds are not 0 <= low < high, or there is no thread.
    GeometryError
        If the boxes do not fit one another.
    DataError
        If an array has another dtype or shape, or affinities between basins are NaN or
        outside [0, 1].
    """
    require_thresholds(low, high)
    require_threads(threads)
    halo = BASIN_GRAPH_HALO if mask is None else MASKED_BASIN_GRAPH_HALO
    placement = Placement(box, read_box, bounds, halo)
    with data_errors():
        columns = _cpp.basin_graph(
            placement.labels(labels),
            placement.affinities(affinities),
            placement.origin,
            placement.core,
            placement.corners,
            None if mask is None else placement.mask(mask),
            low,
            high,
            size_threshold,
            threads,
        )
    return BasinGraph(*columns, scale=scale_of(affinities))
