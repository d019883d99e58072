"""Mean-affinity agglomeration of a region graph, node by node of the octree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.geometry import ALL_FACES
from pipeline.kernels import _cpp
from pipeline.kernels.merge_basins import Outcomes
from pipeline.kernels.partition import Decision, Linkage, Ranked, Unfinished
from pipeline.kernels.placement import data_errors
from pipeline.kernels.region_graph import CLASSES, RegionGraph
from pipeline.kernels.relabel import RemapTable
from pipeline.kernels.tables import Columns, Groups, column, common_scale, rows_of
from pipeline.specs import Table

REASONS = ("", "semantic", "size")
"""Why a merge was refused, by the number in a table."""

_FRACTION_STEPS = 10**9


class Constraints(BaseModel):
    """What may not merge where the mean affinity is weak (Macrina 2021, Methods).

    Parameters
    ----------
    activation : float
        Contacts of this mean affinity or more merge whatever they join; 0 switches
        the constraints off.
    labelled_size : int
        Voxels from which on a cluster's class counts.
    labelled_share : float
        Share of its voxels that a class must hold to count, above one half.
    clashes : tuple of pairs of str
        Classes that do not merge.
    both_members, one_member : int
        Two clusters that both have more supervoxels than the first, one of them more
        than the second, do not merge.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation: float = Field(default=0.5, ge=0, le=1)
    labelled_size: int = Field(default=170_000, ge=0)
    labelled_share: float = Field(default=0.6, gt=0.5, le=1)
    clashes: tuple[tuple[str, str], ...] = (
        ("soma", "glia"),
        ("axon", "glia"),
        ("dendrite", "glia"),
        ("axon", "dendrite"),
        ("axon", "soma"),
    )
    both_members: int = Field(default=1_000, ge=0)
    one_member: int = Field(default=10_000, ge=0)

    @field_validator("clashes")
    @classmethod
    def _known(cls, clashes: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for name in (n for pair in clashes for n in pair):
            if name not in CLASSES:
                raise ValueError(
                    f"there is no semantic class {name!r}; the classes are "
                    f"{', '.join(CLASSES)}"
                )
        return clashes

    def rules(self) -> _cpp.Constraints:
        """Return the constraints as the kernel takes them."""
        clashes = [0] * len(CLASSES)
        for a, b in self.clashes:
            clashes[CLASSES.index(a)] |= 1 << CLASSES.index(b)
            clashes[CLASSES.index(b)] |= 1 << CLASSES.index(a)
        return _cpp.Constraints(
            _steps(self.activation),
            self.labelled_size,
            _steps(self.labelled_share),
            tuple(clashes),
            self.both_members,
            self.one_member,
        )


@dataclass(frozen=True, eq=False)
class Clusters(Columns):
    """Clusters of supervoxels that a node of the octree has not finished.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Supervoxel that each is known by, ascending. One that goes on outside the node
        is known by the supervoxel that does.
    names : uint64 array, (n,)
        Least supervoxel in each.
    size : uint64 array, (n,)
        Voxels of each.
    merged : uint64 array, (n,)
        Supervoxels in each, but for the one that it is known by.
    classes : uint64 array, (n, 5)
        Voxels of each of `CLASSES`.
    faces : uint8 array, (n,)
        Open faces of the node that each touches, as bits of `ALL_FACES`.
    pairs : uint64 array, (m, 2)
        Clusters in contact, or a cluster and a supervoxel outside; ascending.
    affinity : uint64 array, (m,)
        Sum of the fixed-point affinities of the faces between them that are in the node.
    area : uint64 array, (m,)
        Their number.
    key : uint64 array, (m,)
        The first of them, as in `RegionGraph`.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "cluster"))
    names: NDArray[np.uint64] = field(metadata=column(np.uint64, "cluster"))
    size: NDArray[np.uint64] = field(metadata=column(np.uint64, "cluster"))
    merged: NDArray[np.uint64] = field(metadata=column(np.uint64, "cluster"))
    classes: NDArray[np.uint64] = field(
        metadata=column(np.uint64, "cluster", width=len(CLASSES))
    )
    faces: NDArray[np.uint8] = field(metadata=column(np.uint8, "cluster"))
    pairs: NDArray[np.uint64] = field(metadata=column(np.uint64, "contact", width=2))
    affinity: NDArray[np.uint64] = field(metadata=column(np.uint64, "contact"))
    area: NDArray[np.uint64] = field(metadata=column(np.uint64, "contact"))
    key: NDArray[np.uint64] = field(metadata=column(np.uint64, "contact"))
    scale: int

    @classmethod
    def of(cls, graph: RegionGraph) -> Clusters:
        """Return every supervoxel of a chunk as a cluster of its own."""
        return cls(
            ids=graph.ids,
            names=graph.ids,
            size=graph.size,
            merged=np.zeros_like(graph.ids),
            classes=graph.classes,
            faces=graph.faces,
            pairs=graph.pairs,
            affinity=graph.affinity.sum(axis=1),
            area=graph.area.sum(axis=1),
            key=graph.key,
            scale=graph.scale,
        )


@dataclass(frozen=True, eq=False)
class Merges(Columns):
    """Merges that a node made, in no particular order; `merge_history` puts them in one.

    Parameters
    ----------
    pairs : uint64 array, (n, 2)
        Supervoxels that the two clusters are known by.
    affinity, area, key : uint64 array, (n,)
        Their contact.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    pairs: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge", width=2))
    affinity: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    area: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    key: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    scale: int


@dataclass(frozen=True, eq=False)
class Refusals(Columns):
    """Merges that the constraints refused.

    Parameters
    ----------
    names : uint64 array, (n, 2)
        Least supervoxels of the two clusters, the smaller first.
    affinity, area, key : uint64 array, (n,)
        Their contact; the key says where its first face is, as in `RegionGraph`.
    sizes : uint64 array, (n, 2)
        Voxels of each.
    members : uint64 array, (n, 2)
        Supervoxels of each.
    classes : uint8 array, (n, 2)
        Number in `CLASSES` of each one's predominant class, or 255.
    reason : uint8 array, (n,)
        Number in `REASONS`.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    names: NDArray[np.uint64] = field(metadata=column(np.uint64, "refusal", width=2))
    affinity: NDArray[np.uint64] = field(metadata=column(np.uint64, "refusal"))
    area: NDArray[np.uint64] = field(metadata=column(np.uint64, "refusal"))
    key: NDArray[np.uint64] = field(metadata=column(np.uint64, "refusal"))
    sizes: NDArray[np.uint64] = field(metadata=column(np.uint64, "refusal", width=2))
    members: NDArray[np.uint64] = field(metadata=column(np.uint64, "refusal", width=2))
    classes: NDArray[np.uint8] = field(metadata=column(np.uint8, "refusal", width=2))
    reason: NDArray[np.uint8] = field(metadata=column(np.uint8, "refusal"))
    scale: int


@dataclass(frozen=True, eq=False)
class MergeHistory(Columns):
    """Merges in the order in which they are made.

    Parameters
    ----------
    loser, winner : uint64 array, (n,)
        Segments that were merged; the winner, whose id is less, gives its name.
    affinity : uint64 array, (n,)
        Sum of the fixed-point affinities of their contact.
    area : uint64 array, (n,)
        Faces of their contact.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    loser: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    winner: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    affinity: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    area: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    scale: int

    @property
    def score(self) -> NDArray[np.float64]:
        """Mean affinity at which each merge was made, (n,)."""
        return self.affinity / (self.area * float(self.scale))

    def at(self, threshold: float, ids: NDArray[np.uint64]) -> RemapTable:
        """Return the segments that the merges down to a threshold make.

        Mean affinity is reducible: no merge raises a mean above the greatest there is,
        so scores never rise along the history and every threshold is a prefix of it.

        Parameters
        ----------
        threshold : float
            Merges of this score or more count; a multiple of 1e-9.
        ids : uint64 array, (n,)
            Supervoxels, ascending.

        Returns
        -------
        RemapTable
            Segment of each supervoxel, as `agglomerate` with this threshold gives it.
        """
        # Products of Python integers: exact, as the kernel's comparison is.
        limit = _steps(threshold) * self.scale
        made = np.fromiter(
            (
                int(a) * _FRACTION_STEPS >= limit * int(n)
                for a, n in zip(self.affinity, self.area, strict=True)
            ),
            dtype=bool,
            count=len(self.area),
        )
        parent = np.arange(len(ids))
        parent[np.searchsorted(ids, self.loser[made])] = np.searchsorted(
            ids, self.winner[made]
        )
        while (grand := parent[parent]).tobytes() != parent.tobytes():
            parent = grand
        return RemapTable(ids, ids[parent])


@dataclass(frozen=True, eq=False)
class Agglomerated:
    """What a node of the octree made of its children.

    Parameters
    ----------
    state : Clusters
        What its parent has to decide; empty at the top.
    outcomes : Outcomes
        What became of each cluster at the threshold; a settled target is a segment.
    merges : Merges
        Down to the floor.
    refusals : Refusals
        What was not merged.
    """

    state: Clusters
    outcomes: Outcomes
    merges: Merges
    refusals: Refusals


def agglomerate(
    children: Sequence[Clusters],
    *,
    threshold: float,
    floor: float | None = None,
    constraints: Constraints | None = None,
    octants: Sequence[int] = (0,),
    outward: Sequence[int] = (ALL_FACES,),
    absorb: bool = True,
) -> Agglomerated:
    """Merge clusters by mean affinity, the greatest first, as far as a node can decide it.

    The mean is the sum of the affinities over all faces of a contact, whatever their
    axis, divided by their number. Means are compared exactly; of equal means the contact
    whose first face comes first in the volume goes first. A contact that is the best of
    both its clusters is decided alike by the node and by the whole volume; one to a
    cluster that goes on outside is not, and waits for the parent, with what depends on
    it. At the top nothing is outside, and all merges and refusals together are those of
    one pass over the whole volume, whatever the chunks. A segment is called after the
    least supervoxel in it.

    Parameters
    ----------
    children : sequence of Clusters
        Children of the node, or the node itself if it is a chunk.
    threshold : float
        Contacts of this mean affinity or more are merged in ``outcomes``; a
        multiple of 1e-9.
    floor : float or None
        Merging goes on to this mean affinity, for the history; not above the threshold.
    constraints : Constraints or None
        What may not merge.
    octants : sequence of int
        Which child each is.
    outward : sequence of int
        Faces of each child, as bits of `ALL_FACES`, that are faces of the node.
    absorb : bool
        Whether what certainly joins an open cluster does so before that is closed.
        The result at the top is the same; less goes up.

    Returns
    -------
    Agglomerated
        State, outcomes, merges and refusals.

    Raises
    ------
    ValueError
        If a threshold is outside [0, 1].
    DataError
        If a contact is listed twice or scales differ.
    """
    floor = threshold if floor is None else min(floor, threshold)
    for limit in (threshold, floor):
        if not 0 <= limit <= 1:
            raise ValueError(f"agglomeration threshold {limit} is outside [0, 1]")
    scale = common_scale([c.scale for c in children])

    def all_of(name: str) -> NDArray[np.uint64]:
        return np.concatenate([getattr(c, name) for c in children])

    # A supervoxel that several children hold a part of is one cluster.
    every = all_of("ids")
    child = np.repeat(np.array(octants, np.uint8), [len(c.ids) for c in children])
    faces = np.concatenate(
        [c.faces & np.uint8(o) for c, o in zip(children, outward, strict=True)]
    )
    nodes = Groups(every)
    ids = nodes.first(every)
    open_faces = nodes.reduce(np.bitwise_or, faces)
    pairs = all_of("pairs")
    contacts = Groups(pairs)
    pairs = contacts.first(pairs)
    affinity = contacts.reduce(np.add, all_of("affinity"))
    area = contacts.reduce(np.add, all_of("area"))
    key = contacts.reduce(np.minimum, all_of("key"))
    inner = (rows_of(ids, pairs) >= 0).all(axis=1)

    decision = _decided(
        {
            "ids": ids,
            "names": nodes.reduce(np.minimum, all_of("names")),
            "size": nodes.reduce(np.add, all_of("size")),
            "merged": nodes.reduce(np.add, all_of("merged")),
            "classes": nodes.reduce(np.add, all_of("classes")),
        },
        (open_faces != 0).astype(np.uint8),
        {
            "pairs": pairs[inner],
            "affinity": affinity[inner],
            "area": area[inner],
            "key": key[inner],
        },
        threshold=threshold,
        floor=floor,
        scale=scale,
        constraints=constraints,
        absorb=absorb,
    )
    left = decision.clusters
    order = np.argsort(left["ids"])
    kept = decision.contacts
    pairs, affinity, area, key = (
        np.concatenate([kept[name], column[~inner]])
        for name, column in (
            ("pairs", pairs),
            ("affinity", affinity),
            ("area", area),
            ("key", key),
        )
    )
    by_pair = Groups(pairs)
    state = Clusters(
        **{name: column[order] for name, column in left.items()},
        # A cluster that is open is known by the one supervoxel in it that is.
        faces=open_faces[np.searchsorted(ids, left["ids"][order])],
        pairs=by_pair.first(pairs),
        affinity=by_pair.first(affinity),
        area=by_pair.first(area),
        key=by_pair.first(key),
        scale=scale,
    )
    rows = np.searchsorted(ids, every)
    by_id = np.lexsort((child, every))
    outcomes = Outcomes(
        every[by_id],
        child[by_id],
        decision.targets[rows][by_id],
        decision.settled[rows][by_id],
    )
    return Agglomerated(
        state,
        outcomes,
        Merges.from_table(decision.parts["merges"]),
        Refusals.from_table(decision.parts["refusals"]),
    )


@dataclass(frozen=True)
class MeanLinkage(Linkage):
    """Clusters, for merging in partitions.

    Parameters
    ----------
    threshold, least : float
        Threshold and floor of `agglomerate`.
    constraints : Constraints or None
        What may not merge.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    threshold: float
    least: float
    constraints: Constraints | None
    scale: int

    cluster_columns = MappingProxyType(
        {
            "names": (np.minimum, 0),
            "size": (np.add, 0),
            "merged": (np.add, 0),
            "classes": (np.add, len(CLASSES)),
        }
    )
    contact_columns = ("affinity", "area", "key")

    def added_up(self, pairs: NDArray[np.uint64], values: Table) -> Table:
        """Add up the faces of each pair."""
        groups = Groups(pairs)
        return {
            "pairs": groups.first(pairs),
            "affinity": groups.reduce(np.add, values["affinity"]),
            "area": groups.reduce(np.add, values["area"]),
            "key": groups.reduce(np.minimum, values["key"]),
        }

    def ranked(self, values: Table) -> Ranked:
        """Rank by mean affinity, then by first face."""
        return Ranked(values["affinity"], values["area"], values["key"])

    @property
    def floor(self) -> tuple[int, int]:
        """Contacts below it never merge."""
        return _steps(min(self.least, self.threshold)), self.scale

    def decide(
        self, clusters: Table, is_open: NDArray[np.uint8], contacts: Table
    ) -> Decision:
        """Merge; a contact to an open side waits."""
        return _decided(
            clusters,
            is_open,
            contacts,
            threshold=self.threshold,
            floor=min(self.least, self.threshold),
            scale=self.scale,
            constraints=self.constraints,
            absorb=False,
        )

    def unfinished(self, state: Clusters) -> Unfinished:
        """Return what a node has not decided."""
        return Unfinished(
            members=state.ids,
            clusters={"ids": state.ids}
            | {c: getattr(state, c) for c in self.cluster_columns},
            contacts={"pairs": state.pairs}
            | {c: getattr(state, c) for c in self.contact_columns},
        )


def merge_history(parts: Sequence[Merges]) -> MergeHistory:
    """Put the merges of all nodes into the order in which one pass makes them.

    Parameters
    ----------
    parts : sequence of Merges
        Of every node of an octree; their order does not matter.

    Raises
    ------
    DataError
        If there are none, if scales differ, or if a part is given twice.
    """
    scale = common_scale([p.scale for p in parts])
    columns = (
        np.concatenate([getattr(p, name) for p in parts])
        for name in ("pairs", "affinity", "area", "key")
    )
    with data_errors():
        return MergeHistory(*_cpp.replay(*columns), scale=scale)


def _decided(
    clusters: Table,
    is_open: NDArray[np.uint8],
    contacts: Table,
    *,
    threshold: float,
    floor: float,
    scale: int,
    constraints: Constraints | None,
    absorb: bool,
) -> Decision:
    """Merge what can be decided; the columns are those of `Clusters`."""
    rules = Constraints(activation=0) if constraints is None else constraints
    with data_errors():
        fates, left, kept, merges, refusals = _cpp.agglomerate(
            clusters["ids"],
            clusters["names"],
            clusters["size"],
            1 + clusters["merged"],
            clusters["classes"],
            is_open,
            contacts["pairs"],
            contacts["affinity"],
            contacts["area"],
            contacts["key"],
            _steps(threshold),
            _steps(floor),
            scale,
            rules.rules(),
            absorb,
        )
    targets, settled, holders = fates
    ids, names, size, members, classes = left
    pairs, affinity, area, key = kept
    return Decision(
        holders=holders,
        targets=targets,
        settled=settled,
        clusters={
            "ids": ids,
            "names": names,
            "size": size,
            "merged": members - np.uint64(1),
            "classes": classes,
        },
        contacts={"pairs": pairs, "affinity": affinity, "area": area, "key": key},
        parts={
            "merges": Merges(*merges, scale=scale).to_table(),
            "refusals": Refusals(*refusals, scale=scale).to_table(),
        },
    )


def _steps(fraction: float) -> int:
    return round(fraction * _FRACTION_STEPS)
