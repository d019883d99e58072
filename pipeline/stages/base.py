"""What a stage is: a grid of outputs, what each output reads, and a pure function.

A task is one key of that grid. The runner, and only the runner, does I/O: it skips what
is done, reads, calls ``process``, cuts the halo, writes, and records that it is done.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict

from pipeline.geometry import Bbox, ChunkKey, Grid, Halo, Vec3
from pipeline.specs import (
    LayerSpec,
    Read,
    Record,
    Records,
    RecordsSpec,
    Region,
    Table,
    Value,
    VolumeSpec,
)


class _LayerMark:
    """Marks the fields of a stage that name a layer."""


Layer = Annotated[str, _LayerMark()]
"""Name of a layer: a folder of the run, or an entry of the recipe's ``[layers]``."""

Pool: TypeAlias = Literal["cpu", "gpu"]
Specs: TypeAlias = dict[str, LayerSpec]
"""What is known of each layer, by name."""


@dataclass(frozen=True)
class Task:
    """One key of a stage's grid.

    Parameters
    ----------
    key : ChunkKey
        Which output.
    box : Bbox
        Voxels of the output that the task owns.
    read_box : Bbox
        ``box`` with the stage's halo, clipped to the bounds.
    bounds : Bbox
        Bounds of the stage's grid, at the scale of the task.
    threads : int
        Cores that the task may use; its result does not depend on it.
    """

    key: ChunkKey
    box: Bbox
    read_box: Bbox
    bounds: Bbox
    threads: int = 1

    @property
    def core(self) -> tuple[slice, slice, slice]:
        """Slices of ``box`` within an array of ``read_box``."""
        return self.box.slices(self.read_box.start)


@dataclass(frozen=True)
class Wave:
    """Tasks that need nothing from one another."""

    stage: Stage
    level: int

    def __len__(self) -> int:
        return (
            self.stage.grid_at(self.level)
            .counts(self.stage.octree_level(self.level))
            .product
        )

    def __iter__(self) -> Iterator[ChunkKey]:
        return self.keys()

    def keys(self, within: Bbox | None = None) -> Iterator[ChunkKey]:
        """Yield the keys, x fastest, without holding them.

        Parameters
        ----------
        within : Bbox or None
            Only the tasks whose box shares a voxel with this one (mip 0).
        """
        for key in self.stage.keys(self.level):
            if within is None or self.stage.touches(key, within):
                yield key


class Stage(BaseModel, ABC):
    """A grid of outputs, what each reads, and a pure function.

    The fields are the configuration, their JSON is the message, and the JSON's hash is
    the digest. Unknown fields are forbidden.

    Parameters
    ----------
    output : str
        Layer that is written.
    bounds : Bbox
        Bounds of the output, in its voxels at mip 0.
    chunk : Vec3
        Chunk of the output [voxel].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    pool: ClassVar[Pool] = "cpu"
    halo: ClassVar[Halo] = Halo()
    chunking: ClassVar[Literal["exact", "seams"]] = "exact"
    """Whether the result is the same for every chunking, or only joins at the seams."""
    bytes_per_voxel: ClassVar[float] = 8.0
    """Working memory beyond inputs and output [byte per voxel read]."""
    streams: ClassVar[bool] = False
    """Whether the next task is read and the last one written while one computes; `memory`
    counts both."""
    late: ClassVar[frozenset[str]] = frozenset()
    """Inputs of which the other inputs say how much is needed. `reads` names the most
    that it may be, and `narrowed` what it is."""
    places: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where something is, and not what."""
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By input field, the fields that must equal those of the stage that writes it."""

    output: Layer
    bounds: Bbox
    chunk: Vec3

    @property
    def grid(self) -> Grid:
        """Grid of the output at level 0."""
        return Grid(self.bounds, self.chunk)

    def grid_at(self, level: int) -> Grid:
        """Return the grid that the keys of a level count in."""
        return self.grid

    def octree_level(self, level: int) -> int:
        """Return the height in ``grid_at(level)`` of the keys of a level."""
        return 0

    def keys(self, level: int) -> Iterator[ChunkKey]:
        """Yield the keys of a wave, x fastest."""
        for key in self.grid_at(level).keys(self.octree_level(level)):
            yield ChunkKey(level, key.x, key.y, key.z)

    def touches(self, key: ChunkKey, box: Bbox) -> bool:
        """Whether the output of a key shares a voxel with a box of mip 0."""
        return not self.task(key).box.intersection(box).is_empty

    def task(self, key: ChunkKey) -> Task:
        """Return the task of a key.

        Raises
        ------
        GeometryError
            If the key lies outside the grid.
        """
        grid = self.grid_at(key.level)
        box = grid.box(ChunkKey(self.octree_level(key.level), key.x, key.y, key.z))
        read_box = grid.bounds.intersection(box.grown(self.reach))
        return Task(key, box, read_box, grid.bounds)

    @property
    def reach(self) -> Halo:
        """Halo of this configuration."""
        return self.halo

    def plan(self) -> list[Wave]:
        """Return the waves in order; each is lazy, so ten million tasks cost no memory."""
        return [Wave(self, 0)]

    @abstractmethod
    def reads(self, task: Task) -> dict[str, Read]:
        """Return what a task reads, by argument of ``process``."""

    def narrowed(self, task: Task, **inputs: Any) -> dict[str, Region]:
        """Return what is read of the `late` inputs, when the others have been read.

        Each box lies within what `reads` names. An input that is left out is not read,
        and `process` is called without it.
        """
        return {}

    def likely_reads(self, task: Task) -> dict[str, Read]:
        """Return what a task will read, as far as that is known before it does.

        Of a `late` input that is taken to be what lies where the task writes.
        """
        reads = self.reads(task)
        for name in self.late:
            read = reads.get(name)
            if isinstance(read, Region):
                box = read.box.intersection(task.box)
                reads[name] = Region(read.layer, box, read.mip)
        return reads

    @abstractmethod
    def process(self, task: Task, *args: Any, **inputs: Any) -> Value:
        """Compute the output of a task from its inputs, which are read-only.

        Volumes may be returned with the halo (the shape of ``task.read_box``) or
        without it (the shape of ``task.box``).
        """

    def voxels(self, task: Task) -> int:
        """Return how many voxels a task works through, for rates."""
        return task.box.volume

    def target(self, task: Task) -> Region | Record:
        """Return where the output of a task goes."""
        return Region(self.output, task.box)

    @abstractmethod
    def describe(self, specs: Specs) -> LayerSpec:
        """Return what the output layer holds, given its input layers."""

    def check(self, specs: Specs) -> list[str]:
        """Return what is wrong with the configuration, given its input layers."""
        return []

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate the peak memory of the largest task of a wave [byte].

        The first task is as large as any, but for the halo below it.
        """
        task = self.task(next(iter(self.keys(level))))
        reads = [r for r in self.reads(task).values() if isinstance(r, Region)]
        total = self.bytes_per_voxel * max((r.box.volume for r in reads), default=0)
        for read in reads:
            spec = specs.get(read.layer)
            if isinstance(spec, VolumeSpec):
                total += spec.itemsize * read.box.volume
        output = self.describe(specs)
        if isinstance(output, VolumeSpec):
            total += 2 * output.itemsize * task.box.volume
        return int(total)

    def round_share(self, level: int) -> float | None:
        """Return the work of a task in a round, that of the first one being 1.

        None where the wave is none of a round.
        """
        return None

    @property
    def inputs(self) -> dict[str, str]:
        """Layers that are read, by field."""
        return {
            name: value
            for name, info in type(self).model_fields.items()
            if name != "output"
            and any(isinstance(m, _LayerMark) for m in info.metadata)
            and (value := getattr(self, name))
        }

    @property
    def read_mip(self) -> int:
        """Mip at which the inputs are read."""
        return 0

    def pinned(self) -> Self:
        """Return the stage with what it uses beside layers fixed by digest.

        Raises
        ------
        PermanentError
            If something that it uses is not there.
        """
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON, with ``use`` naming the stage."""
        return {"use": self.name, **self.model_dump(mode="json")}

    @property
    def digest(self) -> str:
        """Identity of the configuration: SHA-256 of its canonical JSON.

        Fields that only say where something is (``places``) do not count.
        """
        identity = {k: v for k, v in self.to_json().items() if k not in self.places}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def children_of(key: ChunkKey, grid: Grid) -> tuple[int, Bbox]:
    """Return the level and the positions of the children of a node."""
    corner = key.position * 2
    level = key.level - 1
    return level, Bbox(corner, (corner + 2).minimum(grid.counts(level)))


class ChunkStage(Stage):
    """A stage whose tasks are chunks, one wave of them."""


class OctreeStage(Stage):
    """A stage whose tasks are the nodes of the octree over the chunks.

    A node at level 0 reads voxels, above it the records of its children.
    """

    merge_bytes_per_voxel: ClassVar[float] = 8.0
    """Memory to merge records [byte per voxel of the node]."""

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the voxels of a chunk, or of a node [byte]."""
        if level == 0:
            return super().memory(specs, level)
        node = (self.grid.chunk * (1 << level)).minimum(self.bounds.shape)
        return int(self.merge_bytes_per_voxel * node.product)

    def octree_level(self, level: int) -> int:
        """Return the level itself."""
        return level

    def plan(self) -> list[Wave]:
        """Return a wave for each level of the octree, from the chunks up."""
        return [Wave(self, level) for level in range(self.grid.height + 1)]

    def voxels(self, task: Task) -> int:
        """Count the voxels of chunks; nodes above them look at no voxel again."""
        return task.box.volume if task.key.level == 0 else 0

    def reads(self, task: Task) -> dict[str, Read]:
        """Read voxels at level 0, children above."""
        if task.key.level == 0:
            return self.leaf_reads(task)
        return {"children": Records(self.output, *children_of(task.key, self.grid))}

    def process(self, task: Task, *args: Any, **inputs: Any) -> Value:
        """Compute a leaf, or merge the children."""
        if task.key.level == 0:
            return self.leaf(task, **inputs)
        return self.merge(inputs["children"])

    @abstractmethod
    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Return what a chunk reads."""

    @abstractmethod
    def leaf(self, task: Task, *args: Any, **inputs: Any) -> Table:
        """Compute the record of a chunk."""

    @abstractmethod
    def merge(self, children: list[Table]) -> Table:
        """Merge the records of up to eight children; their order does not matter."""

    def target(self, task: Task) -> Record:
        """Write the record of the node."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    @property
    def root(self) -> Record:
        """Record of the node at the top."""
        return Record(self.output, str(ChunkKey(self.grid.height, 0, 0, 0)))
