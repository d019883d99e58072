"""The frontier of a run: which tasks are ready, and what becomes ready when one ends.

The done records are the truth. What is kept here is made from a listing of them and can be
made again at any time: a byte for each task of a wave that has begun and is not whole.
A wave that nothing was done of, and one that is whole, take none; so a plan of a hundred
million tasks takes at most a hundred megabytes, and mostly far less.

A task is ready when each task that writes what it reads is done. When tasks end, only those
that wait for them are looked at (see `pipeline.runtime.dependencies`). When nothing is
ready and nothing under way, all tasks are looked at once more, so that none can be lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TaskError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.runtime.dependencies import Dependencies
from pipeline.runtime.progress import RunProgress
from pipeline.runtime.run import Run
from pipeline.runtime.waves import failures, names, require_not_cancelled, title
from pipeline.stages.base import Stage, Wave

_WAITS, _READY, _TAKEN, _DONE, _FAILED, _OUTSIDE = range(6)
_GOOD = np.array([s in (_DONE, _OUTSIDE) for s in range(6)])
"""States in which what others read is there, or is none of this run's business."""

_AT_ONCE = 64
"""Tasks that end together and are looked at one by one; more are looked at as a box."""

_LISTENS_S = 1.0
"""How often one looks whether the run was cancelled [s]."""


@dataclass(frozen=True)
class Job:
    """A task that is ready, as an executor takes it.

    Parameters
    ----------
    wave : int
        Number of its wave.
    stage : Stage
        Whose it is.
    key : ChunkKey
        Which.
    """

    wave: int
    stage: Stage = field(compare=False)
    key: ChunkKey


@dataclass(frozen=True)
class Held:
    """Tasks that were not begun because of others that failed.

    Parameters
    ----------
    output, title : str
        Layer of the tasks, and their wave as a person calls it.
    tasks : int
        How many.
    first : ChunkKey
        One of them.
    by : str
        A task that failed and that it waits for, near or far, ``layer/key``.
    """

    output: str
    title: str
    tasks: int
    first: ChunkKey
    by: str


@dataclass
class _Front:
    """How far a wave is; ``states`` is None where nothing of it was done, or all."""

    wave: Wave
    extent: Vec3
    left: int
    states: bytearray | None = None
    ready: int = 0
    taken: int = 0
    failed: int = 0
    begun: float = 0.0
    ended: float = 0.0
    cursor: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether every task is done."""
        return self.left == 0 and self.failed == 0

    @property
    def waiting(self) -> int:
        """How many are neither done, failed, ready nor under way."""
        return self.left - self.ready - self.taken

    def view(self) -> NDArray[np.uint8]:
        """Return the states as an array, (x, y, z), to read and to write."""
        if self.states is None:
            self.states = bytearray(self.extent.product)
        flat = np.frombuffer(self.states, np.uint8)
        return flat.reshape(self.extent.astuple(), order="F")

    def place(self, key: ChunkKey) -> int:
        """Return where the state of a task stands."""
        return key.x + self.extent.x * (key.y + self.extent.y * key.z)

    def key(self, place: int) -> ChunkKey:
        """Return the task whose state stands at a place."""
        rest, x = divmod(place, self.extent.x)
        z, y = divmod(rest, self.extent.y)
        return ChunkKey(self.wave.level, x, y, z)


class Frontier:
    """Hands out the tasks of a run that are ready, and is told of those that ended.

    Threads may share one. Tasks are handed out in the order of the longest chains of
    waves that wait for them.

    Parameters
    ----------
    run : Run
        Started.
    stages : sequence of Stage
        Those that are wanted, in layer order; what others write is taken to be there.
    chosen : callable or None
        Says by wave which tasks are wanted; all of them if it is None.
    progress : RunProgress or None
        Told of what ends.
    """

    def __init__(
        self,
        run: Run,
        stages: Iterable[Stage],
        *,
        chosen: Callable[[Wave], Iterable[ChunkKey]] | None = None,
        progress: RunProgress | None = None,
    ) -> None:
        self.run = run
        self.dependencies = Dependencies(list(stages))
        self._progress = progress or RunProgress(quiet=True)
        self._changed = threading.Condition()
        self._listened = 0.0
        self._fronts = [
            _Front(wave, extent, extent.product)
            for wave, extent in zip(
                self.dependencies.waves, self.dependencies.extents, strict=True
            )
        ]
        depths = self.dependencies.depths
        self._order = sorted(range(len(depths)), key=lambda n: -depths[n])
        for front in self._fronts:
            self._load(front, chosen)
        require_not_cancelled(run)
        self._sweep()

    # -- what executors use --------------------------------------------------------------

    def take(self, pools: Iterable[str] | None = None) -> Job | None:
        """Return a task that is ready; None if there is none at the moment.

        Parameters
        ----------
        pools : iterable of str or None
            Only of stages for these kinds of worker.

        Raises
        ------
        CancelledError
            If the run was cancelled.
        """
        with self._changed:
            for n in self._order:
                front = self._fronts[n]
                if front.ready and (pools is None or front.wave.stage.pool in pools):
                    self._listen(front)
                    return self._take(n, front)
        return None

    def wait(self, stop: threading.Event) -> Job | None:
        """Return a task as soon as one is ready; None when none will be.

        Parameters
        ----------
        stop : Event
            Makes it return None at once.
        """
        with self._changed:
            while not stop.is_set():
                job = self.take()
                if job is not None:
                    return job
                if self.is_over():
                    self._changed.notify_all()
                    return None
                self._changed.wait(0.2)
        return None

    def ended(self, job: Job, outcome: str) -> None:
        """Take note that a task has ended.

        Parameters
        ----------
        job : Job
            As it was taken.
        outcome : str
            ``failed`` if it was parked; else it is done.
        """
        self.saw(job.wave, [job.key], outcome)

    def saw(self, wave: int, keys: Iterable[ChunkKey], outcome: str) -> int:
        """Take note of tasks of a wave that have a record; return how many are news."""
        with self._changed:
            front, new = self._fronts[wave], []
            for key in keys:
                place = front.place(key)
                state = front.states[place] if front.states is not None else _DONE
                if state in (_DONE, _FAILED, _OUTSIDE):
                    continue
                assert front.states is not None
                front.states[place] = _FAILED if outcome == "failed" else _DONE
                front.left -= 1
                front.ready -= state == _READY
                front.taken -= state == _TAKEN
                front.failed += outcome == "failed"
                new.append(key)
                stage = front.wave.stage
                self._progress.add(
                    title(front.wave), outcome, stage.voxels(stage.task(key))
                )
            if not new:
                return 0
            front.ended = time.monotonic()
            if outcome != "failed":
                self._look_behind(wave, new)
            if front.left == 0:
                self._progress.ends(title(front.wave))
            if front.is_whole:
                front.states = None
            self._changed.notify_all()
            return len(new)

    def is_over(self) -> bool:
        """Whether nothing is ready, nothing under way, and nothing can become ready."""
        with self._changed:
            if any(front.ready or front.taken for front in self._fronts):
                return False
            if self._sweep():
                return False
            left = [n for n, front in enumerate(self._fronts) if front.waiting]
            if not left or any(front.failed for front in self._fronts):
                return True
            # Nothing failed, and yet some wait: the tables are not believed.
            everyone = (Bbox.of_shape(self._fronts[n].extent) for n in left)
            return not any(map(self._look_one_by_one, left, everyone))

    def under_way(self, pools: Iterable[str] | None = None) -> Iterator[tuple[int, int]]:
        """Yield the waves of which tasks are under way, and how many."""
        for n, front in enumerate(self._fronts):
            if front.taken and (pools is None or front.wave.stage.pool in pools):
                yield n, front.taken

    def taken(self, wave: int) -> Iterator[Job]:
        """Yield the tasks of a wave that are under way."""
        front = self._fronts[wave]
        place = -1
        while front.states is not None:
            place = front.states.find(_TAKEN, place + 1)
            if place < 0:
                return
            yield Job(wave, front.wave.stage, front.key(place))

    def done(self, wave: int, count: int) -> Iterator[Job]:
        """Yield some tasks of a wave that are done, spread over it; at most so many."""
        front = self._fronts[wave]
        size = front.extent.product
        found = set()
        for number in range(count):
            if front.states is not None:
                found.add(front.states.find(_DONE, number * size // count))
        for place in sorted(found - {-1}):
            yield Job(wave, front.wave.stage, front.key(place))

    def wave(self, number: int) -> Wave:
        """Return a wave by its number."""
        return self._fronts[number].wave

    def ended_of(self, wave: int) -> int:
        """Return how many tasks of a wave have ended."""
        return self._fronts[wave].extent.product - self._fronts[wave].left

    # -- how it went ---------------------------------------------------------------------

    def wall_s(self, stage: Stage) -> float:
        """Return the time from the first start of a stage's tasks to their last end [s]."""
        mine = [f for f in self._fronts if f.wave.stage.output == stage.output and f.begun]
        ends = [f.ended for f in mine if f.ended]
        return max(ends) - min(f.begun for f in mine) if ends else 0.0

    def held(self) -> list[Held]:
        """Return, by wave, the tasks that wait for others that failed."""
        found = []
        for n, front in enumerate(self._fronts):
            if not front.waiting:
                continue
            place = 0 if front.states is None else front.states.find(_WAITS)
            key = front.key(place)
            found.append(
                Held(
                    front.wave.stage.output,
                    title(front.wave),
                    front.waiting,
                    key,
                    self._cause(n, key),
                )
            )
        return found

    def raise_failed(self) -> None:
        """Raise if tasks were given up.

        Raises
        ------
        TaskError
            With their number and the first reason by wave, and what waits for them.
        """
        said = []
        for front in self._fronts:
            if front.failed:
                parked = failures(self.run, front.wave)
                first = parked[0] if parked else {"key": "?", "reason": "no record of it"}
                stage, total = front.wave.stage, len(front.wave)
                said.append(
                    f"{stage.name}: {front.failed} of {total} tasks of {stage.output} "
                    f"failed, first {first['key']}: {first['reason']}"
                )
        held = self.held()
        if not said and not held:
            return
        if held:
            parts = (f"{h.tasks} of {h.title} (first {h.first}, by {h.by})" for h in held)
            said.append(f"held back: {', '.join(parts)}")
        raise TaskError(
            "; ".join(said) + "; see em failures, mend the cause, then em retry and em run"
        )

    # -- parts ---------------------------------------------------------------------------

    def _load(
        self, front: _Front, chosen: Callable[[Wave], Iterable[ChunkKey]] | None
    ) -> None:
        """Take the state of a wave from its records."""
        if chosen is not None:
            front.states = bytearray([_OUTSIDE]) * front.extent.product
            front.left = 0
            for key in chosen(front.wave):
                front.states[front.place(key)] = _WAITS
                front.left += 1
        for what, state in (("failed", _FAILED), ("done", _DONE)):
            for name in names(self.run, front.wave, what):
                if front.states is None:
                    front.states = bytearray(front.extent.product)
                place = front.place(ChunkKey.parse(name))
                before = front.states[place]
                if before in (_WAITS, _FAILED):
                    front.states[place] = state
                    front.left -= before == _WAITS
                    front.failed += (state == _FAILED) - (before == _FAILED)
        if front.is_whole:
            front.states = None

    def _take(self, number: int, front: _Front) -> Job:
        assert front.states is not None
        place = front.states.find(_READY, front.cursor)
        if place < 0:
            place = front.states.find(_READY)
        front.cursor = place + 1
        front.states[place] = _TAKEN
        front.ready -= 1
        front.taken += 1
        if not front.begun:
            front.begun = time.monotonic()
            self._progress.begins(title(front.wave), front.left)
        return Job(number, front.wave.stage, front.key(place))

    def _listen(self, front: _Front) -> None:
        now = time.monotonic()
        if not front.begun or now - self._listened > _LISTENS_S:
            require_not_cancelled(self.run)
            self._listened = now

    def _look_behind(self, wave: int, keys: list[ChunkKey]) -> None:
        """Find what has become ready now that some tasks of a wave are done."""
        boxes = [Bbox(key.position, key.position + 1) for key in keys]
        if len(boxes) > _AT_ONCE:
            hull = boxes[0]
            for box in boxes[1:]:
                hull = hull.hull(box)
            boxes = [hull]
        for box in boxes:
            for reader, found in self.dependencies.dependants(wave, box):
                self._look_at(reader, found)

    def _look_at(self, number: int, box: Bbox) -> int:
        """Find what is ready among the tasks of a box; return how many are."""
        front = self._fronts[number]
        if not front.waiting:
            return 0
        if not self.dependencies.is_regular(number):
            return self._look_one_by_one(number, box)
        is_ready: NDArray[np.bool_] | None = None
        for writer, spans in self.dependencies.spans(number).items():
            source = self._fronts[writer]
            if source.is_whole:
                continue
            if source.states is None or spans.is_whole:
                return 0
            good = _GOOD[source.view()[spans.read_by(box).slices()]]
            found = spans.all_of(good, box)
            is_ready = found if is_ready is None else is_ready & found
            if not is_ready.any():
                return 0
        states = front.view()[box.slices()]
        chosen = states == _WAITS if is_ready is None else (states == _WAITS) & is_ready
        return self._mark(front, states, chosen)

    def _mark(
        self, front: _Front, states: NDArray[np.uint8], chosen: NDArray[np.bool_]
    ) -> int:
        count = int(np.count_nonzero(chosen))
        if count:
            states[chosen] = _READY
            front.ready += count
            front.cursor = 0
        return count

    def _look_one_by_one(self, number: int, box: Bbox) -> int:
        """Do the same by asking each task what it reads."""
        front, count = self._fronts[number], 0
        view = front.view()
        for place in box.positions():
            at = place.astuple()
            if view[at] == _WAITS:
                needs = self.dependencies.needs(number, ChunkKey(front.wave.level, *place))
                if all(self._is_there(self._fronts[w], needed) for w, needed in needs):
                    view[at] = _READY
                    count += 1
        front.ready += count
        front.cursor = 0 if count else front.cursor
        return count

    def _is_there(self, front: _Front, box: Bbox) -> bool:
        """Whether what tasks of a wave write is there, or not this run's business."""
        if front.is_whole or front.states is None:
            return front.is_whole
        return bool(_GOOD[front.view()[box.slices()]].all())

    def _sweep(self) -> int:
        """Look at every task that waits; return how many are ready."""
        found = 0
        for n, front in enumerate(self._fronts):
            if front.waiting:
                sources = self.dependencies.sources(n)
                if any(self._is_untouched(self._fronts[w]) for w in sources):
                    continue
                found += self._look_at(n, Bbox.of_shape(front.extent))
        return found

    def _is_untouched(self, front: _Front) -> bool:
        """Whether nothing of a wave is done, so that nothing of it can be read."""
        return front.states is None and not front.is_whole

    def _cause(self, number: int, key: ChunkKey) -> str:
        """Follow what a task waits for to one that failed."""
        while True:
            for writer, box in self.dependencies.needs(number, key):
                front = self._fronts[writer]
                if self._is_there(front, box):
                    continue
                place = box.start
                if front.states is not None:
                    bad = np.argwhere(~_GOOD[front.view()[box.slices()]])
                    place = box.start + Vec3.of([int(i) for i in bad[0]])
                number, key = writer, ChunkKey(front.wave.level, *place)
                if front.states and front.states[front.place(key)] == _FAILED:
                    return f"{front.wave.stage.output}/{key}"
                break
            else:
                return "nothing that failed"
