"""Decisions over the whole volume: up the octree, and the answers down again."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import DataError
from pipeline.geometry import ALL_FACES, Bbox, ChunkKey, Grid, Vec3
from pipeline.kernels.merge_basins import Outcomes
from pipeline.kernels.partition import (
    Linkage,
    Unfinished,
    answers,
    depart,
    enter,
    lead,
    pass_on,
    settle_in,
)
from pipeline.kernels.tables import rows_of
from pipeline.specs import LayerSpec, Partitioned, Read, Record, Records, RecordsSpec, Table
from pipeline.stages.base import Layer, Specs, Stage, Task, Wave, children_of

STATE = "state"
"""Part of a node's record that its parent reads."""
OUTCOMES = "outcomes"
"""Part that says what became of what the children held."""


@dataclass(frozen=True)
class OpenBytes:
    """How much a node cannot decide, from what was measured on tissue.

    Parameters
    ----------
    per_face_voxel : float
        Memory to merge what one voxel of an open face leaves [byte].
    """

    per_face_voxel: float

    def left(self, shape: Vec3, grid: Grid) -> float:
        """Return what a node of a shape leaves, and its working copies [byte]."""
        faces = 0
        for axis in range(3):
            if shape[axis] < grid.bounds.shape[axis]:
                faces += 2 * shape.product // shape[axis]
        return self.per_face_voxel * faces

    def of_node(self, level: int, grid: Grid) -> int:
        """Return the memory of a node at a level above the chunks [byte]."""
        shape = _node_shape(level - 1, grid)
        children = (Vec3.of(2).minimum(grid.counts(level - 1))).product
        return int(children * self.left(shape, grid))

    def of_all(self, level: int, grid: Grid) -> float:
        """Return what all nodes of a level leave [byte]."""
        return grid.counts(level).product * self.left(_node_shape(level, grid), grid)


def _node_shape(level: int, grid: Grid) -> Vec3:
    return (grid.chunk * (1 << level)).minimum(grid.bounds.shape)


@lru_cache(maxsize=256)
def _top(open_bytes: OpenBytes, grid: Grid, limit_gb: float) -> int:
    """Return the highest level whose nodes stay within a limit.

    Every task that is planned asks for it, and it is the same for all of a stage.
    """
    fits = (
        level
        for level in range(1, grid.height + 1)
        if open_bytes.of_node(level, grid) > limit_gb * 1e9
    )
    return next(fits, grid.height + 1) - 1


_SHARES_AT_WORK = 2.5
"""What a partition works on, over its share of what the nodes leave: its own, what visits
it, and as much again as the fullest partition has more than the mean."""


@lru_cache(maxsize=256)
def _n_partitions(
    open_bytes: OpenBytes, grid: Grid, node_limit_gb: float, limit_gb: float
) -> int:
    """Return how many partitions share what the highest nodes leave, 0 if nothing."""
    top = _top(open_bytes, grid, node_limit_gb)
    if top == grid.height:
        return 0
    limit = limit_gb * 1e9 / _SHARES_AT_WORK
    return max(2, math.ceil(open_bytes.of_all(top, grid) / limit))


class _Octree(Stage):
    """What the way up and the way down have in common: where it goes over into rounds.

    Parameters
    ----------
    node_limit_gb : float or None
        Memory that a node may take, by the model of what stays open [GB]. Levels whose
        nodes would take more are replaced by rounds of merging in partitions that take
        less; None sets no limit.
    partition_limit_gb : float or None
        Memory that a partition may take, by the same model [GB]; that of a node if None.
        Partitions of a wave wait for the slowest of them, so smaller ones end sooner; n
        of them exchange n² parts in a wave.
    rounds : int
        Rounds before the merging in partitions is given up. A round without work costs
        three small waves.
    """

    open_bytes: ClassVar[OpenBytes]

    node_limit_gb: float | None = Field(default=None, gt=0)
    partition_limit_gb: float | None = Field(default=None, gt=0)
    rounds: int = Field(default=64, ge=1)

    @property
    def top(self) -> int:
        """Highest level of the octree that is computed node by node."""
        if self.node_limit_gb is None:
            return self.grid.height
        return _top(self.open_bytes, self.grid, self.node_limit_gb)

    @property
    def n_partitions(self) -> int:
        """Partitions of what the highest nodes leave, 0 if they leave nothing."""
        if self.node_limit_gb is None:
            return 0
        limit_gb = self.partition_limit_gb or self.node_limit_gb
        return _n_partitions(self.open_bytes, self.grid, self.node_limit_gb, limit_gb)

    @property
    def answering(self) -> int:
        """Level of the wave in which partitions answer."""
        return self.top + 1 + 3 * self.rounds

    def node_bytes(self, level: int) -> int:
        """Estimate the memory of a node at a level above the chunks [byte]."""
        return self.open_bytes.of_node(level, self.grid)

    def octree_level(self, level: int) -> int:
        """Return the level itself, 0 in the grid of partitions."""
        return level if level <= self.top else 0

    def grid_at(self, level: int) -> Grid:
        """Return the grid of chunks, or above it one cell for each partition."""
        return self.grid if level <= self.top else Grid(self._partitions, Vec3(1, 1, 1))

    @property
    def _partitions(self) -> Bbox:
        """Their positions."""
        return Bbox.of_shape((self.n_partitions, 1, 1))

    def touches(self, key: ChunkKey, box: Bbox) -> bool:
        """Whether a node has to do with a box; a partition has to do with any."""
        return key.level > self.top or super().touches(key, box)

    def voxels(self, task: Task) -> int:
        """Count the voxels of chunks; nodes above them look at no voxel again."""
        return task.box.volume if task.key.level == 0 else 0

    def target(self, task: Task) -> Record:
        """Write the record of the node."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the voxels of a chunk or from what is open in a node [byte]."""
        if level == 0:
            return super().memory(specs, level)
        if level <= self.top:
            return self.node_bytes(level)
        share = self.open_bytes.of_all(self.top, self.grid) / self.n_partitions
        return int(_SHARES_AT_WORK * share)

    def round_share(self, level: int) -> float | None:
        """Return how much there is to do in a step of a round, beside the first."""
        if level <= self.top:
            return None
        before, step = divmod(level - self.top - 1, len(_STEPS))
        first, falls = _ROUND_SHARES[step]
        return float(first / (before + 1) ** falls)


class UpSweep(_Octree):
    """Decides at every node of the octree what the node knows enough to decide.

    A node's record has the parts ``state``, which its parent reads, and ``outcomes``,
    which say what became of everything that its children left open; more where the
    stage says so. A `DownSweep` gives each chunk the answers. Where nodes would take
    more than the limit, what the highest ones leave is merged in partitions, in rounds
    of three waves: clusters come home and leave for their best neighbour, leaders
    decide, and neighbours are told (see `pipeline.kernels.partition`).
    """

    def plan(self) -> list[Wave]:
        """Return a wave for each level of the octree, from the chunks up, then rounds."""
        last = self.answering if self.n_partitions else self.top
        return [Wave(self, level) for level in range(last + 1)]

    def reads(self, task: Task) -> dict[str, Read]:
        """Read voxels or records at level 0, the state of the children above."""
        if task.key.level == 0:
            return self.leaf_reads(task)
        if task.key.level <= self.top:
            return {
                "children": Records(self.output, *children_of(task.key, self.grid), STATE)
            }
        return self._round_reads(task.key)

    def process(self, task: Task, *args: Any, **inputs: Any) -> Partitioned:
        """Decide what the chunk, the node or the partition can."""
        level = task.key.level
        if level > self.top:
            return self._round(task.key, **inputs)
        if level == 0:
            children, keys = [self.leaf(task, **inputs)], [task.key]
            octants, outward = [0], [ALL_FACES]
        else:
            children, keys = inputs["children"], task.key.children(self.grid)
            octants = [k.octant for k in keys]
            outward = [k.outward_faces for k in keys]
        decided = self.decide(task, children, octants=octants, outward=outward)
        if level < self.top or not self.n_partitions:
            return decided
        state = decided.parts[STATE]
        nodes = self.grid.counts(self.top)
        number = task.key.x + nodes.x * (task.key.y + nodes.y * task.key.z)
        scale = int(state["scale"])
        entering = enter(
            self.linkage(scale), self.unfinished(scale, state), number, self.n_partitions
        )
        parts = {name: part for name, part in decided.parts.items() if name != STATE}
        return Partitioned(parts | _scaled(entering, scale))

    def _round_reads(self, key: ChunkKey) -> dict[str, Read]:
        """Read what a wave of a round needs."""
        me, wave = key.x, key.level - self.top - 1
        step = _STEPS[wave % 3]

        def everyone(back: int, part: str) -> Read:
            return Records(self.output, key.level - back, self._partitions, part)

        def mine(back: int, part: str) -> Read:
            return Record(self.output, str(ChunkKey(key.level - back, me, 0, 0)), part)

        if wave == 0:
            nodes = Bbox.of_shape(self.grid.counts(self.top))
            return {"arrivals": Records(self.output, self.top, nodes, f"home:{me}")}
        if step == "settle":
            return {
                "kept": mine(3, "kept"),
                "arrivals": everyone(2, f"home:{me}"),
                "renames": everyone(1, f"home:{me}"),
                "taken": mine(1, "taken"),
            }
        if step == "lead":
            return {"kept": mine(1, "kept"), "travellers": everyone(1, f"home:{me}")}
        return {"messages": everyone(1, f"exchange:{me}")}

    def _round(self, key: ChunkKey, **inputs: Any) -> Partitioned:
        tables = [t for v in inputs.values() for t in (v if isinstance(v, list) else [v])]
        scale = next((int(t["scale"]) for t in tables if "scale" in t), 1)
        linkage, n = self.linkage(scale), self.n_partitions
        if "messages" in inputs:
            parts: Mapping[str, Table] = pass_on(inputs["messages"], n)
        elif "travellers" in inputs:
            parts = lead(linkage, **inputs, n=n)
        else:
            home = settle_in(
                linkage,
                kept=inputs.get("kept", {}),
                arrivals=inputs["arrivals"],
                renames=inputs.get("renames", []),
                taken=inputs.get("taken", {}),
            )
            if key.level == self.answering:
                return answers(home, [f"{k}" for k in Wave(self, self.top)])
            parts = depart(linkage, home, n)
        return Partitioned(_scaled(parts, scale))

    @abstractmethod
    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Return what a chunk reads."""

    @abstractmethod
    def leaf(self, task: Task, *args: Any, **inputs: Any) -> Table:
        """Return the state of a chunk before anything is decided."""

    @abstractmethod
    def decide(
        self,
        task: Task,
        children: Sequence[Table],
        *,
        octants: Sequence[int],
        outward: Sequence[int],
    ) -> Partitioned:
        """Decide what can be decided of the children's states."""

    @abstractmethod
    def linkage(self, scale: int) -> Linkage:
        """Return how partitions merge, at a fixed-point scale."""

    @abstractmethod
    def unfinished(self, scale: int, state: Table) -> Unfinished:
        """Return what a state leaves for the partitions."""


_STEPS = ("settle", "lead", "tell")
_ROUND_SHARES = ((1.0, 0.6), (0.86, 0.9), (0.034, 0.5))
"""Of each step, its time in the first round over that of the first step, and the power of
the number of the round by which it falls; by `benchmarks/bounded.py` on the real block."""


def _scaled(parts: Mapping[str, Table], scale: int) -> dict[str, Table]:
    return {name: part | {"scale": np.array(scale)} for name, part in parts.items()}


class DownSweep(_Octree):
    """Hands the answers of an `UpSweep` down to the chunks.

    A node settles what its parent has decided for it, and answers its children. The
    record of a chunk is its remap table, ``ids`` and ``targets``; that of a node above
    has such a table for each child.

    Parameters
    ----------
    decisions : str
        Records of the up-sweep, over the same grid.
    """

    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "decisions": ("bounds", "chunk", "node_limit_gb", "partition_limit_gb", "rounds")
    }

    decisions: Layer

    def plan(self) -> list[Wave]:
        """Return a wave for each level of the octree, from the top down."""
        return [Wave(self, level) for level in reversed(range(self.top + 1))]

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the node's outcomes, and what its parent answers."""
        key = str(task.key)
        reads: dict[str, Read] = {"outcomes": Record(self.decisions, key, OUTCOMES)}
        if task.key.level < self.top:
            reads["above"] = [Record(self.output, str(task.key.parent), key)]
        elif self.n_partitions:
            reads["above"] = Records(self.decisions, self.answering, self._partitions, key)
        return reads

    def process(
        self, task: Task, outcomes: Table, above: Sequence[Table] = ()
    ) -> Table | Partitioned:
        """Settle, and part by child."""
        rows = Outcomes.from_table(outcomes)
        targets = rows.targets.copy()
        waiting = rows.settled == 0
        targets[waiting] = _looked_up(self.output, task.key, targets[waiting], above)
        if task.key.level == 0:
            return {"ids": rows.ids, "targets": self.names(targets)}
        return Partitioned(
            {
                str(child): {"ids": rows.ids[mine], "targets": targets[mine]}
                for child in task.key.children(self.grid)
                if (mine := rows.child == child.octant).any()
            }
        )

    def names(self, targets: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the ids that chunks write for the targets."""
        return targets


def _looked_up(
    output: str, key: ChunkKey, ids: NDArray[np.uint64], tables: Sequence[Table]
) -> NDArray[np.uint64]:
    """Return what a parent answers for ids.

    Raises
    ------
    DataError
        If it has no answer for one.
    """
    none = np.zeros(0, np.uint64)
    known = np.concatenate([none, *(t["ids"] for t in tables if t)])
    targets = np.concatenate([none, *(t["targets"] for t in tables if t)])
    rows = rows_of(known, ids)
    found = rows >= 0
    if not found.all():
        raise DataError(
            f"{output}: the parent of {key} says nothing of id {ids[~found][0]}; delete "
            f"{output} and the layer of its decisions, and run again"
        )
    return targets[rows]
