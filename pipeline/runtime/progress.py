"""Progress of a wave: done of total, rate, failures, remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


@dataclass
class Tally:
    """How many tasks of a wave went how, and how many voxels they were."""

    total: int
    done: int = 0
    failed: int = 0
    voxels: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, outcome: str, voxels: int) -> None:
        """Count a task."""
        if outcome == "failed":
            self.failed += 1
        else:
            self.done += 1
            self.voxels += voxels

    @property
    def rate(self) -> float:
        """Million voxels per second since the start."""
        return self.voxels / 1e6 / max(time.monotonic() - self.started, 1e-9)

    @property
    def remaining_s(self) -> float | None:
        """Seconds that are left at the rate so far; None before the first task."""
        ended = self.done + self.failed
        if ended == 0:
            return None
        return (self.total - ended) * (time.monotonic() - self.started) / ended


class WaveProgress:
    """A bar on a terminal, a line every few seconds elsewhere.

    Parameters
    ----------
    title : str
        What is being done.
    total : int
        Tasks of the wave, those already done left out.
    quiet : bool
        Show nothing.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        quiet: bool = False,
        line: Callable[[str], None] | None = None,
        every_s: float = 5.0,
    ) -> None:
        self.title = title
        self.tally = Tally(total)
        self._quiet = quiet
        self._write = line or _to_stderr
        self._every_s = every_s
        self._last = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and line is None and sys.stderr.isatty():
            from rich.console import Console

            self._bar = Progress(
                TextColumn("{task.description:<32}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.2f} Mvox/s"),
                TextColumn("{task.fields[failed]} failed"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._row = self._bar.add_task(title, total=total, rate=0.0, failed=0)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet:
            self._write(self.line())

    def add(self, outcome: str, voxels: int) -> None:
        """Count a task and show it."""
        self.tally.add(outcome, voxels)
        if self._bar is not None:
            self._bar.update(
                self._row, advance=1, rate=self.tally.rate, failed=self.tally.failed
            )
        elif not self._quiet and time.monotonic() - self._last > self._every_s:
            self._last = time.monotonic()
            self._write(self.line())

    def line(self) -> str:
        """Return the state in a line."""
        t = self.tally
        left = t.remaining_s
        return (
            f"{self.title}: {t.done + t.failed}/{t.total} tasks, {t.rate:.2f} Mvox/s, "
            f"{t.failed} failed" + (f", {left:.0f} s left" if left else "")
        )


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
