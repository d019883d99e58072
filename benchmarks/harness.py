"""What benchmarks share: costs of fresh processes, best of several, targets, tables.

A benchmark compares with a peer or a physical limit in the same run and gives a ratio;
absolute times say little on machines that others use too.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import multiprocessing
import operator
import os
import platform
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from pipeline.runtime.memory import machine_memory, peak_memory, reset_peak_memory

TARGETS = Path(__file__).with_name("targets.toml")
Figures: TypeAlias = Mapping[str, Mapping[str, float]]
"""Figures by name of the input and of the figure."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Check = Annotated[
    bool, typer.Option("--check", help="Exit with 1 where a target is missed.")
]
Targets = Annotated[Path, typer.Option(help="TOML of targets.")]


# -- costs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Parameters
    ----------
    cpu_s : float
        CPU-seconds, user and system, of all threads.
    wall_s : float
        Seconds that passed.
    peak_bytes : int
        Largest resident memory, less what the process held when its input was loaded.
    calling_s : float
        CPU-seconds of the thread that called.
    """

    cpu_s: float
    wall_s: float
    peak_bytes: int
    calling_s: float

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of one after the other."""
        return Cost(
            self.cpu_s + other.cpu_s,
            self.wall_s + other.wall_s,
            max(self.peak_bytes, other.peak_bytes),
            self.calling_s + other.calling_s,
        )


NOTHING = Cost(0.0, 0.0, 0, 0.0)
"""What a case took that could not be measured."""
_CLOCKS = (time.process_time, time.perf_counter, time.thread_time)


class Meter:
    """Costs of the phases of a case, in a process that has loaded its input."""

    def __init__(self) -> None:
        self.phases: dict[str, Cost] = {}
        self._peak = 0
        self.rebase()

    def rebase(self, counted: int = 0) -> None:
        """Count memory from what the process holds now, less what is to count of it."""
        _give_back_freed_memory()
        self._held = psutil.Process().memory_info().rss - counted

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what is done within; a name that comes again adds up."""
        reset_peak_memory()
        started = np.array([clock() for clock in _CLOCKS])
        yield
        cpu_s, wall_s, calling_s = np.array([clock() for clock in _CLOCKS]) - started
        peak = peak_memory()
        self._peak = max(self._peak, peak)
        cost = Cost(float(cpu_s), float(wall_s), peak - self._held, float(calling_s))
        self.phases[name] = self.phases[name] + cost if name in self.phases else cost

    def outcome(self, **facts: Any) -> Outcome:
        """Return what was measured, and what was found."""
        return Outcome(self.phases, {"peak_rss_bytes": self._peak, **facts})


@dataclass(frozen=True)
class Outcome:
    """What a case took, by phase, and what it found.

    Parameters
    ----------
    phases : dict of str to Cost
        In the order in which they ran.
    facts : dict of str to value
        What else is worth knowing; as JSON.
    """

    phases: dict[str, Cost]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> Cost:
        """Add up all phases."""
        return self.of(*self.phases)

    def of(self, *names: str) -> Cost:
        """Add up some of the phases."""
        return functools.reduce(operator.add, (self.phases[n] for n in names), NOTHING)

    def to_json(self) -> dict[str, Any]:
        """Return phases, total and facts."""
        phases = {name: asdict(cost) for name, cost in self.phases.items()}
        return {"phases": phases, "total": asdict(self.total), "facts": self.facts}


Case: TypeAlias = Callable[..., Outcome]


def in_fresh_process(case: Case, *args: Any) -> Outcome:
    """Run a case in a process of its own, so that its peak memory is its own.

    Raises
    ------
    BrokenProcessPool
        If the process dies, as it does when memory runs out.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_one_thread) as process:
        return process.submit(case, *args).result()


def at_once(case: Case, n: int, *args: Any) -> Outcome:
    """Run a case in several processes that begin to measure together.

    It takes the wall time of the slowest, and the rest is that one's too. What is done n
    times in so long bounds what n threads can gain on this machine.
    """
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(n)
    with ProcessPoolExecutor(n, context, _wait_for, (together,)) as processes:
        running = [processes.submit(case, *args) for _ in range(n)]
        outcomes = [future.result() for future in running]
    return max(outcomes, key=lambda o: o.total.wall_s)


_together: Callable[[], object] = int


def _wait_for(barrier: Barrier) -> None:
    global _together
    _one_thread()
    _together = barrier.wait


def begin() -> None:
    """Wait for the processes that are to be measured together, if there are others."""
    _together()


def best_of(
    cases: Mapping[str, tuple[Any, ...]], repeats: int, say: Callable[[str], None]
) -> dict[str, list[Outcome]]:
    """Run cases in turn, again and again: what disturbs one disturbs its neighbours.

    Parameters
    ----------
    cases : mapping of str to (case, arguments...)
        By name, in order.
    repeats : int
        Rounds.
    say : function of str
        Told what begins.

    Returns
    -------
    dict of str to list of Outcome
        All rounds of each case, the one of least CPU-seconds first.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in cases}
    for turn in range(repeats):
        for name, (case, *args) in cases.items():
            say(f"round {turn + 1} of {repeats}: {name}")
            start = case if case is at_once else in_fresh_process
            given = args if case is at_once else (case, *args)
            outcomes[name].append(start(*given))
    return {
        name: sorted(found, key=lambda o: o.total.cpu_s) for name, found in outcomes.items()
    }


def _one_thread() -> None:
    """Keep libraries from threads of their own, and peers from writing to the output."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _give_back_freed_memory() -> None:
    """Make the C library return what is free, which could be used again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        gc.collect()
        trim(0)


def machine(*packages: str) -> dict[str, Any]:
    """Return what a figure depends on beside the code."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": machine_memory(),
        "load_average": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in packages},
    }


def installed(package: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), "")


# -- targets --------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a figure is to reach.

    Parameters
    ----------
    figure : str
        Its name.
    meaning : str
        What it counts, and in what.
    at_least, at_most : float or None
        One of them.
    """

    figure: str
    meaning: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"target {self.figure} needs either at_least or at_most")

    def is_met(self, value: float) -> bool:
        """Whether a figure reaches it."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    def __str__(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Verdict:
    """Whether a target was met on an input; a figure that is missing meets none."""

    target: Target
    input: str
    value: float | None

    @property
    def is_met(self) -> bool:
        """Whether it was."""
        return self.value is not None and self.target.is_met(self.value)


def load_targets(benchmark: str, path: Path = TARGETS) -> list[Target]:
    """Read the targets of a benchmark."""
    tables = tomllib.loads(path.read_text())[benchmark]
    return [Target(figure, **limits) for figure, limits in tables.items()]


def judge(figures: Figures, targets: Sequence[Target]) -> list[Verdict]:
    """Hold every target against every input, and one that has no figure against none."""
    verdicts = []
    for target in targets:
        found = {
            name: f[target.figure] for name, f in figures.items() if target.figure in f
        }
        verdicts += [Verdict(target, name, value) for name, value in found.items()]
        if not found:
            verdicts.append(Verdict(target, "", None))
    return verdicts


def finish(
    console: Console,
    result: dict[str, Any],
    verdicts: Sequence[Verdict],
    *,
    as_json: bool,
    check: bool,
) -> int:
    """Print the verdicts last, the result as JSON where it is asked for.

    Returns
    -------
    int
        Status to exit with: 1 if targets are checked and one is missed.
    """
    result["targets"] = [
        {
            "figure": v.target.figure,
            "input": v.input,
            "limit": str(v.target),
            "value": v.value,
            "is_met": v.is_met,
        }
        for v in verdicts
    ]
    if as_json:
        print(json.dumps(result, indent=1))
    rows = [
        [
            v.target.figure,
            v.input or "(none)",
            "not measured" if v.value is None else f"{v.value:.3g}",
            str(v.target),
            "met" if v.is_met else "[bold red]missed[/]",
            v.target.meaning,
        ]
        for v in verdicts
    ]
    columns = ["figure", "input", "found", "target", "", "meaning"]
    console.print(table("targets", columns, rows))
    return int(check and not all(v.is_met for v in verdicts))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Lay out a table."""
    laid = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        laid.add_column(column)
    for row in rows:
        laid.add_row(*row)
    return laid
