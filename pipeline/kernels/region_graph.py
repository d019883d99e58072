"""Supervoxels, and the area and affinity of their contacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Halo
from pipeline.kernels import _cpp
from pipeline.kernels.placement import Placement, data_errors, scale_of
from pipeline.kernels.tables import Columns, Groups, column, common_scale
from pipeline.kernels.threads import require_threads

REGION_GRAPH_HALO = Halo.of(before=1)
"""A chunk owns the faces whose upper voxel it holds; the lower voxel may lie below it."""

CLASSES = ("soma", "axon", "dendrite", "glia", "vessel")
"""What labels 1 to 5 of a semantic volume mean; 0 is unknown."""


@dataclass(frozen=True, eq=False)
class RegionGraph(Columns):
    """Supervoxels and their contacts, as exact sums.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Supervoxels, ascending.
    size : uint64 array, (n,)
        Voxels of each.
    anchor : uint64 array, (n,)
        First voxel of each, by its place in the volume with x fastest: the same for
        every chunking, unlike ids.
    coordinate_sum : int64 array, (n, 3)
        Sum of the coordinates of its voxels [voxel].
    start, stop : int64 array, (n, 3)
        Half-open box around each [voxel].
    classes : uint64 array, (n, 5)
        Voxels of each of `CLASSES`; zeros if there was no semantic volume.
    faces : uint8 array, (n,)
        Faces that it touches of the chunk that was measured, but for those that are faces
        of the bounds: bit a for the lower face of axis a, bit 3 + a for the upper. Of a
        merged graph, the bits from all chunks.
    pairs : uint64 array, (m, 2)
        Supervoxels in contact, smaller id first; ascending.
    affinity : uint64 array, (m, 3)
        Sum of the fixed-point affinities over the faces across each axis.
    area : uint64 array, (m, 3)
        Faces across each axis.
    key : uint64 array, (m,)
        First face of each contact, as 3 times the place of its upper voxel plus its axis.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "supervoxel"))
    size: NDArray[np.uint64] = field(metadata=column(np.uint64, "supervoxel"))
    anchor: NDArray[np.uint64] = field(metadata=column(np.uint64, "supervoxel"))
    coordinate_sum: NDArray[np.int64] = field(
        metadata=column(np.int64, "supervoxel", width=3)
    )
    start: NDArray[np.int64] = field(metadata=column(np.int64, "supervoxel", width=3))
    stop: NDArray[np.int64] = field(metadata=column(np.int64, "supervoxel", width=3))
    classes: NDArray[np.uint64] = field(
        metadata=column(np.uint64, "supervoxel", width=len(CLASSES))
    )
    faces: NDArray[np.uint8] = field(metadata=column(np.uint8, "supervoxel"))
    pairs: NDArray[np.uint64] = field(metadata=column(np.uint64, "contact", width=2))
    affinity: NDArray[np.uint64] = field(metadata=column(np.uint64, "contact", width=3))
    area: NDArray[np.uint64] = field(metadata=column(np.uint64, "contact", width=3))
    key: NDArray[np.uint64] = field(metadata=column(np.uint64, "contact"))
    scale: int

    @property
    def centroid(self) -> NDArray[np.float64]:
        """Mean coordinate of each supervoxel, (n, 3) [voxel]."""
        return self.coordinate_sum / self.size[:, None]

    @property
    def mean_affinity(self) -> NDArray[np.float64]:
        """Mean affinity over all faces of each contact, (m,)."""
        area = self.area.sum(axis=1) * float(self.scale)
        mean: NDArray[np.float64] = self.affinity.sum(axis=1) / area
        return mean


def region_graph(
    supervoxels: NDArray[Any],
    affinities: NDArray[Any],
    *,
    box: Bbox,
    read_box: Bbox,
    bounds: Bbox,
    semantics: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> RegionGraph:
    """Measure the supervoxels of a chunk and sum the affinity over their contacts.

    Parameters
    ----------
    supervoxels : unsigned array, (x, y, z)
        Ids; 0 is background and touches nothing.
    affinities : uint8, float16 or float32 array, (x, y, z, 3)
        Channel `a` at a voxel joins it to its predecessor along axis `a`. Any memory order.
    box : Bbox
        Chunk to measure.
    read_box : Bbox
        Box of the arrays: the chunk with `REGION_GRAPH_HALO`, clipped to the bounds.
    bounds : Bbox
        Bounds of the volume.
    semantics : uint8 array, (x, y, z), or None
        Label of each voxel: 0 unknown, 1 to 5 the `CLASSES`.
    threads : int
        Threads to share the work; the result does not depend on them.

    Returns
    -------
    RegionGraph
        The chunk's part of the region graph; `merge_region_graphs` adds up the parts.

    Raises
    ------
    ValueError
        If there are no threads.
    GeometryError
        If the boxes do not fit one another.
    DataError
        If an array has another dtype or shape, affinities are NaN or outside [0, 1], or a
        semantic label is above 5.
    """
    require_threads(threads)
    placement = Placement(box, read_box, bounds, REGION_GRAPH_HALO)
    with data_errors():
        columns = _cpp.region_graph(
            placement.labels(supervoxels),
            placement.affinities(affinities),
            None if semantics is None else _semantic_volume(semantics, read_box),
            placement.origin,
            placement.core,
            placement.corners,
            threads,
        )
    return RegionGraph(*columns, scale=scale_of(affinities))


def merge_region_graphs(graphs: Sequence[RegionGraph]) -> RegionGraph:
    """Merge the region graphs of disjoint chunks, exactly and in any order.

    Raises
    ------
    DataError
        If there are none, or if they differ in scale.
    """
    scale = common_scale([g.scale for g in graphs])
    nodes = Groups(np.concatenate([g.ids for g in graphs]))
    contacts = Groups(np.concatenate([g.pairs for g in graphs]))

    def reduced(groups: Groups, ufunc: np.ufunc, name: str) -> NDArray[Any]:
        return groups.reduce(ufunc, np.concatenate([getattr(g, name) for g in graphs]))

    return RegionGraph(
        ids=reduced(nodes, np.minimum, "ids"),
        size=reduced(nodes, np.add, "size"),
        anchor=reduced(nodes, np.minimum, "anchor"),
        coordinate_sum=reduced(nodes, np.add, "coordinate_sum"),
        start=reduced(nodes, np.minimum, "start"),
        stop=reduced(nodes, np.maximum, "stop"),
        classes=reduced(nodes, np.add, "classes"),
        faces=reduced(nodes, np.bitwise_or, "faces"),
        pairs=reduced(contacts, np.minimum, "pairs"),
        affinity=reduced(contacts, np.add, "affinity"),
        area=reduced(contacts, np.add, "area"),
        key=reduced(contacts, np.minimum, "key"),
        scale=scale,
    )


def _semantic_volume(array: NDArray[Any], read_box: Bbox) -> NDArray[np.uint8]:
    shape = read_box.shape.astuple()
    if array.dtype != np.uint8 or array.shape != shape:
        raise DataError(
            f"semantic labels are {array.dtype} of shape {array.shape} but box {read_box} "
            f"calls for uint8 of shape {shape}"
        )
    return np.asfortranarray(array)
