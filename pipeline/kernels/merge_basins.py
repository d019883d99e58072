"""Basins to supervoxels."""

from __future__ import annotations

from pipeline.kernels import _cpp
from pipeline.kernels.basin_graph import BasinGraph
from pipeline.kernels.placement import data_errors
from pipeline.kernels.relabel import RemapTable


def merge_basins(graph: BasinGraph, *, size_threshold: int, dust: int) -> RemapTable:
    """Merge basins by size-dependent single linkage (Zlateski & Seung 2015).

    First the parts that chunk faces cut are joined again. Then each pair's greatest
    edge, in descending order, merges its two sides unless both hold ``size_threshold``
    voxels. Last, what holds fewer than ``dust`` voxels becomes background. The result
    does not depend on how the volume was cut, but for the names: a supervoxel is called
    after the smallest basin id in it.

    Parameters
    ----------
    graph : BasinGraph
        Basins of the whole volume.
    size_threshold : int
        Two sides of this size or more stay apart [voxel].
    dust : int
        Supervoxels below this size are dropped [voxel].

    Returns
    -------
    RemapTable
        Supervoxel of each basin, 0 for dust.

    Raises
    ------
    ValueError
        If a size is negative.
    DataError
        If an edge refers to a basin that the graph does not list.
    """
    if size_threshold < 0 or dust < 0:
        raise ValueError(
            f"size threshold {size_threshold} and dust {dust} count voxels; give 0 or more"
        )
    with data_errors():
        supervoxels = _cpp.merge_basins(
            graph.ids,
            graph.sizes,
            graph.joins,
            graph.pairs,
            graph.affinities,
            graph.keys,
            size_threshold,
            dust,
        )
    return RemapTable(graph.ids, supervoxels)
