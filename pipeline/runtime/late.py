"""Tasks that take far longer than others of their wave, and get a second worker.

A wave, and what waits for it, ends with its slowest task: one on a machine that is slow, or
whose worker was lost, so that its lease has yet to lapse. When workers have nothing else to
do, such a task is sent once more. Whoever ends first writes it; both would write the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from pipeline.runtime.frontier import Frontier, Job
from pipeline.runtime.run import LATE_S, Run

LATE_TIMES = 3.0
"""A task is late when it takes so many times as long as others of its wave, and longer than
`LATE_S`: doing it again costs less than that."""

_OTHERS = 16


class Latecomers:
    """Which tasks on a queue are late; it is told what happens there, and of the time.

    A task is late from the moment on at which a worker must have had it: when it was sent,
    and no message has waited since.
    """

    def __init__(self) -> None:
        self._drained = 0.0
        self._sent: dict[int, float] = {}
        self._usual: dict[int, float] = {}
        self._again: set[Job] = set()

    def sent(self, jobs: list[Job], now: float) -> None:
        """Take note that tasks were put on the queue."""
        for job in jobs:
            self._sent[job.wave] = now

    def waits(self, now: float) -> None:
        """Take note that messages wait for a worker."""
        self._drained = now

    def late(
        self, run: Run, frontier: Frontier, wave: int, count: int, now: float
    ) -> Iterator[Job]:
        """Yield the tasks of a wave that are late, each only once in all.

        Parameters
        ----------
        run : Run
            Whose done records say what is usual.
        frontier : Frontier
            Knows what is under way.
        wave, count : int
            Number of the wave, and how many of its tasks are under way. While these are
            more than have ended, nothing is late.
        now : float
            Of a clock that goes on evenly [s].
        """
        waited = now - max(self._drained, self._sent.get(wave, now))
        if waited < LATE_S or count > frontier.ended_of(wave):
            return
        if wave not in self._usual:
            self._usual[wave] = _usual(run, frontier, wave)
        if waited < LATE_TIMES * self._usual[wave]:
            return
        for job in frontier.taken(wave):
            if job not in self._again:
                self._again.add(job)
                yield job


def _usual(run: Run, frontier: Frontier, wave: int) -> float:
    """Return how long some tasks of a wave took that were not blank [s]."""
    records = (run.done_record(j.stage, j.key) for j in frontier.done(wave, _OTHERS))
    seconds = [record.seconds for record in records if record and not record.blank]
    return median(seconds) if seconds else 0.0
