"""The steps of a wave, none of which waits: what it lacks, how far it is, if it is whole.

`drive` strings them together in one process, Airflow in tasks that sleep between them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.errors import CancelledError, TaskError
from pipeline.geometry import Bbox, ChunkKey
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.verify import Fault
from pipeline.stages.base import Stage, Wave

_LISTING_SHARE = 0.1
"""Share of the time of a wait that may go into listing records."""


@dataclass(frozen=True)
class WaveCount:
    """How far a wave is.

    Parameters
    ----------
    tasks, done, failed : int
        How many there are, are done, and were given up.
    """

    tasks: int
    done: int
    failed: int

    @property
    def missing(self) -> int:
        """How many have neither a done nor a failed record."""
        return self.tasks - self.done - self.failed

    @property
    def is_ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.missing == 0

    def __str__(self) -> str:
        return (
            f"{self.done} of {self.tasks} done, {self.failed} failed, "
            f"{self.missing} missing"
        )


def wave_of(stage: Stage, level: int) -> Wave:
    """Return the wave of a stage by its level."""
    return next(wave for wave in stage.plan() if wave.level == level)


def title(wave: Wave) -> str:
    """Return what a person calls a wave: the layer, and its level where it has several."""
    output = wave.stage.output
    return output if len(wave.stage.plan()) == 1 else f"{output} {wave.level}"


def lacking(run: Run, wave: Wave, within: Bbox | None = None) -> Iterator[ChunkKey]:
    """Yield the tasks of a wave that are neither done nor given up.

    Parameters
    ----------
    run : Run
        Started.
    wave : Wave
        Of a stage of the run.
    within : Bbox or None
        Only tasks that touch this box, in voxels of the stage at mip 0.
    """
    ended = {*names(run, wave, "done"), *names(run, wave, "failed")}
    return (key for key in wave.keys(within) if str(key) not in ended)


def enqueue(run: Run, wave: Wave, url: str) -> int:
    """Put the tasks that a wave lacks on a queue; return how many."""
    queue, keys, count = TaskQueue(url), lacking(run, wave), 0
    while batch := list(islice(keys, 1000)):
        queue.insert(run.store.root, run.recipe.name, wave.stage.output, batch)
        count += len(batch)
    return count


def count(run: Run, wave: Wave) -> WaveCount:
    """Count the records of a wave by listing their names once; none is read."""
    failed = set(names(run, wave, "failed"))
    done = 0
    for name in names(run, wave, "done"):
        done += 1
        failed.discard(name)
    return WaveCount(len(wave), done, len(failed))


def unfinished(run: Run, stage: Stage) -> str | None:
    """Say what a stage reads that is not whole yet; None if it can begin."""
    for source in run.recipe.upstream(stage):
        for wave in reversed(source.plan()):
            found = count(run, wave)
            if found.done < found.tasks:
                return f"{title(wave)} ({found})"
    return None


def needs(run: Run, pool: str) -> bool:
    """Whether a stage for that kind of worker can begin, or go on, at once."""
    return any(
        any(count(run, w).done < len(w) for w in reversed(stage.plan()))
        and unfinished(run, stage) is None
        for stage in run.recipe.stages
        if stage.pool == pool
    )


def failures(run: Run, wave: Wave) -> list[dict[str, Any]]:
    """Return the failed records of a wave, in the order of their keys."""
    paths = (f"{_folder(wave, 'failed')}{n}.json" for n in names(run, wave, "failed"))
    return [d for path in sorted(paths) if isinstance(d := run.store.get_json(path), dict)]


def raise_failed(run: Run, wave: Wave) -> None:
    """Raise if tasks of a wave were given up.

    Raises
    ------
    TaskError
        With their number and the first reason.
    """
    parked = failures(run, wave)
    if parked:
        stage = wave.stage
        raise TaskError(
            f"{stage.name}: {len(parked)} of {len(wave)} tasks of {stage.output} failed, "
            f"first {parked[0]['key']}: {parked[0]['reason']}; see em failures, mend the "
            "cause, then em retry and em run"
        )


def try_again(run: Run, wave: Wave) -> int:
    """Forget that tasks of a wave were given up; return how many."""
    keys = [ChunkKey.parse(name) for name in names(run, wave, "failed")]
    for key in keys:
        if run.done_record(wave.stage, key) is None:
            run.forget(wave.stage, key)
    return len(keys)


def prove(run: Run, wave: Wave) -> list[Fault]:
    """List the tasks of a wave that are not done or whose objects are not there.

    Objects are looked for by name, in one listing of the layer; `verify` compares their
    contents too.
    """
    stage = wave.stage
    records = {r.key: r for r in run.done_records(stage) if r.key.level == wave.level}
    present: set[str] = set()
    if any(record.objects for record in records.values()):
        layer = run.data_layer(stage)
        present = {p.removeprefix(f"{layer}/") for p in run.store.list(f"{layer}/")}
    lineage = run.lineage[stage.output]
    faults = []
    for key in wave:
        record = records.get(key)
        place = f"{stage.output}/{key}"
        if record is None:
            faults.append(Fault(key, "missing", f"{place} was never written"))
        elif record.lineage != lineage:
            faults.append(Fault(key, "stale", f"{place} is of another configuration"))
        else:
            lost = sorted(set(record.objects) - present)
            faults += [Fault(key, "lost", f"{name} is missing") for name in lost]
    return faults


def forget_lost(run: Run, wave: Wave) -> list[ChunkKey]:
    """Forget tasks of a wave whose record or objects are no longer there; return them."""
    recorded = set(names(run, wave, "done"))
    if not recorded:
        return []
    lost = {fault.key for fault in prove(run, wave) if fault.kind in ("lost", "missing")}
    found = sorted(key for key in lost if str(key) in recorded)
    for key in found:
        run.forget(wave.stage, key)
    return found


class Watch:
    """Looks at a wave on a queue whenever it is asked to; its caller does the waiting.

    As long as the queue holds messages their records are listed only now and then, so
    that watching over millions of tasks costs little. When the queue has long been empty
    and tasks are missing, their messages got lost and are sent again.

    Parameters
    ----------
    run : Run
        Started.
    wave : Wave
        Whose tasks are on the queue.
    url : str
        The queue.

    Attributes
    ----------
    count : WaveCount
        As it was when it was last counted.
    sent_again : int
        Messages that were sent again.
    """

    def __init__(self, run: Run, wave: Wave, url: str) -> None:
        self.run = run
        self.wave = wave
        self.queue = TaskQueue(url)
        self.sent_again = 0
        self._changed = time.monotonic()
        self._empty_since: float | None = None
        self._next_count = 0.0
        self.count = WaveCount(len(wave), 0, 0)

    def look(self) -> bool:
        """Look once; return whether the wave has ended.

        Raises
        ------
        CancelledError
            If the run was cancelled.
        """
        require_not_cancelled(self.run)
        is_empty = self.queue.is_empty()
        now = time.monotonic()
        if is_empty or now >= self._next_count:
            found = count(self.run, self.wave)
            took = time.monotonic() - now
            self._next_count = now + took / _LISTING_SHARE
            if found != self.count:
                self._changed = now
                self._empty_since = None
            self.count = found
        if self.count.is_ended:
            return True
        if not is_empty:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        elif now - self._empty_since > self.queue.settles_s:
            self.sent_again += enqueue(self.run, self.wave, self.queue.url)
            self._empty_since = None
        return False

    @property
    def still_s(self) -> float:
        """For how long no task has ended [s]."""
        return time.monotonic() - self._changed

    def waits_for(self) -> str:
        """Say what is waited for, and what to look at if it takes long."""
        text = f"{title(self.wave)}: {self.count}; waits for workers on {self.queue.url}"
        if self.sent_again:
            text += f"; {self.sent_again} messages were lost and sent again"
        if self.still_s > 120:
            text += (
                f"; no task has ended for {self.still_s:.0f} s: is there a worker? "
                f"em work --queue {self.queue.url}, or em k8s status"
            )
        return text


# -- cancelling ------------------------------------------------------------------------


def cancel(run: Run) -> None:
    """Tell whoever drives a run to stop; what is done stays done."""
    run.store.put_json(
        _cancelled(run),
        {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    )


def resume(run: Run) -> None:
    """Take a cancellation back."""
    run.store.delete_document(_cancelled(run))


def require_not_cancelled(run: Run) -> None:
    """Raise if a run was cancelled.

    Raises
    ------
    CancelledError
        With the time.
    """
    mark = run.store.get_json(_cancelled(run))
    if mark is not None:
        raise CancelledError(
            f"run {run.recipe.name} was cancelled at {mark.get('time')}; what is done is "
            "kept, and em run goes on from there"
        )


def _cancelled(run: Run) -> str:
    return f"cancelled/{run.recipe.name}.json"


# -- records ---------------------------------------------------------------------------


def _folder(wave: Wave, what: str) -> str:
    return f"{wave.stage.output}/{what}/"


def names(run: Run, wave: Wave, what: str) -> Iterator[str]:
    """Yield the keys of a wave, as text, that have a record of a kind."""
    folder = _folder(wave, what)
    for path in run.store.list(f"{folder}{wave.level}_"):
        name = path.removeprefix(folder).removesuffix(".json")
        if "/" not in name:
            yield name
