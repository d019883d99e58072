"""The two cells at a cleft: who is near it, and who is before and behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.tables import Columns, Groups, column, rows_of
from pipeline.specs import VoxelSize

NO_PRE = 1
"""Flag: no segment is presynaptic."""
NO_POST = 2
"""Flag: no segment is postsynaptic."""
AUTAPSE = 4
"""Flag: both sides are one segment."""
GLIA = 8
"""Flag: one side is glia by semantic class."""
VESSEL = 16
"""Flag: one side is a blood vessel by semantic class."""
AT_BOUNDS = 32
"""Flag: the cleft touches the bounds, and may go on beyond."""
LONG = 64
"""Flag: the cleft reaches out of the window that was looked at."""
VANISHED = 128
"""Flag: where a partner was there is no segment any more."""

FLAGS = {
    "no_pre": NO_PRE,
    "no_post": NO_POST,
    "autapse": AUTAPSE,
    "glia": GLIA,
    "vessel": VESSEL,
    "at_bounds": AT_BOUNDS,
    "long": LONG,
    "vanished": VANISHED,
}
"""Bits of ``flags`` by name."""

_AXON, _GLIA, _VESSEL = 2, 4, 5


@dataclass(frozen=True, eq=False)
class SynapseRows(Columns):
    """Synapses: a cleft, the places where its two cells touch it, and whose they are.

    Parameters
    ----------
    ids : uint64 array, (n,)
        The cleft; of several that became one, the largest.
    sizes : uint64 array, (n,)
        Voxels of the cleft.
    sums : int64 array, (n, 3)
        Sum of the places of these voxels.
    clefts : uint32 array, (n,)
        Components that became this one.
    pre_site, post_site : int64 array, (n, 3)
        Voxel of each cell that is nearest to the middle of the cleft; the middle itself
        where there is no cell.
    pre_supervoxel, post_supervoxel : uint64 array, (n,)
        Supervoxel at the site.
    pre_segment, post_segment : uint64 array, (n,)
        Segment at the site; 0 for none.
    pre_score, post_score : float32 array, (n,)
        How sure the assignment is, from 0 to 1.
    pre_class, post_class : uint8 array, (n,)
        Semantic class around the site; 0 unknown.
    flags : uint32 array, (n,)
        Bits of `FLAGS`.
    """

    ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "synapse"))
    sizes: NDArray[np.uint64] = field(metadata=column(np.uint64, "synapse"))
    sums: NDArray[np.int64] = field(metadata=column(np.int64, "synapse", width=3))
    clefts: NDArray[np.uint32] = field(metadata=column(np.uint32, "synapse"))
    pre_site: NDArray[np.int64] = field(metadata=column(np.int64, "synapse", width=3))
    post_site: NDArray[np.int64] = field(metadata=column(np.int64, "synapse", width=3))
    pre_supervoxel: NDArray[np.uint64] = field(metadata=column(np.uint64, "synapse"))
    post_supervoxel: NDArray[np.uint64] = field(metadata=column(np.uint64, "synapse"))
    pre_segment: NDArray[np.uint64] = field(metadata=column(np.uint64, "synapse"))
    post_segment: NDArray[np.uint64] = field(metadata=column(np.uint64, "synapse"))
    pre_score: NDArray[np.float32] = field(metadata=column(np.float32, "synapse"))
    post_score: NDArray[np.float32] = field(metadata=column(np.float32, "synapse"))
    pre_class: NDArray[np.uint8] = field(metadata=column(np.uint8, "synapse"))
    post_class: NDArray[np.uint8] = field(metadata=column(np.uint8, "synapse"))
    flags: NDArray[np.uint32] = field(metadata=column(np.uint32, "synapse"))

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]] = ()) -> Self:
        """Make the columns of rows, whose values are in the order of the columns."""
        columns = zip(*rows, strict=True) if rows else [()] * len(fields(cls))
        return cls(
            *(
                np.array(values, f.metadata["dtype"]).reshape(
                    (len(rows), f.metadata["width"]) if f.metadata["width"] else len(rows)
                )
                for f, values in zip(fields(cls), columns, strict=True)
            )
        )

    @property
    def centroids(self) -> NDArray[np.int64]:
        """Voxel that holds the middle of each cleft, (n, 3)."""
        centroids: NDArray[np.int64] = self.sums // self.sizes.astype(np.int64)[:, None]
        return centroids


@dataclass(frozen=True)
class Surroundings:
    """A cleft and the segments near it, in the box around both.

    Parameters
    ----------
    box : Bbox
        Where the arrays lie.
    cleft : bool array, (x, y, z)
        The cleft.
    near : bool array, (x, y, z)
        What lies within reach of it.
    segments : uint64 array, (x, y, z)
        Ids; 0 is background.
    candidates : uint64 array, (n,)
        Segments with a voxel within reach, ascending.
    is_cut : bool
        Whether the cleft reaches out of the window.
    """

    box: Bbox
    cleft: NDArray[np.bool_]
    near: NDArray[np.bool_]
    segments: NDArray[np.uint64]
    candidates: NDArray[np.uint64]
    is_cut: bool


def surroundings(
    clefts: NDArray[np.uint64],
    segments: NDArray[np.uint64],
    cleft: int,
    *,
    window: Bbox,
    origin: Vec3,
    extent: Bbox,
    reach_nm: float,
    voxel_size_nm: VoxelSize,
) -> Surroundings | None:
    """Cut out what lies around a cleft.

    Parameters
    ----------
    clefts, segments : uint64 array, (x, y, z)
        Ids of a box that holds the window.
    cleft : int
        Id of the cleft.
    window : Bbox
        Where it is looked for.
    origin : Vec3
        First voxel of the arrays.
    extent : Bbox
        The smallest box around the whole cleft.
    reach_nm : float
        How far from the cleft a segment may be [nm].
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].

    Returns
    -------
    Surroundings or None
        None where the window holds nothing of the cleft.
    """
    from scipy.ndimage import distance_transform_edt

    seen = window.intersection(extent)
    mask = clefts[seen.slices(origin)] == np.uint64(cleft)
    place = np.argwhere(mask)
    if not len(place):
        return None
    tight = Bbox(
        seen.start + Vec3.of(place.min(axis=0).tolist()),
        seen.start + Vec3.of((place.max(axis=0) + 1).tolist()),
    )
    margin = Vec3.of([int(reach_nm // s) for s in voxel_size_nm])
    box = Bbox(tight.start - margin, tight.stop + margin).intersection(window)
    mask = clefts[box.slices(origin)] == np.uint64(cleft)
    around = segments[box.slices(origin)]
    near = distance_transform_edt(~mask, sampling=voxel_size_nm) <= reach_nm
    candidates = np.unique(around[near])
    return Surroundings(
        box, mask, near, around, candidates[candidates != 0], not window.contains(extent)
    )


@dataclass(frozen=True)
class Assignment:
    """Who is before and behind a cleft; 0 for nobody.

    Parameters
    ----------
    pre, post : int
        Segments.
    pre_score, post_score : float
        From 0 to 1.
    """

    pre: int = 0
    post: int = 0
    pre_score: float = 0.0
    post_score: float = 0.0


def by_contact(found: Surroundings, classes: NDArray[np.uint8] | None = None) -> Assignment:
    """Take the two segments that have most of a cleft's neighbourhood.

    Of the two, one that is an axon where the other is not is before the cleft. Else the
    one that has more of the cleft itself within it is behind, for what is seen of a cleft
    is mostly the density of the postsynaptic side. Equal ones go by their ids.

    Parameters
    ----------
    found : Surroundings
        The cleft.
    classes : uint8 array, (x, y, z), or None
        Semantic labels of the same box.

    Returns
    -------
    Assignment
        Scores are the shares of each in what is within reach and not background.
    """
    counts = _counts(found.segments[found.near], found.candidates)
    order = _closest(found)
    if not len(order):
        return Assignment()
    share = counts / counts.sum()
    if len(order) == 1:
        # Which side a lone segment is on cannot be told; the density is behind.
        return Assignment(0, int(found.candidates[order[0]]), 0.0, float(share[order[0]]))
    inside = _counts(found.segments[found.cleft], found.candidates)
    first, second = (int(o) for o in order)
    kinds = [class_near(found, int(found.candidates[o]), classes) for o in order]
    if (kinds[0] == _AXON) != (kinds[1] == _AXON):
        is_pre = kinds[0] == _AXON
    elif inside[first] != inside[second]:
        is_pre = bool(inside[first] < inside[second])
    else:
        is_pre = bool(found.candidates[first] < found.candidates[second])
    pre, post = (first, second) if is_pre else (second, first)
    return Assignment(
        int(found.candidates[pre]),
        int(found.candidates[post]),
        float(share[pre]),
        float(share[post]),
    )


def sample_centres(found: Surroundings, patch: Vec3) -> list[Vec3]:
    """Choose where patches of a net are centred: one, or two where a cleft is long.

    A cleft that is longer than half a patch is cut in two across its longest side, counted
    in patches; each patch is centred on the voxel of the cleft that is nearest to the
    middle of its half.

    Parameters
    ----------
    found : Surroundings
        The cleft.
    patch : Vec3
        Extent of a patch [voxel].

    Returns
    -------
    list of Vec3
        Voxels.
    """
    place = np.argwhere(found.cleft)
    size = np.array(patch.astuple())
    lengths = (np.ptp(place, axis=0) + 1) / size
    halves = [place]
    if lengths.max() > 0.5:
        axis = int(np.argmax(lengths))
        order = np.argsort(place[:, axis], kind="stable")
        middle = len(place) // 2
        halves = [place[np.sort(order[:middle])], place[np.sort(order[middle:])]]
    centres = []
    for half in halves:
        away = ((half - half.mean(axis=0)) / size) ** 2
        nearest = half[int(np.argmin(away.sum(axis=1)))]
        centres.append(found.box.start + Vec3.of(nearest.tolist()))
    return centres


def by_means(
    candidates: NDArray[np.uint64],
    patches: list[tuple[NDArray[np.uint64], NDArray[np.float32]]],
) -> Assignment:
    """Take the segments in which a net's mean output is greatest.

    Parameters
    ----------
    candidates : uint64 array, (n,)
        Segments within reach of the cleft, ascending.
    patches : list of (uint64 array, (x, y, z), float32 array, (x, y, z, 2))
        Segments of each patch, and what the net says of pre and of post there.

    Returns
    -------
    Assignment
        Scores are the means; of equal ones the lesser id.
    """
    if not len(candidates):
        return Assignment()
    means = _means(candidates, patches)
    pre, post = (int(i) for i in means.argmax(axis=0))
    return Assignment(
        int(candidates[pre]),
        int(candidates[post]),
        float(means[pre, 0]),
        float(means[post, 1]),
    )


def by_order(
    found: Surroundings, patches: list[tuple[NDArray[np.uint64], NDArray[np.float32]]]
) -> Assignment:
    """Take the pair of `by_contact`, in the order in which a net's mean output is greater.

    Who touches a cleft is plain to see, and a net may prefer a neighbour that does not;
    which of two is before is what it knows.

    Parameters
    ----------
    found : Surroundings
        The cleft.
    patches : list of (uint64 array, (x, y, z), float32 array, (x, y, z, 2))
        Segments of each patch, and what the net says of pre and of post there.

    Returns
    -------
    Assignment
        Scores are the means. A lone segment is on the side where its mean is greater.
    """
    pair = found.candidates[_closest(found)]
    if not len(pair):
        return Assignment()
    means = _means(pair, patches)
    if len(pair) == 1:
        (segment,), ((pre, post),) = pair.tolist(), means.tolist()
        return (
            Assignment(segment, 0, pre, 0.0)
            if pre > post
            else Assignment(0, segment, 0.0, post)
        )
    in_order = means[0, 0] + means[1, 1] >= means[1, 0] + means[0, 1]
    first, second = (0, 1) if in_order else (1, 0)
    return Assignment(
        int(pair[first]),
        int(pair[second]),
        float(means[first, 0]),
        float(means[second, 1]),
    )


def _closest(found: Surroundings) -> NDArray[np.intp]:
    """Return which two candidates have most of a cleft's neighbourhood, most first."""
    counts = _counts(found.segments[found.near], found.candidates)
    return np.argsort(-counts, kind="stable")[:2]


def _means(
    candidates: NDArray[np.uint64],
    patches: list[tuple[NDArray[np.uint64], NDArray[np.float32]]],
) -> NDArray[np.float64]:
    """Average a net's output over the voxels of each candidate, (n, 2)."""
    order = np.argsort(candidates)
    sums, counts = np.zeros((len(candidates), 2)), np.zeros(len(candidates))
    for segments, said in patches:
        # All in the order of memory.
        flat = segments.reshape(-1, order="F")
        both = said.reshape(-1, 2, order="F")
        row = rows_of(candidates[order], flat)
        chosen = np.flatnonzero(row >= 0)
        row = order[row[chosen]]
        counts += np.bincount(row, minlength=len(candidates))
        for side in range(2):
            sums[:, side] += np.bincount(row, both[chosen, side], minlength=len(candidates))
    means: NDArray[np.float64] = sums / np.maximum(counts, 1)[:, None]
    return means


def site_of(
    found: Surroundings, segment: int, centre: Vec3, voxel_size_nm: VoxelSize
) -> Vec3:
    """Return the voxel of a segment within reach that is nearest to a cleft's middle.

    Of equally near ones the first, x slowest; the middle itself for segment 0.
    """
    if segment == 0:
        return centre
    place = np.argwhere(found.near & (found.segments == np.uint64(segment)))
    away = place + np.array((found.box.start - centre).astuple())
    nearest = np.argmin(((away * np.array(voxel_size_nm)) ** 2).sum(axis=1))
    return found.box.start + Vec3.of(place[int(nearest)].tolist())


def class_near(found: Surroundings, segment: int, classes: NDArray[np.uint8] | None) -> int:
    """Return the most common class of a segment within reach; 0 for unknown."""
    if classes is None or segment == 0:
        return 0
    here = classes[found.near & (found.segments == np.uint64(segment))]
    return int(np.bincount(here[here != 0], minlength=1).argmax()) if here.any() else 0


def flags_of(
    assigned: Assignment, classes: tuple[int, int], *, is_cut: bool, at_bounds: bool
) -> int:
    """Return the flags of a synapse."""
    flags = 0
    if not assigned.pre:
        flags |= NO_PRE
    if not assigned.post:
        flags |= NO_POST
    if assigned.pre and assigned.pre == assigned.post:
        flags |= AUTAPSE
    if _GLIA in classes:
        flags |= GLIA
    if _VESSEL in classes:
        flags |= VESSEL
    if is_cut:
        flags |= LONG
    if at_bounds:
        flags |= AT_BOUNDS
    return flags


def _counts(
    labels: NDArray[np.uint64], candidates: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Count the voxels of each candidate among labels."""
    found, n = np.unique(labels, return_counts=True)
    counts = np.zeros(len(candidates), np.int64)
    if len(found):
        row = np.minimum(np.searchsorted(found, candidates), len(found) - 1)
        counts = np.where(found[row] == candidates, n[row], 0)
    return counts


def merge_duplicates(
    rows: SynapseRows, *, within_nm: float, voxel_size_nm: VoxelSize
) -> SynapseRows:
    """Make one of the clefts of a pair that lie close together.

    Clefts of the same pre and post whose middles are no farther apart become one, and so do
    those that a chain of such clefts links. What has no partner is left as it is.

    Parameters
    ----------
    rows : SynapseRows
        All synapses of whatever pairs they are of.
    within_nm : float
        Greatest distance [nm].
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].

    Returns
    -------
    SynapseRows
        Ascending by id. Sizes, sums and numbers of clefts are added up, flags united; the
        rest is that of the largest cleft, of equal ones the one of the lesser id.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n = len(rows.ids)
    group = np.arange(n)
    whole = np.flatnonzero((rows.pre_segment != 0) & (rows.post_segment != 0))
    pairs = np.stack([rows.pre_segment[whole], rows.post_segment[whole]], axis=1)
    middle = rows.sums / np.maximum(rows.sizes, 1)[:, None] * np.array(voxel_size_nm)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    changes = (pairs[order][1:] != pairs[order][:-1]).any(axis=1)
    links: list[NDArray[Any]] = [np.zeros((0, 2), np.intp)]
    for members in np.split(order, np.flatnonzero(changes) + 1):
        if len(members) > 1:
            at = whole[members]
            near = cKDTree(middle[at]).query_pairs(within_nm, output_type="ndarray")
            links.append(at[near])
    linked = np.concatenate(links)
    if len(linked):
        ones = np.ones(len(linked))
        graph = coo_array((ones, (linked[:, 0], linked[:, 1])), shape=(n, n))
        group = connected_components(graph, directed=False)[1]
    return _united(rows, group)


def _united(rows: SynapseRows, group: NDArray[Any]) -> SynapseRows:
    """Make one row of each group."""
    # The last of a group is its largest, of equal ones that of the lesser id.
    groups = Groups(group, rows.sizes, ~rows.ids)
    last = {name: groups.last(values) for name, values in rows.to_table().items()}
    sums = {
        name: groups.reduce(np.add, getattr(rows, name))
        for name in ("sizes", "sums", "clefts")
    }
    flags = groups.reduce(np.bitwise_or, rows.flags)
    merged = {**last, **sums, "flags": flags}
    order = np.argsort(merged["ids"], kind="stable")
    return SynapseRows.from_table({name: v[order] for name, v in merged.items()})


def with_segments(
    rows: SynapseRows, pre: NDArray[np.uint64], post: NDArray[np.uint64]
) -> SynapseRows:
    """Give synapses the segments that are now at their sites.

    Where a cell was and none is any more, the synapse is flagged and keeps no partner.

    Parameters
    ----------
    rows : SynapseRows
        Synapses.
    pre, post : uint64 array, (n,)
        Segments at the sites.
    """
    had_pre, had_post = rows.flags & NO_PRE == 0, rows.flags & NO_POST == 0
    pre = np.where(had_pre, pre, np.uint64(0))
    post = np.where(had_post, post, np.uint64(0))
    lost = (had_pre & (pre == 0)) | (had_post & (post == 0))
    flags = rows.flags & ~np.uint32(AUTAPSE)
    flags = flags | np.where(lost, np.uint32(VANISHED), np.uint32(0))
    flags = flags | np.where((pre == post) & (pre != 0), np.uint32(AUTAPSE), np.uint32(0))
    table = rows.to_table()
    return SynapseRows.from_table(
        {**table, "pre_segment": pre, "post_segment": post, "flags": flags}
    )
