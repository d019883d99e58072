"""Progress of waves: done of total, rate, failures, remaining time."""

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
    TaskID,
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


class RunProgress:
    """Bars on a terminal, a line every few seconds elsewhere, for waves that run at once.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        line: Callable[[str], None] | None = None,
        every_s: float = 5.0,
    ) -> None:
        self._tallies: dict[str, Tally] = {}
        self._quiet = quiet
        self._write = line or _to_stderr
        self._every_s = every_s
        self._last = time.monotonic()
        self._rows: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if not quiet and line is None and sys.stderr.isatty():
            from rich.console import Console

            self._bars = Progress(
                TextColumn("{task.description:<32}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.2f} Mvox/s"),
                TextColumn("{task.fields[failed]} failed"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for title in list(self._tallies):
            self.ends(title)
        if self._bars is not None:
            self._bars.stop()

    def begins(self, title: str, total: int) -> None:
        """Show a wave from now on.

        Parameters
        ----------
        title : str
            What is being done.
        total : int
            Tasks of the wave, those already done left out.
        """
        self._tallies[title] = Tally(total)
        if self._bars is not None:
            self._rows[title] = self._bars.add_task(title, total=total, rate=0.0, failed=0)

    def add(self, title: str, outcome: str, voxels: int) -> None:
        """Count a task and show it; one of a wave that is not shown does not count."""
        tally = self._tallies.get(title)
        if tally is None:
            return
        tally.add(outcome, voxels)
        if self._bars is not None:
            self._bars.update(
                self._rows[title], advance=1, rate=tally.rate, failed=tally.failed
            )
        elif not self._quiet and time.monotonic() - self._last > self._every_s:
            self._last = time.monotonic()
            self._write(_line(title, tally))

    def ends(self, title: str) -> None:
        """Show how a wave went, and no more of it."""
        tally = self._tallies.pop(title, None)
        if tally is not None and self._bars is None and not self._quiet:
            self._write(_line(title, tally))


class WaveProgress:
    """Progress of one wave: a bar on a terminal, a line every few seconds elsewhere.

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
        self._shown = RunProgress(quiet=quiet, line=line, every_s=every_s)
        self._shown.begins(title, total)

    def __enter__(self) -> Self:
        self._shown.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shown.__exit__(kind, error, trace)

    def add(self, outcome: str, voxels: int) -> None:
        """Count a task and show it."""
        self._shown.add(self.title, outcome, voxels)


def _line(title: str, tally: Tally) -> str:
    """Return the state of a wave in a line."""
    left = tally.remaining_s
    return (
        f"{title}: {tally.done + tally.failed}/{tally.total} tasks, "
        f"{tally.rate:.2f} Mvox/s, {tally.failed} failed"
        + (f", {left:.0f} s left" if left else "")
    )


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
