"""Stages over the hash shards of segment ids, and the pieces that chunks hand to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.geometry import Bbox, ChunkKey, Grid, Halo, Vec3
from pipeline.kernels.sharding import ids_by_shard
from pipeline.specs import (
    LayerSpec,
    Partitioned,
    Read,
    Record,
    Records,
    RecordsSpec,
    Region,
    Sharding,
    Table,
    VolumeSpec,
    VoxelSize,
)
from pipeline.stages.base import ChunkStage, Layer, Specs, Stage, Task
from pipeline.stages.volume import (
    LABEL_DTYPES,
    expect_bounds,
    expect_volume,
    missing_mip,
)


class FragmentStage(ChunkStage):
    """What each chunk of a segmentation holds of every segment, grouped by shard.

    Chunks share one plane of voxels: a chunk also reads the first plane above it, where
    its pieces meet those of the next chunk.

    Parameters
    ----------
    segmentation : str
        Volume of segment ids.
    mip : int
        Mip that is read; ``bounds`` and ``chunk`` are in its voxels.
    voxel_size_nm : (x, y, z)
        Extent of a voxel of that mip [nm].
    sharding : Sharding
        As in the stage that joins the pieces.
    """

    halo: ClassVar[Halo] = Halo.of(after=1)
    bytes_per_voxel: ClassVar[float] = 40.0

    segmentation: Layer
    mip: int = Field(default=0, ge=0)
    voxel_size_nm: VoxelSize
    sharding: Sharding = Sharding()

    @property
    def read_mip(self) -> int:
        """Mip of the segmentation."""
        return self.mip

    def reads(self, task: Task) -> dict[str, Read]:
        """Read ids with the shared plane."""
        return {"segmentation": Region(self.segmentation, task.read_box, self.mip)}

    def touches(self, key: ChunkKey, box: Bbox) -> bool:
        """Compare at mip 0, taking the mip's voxels from its bounds."""
        factor = self._factor
        return not self.task(key).box.finer(factor).intersection(box).is_empty

    @property
    def _factor(self) -> Vec3:
        return Vec3(2**self.mip, 2**self.mip, 1)

    @abstractmethod
    def pieces(
        self, task: Task, segmentation: NDArray[np.uint64]
    ) -> dict[int, dict[str, NDArray[Any]]]:
        """Return the columns of each segment's piece."""

    def process(self, task: Task, segmentation: NDArray[Any]) -> Partitioned:
        """Group the pieces by the shard of their segment."""
        pieces = self.pieces(task, segmentation.astype(np.uint64, order="F", copy=False))
        groups = ids_by_shard(
            np.array(sorted(pieces), dtype=np.uint64),
            shard_bits=self.sharding.shard_bits,
            minishard_bits=self.sharding.minishard_bits,
        )
        return Partitioned(
            {
                str(shard): pack({int(i): pieces[int(i)] for i in ids})
                for shard, ids in groups.items()
            }
        )

    def target(self, task: Task) -> Record:
        """Write a record per chunk."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def check(self, specs: Specs) -> list[str]:
        """Check that the mip exists and that its bounds and voxels are as stated."""
        faults = expect_volume(self.name, specs, self.segmentation, dtypes=LABEL_DTYPES)
        spec = specs.get(self.segmentation)
        if not isinstance(spec, VolumeSpec):
            return faults
        if self.mip >= len(spec.factors):
            return [*faults, missing_mip(self.name, self.segmentation, spec, self.mip)]
        if spec.voxel_size_at(self.mip) != self.voxel_size_nm:
            faults.append(
                f"{self.name}: voxel of {self.segmentation} at mip {self.mip} is "
                f"{spec.voxel_size_at(self.mip)} nm, not {self.voxel_size_nm}; use that"
            )
        return faults + expect_bounds(
            self.name, specs, self.segmentation, self.bounds, mip=self.mip
        )


class ShardStage(Stage):
    """A stage whose tasks are the hash shards of segment ids.

    ``bounds`` and ``chunk`` are those of the stage that made the pieces.

    Parameters
    ----------
    fragments : str
        Records of the pieces.
    sharding : Sharding
        How ids are spread over tasks, and over shard files where there are any.
    """

    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "fragments": ("bounds", "chunk", "sharding")
    }

    fragments: Layer
    sharding: Sharding = Sharding()

    def grid_at(self, level: int) -> Grid:
        """Return a row of shards."""
        return Grid(Bbox.of_shape((2**self.sharding.shard_bits, 1, 1)), Vec3(1, 1, 1))

    def touches(self, key: ChunkKey, box: Bbox) -> bool:
        """Return true: any shard may hold a segment of the box."""
        return True

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the shard's part of every chunk."""
        chunks = Bbox.of_shape(self.grid.counts())
        return {"fragments": Records(self.fragments, 0, chunks, str(task.key.x))}

    def voxels(self, task: Task) -> int:
        """Return 0: shards hold segments."""
        return 0

    def target(self, task: Task) -> Record:
        """Write one shard."""
        return Record(self.output, str(task.key))

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate the peak memory of a shard from the surface that fits in it [byte]."""
        per_shard = self.bounds.volume / 2**self.sharding.shard_bits
        return int(40 * per_shard) + 2**28

    def check(self, specs: Specs) -> list[str]:
        """Check that the pieces are records."""
        spec = specs.get(self.fragments)
        if spec is not None and spec.kind != "records":
            return [f"{self.name}: {self.fragments} holds {spec.kind}, not fragments"]
        return []


def pack(pieces: Mapping[int, Mapping[str, NDArray[Any]]]) -> Table:
    """Put the pieces of several segments into one table.

    Returns
    -------
    Table
        ``id``; for each column c its rows end to end, and ``c.offset`` (n + 1).
    """
    table: Table = {"id": np.array(list(pieces), dtype=np.uint64)}
    if not pieces:
        return table
    for column in next(iter(pieces.values())):
        rows = [piece[column] for piece in pieces.values()]
        table[column] = np.concatenate(rows)
        table[f"{column}.offset"] = np.cumsum([0, *(len(r) for r in rows)], dtype=np.uint64)
    return table


def unpack(tables: Sequence[Table]) -> Iterator[tuple[int, list[dict[str, NDArray[Any]]]]]:
    """Yield the pieces of every segment, ids ascending, in the order of the tables."""
    places: dict[int, list[tuple[Table, int]]] = {}
    for table in tables:
        for row, segment in enumerate(table.get("id", ())):
            places.setdefault(int(segment), []).append((table, row))
    for segment in sorted(places):
        yield segment, [_piece(table, row) for table, row in places[segment]]


def _piece(table: Table, row: int) -> dict[str, NDArray[Any]]:
    return {
        column: table[column][int(table[offset][row]) : int(table[offset][row + 1])]
        for column, offset in ((c, f"{c}.offset") for c in table)
        if offset in table
    }
