"""Decisions over the whole volume: up the octree, and the answers down again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import ALL_FACES, ChunkKey
from pipeline.kernels.merge_basins import Outcomes
from pipeline.specs import LayerSpec, Partitioned, Read, Record, RecordsSpec, Table
from pipeline.stages.base import Layer, Specs, Stage, Task, Wave

STATE = "state"
"""Part of a node's record that its parent reads."""
OUTCOMES = "outcomes"
"""Part that says what became of what the children held."""


class UpSweep(Stage):
    """Decides at every node of the octree what the node knows enough to decide.

    A node's record has the parts ``state``, which its parent reads, and ``outcomes``,
    which say what became of everything that its children left open; more where the
    stage says so. A `DownSweep` gives each chunk the answers.
    """

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
        """Read voxels or records at level 0, the state of the children above."""
        if task.key.level == 0:
            return self.leaf_reads(task)
        children = task.key.children(self.grid)
        return {"children": [Record(self.output, str(k), STATE) for k in children]}

    def process(self, task: Task, *args: Any, **inputs: Any) -> Partitioned:
        """Decide what the chunk or the node can."""
        if task.key.level == 0:
            leaf = self.leaf(task, **inputs)
            return self.decide(task, [leaf], octants=[0], outward=[ALL_FACES])
        keys = task.key.children(self.grid)
        return self.decide(
            task,
            inputs["children"],
            octants=[k.octant for k in keys],
            outward=[k.outward_faces for k in keys],
        )

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

    def target(self, task: Task) -> Record:
        """Write the record of the node."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()


class DownSweep(Stage):
    """Hands the answers of an `UpSweep` down to the chunks.

    A node settles what its parent has decided for it, and answers its children. The
    record of a chunk is its remap table, ``ids`` and ``targets``; that of a node above
    has such a table for each child.

    Parameters
    ----------
    decisions : str
        Records of the up-sweep, over the same grid.
    """

    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {"decisions": ("bounds", "chunk")}

    decisions: Layer

    def octree_level(self, level: int) -> int:
        """Return the level itself."""
        return level

    def plan(self) -> list[Wave]:
        """Return a wave for each level of the octree, from the top down."""
        return [Wave(self, level) for level in reversed(range(self.grid.height + 1))]

    def voxels(self, task: Task) -> int:
        """Count the voxels of chunks."""
        return task.box.volume if task.key.level == 0 else 0

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the node's outcomes, and what its parent answers."""
        key = str(task.key)
        reads: dict[str, Read] = {"outcomes": Record(self.decisions, key, OUTCOMES)}
        if task.key.level < self.grid.height:
            reads["above"] = Record(self.output, str(task.key.parent), key)
        return reads

    def process(
        self, task: Task, outcomes: Table, above: Table | None = None
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

    def target(self, task: Task) -> Record:
        """Write the record of the node."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()


def _looked_up(
    output: str, key: ChunkKey, ids: NDArray[np.uint64], table: Table | None
) -> NDArray[np.uint64]:
    """Return what a parent answers for ids.

    Raises
    ------
    DataError
        If it has no answer for one.
    """
    known = table["ids"] if table else np.zeros(0, np.uint64)
    order = np.argsort(known)
    rows = np.searchsorted(known, ids, sorter=order)
    found = rows < len(known)
    found[found] = known[order[rows[found]]] == ids[found]
    if not found.all():
        raise DataError(
            f"{output}: the parent of {key} says nothing of id {ids[~found][0]}; delete "
            f"{output} and the layer of its decisions, and run again"
        )
    answers: NDArray[np.uint64] = (
        table["targets"][order[rows]] if table else np.zeros(0, np.uint64)
    )
    return answers
