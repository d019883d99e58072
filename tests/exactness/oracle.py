"""What a segmentation is: its definitions, over a whole volume, one decision at a time.

Nothing here knows of chunks, threads, waves or fixed-width integers, and nothing is
imported from the kernels. Voxels are called by their place in the volume, x fastest; an
edge (a face between two voxels) by its key, 3 times the place of its upper voxel plus its
axis; a supervoxel by its id and a segment by one of its supervoxels.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.ids import IdLayout

CLASSES = ("soma", "axon", "dendrite", "glia", "vessel")
CLASHES = {
    frozenset(pair)
    for pair in (
        ("soma", "glia"),
        ("axon", "glia"),
        ("dendrite", "glia"),
        ("axon", "dendrite"),
        ("axon", "soma"),
    )
}


class Edge(NamedTuple):
    """A face between two voxels; tuples compare as edges do, the greatest first to go."""

    affinity: int
    key: int
    lower: int
    upper: int


# -- affinities -----------------------------------------------------------------------


def scale_of(affinities: NDArray[Any]) -> int:
    """Return the whole number that stands for an affinity of 1."""
    return 255 if affinities.dtype == np.uint8 else 2**20


def fixed_point(affinity: int | float) -> int:
    """Round an affinity to a whole number of steps, halves up; uint8 is one already."""
    if isinstance(affinity, int):
        return affinity
    n, d = min(max(affinity, 0.0), 1.0).as_integer_ratio()
    return (2 * n * 2**20 + d) // (2 * d)


def edges_of(affinities: NDArray[Any], masked: NDArray[Any] | None = None) -> list[Edge]:
    """List the edges of a volume; an edge of a voxel that is masked out does not exist."""
    shape = affinities.shape[:3]
    steps = (1, shape[0], shape[0] * shape[1])
    values = [affinities[..., axis].ravel("F").tolist() for axis in range(3)]
    out = [False] * math.prod(shape) if masked is None else masked.ravel("F").tolist()
    edges = []
    for place, (z, y, x) in enumerate(itertools.product(*map(range, shape[::-1]))):
        for axis, at in enumerate((x, y, z)):
            lower = place - steps[axis]
            if at > 0 and not out[place] and not out[lower]:
                value = fixed_point(values[axis][place])
                edges.append(Edge(value, 3 * place + axis, lower, place))
    return edges


# -- supervoxels ----------------------------------------------------------------------


class Groups:
    """Disjoint groups; each is called by its smallest member."""

    def __init__(self, members: Iterable[int]) -> None:
        self.of = {m: m for m in members}
        self.members = {m: [m] for m in self.of}

    def unite(self, a: int, b: int) -> None:
        keep, drop = sorted((self.of[a], self.of[b]))
        if keep == drop:
            return
        moved = self.members.pop(drop)
        self.members[keep] += moved
        for member in moved:
            self.of[member] = keep

    def size(self, a: int) -> int:
        return len(self.members[self.of[a]])


def watershed(edges: list[Edge], low: int, high: int) -> Groups:
    """Join voxels by the edges that an end chose, and by all from ``high`` on.

    A voxel chooses its greatest edge, if that is above ``low``; one without a choice is
    background.
    """
    choice: dict[int, Edge] = {}
    for edge in edges:
        if edge.affinity > low:
            for voxel in (edge.lower, edge.upper):
                choice[voxel] = max(edge, choice.get(voxel, edge))
    basins = Groups(sorted(choice))
    for edge in choice.values():
        basins.unite(edge.lower, edge.upper)
    for edge in edges:
        if edge.affinity >= high:
            basins.unite(edge.lower, edge.upper)
    return basins


def single_linkage(
    basins: Groups, edges: list[Edge], low: int, size_threshold: int
) -> None:
    """Join groups by every edge above ``low``, descending, unless both are large."""
    for edge in sorted(edges, reverse=True):
        if edge.affinity > low:
            ends = (edge.lower, edge.upper)
            if min(basins.size(v) for v in ends) < size_threshold:
                basins.unite(*ends)


def supervoxels(
    affinities: NDArray[Any],
    *,
    low: float,
    high: float,
    size_threshold: int,
    dust: int,
    id_chunk: Vec3,
    masked: NDArray[Any] | None = None,
) -> NDArray[np.uint64]:
    """Label a volume with its supervoxels."""
    shape = affinities.shape[:3]
    scale = scale_of(affinities)
    lowest, highest = math.floor(low * scale), math.ceil(high * scale)
    edges = edges_of(affinities, masked)
    groups = watershed(edges, lowest, highest)
    single_linkage(groups, edges, lowest, size_threshold)
    kept = (members for members in groups.members.values() if len(members) >= dust)
    return named(kept, Vec3.of(shape), id_chunk)


def named(groups: Iterable[list[int]], shape: Vec3, id_chunk: Vec3) -> NDArray[np.uint64]:
    """Label groups of voxels, each after its first; what is in none is background."""
    labels = np.zeros(shape.product, np.uint64)
    for members in groups:
        labels[members] = name_of(min(members), shape, id_chunk)
    return labels.reshape(shape.astuple(), order="F")


def name_of(place: int, shape: Vec3, id_chunk: Vec3) -> int:
    """Return the id of the supervoxel that begins at a voxel."""
    voxel = Vec3(place % shape.x, place // shape.x % shape.y, place // (shape.x * shape.y))
    within = voxel % id_chunk
    local = 1 + within.x + id_chunk.x * (within.y + id_chunk.y * within.z)
    layout = IdLayout.of_grid(Grid(Bbox.of_shape(shape), id_chunk))
    return layout.base(voxel // id_chunk) + local


# -- the region graph -----------------------------------------------------------------


@dataclass
class Region:
    """A supervoxel."""

    first: int
    size: int = 0
    coordinate_sum: list[int] = field(default_factory=lambda: [0, 0, 0])
    start: list[int] = field(default_factory=list)
    stop: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=lambda: [0] * len(CLASSES))


@dataclass
class Contact:
    """The faces between two supervoxels."""

    key: int
    affinity: list[int] = field(default_factory=lambda: [0, 0, 0])
    area: list[int] = field(default_factory=lambda: [0, 0, 0])


@dataclass
class Graph:
    """Supervoxels by id, and contacts by pair of ids, smaller first."""

    regions: dict[int, Region]
    contacts: dict[tuple[int, int], Contact]


def region_graph(
    labels: NDArray[Any],
    affinities: NDArray[Any],
    start: Vec3,
    semantic: NDArray[Any] | None = None,
) -> Graph:
    """Measure every supervoxel and every contact; ``start`` is the volume's first voxel."""
    ids = labels.ravel("F").tolist()
    shape = labels.shape
    kinds = [0] * len(ids) if semantic is None else semantic.ravel("F").tolist()
    regions: dict[int, Region] = {}
    for place, (z, y, x) in enumerate(itertools.product(*map(range, shape[::-1]))):
        if ids[place] == 0:
            continue
        at = [a + b for a, b in zip((x, y, z), start, strict=True)]
        region = regions.setdefault(ids[place], Region(place, start=at[:], stop=at[:]))
        region.size += 1
        for axis in range(3):
            region.coordinate_sum[axis] += at[axis]
            region.start[axis] = min(region.start[axis], at[axis])
            region.stop[axis] = max(region.stop[axis], at[axis] + 1)
        if 1 <= kinds[place] <= len(CLASSES):
            region.classes[kinds[place] - 1] += 1
    contacts: dict[tuple[int, int], Contact] = {}
    for edge in edges_of(affinities):
        a, b = sorted((ids[edge.lower], ids[edge.upper]))
        if a == 0 or a == b:
            continue
        contact = contacts.setdefault((a, b), Contact(edge.key))
        axis = edge.key % 3
        contact.affinity[axis] += edge.affinity
        contact.area[axis] += 1
        contact.key = min(contact.key, edge.key)
    return Graph(regions, contacts)


# -- agglomeration --------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """Which merges are refused where the mean affinity is below ``activation``.

    Two segments whose predominant classes clash are not merged: a class predominates
    that ``labelled_share`` of at least ``labelled_size`` voxels are of. Nor are two that
    both have more supervoxels than ``both_members``, one of them more than ``one_member``.
    """

    activation: float = 0.5
    labelled_size: int = 170_000
    labelled_share: float = 0.6
    both_members: int = 1_000
    one_member: int = 10_000


@dataclass
class Cluster:
    """A segment in the making, called after its least supervoxel."""

    name: int
    size: int
    members: int
    classes: list[int]
    contacts: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def predominant(self, rules: Rules) -> str | None:
        """Name the class that most of a large segment's voxels are of."""
        if self.size < rules.labelled_size:
            return None
        for name, count in zip(CLASSES, self.classes, strict=True):
            if count > 0 and Fraction(count, self.size) >= rounded(rules.labelled_share):
                return name
        return None


class Merge(NamedTuple):
    """Two segments that became one, named for ``winner``, and their contact."""

    loser: int
    winner: int
    affinity: int
    area: int


class Refusal(NamedTuple):
    """A merge that was not made: of whom, where the first face of their contact is, why."""

    names: tuple[int, int]
    sizes: tuple[int, int]
    members: tuple[int, int]
    classes: tuple[str | None, str | None]
    affinity: int
    area: int
    key: int
    why: str


@dataclass
class Agglomeration:
    """The outcome of the sequential procedure."""

    history: list[Merge]
    refused: list[Refusal]
    scale: int

    def segments(self, ids: Iterable[int], threshold: float) -> dict[int, int]:
        """Return the segment of each supervoxel at a threshold."""
        groups = {i: i for i in ids}
        for merge in self.history:
            if Fraction(merge.affinity, merge.area) >= rounded(threshold) * self.scale:
                groups = {
                    i: merge.winner if g == merge.loser else g for i, g in groups.items()
                }
        return groups


def rounded(parameter: float) -> Fraction:
    """Return a fraction as agglomeration takes it, in steps of 1e-9: 0.6 is 3/5."""
    return Fraction(round(parameter * 10**9), 10**9)


def agglomerate(
    graph: Graph, *, scale: int, floor: float, rules: Rules | None = None
) -> Agglomeration:
    """Merge by mean affinity, the greatest first, ties by smaller key.

    A merge that the rules refuse is logged, and its contact deleted: what is added to
    the contact of the two later starts anew.
    """
    clusters = {
        name: Cluster(name, r.size, 1, r.classes[:]) for name, r in graph.regions.items()
    }
    heap: list[tuple[Fraction, int, int, int, tuple[int, int, int]]] = []

    def connect(a: int, b: int, contact: tuple[int, int, int]) -> None:
        clusters[a].contacts[b] = clusters[b].contacts[a] = contact
        total, area, key = contact
        heapq.heappush(heap, (-Fraction(total, area), key, a, b, contact))

    for (a, b), c in graph.contacts.items():
        connect(a, b, (sum(c.affinity), sum(c.area), c.key))

    history, refused = [], []
    while heap:
        descent, _, a, b, contact = heapq.heappop(heap)
        if a not in clusters or clusters[a].contacts.get(b) != contact:
            continue
        mean = -descent / scale
        if mean < rounded(floor):
            break
        winner, loser = clusters[min(a, b)], clusters[max(a, b)]
        del winner.contacts[loser.name], loser.contacts[winner.name]
        why = refusal(winner, loser, mean, rules) if rules else None
        if rules and why:
            refused.append(
                Refusal(
                    (winner.name, loser.name),
                    (winner.size, loser.size),
                    (winner.members, loser.members),
                    (winner.predominant(rules), loser.predominant(rules)),
                    *contact,
                    why,
                )
            )
            continue
        history.append(Merge(loser.name, winner.name, *contact[:2]))
        winner.size += loser.size
        winner.members += loser.members
        winner.classes = [p + q for p, q in zip(winner.classes, loser.classes, strict=True)]
        del clusters[loser.name]
        for other, (total, area, first) in loser.contacts.items():
            del clusters[other].contacts[loser.name]
            before = winner.contacts.get(other, (0, 0, first))
            both = (before[0] + total, before[1] + area, min(before[2], first))
            connect(winner.name, other, both)
    return Agglomeration(history, refused, scale)


def refusal(a: Cluster, b: Cluster, mean: Fraction, rules: Rules) -> str | None:
    """Say why two segments are not merged, or None if they are."""
    if mean >= rounded(rules.activation):
        return None
    if {a.predominant(rules), b.predominant(rules)} in CLASHES:
        return "semantic"
    fewer, more = sorted((a.members, b.members))
    return "size" if fewer > rules.both_members and more > rules.one_member else None


def applied(labels: NDArray[Any], targets: Mapping[int, int]) -> NDArray[np.uint64]:
    """Replace the ids of a volume; background stays."""
    flat = [targets[i] if i else 0 for i in labels.ravel("F").tolist()]
    return np.array(flat, np.uint64).reshape(labels.shape, order="F")
