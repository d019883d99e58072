"""Proves that every chunk of every layer was written, and lists what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from pipeline.geometry import ChunkKey
from pipeline.runtime.run import Done, Run
from pipeline.stages.base import Stage

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fault:
    """What is wrong with the output of a task."""

    key: ChunkKey
    kind: str
    detail: str

    def to_json(self) -> dict[str, str]:
        """Return the fields."""
        return {"key": str(self.key), "kind": self.kind, "detail": self.detail}


@dataclass(frozen=True)
class StageProof:
    """What was found of a stage.

    Parameters
    ----------
    output, stage : str
        Layer and stage.
    tasks, done, blank : int
        Tasks there are, those found whole, and those of them that are blank.
    faults : list of Fault
        Tasks that are missing, failed, stale or damaged.
    """

    output: str
    stage: str
    tasks: int
    done: int
    blank: int
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every task is proved."""
        return not self.faults and self.done == self.tasks

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return {
            "output": self.output,
            "stage": self.stage,
            "tasks": self.tasks,
            "done": self.done,
            "blank": self.blank,
            "complete": self.is_complete,
            "faults": [f.to_json() for f in self.faults],
        }


def verify(run: Run, *, contents: bool = True, only: str | None = None) -> list[StageProof]:
    """Compare what is stored with the plan and with the done records.

    Parameters
    ----------
    run : Run
        Started.
    contents : bool
        Whether to read every object and compare its checksum, or only see that it is
        there.
    only : str or None
        Only the stage of that output or name.
    """
    return [
        _verify(run, stage, contents=contents)
        for stage in run.recipe.stages
        if only in (None, stage.output, stage.name)
    ]


def forget_faults(run: Run, proofs: list[StageProof]) -> int:
    """Forget every task with a fault, so that the next run does it; return how many."""
    count = 0
    for proof in proofs:
        stage = run.recipe.stage(proof.output)
        for fault in proof.faults:
            run.forget(stage, fault.key)
            count += 1
    return count


def _verify(run: Run, stage: Stage, *, contents: bool) -> StageProof:
    records = {d.key: d for d in run.done_records(stage)}
    parked = run.parked_keys(stage)
    lineage = run.lineage[stage.output]
    layer = run.data_layer(stage)
    faults: list[Fault] = []
    tasks = done = blank = 0

    def look(key: ChunkKey) -> tuple[ChunkKey, Done | None, list[str]]:
        record = records.get(key)
        if record is None or record.lineage != lineage:
            return key, record, []
        return key, record, run.store.check(layer, record.objects, contents=contents)

    keys = (key for wave in stage.plan() for key in wave)
    with ThreadPoolExecutor(8) as threads:
        for key, record, wrong in _mapped(threads, look, keys):
            tasks += 1
            if record is None:
                kind = "failed" if key in parked else "missing"
                faults.append(Fault(key, kind, f"{stage.output}/{key} was never written"))
            elif record.lineage != lineage:
                faults.append(
                    Fault(key, "stale", f"{stage.output}/{key} is of another configuration")
                )
            elif wrong:
                kind = "lost" if all(w.endswith("is missing") for w in wrong) else "damaged"
                faults += [Fault(key, kind, w) for w in wrong]
            else:
                done += 1
                blank += record.blank
    return StageProof(stage.output, stage.name, tasks, done, blank, faults)


def _mapped(
    threads: ThreadPoolExecutor,
    function: Callable[[ChunkKey], _T],
    keys: Iterator[ChunkKey],
) -> Iterator[_T]:
    """Map in batches: a pool's own map would hold a future for every key."""
    while batch := list(islice(keys, 1024)):
        yield from threads.map(function, batch)
