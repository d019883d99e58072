"""The steps of a task, so that one task reads while another computes and a third writes.

A worker runs its loop in `STREAM` threads. Each does whole tasks, one after
the other, and goes through three doors: a task reads behind the first, computes behind the
second, writes behind the third, and leaves a door only when it is through the next. So at
most one task is at each step, and what can go wrong with a task is the same as without.

A task of a stage that does not stream keeps the second and the third door to its end: only
the next one is read beside it, and that only where memory allows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STREAM = 3
"""Threads that keep all three steps busy."""

_READ, _COMPUTE, _WRITE = range(STREAM)


class Steps:
    """The three doors of a process.

    A thread that was not admitted, as in a process that does one task at a time, passes
    all of them freely.
    """

    def __init__(self) -> None:
        self._doors = tuple(threading.Lock() for _ in range(STREAM))
        self._mine = threading.local()
        self._claims: dict[int, int] = {}
        self._claiming = threading.Lock()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Wait for the first door; leave all that are held at the end."""
        self._doors[_READ].acquire()
        self._mine.held, self._mine.alone = {_READ}, False
        try:
            yield
        finally:
            with self._claiming:
                self._claims.pop(threading.get_ident(), None)
            for door in self._held:
                self._doors[door].release()
            self._mine.held = set()

    def claim(self, count: int, limit: int | None = None) -> bool:
        """Say how much memory a task takes from now on; return whether all fit in a limit.

        Parameters
        ----------
        count : int
            Of this task [byte].
        limit : int or None
            Of all tasks of the process [byte]; what does not fit beside the others is
            not counted. None counts it in any case.
        """
        me = threading.get_ident()
        with self._claiming:
            others = sum(n for who, n in self._claims.items() if who != me)
            fits = limit is None or not others or others + count <= limit
            if fits and self._held:
                self._claims[me] = count
            return fits

    def alone(self) -> float:
        """Wait until no other task is at any step, and let none in; return how long [s]."""
        if not self._held or self._mine.alone:
            return 0.0
        self._mine.alone = True
        return self._take(_COMPUTE) + self._take(_WRITE)

    def compute(self, *, to_the_end: bool = False) -> float:
        """Go on to computing; return how long it had to wait [s].

        Parameters
        ----------
        to_the_end : bool
            Let no other task compute or write before this one has ended.
        """
        if not to_the_end or _READ not in self._held or self._mine.alone:
            return self._go_on(_READ, _COMPUTE)
        waited = self._take(_COMPUTE) + self._take(_WRITE)
        self._held.remove(_READ)
        self._doors[_READ].release()
        return waited

    def write(self) -> float:
        """Go on to writing; return how long it had to wait [s]."""
        return self._go_on(_COMPUTE, _WRITE)

    @property
    def _held(self) -> set[int]:
        held: set[int] = getattr(self._mine, "held", set())
        return held

    def _go_on(self, left: int, entered: int) -> float:
        # A step that is done again is behind its door already.
        if left not in self._held or entered in self._held or self._mine.alone:
            return 0.0
        waited = self._take(entered)
        self._held.remove(left)
        self._doors[left].release()
        return waited

    def _take(self, door: int) -> float:
        began = time.monotonic()
        if door not in self._held:
            self._doors[door].acquire()
            self._held.add(door)
        return time.monotonic() - began


STEPS = Steps()
"""Those of this process."""
