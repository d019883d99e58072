"""Merging without a place that sees everything: rounds over hash partitions.

Every cluster has a home, one of n partitions, that holds its row and all its contacts.
In a round, each cluster travels to the home of the neighbour that it has its best
contact with. Of two clusters that are the best of each other one is the leader:
with all that chose it, it is decided where it lives, by the same kernel that decides
nodes of the octree, everything else counting as open. Then the results travel home, and
neighbours are told of new names.

A contact that is the best of both its clusters is decided alike at any time (see
`agglomerate`), so the rounds give what one pass over the whole gives, and each round
decides at least the best contact that is left.

A table of a partition has three groups of columns: clusters (``ids`` and what the linkage
knows of each), contacts (``own``, ``other`` and values, once for each end that lives
here), and members (``origin``, ``node``, ``target``), the clusters that nodes of
the octree gave in, with the cluster that holds each now.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.kernels import _cpp
from pipeline.kernels.tables import Groups
from pipeline.specs import Partitioned, Table

Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class Ranked:
    """Contacts as fractions: greater first, of equal ones the smaller key first."""

    sums: Ids
    areas: Ids
    keys: Ids


@dataclass(frozen=True)
class Decision:
    """What a linkage made of clusters.

    Parameters
    ----------
    holders : uint64 array, (n,)
        Unfinished cluster that holds each now, 0 if it is finished.
    targets : uint64 array, (n,)
        What each is part of in the result.
    settled : uint8 array, (n,)
        Whether that is final.
    clusters, contacts : Table
        Unfinished clusters, ``ids`` and columns, and contacts, ``pairs`` and columns.
    parts : dict of str to Table
        More to write down.
    """

    holders: Ids
    targets: Ids
    settled: NDArray[np.uint8]
    clusters: Table
    contacts: Table
    parts: Mapping[str, Table]


class Linkage(ABC):
    """How clusters and contacts add up, which contacts come first, and what merges."""

    cluster_columns: Mapping[str, tuple[np.ufunc, int]]
    """How parts of a cluster add up, and the width of each column."""
    contact_columns: tuple[str, ...]

    @abstractmethod
    def added_up(self, pairs: NDArray[np.uint64], values: Table) -> Table:
        """Add up contacts of the same pair; return ``pairs`` and the columns."""

    @abstractmethod
    def ranked(self, values: Table) -> Ranked:
        """Return contacts in terms of their rank."""

    @property
    @abstractmethod
    def floor(self) -> tuple[int, int]:
        """Least rank that merges: steps of 2**-32, and the scale of the sums."""

    @abstractmethod
    def decide(
        self, clusters: Table, is_open: NDArray[np.uint8], contacts: Table
    ) -> Decision:
        """Merge what can be decided; ``ids`` ascend, and so do ``pairs``."""

    def best(self, ids: Ids, own: Ids, values: Table) -> NDArray[np.int64]:
        """Return the row of each cluster's best contact, -1 for none that merges."""
        ranked = self.ranked(values)
        return _cpp.best_contacts(
            len(ids),
            np.searchsorted(ids, own).astype(np.uint32),
            ranked.sums,
            ranked.areas,
            ranked.keys,
            *self.floor,
        )


def home_of(ids: Ids, n: int) -> NDArray[np.intp]:
    """Return the partition that each cluster lives in."""
    mixed = ids ^ (ids >> np.uint64(31))
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    homes: NDArray[np.intp] = (mixed % np.uint64(n)).astype(np.intp)
    return homes


@dataclass(frozen=True)
class Unfinished:
    """What a node of the octree has not decided.

    Parameters
    ----------
    members : uint64 array, (n,)
        Clusters whose fate the node has to know.
    clusters, contacts : Table
        ``ids`` and columns; ``pairs`` and columns.
    """

    members: Ids
    clusters: Table
    contacts: Table


def enter(linkage: Linkage, unfinished: Unfinished, node: int, n: int) -> Parts:
    """Send what a node has not decided to the homes of its clusters.

    Parameters
    ----------
    linkage : Linkage
        Of the clusters.
    unfinished : Unfinished
        What enters.
    node : int
        Number of the node.
    n : int
        Number of partitions.
    """
    table = _directed(linkage, unfinished.clusters, unfinished.contacts)
    table |= {
        "origin": unfinished.members,
        "node": np.full(len(unfinished.members), node, np.uint64),
        "target": unfinished.members,
    }
    return {f"home:{q}": t for q, t in _by_home(linkage, table, n).items()}


Parts = dict[str, Table]


def settle_in(
    linkage: Linkage,
    kept: Table,
    arrivals: Sequence[Table],
    renames: Sequence[Table],
    taken: Table,
) -> Table:
    """Bring a home up to date: what came back, what went, and who is called otherwise.

    Parameters
    ----------
    linkage : Linkage
        Of the clusters.
    kept : Table
        The home as it was; empty at first.
    arrivals : sequence of Table
        What comes to live here, and answers for what once entered here.
    renames : sequence of Table
        ``own``, ``old``, ``new``: what a neighbour is called now, 0 if it is finished.
    taken : Table
        ``ids`` that were decided, and are here only if they arrive.
    """
    gone = taken.get("ids", _NONE)
    stays = _without(linkage, kept, gone) if kept else {}
    table = _stacked(linkage, [stays, *arrivals])
    old = np.concatenate([_NONE, *(r["old"] for r in renames if r)])
    if len(old):
        own = np.concatenate([r["own"] for r in renames if r])
        new = np.concatenate([r["new"] for r in renames if r])
        table["other"] = _renamed(table["own"], table["other"], own, old, new)
    alive = table["other"] != 0
    pairs = np.stack([table["own"], table["other"]], axis=1)[alive]
    values = {c: table[c][alive] for c in linkage.contact_columns}
    added = linkage.added_up(pairs, values)
    nodes = Groups(table["ids"])
    settled = {
        "ids": nodes.first(table["ids"]),
        **{
            c: nodes.reduce(ufunc, table[c])
            for c, (ufunc, _) in linkage.cluster_columns.items()
        },
        "own": added["pairs"][:, 0],
        "other": added["pairs"][:, 1],
        **{c: added[c] for c in linkage.contact_columns},
    }
    return settled | {c: table[c] for c in (*_MEMBERS, *_ANSWERS)}


def depart(linkage: Linkage, home: Table, n: int) -> Parts:
    """Send every cluster to the home of its best neighbour; all stay in ``kept`` too."""
    rows = linkage.best(home["ids"], home["own"], home)
    goes = rows >= 0
    towards = home_of(home["other"][rows[goes]], n)
    parts: Parts = {"kept": home}
    for q in np.unique(towards):
        parts[f"home:{q}"] = _only(linkage, home, home["ids"][goes][towards == q])
    return parts


def lead(
    linkage: Linkage, kept: Table, travellers: Sequence[Table], n: int
) -> Mapping[str, Table]:
    """Decide the clusters whose leader lives here, and those that nothing can merge.

    Parameters
    ----------
    linkage : Linkage
        Of the clusters.
    kept : Table
        The home.
    travellers : sequence of Table
        Clusters whose best neighbour lives here.
    n : int
        Number of partitions.

    Returns
    -------
    dict of str to Table
        ``home:q`` for what goes to live in q, ``exchange:q`` for what q has to be told,
        and what the linkage wants written down.
    """
    ids = kept["ids"]
    rows = linkage.best(ids, kept["own"], kept)
    lone = ids[rows < 0]
    choice = np.zeros_like(ids)
    choice[rows >= 0] = kept["other"][rows[rows >= 0]]
    guests = _stacked(linkage, travellers)
    guest_rows = linkage.best(*_sorted_ids(guests), guests)
    order = np.argsort(guests["ids"])
    guest_ids, chosen = guests["ids"][order], guests["other"][guest_rows]

    # Of two that chose each other the one with more contacts leads, since more may have
    # chosen it. It does not follow anyone: its choice does not lead.
    places = np.searchsorted(ids, chosen)
    degree = np.bincount(np.searchsorted(ids, kept["own"]), minlength=len(ids))[places]
    guest_degree = np.bincount(
        np.searchsorted(guest_ids, guests["own"]), minlength=len(guest_ids)
    )
    more = (degree > guest_degree) | ((degree == guest_degree) & (chosen < guest_ids))
    mutual = (choice[places] == guest_ids) & more
    leaders = np.unique(chosen[mutual])
    follows = np.isin(chosen, leaders)
    own = _stacked(
        linkage,
        [
            _only(linkage, kept, np.union1d(lone, leaders)),
            _only(linkage, guests, guest_ids[follows]),
        ],
    )
    return _decided(linkage, own, n) if len(own["ids"]) else {}


def pass_on(messages: Sequence[Table], n: int) -> Parts:
    """Tell clusters what their neighbours are called, wherever they live now.

    Parameters
    ----------
    messages : sequence of Table
        ``ids`` and ``holders`` of clusters of this home that were decided; ``own``,
        ``old`` and ``new`` for clusters of this home with neighbours that were.
    n : int
        Number of partitions.
    """
    messages = [m for m in messages if m]
    ids, holders, own, old, new = (
        np.concatenate([_NONE, *(m[c] for m in messages)])
        for c in ("ids", "holders", "own", "old", "new")
    )
    order = np.argsort(ids)
    if len(ids):
        rows = np.minimum(np.searchsorted(ids, own, sorter=order), len(ids) - 1)
        was_decided = ids[order[rows]] == own
        own = np.where(was_decided, holders[order[rows]], own)
    parts: Parts = {"taken": {"ids": ids}}
    homes = home_of(own, n)
    for q in np.unique(homes[own != 0]):
        mine = (homes == q) & (own != 0)
        parts[f"home:{q}"] = {"own": own[mine], "old": old[mine], "new": new[mine]}
    return parts


def answers(home: Table, names: Sequence[str]) -> Partitioned:
    """Return what became of the clusters that each node gave in.

    Parameters
    ----------
    home : Table
        After the last round.
    names : sequence of str
        Part for each node.

    Raises
    ------
    DataError
        If clusters are left.
    """
    if len(home["ids"]):
        raise DataError(
            f"{len(home['ids'])} clusters are not decided after the last round of "
            "partitioned merging; raise rounds in [grid] and run again with --replace"
        )
    return Partitioned(
        {
            name: {"ids": home["done_origin"][mine], "targets": home["done_target"][mine]}
            for node, name in enumerate(names)
            if (mine := home["done_node"] == node).any()
        }
    )


_NONE = np.zeros(0, np.uint64)
_MEMBERS = ("origin", "node", "target")
_ANSWERS = ("done_origin", "done_node", "done_target")


def _decided(linkage: Linkage, own: Table, n: int) -> dict[str, Table]:
    ids = np.sort(own["ids"])
    foreign = np.setdiff1d(own["other"], ids)
    order = np.argsort(own["ids"])
    every = np.concatenate([ids, foreign])
    by_id = np.argsort(every)
    clusters: Table = {"ids": every[by_id]}
    for c in linkage.cluster_columns:
        blank = np.zeros((len(foreign), *own[c].shape[1:]), np.uint64)
        clusters[c] = np.concatenate([own[c][order], blank])[by_id]
    is_open = np.isin(clusters["ids"], foreign).astype(np.uint8)

    # Both ends have the contact if both are here.
    once = (own["own"] < own["other"]) | np.isin(own["other"], foreign)
    pairs = np.sort(np.stack([own["own"], own["other"]], axis=1)[once], axis=1)
    contacts = linkage.added_up(pairs, {c: own[c][once] for c in linkage.contact_columns})
    decision = linkage.decide(clusters, is_open, contacts)

    here = is_open == 0
    fate = {
        "ids": clusters["ids"][here],
        "holders": decision.holders[here],
        "targets": decision.targets[here],
        "settled": decision.settled[here],
    }
    stays = np.isin(decision.clusters["ids"], fate["holders"])
    left = {c: v[stays] for c, v in decision.clusters.items()}
    back = _directed(linkage, left, decision.contacts)
    mine = np.isin(back["own"], left["ids"])
    back |= {c: back[c][mine] for c in ("own", "other", *linkage.contact_columns)}
    at = np.searchsorted(fate["ids"], own["target"])
    settled = fate["settled"][at] != 0
    back |= {
        "origin": own["origin"][~settled],
        "node": own["node"][~settled],
        "target": fate["targets"][at][~settled],
        "done_origin": own["origin"][settled],
        "done_node": own["node"][settled],
        "done_target": fate["targets"][at][settled],
    }
    told = np.isin(own["other"], foreign)
    old = own["own"][told]
    new = fate["holders"][np.searchsorted(fate["ids"], old)]
    changed = old != new
    notices = (own["other"][told][changed], old[changed], new[changed])

    parts = {f"home:{q}": t for q, t in _by_home(linkage, back, n).items()}
    fate_homes, notice_homes = home_of(fate["ids"], n), home_of(notices[0], n)
    for q in np.union1d(fate_homes, notice_homes):
        f, m = fate_homes == q, notice_homes == q
        parts[f"exchange:{q}"] = {
            "ids": fate["ids"][f],
            "holders": fate["holders"][f],
            "own": notices[0][m],
            "old": notices[1][m],
            "new": notices[2][m],
        }
    return parts | dict(decision.parts)


def _directed(linkage: Linkage, clusters: Table, contacts: Table) -> Table:
    """Return clusters, and each contact once for each end."""
    a, b = contacts["pairs"].T
    table = {c: clusters[c] for c in ("ids", *linkage.cluster_columns)}
    table |= {"own": np.concatenate([a, b]), "other": np.concatenate([b, a])}
    return table | {
        c: np.concatenate([contacts[c], contacts[c]]) for c in linkage.contact_columns
    }


def _groups(linkage: Linkage) -> tuple[tuple[str, ...], ...]:
    """Return the columns of the same rows; the first says where a row lives."""
    return (
        ("ids", *linkage.cluster_columns),
        ("own", "other", *linkage.contact_columns),
        ("target", "origin", "node"),
        ("done_origin", "done_node", "done_target"),
    )


def _stacked(linkage: Linkage, tables: Sequence[Table]) -> Table:
    """Put the rows of tables under one another; a column that is missing has none."""
    widths = {c: w for c, (_, w) in linkage.cluster_columns.items()}
    result: Table = {}
    for columns in _groups(linkage):
        for c in columns:
            shape = (0, widths[c]) if widths.get(c) else (0,)
            result[c] = np.concatenate(
                [np.zeros(shape, np.uint64), *(t[c] for t in tables if c in t)]
            )
    return result


def _by_home(linkage: Linkage, table: Table, n: int) -> dict[int, Table]:
    """Part the rows of a table by where they live."""
    homes = {g[0]: home_of(table[g[0]], n) for g in _groups(linkage) if g[0] in table}
    wanted = np.unique(np.concatenate(list(homes.values())))
    return {
        int(q): {
            c: table[c][homes[g[0]] == q]
            for g in _groups(linkage)
            if g[0] in homes
            for c in g
        }
        for q in wanted
    }


def _only(linkage: Linkage, table: Table, ids: Ids) -> Table:
    """Return the rows of some clusters; answers are not theirs."""
    result: Table = {}
    for columns in _groups(linkage)[:3]:
        rows = np.isin(table[columns[0]], ids)
        result |= {c: table[c][rows] for c in columns}
    return result


def _without(linkage: Linkage, table: Table, ids: Ids) -> Table:
    """Return all rows but those of some clusters."""
    result: Table = {}
    for columns in _groups(linkage):
        stays = ~np.isin(table[columns[0]], ids)
        if columns[0] == "done_origin":
            stays[:] = True
        result |= {c: table[c][stays] for c in columns}
    return result


def _renamed(own: Ids, other: Ids, changed: Ids, old: Ids, new: Ids) -> Ids:
    """Return the neighbours' names, where (changed, old) says new."""
    told = np.stack([changed, old], axis=1)
    order = np.lexsort((old, changed))
    both = np.concatenate([told[order], np.stack([own, other], axis=1)])
    _, first, inverse = np.unique(both, axis=0, return_index=True, return_inverse=True)
    row = first[inverse.reshape(-1)[len(told) :]]
    is_told = row < len(told)
    result = other.copy()
    result[is_told] = new[order][row[is_told]]
    return result


def _sorted_ids(table: Table) -> tuple[Ids, Ids]:
    return np.sort(table["ids"]), table["own"]
