"""A fleet of workers simulated on a plan without barriers: a task starts when it is ready.

Who waits for whom is what the runtime goes by (`pipeline.runtime.dependencies`), and what
most waves wait for goes first, as there; what is late gets a second worker, if one has
nothing else to do (`pipeline.runtime.late`). Workers of all kinds work at once. Time goes
on in short windows: in each, the workers that become free in it take what is ready, each at
its own moment. Tasks that start in one window are not ordered by moments, which is all that
is inexact.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from fleet import Passed, Weather, Work, drawn
from numpy.typing import NDArray

from pipeline.runtime.dependencies import Dependencies
from pipeline.runtime.late import LATE_TIMES
from pipeline.runtime.run import LATE_S

WINDOW_S = 5.0
"""Length of a window [s]; short beside a run, about as long as a task."""

HEARD_S = 10.0
"""Until the driver has heard that a task ended, and sent those that waited for it [s]."""

_LOOKS_S = 60.0
_LISTED_PER_S = 20_000
"""Names of records that a driver lists in a second, in the share of its time for that."""
_SHARE = 0.02
"""Of the time so far, between two looks at a wave: what is simulated need not be finer."""
_NEVER = np.float32(np.inf)


@dataclass
class _Wave:
    """How far a wave is; times are those at which tasks end or become ready [s].

    Of tasks that will be late, ``late`` holds when they are, their end and place;
    ``ending`` their end and place; and ``copied`` those that got a second worker.
    """

    work: Work
    pool: str
    ends: NDArray[np.float32] | None = None
    known: NDArray[np.bool_] | None = None
    ready: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    tasks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    at: int = 0
    again: list[tuple[float, int]] = field(default_factory=list)
    late: list[tuple[float, float, int]] = field(default_factory=list)
    ending: list[tuple[float, int]] = field(default_factory=list)
    copied: set[int] = field(default_factory=set)
    unknown: int = 0
    started: int = 0
    looked: float = -np.inf
    last: float = 0.0

    @property
    def next_ready(self) -> float:
        """When the next task that is known to become ready does [s]."""
        first = float(self.ready[self.at]) if self.at < len(self.ready) else np.inf
        return min(first, self.again[0][0]) if self.again else first

    @property
    def is_started(self) -> bool:
        """Whether of every task the end is known."""
        return self.started == self.work.tasks


@dataclass(frozen=True)
class Overlapped:
    """How a plan went without barriers.

    Parameters
    ----------
    wall_s : float
        Until the last task has ended [s].
    path_s : float
        The longest chain of tasks, each of the mean time of its wave [s].
    passed : dict of str to Passed
        By pool; ``wall_s`` is that of the whole.
    ends : list of float
        When the last task of each wave ended [s].
    """

    wall_s: float
    path_s: float
    passed: Mapping[str, Passed]
    ends: list[float]


def overlapped(
    known: Dependencies,
    waves: Sequence[tuple[str, Work]],
    fleets: Mapping[str, int],
    weather: Weather,
    *,
    copies: bool = True,
    seed: int = 0,
) -> Overlapped:
    """Do a plan, each task when what it reads is there.

    Parameters
    ----------
    known : Dependencies
        Of the plan.
    waves : sequence of (str, Work)
        Pool and work of each of its waves.
    fleets : mapping of str to int
        Workers by pool.
    weather : Weather
        What goes wrong.
    copies : bool
        Whether tasks that take far longer than others are sent again, as the runtime does.
    """
    return _Simulation(known, waves, fleets, weather, seed, copies=copies).run()


class _Simulation:
    def __init__(
        self,
        known: Dependencies,
        waves: Sequence[tuple[str, Work]],
        fleets: Mapping[str, int],
        weather: Weather,
        seed: int,
        *,
        copies: bool,
    ) -> None:
        self.known = known
        self.copies = copies
        self.weather = weather
        self.rng = np.random.default_rng(seed)
        self.waves = [_Wave(work, pool, unknown=work.tasks) for pool, work in waves]
        self.free = {pool: np.zeros(fleets[pool]) for pool in fleets}
        self.order = {
            pool: [
                n
                for n in sorted(range(len(waves)), key=lambda n: -known.depths[n])
                if waves[n][0] == pool
            ]
            for pool in fleets
        }
        self.busy = dict.fromkeys(fleets, 0.0)
        self.lost_s = dict.fromkeys(fleets, 0.0)
        self.lost = dict.fromkeys(fleets, 0)

    def run(self) -> Overlapped:
        while any(self.order.values()):
            pool = min(
                (p for p, order in self.order.items() if order),
                key=lambda p: float(self.free[p].min()),
            )
            self._window(pool)
        wall = max(wave.last for wave in self.waves)
        return Overlapped(
            wall,
            self._path(),
            {
                pool: Passed(wall, self.busy[pool], self.lost_s[pool], self.lost[pool])
                for pool in self.free
            },
            [wave.last for wave in self.waves],
        )

    def _window(self, pool: str) -> None:
        """Let the workers that are free first take what is ready."""
        free = self.free[pool]
        now = float(free.min())
        until = now + WINDOW_S
        idle = np.flatnonzero(free < until)
        idle = idle[np.argsort(free[idle], kind="stable")]
        later = np.inf
        for n in self.order[pool]:
            wave = self.waves[n]
            if wave.next_ready > until:
                self._look(n, now)
            idle = self._start(wave, pool, idle, until)
            later = min(later, wave.next_ready)
            if not len(idle):
                break
        idle, next_late = self._hurry(pool, idle, until)
        later = min(later, next_late)
        if len(idle):
            others = (f.min() for p, f in self.free.items() if p != pool and self.order[p])
            later = min([later, now + _LOOKS_S, *others])
            free[idle] = max(until, later)
        done = [n for n in self.order[pool] if self.waves[n].is_started]
        for n in done:
            self.order[pool].remove(n)
            self._forget_read(n)

    def _start(
        self, wave: _Wave, pool: str, idle: NDArray[np.int64], until: float
    ) -> NDArray[np.int64]:
        """Give tasks of a wave to workers; return the workers that are left."""
        tasks, ready = [], []
        while wave.again and wave.again[0][0] <= until and len(tasks) < len(idle):
            moment, task = heapq.heappop(wave.again)
            tasks.append(task)
            ready.append(moment)
        room = min(len(idle) - len(tasks), len(wave.ready) - wave.at)
        count = int(
            np.searchsorted(wave.ready[wave.at : wave.at + room], until, side="right")
        )
        mine = slice(wave.at, wave.at + count)
        chosen = np.concatenate([np.array(tasks, np.int64), wave.tasks[mine]])
        if not len(chosen):
            return idle
        wave.at += count
        moments = np.concatenate([np.array(ready), wave.ready[mine]])
        workers, rest = idle[: len(chosen)], idle[len(chosen) :]
        begun = np.maximum(self.free[pool][workers], moments)
        seconds = drawn(self.rng, len(chosen), wave.work.seconds, self.weather)
        ends, rate = begun + seconds, self.weather.losses / 3600
        late = begun + self._late_after(wave) + HEARD_S
        if rate:
            alive = self.rng.exponential(1 / rate, len(chosen))
            gone = alive < seconds
            for worker, task, moment, missed in zip(
                workers[gone], chosen[gone], (begun + alive)[gone], late[gone], strict=True
            ):
                back = moment + self.weather.lease_s
                if len(rest):
                    back = min(back, max(moment, missed))
                heapq.heappush(wave.again, (back, int(task)))
                self.free[pool][worker] = moment + self.weather.replaced_s
            self.lost[pool] += int(gone.sum())
            self.lost_s[pool] += float((alive[gone] + self.weather.replaced_s).sum())
            workers, chosen, ends = workers[~gone], chosen[~gone], ends[~gone]
            seconds, late = seconds[~gone], late[~gone]
        self.free[pool][workers] = ends
        self.busy[pool] += float(seconds.sum())
        is_late = ends > late
        for moment, end, task in zip(
            late[is_late], ends[is_late], chosen[is_late], strict=True
        ):
            heapq.heappush(wave.late, (float(moment), float(end), int(task)))
            heapq.heappush(wave.ending, (float(end), int(task)))
        self._settle(wave, chosen[~is_late], ends[~is_late])
        return rest

    def _settle(
        self, wave: _Wave, tasks: NDArray[np.int64], ends: NDArray[np.float64]
    ) -> None:
        """Take note when tasks end."""
        if wave.ends is not None:
            wave.ends[tasks] = ends
        wave.started += len(tasks)
        wave.last = max(wave.last, float(ends.max(initial=0.0)))

    def _late_after(self, wave: _Wave) -> float:
        """Return after which time a task is sent again [s]."""
        if not self.copies:
            return np.inf
        return max(LATE_S, LATE_TIMES * wave.work.seconds)

    def _hurry(
        self, pool: str, idle: NDArray[np.int64], until: float
    ) -> tuple[NDArray[np.int64], float]:
        """Let workers that have nothing to do take tasks that are late a second time.

        Returns
        -------
        idle : int64 array
            Workers that are left.
        later : float
            When the next task is late [s].
        """
        later = np.inf
        for n in self.order[pool]:
            wave = self.waves[n]
            while wave.ending and wave.ending[0][0] <= until:
                end, task = heapq.heappop(wave.ending)
                if task not in wave.copied:
                    self._settle(wave, np.array([task]), np.array([end]))
            if 2 * wave.started < wave.work.tasks:
                continue
            while wave.late and wave.late[0][0] <= until and len(idle):
                moment, end, task = heapq.heappop(wave.late)
                if end <= until:
                    continue
                worker, idle = idle[0], idle[1:]
                (seconds,) = drawn(self.rng, 1, wave.work.seconds, self.weather)
                copied = max(moment, float(self.free[pool][worker])) + float(seconds)
                self.free[pool][worker] = copied
                self.lost_s[pool] += float(seconds)
                wave.copied.add(task)
                self._settle(wave, np.array([task]), np.array([min(end, copied)]))
            later = min(later, wave.late[0][0] if wave.late else np.inf)
        return idle, later

    def _look(self, n: int, now: float) -> None:
        """Find which tasks of a wave are ready, or will be at a moment that is known."""
        wave = self.waves[n]
        sources = self.known.sources(n)
        settled = all(self.waves[s].is_started for s in sources)
        pause = max(_LOOKS_S + wave.work.tasks / _LISTED_PER_S, _SHARE * now)
        if not wave.unknown or (now < wave.looked + pause and not settled):
            return
        if any(not self.waves[s].started for s in sources):
            return
        wave.looked = now
        moments = np.zeros(1, np.float32)
        for source, spans in self.known.spans(n).items() if sources else ():
            before = self.waves[source]
            if spans.is_whole:
                if not before.is_started:
                    return
                moments = np.maximum(moments, np.float32(before.last + HEARD_S))
                continue
            if before.ends is None:
                raise ValueError(f"the ends of {before.work.name} were forgotten too early")
            extent = self.known.extents[source].astuple()
            latest = spans.latest(before.ends.reshape(extent, order="F"))
            moments = np.maximum(moments, latest.ravel(order="F") + np.float32(HEARD_S))
        moments = np.broadcast_to(moments, wave.work.tasks)
        is_new = moments < _NEVER
        if wave.known is None:
            wave.known = np.zeros(wave.work.tasks, np.bool_)
        is_new = is_new & ~wave.known
        wave.known |= is_new
        if wave.ends is None and any(
            not self.known.spans(r)[n].is_whole for r in self.known.readers(n)
        ):
            wave.ends = np.full(wave.work.tasks, _NEVER, np.float32)
        tasks = np.flatnonzero(is_new)
        wave.unknown -= len(tasks)
        tasks = np.concatenate([wave.tasks[wave.at :], tasks])
        ready = np.concatenate([wave.ready[wave.at :], moments[is_new]])
        # What is ready keeps its order.
        order = np.argsort(np.maximum(ready, np.float32(now)), kind="stable")
        wave.tasks, wave.ready, wave.at = tasks[order], ready[order], 0
        if not wave.unknown:
            wave.known = np.zeros(0, np.bool_)

    def _forget_read(self, n: int) -> None:
        """Let go of the ends of waves whose readers all know when they are ready."""
        self.waves[n].ready = np.zeros(0, np.float32)
        self.waves[n].tasks = np.zeros(0, np.int64)
        self.waves[n].at = 0
        for source in self.known.sources(n):
            readers = self.known.readers(source)
            if all(self.waves[r].unknown == 0 for r in readers):
                self.waves[source].ends = None

    def _path(self) -> float:
        """Return the longest chain of mean tasks [s]."""
        length: list[float] = []
        for n, wave in enumerate(self.waves):
            before = max((length[s] for s in self.known.sources(n)), default=0.0)
            length.append(before + wave.work.seconds)
        return max(length)
