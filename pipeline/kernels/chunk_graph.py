"""Supervoxels cut at the faces of chunks, and the edges between the pieces.

Formats that keep a graph by chunk want no id in two chunks. A supervoxel that a face
cuts becomes a piece on either side, and an edge of its own kind keeps them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cc3d
import fastremap
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Halo, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.placement import label_volume
from pipeline.kernels.region_graph import region_graph

CHUNK_GRAPH_HALO = Halo.of(before=1, after=1)
"""The chunk's faces have a voxel of its own on one side and a neighbour's on the other."""

_Ids = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class ChunkEdges:
    """Edges of one kind from the pieces of a chunk.

    Parameters
    ----------
    first, second : uint64 array, (n,)
        Pieces; the first lies in the chunk. Ascending.
    affinity : float32 array, (n,)
        Sum of the affinities over the faces.
    area : uint64 array, (n,)
        Faces.
    """

    first: _Ids
    second: _Ids
    affinity: NDArray[np.float32]
    area: _Ids

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class ChunkGraph:
    """What a chunk knows of the graph of pieces.

    Parameters
    ----------
    pieces : uint64 array, (n,)
        Pieces in the chunk, ascending.
    in_chunk, between_chunk : ChunkEdges
        Contacts of different supervoxels, within the chunk and across its faces.
    cross_chunk : ChunkEdges
        Pieces of one supervoxel on both sides of a face; affinity infinite, area 1.
    components : list of uint64 array
        Pieces of each segment, the chunk's and those across an edge; each ascending, in
        order of their first.
    """

    pieces: _Ids
    in_chunk: ChunkEdges
    between_chunk: ChunkEdges
    cross_chunk: ChunkEdges
    components: list[_Ids]

    @property
    def isolated(self) -> int:
        """How many pieces have no edge."""
        edges = (self.in_chunk, self.between_chunk, self.cross_chunk)
        joined = np.concatenate([self.in_chunk.second, *(e.first for e in edges)])
        return int((~np.isin(self.pieces, joined)).sum())


def cut_supervoxels(supervoxels: NDArray[Any], *, layout: IdLayout, position: Vec3) -> _Ids:
    """Name the pieces of supervoxels in a chunk.

    A piece is connected through faces within the chunk, so that a supervoxel that leaves
    the chunk and comes back has several. They count from 1 in the order of their first
    voxels, x fastest.

    Parameters
    ----------
    supervoxels : unsigned array, (x, y, z)
        Ids of the chunk; 0 is background and stays so.
    layout : IdLayout
        Of the grid of chunks.
    position : Vec3
        Of the chunk in that grid.

    Returns
    -------
    uint64 array, (x, y, z)
        Ids of the pieces, in Fortran order.

    Raises
    ------
    GeometryError
        If there are more pieces than ids.
    """
    # What is read-only, cc3d refuses.
    ids = label_volume(supervoxels).copy(order="F")
    labels: NDArray[Any] = cc3d.connected_components(ids, connectivity=6)
    layout.require_capacity(int(labels.max(initial=0)))
    pieces = np.asfortranarray(labels, np.uint64)
    pieces[pieces != 0] += np.uint64(layout.base(position))
    return pieces


def chunk_graph(
    pieces: _Ids,
    supervoxels: NDArray[Any],
    segments: NDArray[Any],
    affinities: NDArray[Any],
    *,
    layout: IdLayout,
    position: Vec3,
    box: Bbox,
    read_box: Bbox,
    bounds: Bbox,
) -> ChunkGraph:
    """Measure the contacts of the pieces in a chunk.

    An edge across a face is found by both chunks, each from its side, with the same
    affinity and area. Within one chunk every face counts once.

    Parameters
    ----------
    pieces, supervoxels, segments : unsigned array, (x, y, z)
        Ids; `pieces` as `cut_supervoxels` names them.
    affinities : array, (x, y, z, 3)
        Channel `a` at a voxel joins it to its predecessor along axis `a`.
    layout : IdLayout
        Of the grid of chunks.
    position : Vec3
        Of the chunk in that grid.
    box : Bbox
        The chunk.
    read_box : Bbox
        Box of the arrays: the chunk with `CHUNK_GRAPH_HALO`, clipped to the bounds.
    bounds : Bbox
        Bounds of the volume.

    Raises
    ------
    DataError
        If a piece lies in no supervoxel or segment.
    """
    supervoxel_of = _parents(pieces, supervoxels, "supervoxel")
    segment_of = _parents(pieces, segments, "segment")
    graph = region_graph(
        pieces,
        affinities,
        box=Bbox(box.start, read_box.stop),
        read_box=read_box,
        bounds=bounds,
    )
    shift = np.uint64(layout.local_bits)
    chunk = np.uint64(layout.base(position)) >> shift
    ours = graph.pairs >> shift == chunk
    near = ours.any(axis=1)
    flip = ~ours[near, 0]
    pairs = np.where(flip[:, None], graph.pairs[near][:, ::-1], graph.pairs[near])
    affinity = graph.affinity[near].sum(axis=1, dtype=np.uint64) / graph.scale
    area = graph.area[near].sum(axis=1, dtype=np.uint64)
    within = ours[near].all(axis=1)
    same = _of(supervoxel_of, pairs[:, 0]) == _of(supervoxel_of, pairs[:, 1])

    def edges(rows: NDArray[np.bool_]) -> ChunkEdges:
        order = np.lexsort((pairs[rows, 1], pairs[rows, 0]))
        first, second = pairs[rows][order].T
        return ChunkEdges(
            np.ascontiguousarray(first),
            np.ascontiguousarray(second),
            affinity[rows][order].astype(np.float32),
            area[rows][order],
        )

    cut = edges(same & ~within)
    here = np.array(
        [p for p in supervoxel_of if p >> layout.local_bits == chunk], np.uint64
    )
    here.sort()
    known = np.union1d(here, pairs[:, 1])
    return ChunkGraph(
        pieces=here,
        in_chunk=edges(within),
        between_chunk=edges(~same & ~within),
        cross_chunk=ChunkEdges(
            cut.first,
            cut.second,
            np.full(len(cut), np.inf, np.float32),
            np.ones(len(cut), np.uint64),
        ),
        components=_components(known, _of(segment_of, known)),
    )


def _parents(pieces: _Ids, labels: NDArray[Any], what: str) -> dict[int, int]:
    """Return what each piece lies in, and see that it lies in something."""
    found = fastremap.component_map(pieces, label_volume(labels))
    parents = {int(piece): int(parent) for piece, parent in found.items() if piece != 0}
    for piece, parent in parents.items():
        if parent == 0:
            raise DataError(
                f"piece {piece} lies in no {what}; run the stages that write both layers "
                "again, then export into an empty folder"
            )
    return parents


def _of(parents: dict[int, int], pieces: _Ids) -> _Ids:
    found: Iterable[int] = (parents[int(p)] for p in pieces)
    return np.fromiter(found, np.uint64, len(pieces))


def _components(pieces: _Ids, segments: _Ids) -> list[_Ids]:
    """Gather ascending pieces by segment, in order of the first piece of each."""
    order = np.argsort(segments, kind="stable")
    ends = np.flatnonzero(np.diff(segments[order])) + 1
    groups = np.split(pieces[order], ends) if len(pieces) else []
    return sorted(groups, key=lambda group: int(group[0]))
