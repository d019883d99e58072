"""Synapses of the whole volume: segments, duplicates, tables, and what viewers show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import DataError
from pipeline.geometry import Bbox, ChunkKey, Grid, Halo, Vec3
from pipeline.kernels.partners import SynapseRows, merge_duplicates, with_segments
from pipeline.kernels.sharding import ids_by_shard
from pipeline.specs import (
    AnnotationsSpec,
    ConnectomeSpec,
    LayerSpec,
    Partitioned,
    Read,
    Record,
    RecordsSpec,
    Region,
    Sharding,
    Table,
    VoxelSize,
)
from pipeline.stages.base import ChunkStage, Layer, OctreeStage, Specs, Stage, Task, Wave
from pipeline.stages.components import by_chunk, joined, taken, voxel_size_faults
from pipeline.stages.shards import ShardStage
from pipeline.stages.volume import LABEL_DTYPES, expect_bounds, expect_volume

_MIXING = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
DIRECTIONS = ("pre", "post", "edges")
"""Tables of a connectome, by the level of the tasks that write them."""


class SynapseSegments(ChunkStage):
    """The segments that are at the sites of synapses, by a segmentation.

    With another segmentation of the same supervoxels it assigns all synapses anew, and no
    net runs. Where a cell was and none is any more, the synapse is flagged.

    Parameters
    ----------
    partners : str
        Records of `contact_partners` or `net_partners`, over the same grid.
    segmentation : str
        Volume of segment ids.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    window : Vec3
        As for the partners [voxel].
    sharding : Sharding
        As in the stage that merges duplicates: a pair of segments goes to one shard.
    """

    name: ClassVar[str] = "synapse_segments"
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "partners": ("bounds", "chunk", "window", "voxel_size_nm")
    }
    bytes_per_voxel: ClassVar[float] = 1.0

    partners: Layer
    segmentation: Layer
    voxel_size_nm: VoxelSize
    window: Vec3 = Vec3(80, 80, 12)
    sharding: Sharding = Sharding()

    @property
    def reach(self) -> Halo:
        """As far as windows: sites may lie in other chunks than the middle of a cleft."""
        return Halo(self.window, self.window)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the chunk's synapses, and ids with the halo."""
        return {
            "partners": Record(self.partners, str(task.key)),
            "segmentation": Region(self.segmentation, task.read_box),
        }

    def process(
        self, task: Task, partners: Table, segmentation: NDArray[Any]
    ) -> Partitioned:
        """Look up, and group by pair."""
        rows = SynapseRows.from_table(partners)
        start = np.array(task.read_box.start.astuple())
        pre, post = (
            segmentation[tuple((site - start).T)].astype(np.uint64)
            for site in (rows.pre_site, rows.post_site)
        )
        table = with_segments(rows, pre, post)
        return sharded(table, pair_keys(table), self.sharding, "")

    def target(self, task: Task) -> Record:
        """Write a record per chunk."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def check(self, specs: Specs) -> list[str]:
        """Check the segmentation."""
        return [
            *expect_volume(self.name, specs, self.segmentation, dtypes=LABEL_DTYPES),
            *expect_bounds(self.name, specs, self.segmentation, self.bounds),
            *voxel_size_faults(self.name, specs, self.segmentation, self.voxel_size_nm),
            *_expect_records(self.name, specs, self.partners),
        ]


class Synapses(ShardStage):
    """Synapses, with clefts of the same pair that lie close together made one.

    A record has each row four times, so that others find it by id, by pre, by post and by
    place: in the parts ``id:<shard>``, ``pre:<shard>``, ``post:<shard>`` and
    ``chunk:<key>``.

    Parameters
    ----------
    fragments : str
        Records of `synapse_segments`.
    within_nm : float
        Clefts of a pair whose middles are no farther apart become one [nm].
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    """

    name: ClassVar[str] = "synapses"

    within_nm: float = Field(default=700.0, ge=0)
    voxel_size_nm: VoxelSize

    def process(self, task: Task, fragments: list[Table]) -> Partitioned:
        """Merge duplicates."""
        table = joined(fragments)
        if not table:
            return Partitioned({})
        given = SynapseRows.from_table(table)
        if len(np.unique(given.ids)) < len(given.ids):
            ids, n = np.unique(given.ids, return_counts=True)
            raise DataError(
                f"{self.output}: cleft {ids[n > 1][0]} is there {n.max()} times, so "
                f"records of several runs lie in {self.fragments}; delete it and run again"
            )
        rows = merge_duplicates(
            given, within_nm=self.within_nm, voxel_size_nm=self.voxel_size_nm
        )
        places = by_chunk(rows.to_table(), rows.centroids, self.grid).parts
        return Partitioned(
            {
                **sharded(rows, rows.ids, self.sharding, "id:").parts,
                **sharded(rows, side_keys(rows, "pre"), self.sharding, "pre:").parts,
                **sharded(rows, side_keys(rows, "post"), self.sharding, "post:").parts,
                **{f"chunk:{key}": part for key, part in places.items()},
            }
        )

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from how densely synapses lie in tissue [byte].

        A cubic micrometre of cortex has about one; fifty are allowed for.
        """
        voxel_um3 = np.prod(np.array(self.voxel_size_nm) / 1000)
        synapses = 50 * self.bounds.volume * voxel_um3 / 2**self.sharding.shard_bits
        return int(2000 * synapses) + 2**26

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()


class _OfSynapses(Stage):
    """What stages over the records of `synapses` have in common.

    Parameters
    ----------
    synapses : str
        Records of `synapses`.
    sharding : Sharding
        As there.
    """

    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "synapses": ("bounds", "chunk", "sharding")
    }

    synapses: Layer
    sharding: Sharding = Sharding()

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return int(2**self.sharding.shard_bits)

    def parts(self, part: str) -> list[Record]:
        """Return the reads of a part of every record."""
        return [
            Record(self.synapses, str(ChunkKey(0, shard, 0, 0)), part)
            for shard in range(self.n_shards)
        ]

    def voxels(self, task: Task) -> int:
        """Return 0: tables hold synapses."""
        return 0

    def target(self, task: Task) -> Record:
        """Write the record of the key."""
        return Record(self.output, str(task.key))

    def check(self, specs: Specs) -> list[str]:
        """Check that the synapses are records."""
        return _expect_records(self.name, specs, self.synapses)


class Connectome(_OfSynapses):
    """Synapses and edges as Parquet, spread over files by the hash of a segment.

    ``pre/<shard>.parquet`` has the synapses whose pre hashes to the shard, ``post/`` those
    whose post does, ``edges/`` the pairs of the same pre with how many synapses they have.
    What has no partner on a side is spread by its own id.

    Parameters
    ----------
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    """

    name: ClassVar[str] = "connectome"

    voxel_size_nm: VoxelSize

    def plan(self) -> list[Wave]:
        """Return a wave for each table."""
        return [Wave(self, level) for level in range(len(DIRECTIONS))]

    def grid_at(self, level: int) -> Grid:
        """Return a row of shards."""
        return Grid(Bbox.of_shape((self.n_shards, 1, 1)), Vec3(1, 1, 1))

    def touches(self, key: ChunkKey, box: Bbox) -> bool:
        """Return true: any shard may hold a synapse of the box."""
        return True

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the shard's part of every record."""
        side = "post" if DIRECTIONS[task.key.level] == "post" else "pre"
        return {"rows": self.parts(f"{side}:{task.key.x}")}

    def process(self, task: Task, rows: list[Table]) -> Table:
        """Put in order, or count."""
        found = SynapseRows.from_table(joined(rows) or SynapseRows.of().to_table())
        direction = DIRECTIONS[task.key.level]
        if direction == "edges":
            return edges(found)
        segments = found.pre_segment if direction == "pre" else found.post_segment
        return taken(found.to_table(), np.lexsort((found.ids, segments)))

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate as `synapses` does [byte]."""
        voxel_um3 = np.prod(np.array(self.voxel_size_nm) / 1000)
        return int(100_000 * self.bounds.volume * voxel_um3 / self.n_shards) + 2**26

    def describe(self, specs: Specs) -> ConnectomeSpec:
        """Write Parquet."""
        return ConnectomeSpec(voxel_size_nm=self.voxel_size_nm, sharding=self.sharding)


class SynapseCells(_OfSynapses, OctreeStage):
    """Which synapses a viewer shows in which cell, from afar and from close by.

    A chunk hands the first of its synapses, in an order that scatters ids, up to its
    parent, and each node does the same: what stays at a node is its part ``cell``. So what
    a node shows is an even sample of what lies in it, and no more than eight limits.

    Parameters
    ----------
    limit : int
        Synapses that a node hands up.
    """

    name: ClassVar[str] = "synapse_cells"

    limit: int = Field(default=1000, ge=1)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the chunk's synapses, or what the children hand up."""
        if task.key.level == 0:
            return {"rows": self.parts(f"chunk:{task.key}")}
        children = task.key.children(self.grid)
        return {"rows": [Record(self.output, str(k), "up") for k in children]}

    def process(self, task: Task, rows: list[Table]) -> Partitioned:
        """Divide what is here between this node and its parent."""
        table = joined(rows)
        if not table:
            return Partitioned({})
        if task.key.level == self.grid.height:
            return Partitioned({"cell": table})
        scattered = np.argsort(table["ids"] * _MIXING[0], kind="stable")
        parts = {
            "up": taken(table, scattered[: self.limit]),
            "cell": taken(table, scattered[self.limit :]),
        }
        return Partitioned({name: part for name, part in parts.items() if len(part["ids"])})

    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Read the chunk's synapses."""
        return self.reads(task)

    def leaf(self, task: Task, *args: Any, **inputs: Any) -> Table:
        """Return the chunk's synapses."""
        return joined(inputs["rows"])

    def merge(self, children: list[Table]) -> Table:
        """Return the synapses of all children."""
        return joined(children)

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the limit [byte]."""
        return 2**26 + 8 * 400 * self.limit

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()


class Annotations(_OfSynapses):
    """Synapses as lines from pre to post that Neuroglancer opens.

    Waves write the lines by id, by their pre, by their post, and then by cell of the
    spatial index, level by level.

    Parameters
    ----------
    cells : str
        Records of `synapse_cells`.
    limit : int
        As there.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    """

    name: ClassVar[str] = "annotations"
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "synapses": ("bounds", "chunk", "sharding"),
        "cells": ("bounds", "chunk", "limit"),
    }

    cells: Layer
    limit: int = Field(default=1000, ge=1)
    voxel_size_nm: VoxelSize

    @property
    def n_indices(self) -> int:
        """Waves before those of cells."""
        return 3

    def plan(self) -> list[Wave]:
        """Return a wave for each index by id, and one for each level of cells."""
        levels = self.n_indices + self.grid.height + 1
        return [Wave(self, level) for level in range(levels)]

    def octree_level(self, level: int) -> int:
        """Return the level in the octree of a wave of cells."""
        return max(0, level - self.n_indices)

    def grid_at(self, level: int) -> Grid:
        """Return a row of shards, or the grid of chunks."""
        if level >= self.n_indices:
            return self.grid
        return Grid(Bbox.of_shape((self.n_shards, 1, 1)), Vec3(1, 1, 1))

    def touches(self, key: ChunkKey, box: Bbox) -> bool:
        """Whether a cell has to do with a box; a shard has to do with any."""
        return key.level < self.n_indices or super().touches(key, box)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the shard's part of every record, or what a node shows."""
        key = task.key
        if key.level < self.n_indices:
            return {"rows": self.parts(f"{('id', 'pre', 'post')[key.level]}:{key.x}")}
        node = ChunkKey(self.octree_level(key.level), key.x, key.y, key.z)
        return {"rows": [Record(self.cells, str(node), "cell")]}

    def process(self, task: Task, rows: list[Table]) -> Table:
        """Put in the order of ids."""
        table = joined(rows) or SynapseRows.of().to_table()
        return taken(table, np.argsort(table["ids"]))

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate as `synapses` does [byte]."""
        voxel_um3 = np.prod(np.array(self.voxel_size_nm) / 1000)
        return int(100_000 * self.bounds.volume * voxel_um3 / self.n_shards) + 2**26

    def describe(self, specs: Specs) -> AnnotationsSpec:
        """Write lines."""
        return AnnotationsSpec(
            bounds=self.bounds,
            voxel_size_nm=self.voxel_size_nm,
            chunk=self.chunk,
            height=self.grid.height,
            limit=8 * self.limit,
            sharding=self.sharding,
        )


def edges(rows: SynapseRows) -> Table:
    """Count the synapses of each pair of segments.

    Parameters
    ----------
    rows : SynapseRows
        Synapses; those that lack a partner are left out.

    Returns
    -------
    Table
        ``pre_segment``, ``post_segment`` (uint64), ascending; ``synapses``, ``flagged``
        (uint32), how many there are and how many of them have a flag; ``sizes`` (uint64),
        voxels of all their clefts.
    """
    from pipeline.kernels.tables import Groups

    whole = np.flatnonzero((rows.pre_segment != 0) & (rows.post_segment != 0))
    pairs = np.stack([rows.pre_segment[whole], rows.post_segment[whole]], axis=1)
    groups = Groups(pairs)
    pair = groups.first(pairs)
    one = np.ones(len(whole), np.uint32)
    return {
        "pre_segment": pair[:, 0],
        "post_segment": pair[:, 1],
        "synapses": groups.reduce(np.add, one),
        "flagged": groups.reduce(np.add, (rows.flags[whole] != 0).astype(np.uint32)),
        "sizes": groups.reduce(np.add, rows.sizes[whole]),
    }


def sharded(
    rows: SynapseRows, keys: NDArray[np.uint64], sharding: Sharding, prefix: str
) -> Partitioned:
    """Part rows by the hash of a key."""
    each, of = np.unique(keys, return_inverse=True)
    shard_of = np.zeros(len(each), np.int64)
    groups = ids_by_shard(
        each, shard_bits=sharding.shard_bits, minishard_bits=sharding.minishard_bits
    )
    for shard, members in groups.items():
        shard_of[np.searchsorted(each, members)] = shard
    table, place = rows.to_table(), shard_of[of]
    return Partitioned(
        {
            f"{prefix}{shard}": taken(table, np.flatnonzero(place == shard))
            for shard in groups
        }
    )


def side_keys(rows: SynapseRows, side: str) -> NDArray[np.uint64]:
    """Return what rows are spread by: the segment of a side, or the id where none is."""
    segments = rows.pre_segment if side == "pre" else rows.post_segment
    return np.where(segments == 0, rows.ids, segments)


def pair_keys(rows: SynapseRows) -> NDArray[np.uint64]:
    """Return one number for each pair; what lacks a partner goes by its id."""
    pre, post = rows.pre_segment, rows.post_segment
    pair = pre * _MIXING[0] ^ post * _MIXING[1]
    return np.where((pre == 0) | (post == 0), rows.ids, pair)


def _expect_records(name: str, specs: Specs, layer: str) -> list[str]:
    spec = specs.get(layer)
    if spec is None or spec.kind == "records":
        return []
    return [f"{name}: {layer} holds {spec.kind}, not records of synapses"]
