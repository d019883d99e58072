"""Basins to supervoxels, node by node of the octree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import ALL_FACES
from pipeline.kernels import _cpp
from pipeline.kernels.basin_graph import BasinGraph
from pipeline.kernels.partition import Decision, Linkage, Ranked, Unfinished
from pipeline.kernels.placement import data_errors
from pipeline.kernels.tables import Columns, Groups, column, common_scale, rows_of
from pipeline.specs import Table


@dataclass(frozen=True, eq=False)
class OpenBasins(Columns):
    """What a node of the octree has not decided, and how others refer to it.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Clusters of basins, ascending; each is called after its basin that begins first.
    sizes : uint64 array, (n,)
        Voxels of each, as far as they are known.
    anchors : uint64 array, (n,)
        Place in the volume of the first voxel of each, x fastest.
    port_ids : uint64 array, (p,)
        Labels of chunks that touch an open face of the node, ascending: the names that
        others have for what lies behind it.
    port_faces : uint8 array, (p,)
        The faces, as bits of `ALL_FACES`.
    port_clusters : uint64 array, (p,)
        Cluster that each is part of.
    joins : uint64 array, (j, 2)
        Labels that are one basin, one of them outside the node.
    pairs : uint64 array, (m, 2)
        Clusters whose greatest edge waits.
    affinities, keys : uint64 array, (m,)
        That edge.
    cross_pairs : uint64 array, (c, 2)
        Labels in contact, one of them outside the node.
    cross_affinities, cross_keys : uint64 array, (c,)
        Their greatest edge.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "cluster"))
    sizes: NDArray[np.uint64] = field(metadata=column(np.uint64, "cluster"))
    anchors: NDArray[np.uint64] = field(metadata=column(np.uint64, "cluster"))
    port_ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "port"))
    port_faces: NDArray[np.uint8] = field(metadata=column(np.uint8, "port"))
    port_clusters: NDArray[np.uint64] = field(metadata=column(np.uint64, "port"))
    joins: NDArray[np.uint64] = field(metadata=column(np.uint64, "join", width=2))
    pairs: NDArray[np.uint64] = field(metadata=column(np.uint64, "pair", width=2))
    affinities: NDArray[np.uint64] = field(metadata=column(np.uint64, "pair"))
    keys: NDArray[np.uint64] = field(metadata=column(np.uint64, "pair"))
    cross_pairs: NDArray[np.uint64] = field(metadata=column(np.uint64, "cross", width=2))
    cross_affinities: NDArray[np.uint64] = field(metadata=column(np.uint64, "cross"))
    cross_keys: NDArray[np.uint64] = field(metadata=column(np.uint64, "cross"))
    scale: int


@dataclass(frozen=True, eq=False)
class Outcomes(Columns):
    """What became of clusters in a node of the octree.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Clusters of the children; of a chunk, the ids in it.
    child : uint8 array, (n,)
        Child that has it, by `ChunkKey.octant`; 0 of a chunk.
    targets : uint64 array, (n,)
        What it is part of now; 0 is background.
    settled : uint8 array, (n,)
        Whether that is final, else it is a cluster of this node.
    """

    ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "id"))
    child: NDArray[np.uint8] = field(metadata=column(np.uint8, "id"))
    targets: NDArray[np.uint64] = field(metadata=column(np.uint64, "id"))
    settled: NDArray[np.uint8] = field(metadata=column(np.uint8, "id"))


def open_basins(graph: BasinGraph) -> OpenBasins:
    """Turn what a chunk measured into the state of a leaf of the octree."""
    port = graph.faces != 0
    return OpenBasins(
        ids=graph.ids,
        sizes=graph.sizes,
        anchors=graph.anchors,
        port_ids=graph.ids[port],
        port_faces=graph.faces[port],
        port_clusters=graph.ids[port],
        joins=graph.joins,
        pairs=graph.pairs,
        affinities=graph.affinities,
        keys=graph.keys,
        cross_pairs=graph.cross_pairs,
        cross_affinities=graph.cross_affinities,
        cross_keys=graph.cross_keys,
        scale=graph.scale,
    )


def merge_basins(
    children: Sequence[OpenBasins],
    *,
    octants: Sequence[int] = (0,),
    outward: Sequence[int] = (ALL_FACES,),
    size_threshold: int,
    dust: int,
) -> tuple[OpenBasins, Outcomes]:
    """Merge basins by size-dependent single linkage as far as a node can decide it.

    Basins that chunk faces cut are joined again. Then each pair's greatest edge, in
    descending order, merges its two sides unless both hold ``size_threshold`` voxels
    (Zlateski & Seung 2015). A side that is smaller and may go on outside the node is not
    judged; what depends on it waits for the parent. At the top nothing is outside, and
    the result is that of one pass over the whole volume, whatever the chunks.

    Parameters
    ----------
    children : sequence of OpenBasins
        Children of the node, or the node itself if it is a chunk.
    octants : sequence of int
        Which child each is.
    outward : sequence of int
        Faces of each child, as bits of `ALL_FACES`, that are faces of the node.
    size_threshold : int
        Two sides of this size or more stay apart [voxel].
    dust : int
        Supervoxels below this size are dropped [voxel].

    Returns
    -------
    state : OpenBasins
        What the parent has to decide; empty at the top.
    outcomes : Outcomes
        A settled target is the basin that begins first in its supervoxel, 0 for dust.

    Raises
    ------
    ValueError
        If a size is negative.
    DataError
        If an edge refers to a basin that no child lists, or scales differ.
    """
    if size_threshold < 0 or dust < 0:
        raise ValueError(
            f"size threshold {size_threshold} and dust {dust} count voxels; give 0 or more"
        )
    scale = common_scale([c.scale for c in children])

    def all_of(name: str) -> NDArray[np.uint64]:
        return np.concatenate([getattr(c, name) for c in children])

    # Children are in the order of their ids or nearly so, and this sort makes use of it.
    order = np.argsort(all_of("ids"), kind="stable")
    ids, sizes, anchors = (all_of(name)[order] for name in ("ids", "sizes", "anchors"))
    child = np.repeat(np.array(octants, np.uint8), [len(c.ids) for c in children])[order]

    by_port = np.argsort(all_of("port_ids"), kind="stable")
    port_ids, port_clusters = all_of("port_ids")[by_port], all_of("port_clusters")[by_port]
    port_faces = np.concatenate(
        [c.port_faces & np.uint8(o) for c, o in zip(children, outward, strict=True)]
    )[by_port]

    joins, cross = all_of("joins"), all_of("cross_pairs")
    cross_affinities, cross_keys = all_of("cross_affinities"), all_of("cross_keys")
    # What one child knows both sides of it has resolved already.
    among = port_ids if len(children) > 1 else port_ids[:0]
    ports = rows_of(among, np.concatenate([joins, cross]))
    known = (ports[:, 0] >= 0) & (ports[:, 1] >= 0)
    joined, met = known[: len(joins)], known[len(joins) :]
    inner_joins = port_clusters[ports[: len(joins)][joined]]
    inner_pairs = port_clusters[ports[len(joins) :][met]]

    still_open = port_faces != 0
    clusters_of_open = rows_of(ids, port_clusters[still_open])
    if (clusters_of_open < 0).any():
        lost = port_clusters[still_open][clusters_of_open < 0][0]
        raise DataError(
            f"a label on a face is part of cluster {lost}, which no child lists; "
            "merge the records of all children"
        )
    is_open = np.zeros(len(ids), np.uint8)
    is_open[clusters_of_open] = 1
    with data_errors():
        targets, settled, total, kept, kept_affinities, kept_keys = _cpp.merge_basins(
            ids,
            sizes,
            anchors,
            is_open,
            inner_joins,
            np.concatenate([all_of("pairs"), inner_pairs]),
            np.concatenate([all_of("affinities"), cross_affinities[met]]),
            np.concatenate([all_of("keys"), cross_keys[met]]),
            size_threshold,
            dust,
            True,
        )
    # A cluster is called after one of its members, whose row stands for it.
    stands = (targets == ids) & (settled == 0)
    state = OpenBasins(
        ids=ids[stands],
        sizes=total[stands],
        anchors=anchors[stands],
        port_ids=port_ids[still_open],
        port_faces=port_faces[still_open],
        port_clusters=targets[clusters_of_open],
        joins=joins[~joined],
        pairs=kept,
        affinities=kept_affinities,
        keys=kept_keys,
        cross_pairs=cross[~met],
        cross_affinities=cross_affinities[~met],
        cross_keys=cross_keys[~met],
        scale=scale,
    )
    return state, Outcomes(ids, child, targets, settled)


@dataclass(frozen=True)
class SingleLinkage(Linkage):
    """Basins, for merging in partitions.

    Parameters
    ----------
    size_threshold, dust : int
        As for `merge_basins`.
    """

    size_threshold: int
    dust: int

    cluster_columns = MappingProxyType({"sizes": (np.add, 0), "anchors": (np.minimum, 0)})
    contact_columns = ("affinities", "keys")

    def added_up(self, pairs: NDArray[np.uint64], values: Table) -> Table:
        """Keep the greatest edge of each pair."""
        greatest = Groups(pairs, values["affinities"], values["keys"])
        return {"pairs": greatest.last(pairs)} | {
            c: greatest.last(values[c]) for c in self.contact_columns
        }

    def ranked(self, values: Table) -> Ranked:
        """Rank by affinity, then by key."""
        affinities = values["affinities"]
        return Ranked(affinities, np.ones_like(affinities), ~values["keys"])

    @property
    def floor(self) -> tuple[int, int]:
        """Any edge may merge."""
        return 0, 1

    def decide(
        self, clusters: Table, is_open: NDArray[np.uint8], contacts: Table
    ) -> Decision:
        """Merge; an edge to an open side waits, and all that wait are kept."""
        ids = clusters["ids"]
        pairs = contacts["pairs"]
        # What joins parts of a basin need not wait for its turn.
        joins = contacts["affinities"] >= np.uint64(_cpp.join_affinity)
        joins &= ~np.isin(pairs, ids[is_open != 0]).any(axis=1)
        with data_errors():
            targets, settled, sizes, pairs, affinities, keys = _cpp.merge_basins(
                ids,
                clusters["sizes"],
                clusters["anchors"],
                is_open,
                pairs[joins],
                pairs[~joins],
                contacts["affinities"][~joins],
                contacts["keys"][~joins],
                # An open side has size 0 here and must not count as large.
                max(1, self.size_threshold),
                self.dust,
                False,
            )
        stands = (targets == ids) & (settled == 0)
        return Decision(
            holders=np.where(settled != 0, np.uint64(0), targets),
            targets=targets,
            settled=settled,
            clusters={
                "ids": ids[stands],
                "sizes": sizes[stands],
                "anchors": clusters["anchors"][stands],
            },
            contacts={"pairs": pairs, "affinities": affinities, "keys": keys},
            parts={},
        )

    def unfinished(self, state: OpenBasins) -> Unfinished:
        """Return what a node has not decided.

        A label that others know a cluster by is a cluster of no size, and an edge that
        comes before all others joins it to what it is part of.
        """
        alias = state.port_ids != state.port_clusters
        labels = state.port_ids[alias]
        blank = np.zeros_like(labels)
        links = np.concatenate(
            [np.stack([labels, state.port_clusters[alias]], axis=1), state.joins]
        )
        links.sort(axis=1)
        return Unfinished(
            members=state.ids,
            clusters={
                "ids": np.concatenate([state.ids, labels]),
                "sizes": np.concatenate([state.sizes, blank]),
                "anchors": np.concatenate([state.anchors, ~blank]),
            },
            contacts={
                "pairs": np.concatenate(
                    [state.pairs, np.sort(state.cross_pairs, axis=1), links]
                ),
                "affinities": np.concatenate(
                    [state.affinities, state.cross_affinities, _above_all(links[:, 0])]
                ),
                "keys": np.concatenate([state.keys, state.cross_keys, links[:, 1]]),
            },
        )


def _above_all(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return an affinity for edges that join whatever the sizes, one for each id.

    Among these any strict order will do. That of the ids would make long chains of
    clusters that wait for one another; an odd factor scatters them, and is one to one.
    """
    mixed = ids * np.uint64(0x9E3779B97F4A7C15)
    return mixed | np.uint64(_cpp.join_affinity)
