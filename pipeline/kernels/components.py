"""Connected components of a mask: cut into chunks, joined again, and measured.

A chunk numbers its own pieces, and says which of them hang together with those of the
chunks before it. `merge_basins` joins them: a piece is a basin, and a contact a join.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Halo
from pipeline.kernels.merge_basins import OpenBasins
from pipeline.kernels.tables import Columns, Groups, column

Connectivity: TypeAlias = Literal[6, 18, 26]
"""Neighbours of a voxel: across faces, edges too, corners too."""

COMPONENT_HALO = Halo.of(before=1, after=(1, 1, 0))
"""Of two neighbours in two chunks the one that comes later, x fastest, owns the contact;
the other may so lie further up along x and y, but not along z."""


@dataclass(frozen=True, eq=False)
class Extents(Columns):
    """How large components are and where they lie, in whole numbers.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Components, ascending.
    sizes : uint64 array, (n,)
        Voxels of each.
    sums : int64 array, (n, 3)
        Sum of the places of its voxels; divided by the size it is the centroid.
    low, high : int64 array, (n, 3)
        The smallest box around it, half-open.
    """

    ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "component"))
    sizes: NDArray[np.uint64] = field(metadata=column(np.uint64, "component"))
    sums: NDArray[np.int64] = field(metadata=column(np.int64, "component", width=3))
    low: NDArray[np.int64] = field(metadata=column(np.int64, "component", width=3))
    high: NDArray[np.int64] = field(metadata=column(np.int64, "component", width=3))

    @property
    def centroids(self) -> NDArray[np.int64]:
        """Voxel that holds the centroid of each, (n, 3); a tie goes down."""
        centroids: NDArray[np.int64] = self.sums // self.sizes.astype(np.int64)[:, None]
        return centroids


def component_pieces(
    mask: NDArray[np.bool_], *, connectivity: Connectivity, base: int
) -> NDArray[np.uint64]:
    """Name the connected components of a chunk by their first voxels.

    Parameters
    ----------
    mask : bool array, (x, y, z)
        What belongs to a component.
    connectivity : {6, 18, 26}
        Which voxels are neighbours.
    base : int
        Id of the chunk; a piece is called ``base`` + 1 + the place of its first voxel, x
        fastest.

    Returns
    -------
    uint64 array, (x, y, z), Fortran order
        Ids; 0 is background.
    """
    import cc3d

    found = np.zeros(mask.shape, np.uint64, order="F")
    inside = np.flatnonzero(mask.reshape(-1, order="F"))
    if not len(inside):
        return found
    labels, n = cc3d.connected_components(
        np.asfortranarray(mask), connectivity=connectivity, return_N=True
    )
    of = labels.reshape(-1, order="F")[inside]
    first = np.empty(n + 1, np.uint64)
    # The last assignment stands, so that from the end the first voxel remains.
    first[of[::-1]] = inside[::-1]
    found.reshape(-1, order="F")[inside] = first[of] + np.uint64(base + 1)
    return found


def component_graph(
    pieces: NDArray[np.uint64],
    *,
    box: Bbox,
    read_box: Bbox,
    bounds: Bbox,
    connectivity: Connectivity,
) -> OpenBasins:
    """Say how large the pieces of a chunk are, and what they hang together with.

    Parameters
    ----------
    pieces : uint64 array, (x, y, z)
        Of the chunk and its halo, as `component_pieces` numbers them.
    box : Bbox
        The chunk.
    read_box : Bbox
        The chunk with its halo, within the bounds.
    bounds : Bbox
        Bounds of the volume.
    connectivity : {6, 18, 26}
        As for the pieces.

    Returns
    -------
    OpenBasins
        State of a leaf of the octree: pieces, and joins to those of earlier chunks.

    Raises
    ------
    ValueError
        If the pieces lack part of the halo.
    """
    wanted = bounds.intersection(box.grown(COMPONENT_HALO))
    if not read_box.contains(wanted) or pieces.shape != read_box.shape.astuple():
        raise ValueError(
            f"pieces of {read_box} lack part of the halo of chunk {box}; read {wanted}"
        )
    low = _vector(box.start - read_box.start)
    high = low + _vector(box.shape)
    inside, every = _foreground(pieces)
    place = _places(inside, pieces.shape)
    own = ((place >= low) & (place < high)).all(axis=1)
    place, of = place[own], every[own]
    ids, first, row, sizes = np.unique(
        of, return_index=True, return_inverse=True, return_counts=True
    )
    extent = bounds.shape
    begin = place[first] + _vector(read_box.start - bounds.start)
    anchors = begin[:, 0] + extent.x * (begin[:, 1] + extent.y * begin[:, 2])

    faces = np.zeros(len(ids), np.uint8)
    shell = np.zeros(len(of), bool)
    for axis in range(3):
        for bit, at, is_open in (
            (axis, low[axis], box.start[axis] > bounds.start[axis]),
            (3 + axis, high[axis] - 1, box.stop[axis] < bounds.stop[axis]),
        ):
            if is_open:
                touching = place[:, axis] == at
                faces[row[touching]] |= np.uint8(1 << bit)
                shell |= touching
    port = faces != 0
    none = np.zeros(0, np.uint64)
    pair = np.zeros((0, 2), np.uint64)
    return OpenBasins(
        ids=ids,
        sizes=sizes.astype(np.uint64),
        anchors=anchors.astype(np.uint64),
        port_ids=ids[port],
        port_faces=faces[port],
        port_clusters=ids[port],
        joins=_joins(pieces, place[shell], of[shell], (low, high), connectivity),
        pairs=pair,
        affinities=none,
        keys=none,
        cross_pairs=pair,
        cross_affinities=none,
        cross_keys=none,
        scale=1,
    )


def _joins(
    pieces: NDArray[np.uint64],
    place: NDArray[np.int64],
    of: NDArray[np.uint64],
    core: tuple[NDArray[np.int64], NDArray[np.int64]],
    connectivity: Connectivity,
) -> NDArray[np.uint64]:
    """Return the pairs of pieces in contact of which one lies in the halo.

    Parameters
    ----------
    pieces : uint64 array, (x, y, z)
        Of the chunk and its halo.
    place : int64 array, (n, 3)
        Voxels of pieces at the faces of the chunk.
    of : uint64 array, (n,)
        Their pieces.
    core : (low, high)
        Where the chunk lies in the array.
    connectivity : {6, 18, 26}
        Which voxels are neighbours.
    """
    flat = pieces.reshape(-1, order="F")
    along_x, along_y, _ = pieces.shape
    low, high = core
    found = [np.zeros((0, 2), np.uint64)]
    for step in _predecessors(connectivity):
        to = place + np.array(step)
        beyond = ((to < low) | (to >= high)).any(axis=1)
        beyond &= ((to >= 0) & (to < pieces.shape)).all(axis=1)
        x, y, z = to[beyond].T
        met = flat[x + along_x * (y + along_y * z)]
        is_one = met != 0
        found.append(np.stack([met[is_one], of[beyond][is_one]], axis=1))
    pairs = np.concatenate(found)
    pairs.sort(axis=1)
    unique: NDArray[np.uint64] = np.unique(pairs, axis=0)
    return unique


def _predecessors(connectivity: Connectivity) -> list[tuple[int, int, int]]:
    """List the steps to the neighbours that come before a voxel, x fastest."""
    farthest = {6: 1, 18: 2, 26: 3}[connectivity]
    return [
        (x, y, z)
        for x, y, z in product((-1, 0, 1), repeat=3)
        if (z, y, x) < (0, 0, 0) and abs(x) + abs(y) + abs(z) <= farthest
    ]


def extents(labels: NDArray[np.uint64], box: Bbox) -> Extents:
    """Measure the parts of components that lie in a box.

    Parameters
    ----------
    labels : uint64 array, (x, y, z)
        Ids of the box; 0 is background.
    box : Bbox
        Where it lies.

    Returns
    -------
    Extents
        Of each id in it.
    """
    inside, of = _foreground(labels)
    place = _places(inside, labels.shape) + _vector(box.start)
    groups = Groups(of)
    return Extents(
        ids=groups.first(of),
        sizes=groups.reduce(np.add, np.ones(len(of), np.uint64)),
        sums=groups.reduce(np.add, place),
        low=groups.reduce(np.minimum, place),
        high=groups.reduce(np.maximum, place) + 1,
    )


def merge_extents(parts: list[Extents]) -> Extents:
    """Add up what several boxes hold of components; exact, in any order."""

    def all_of(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(p, name) for p in parts])

    ids = all_of("ids")
    groups = Groups(ids)
    return Extents(
        ids=groups.first(ids),
        sizes=groups.reduce(np.add, all_of("sizes")),
        sums=groups.reduce(np.add, all_of("sums")),
        low=groups.reduce(np.minimum, all_of("low")),
        high=groups.reduce(np.maximum, all_of("high")),
    )


def _foreground(
    labels: NDArray[np.uint64],
) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Return where labels are not 0, x fastest, and what they are."""
    flat = labels.reshape(-1, order="F")
    # Of booleans numpy finds them several times as fast.
    inside = np.flatnonzero(flat != 0)
    return inside, flat[inside]


def _places(flat: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the places of voxels in an array, (n, 3), from their numbers, x fastest."""
    along_x, along_y, _ = shape
    rows, x = np.divmod(flat, along_x)
    z, y = np.divmod(rows, along_y)
    return np.stack([x, y, z], axis=1).astype(np.int64)


def _vector(value: Any) -> NDArray[np.int64]:
    return np.array(value.astuple(), np.int64)
