"""Who brings workers up for a queue, and down again when it is empty."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from pipeline.errors import RootError
from pipeline.runtime.run_queues import depth


class Scaler(ABC):
    """Brings workers of a queue up and down; each call may be repeated."""

    @abstractmethod
    def scale(self, url: str, pool: str, count: int) -> None:
        """See to it that so many workers serve a queue.

        Parameters
        ----------
        url : str
            The queue.
        pool : str
            Kind of worker.
        count : int
            How many; 0 lets those that there are end their tasks, then stop.
        """

    @abstractmethod
    def size(self, url: str, pool: str) -> int | None:
        """Return how many workers there are or are asked for; None if not known."""


class Elsewhere(Scaler):
    """Workers that are somebody else's business: already there, or scaled by KEDA."""

    def scale(self, url: str, pool: str, count: int) -> None:  # noqa: D102
        return

    def size(self, url: str, pool: str) -> int | None:  # noqa: D102
        return None


class Processes(Scaler):
    """Workers as processes of this machine, which outlive who started them.

    Their process ids are kept in files, so that another process can stop them.

    Parameters
    ----------
    folder : Path
        Of process ids and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scale(self, url: str, pool: str, count: int) -> None:  # noqa: D102
        alive = self._alive(url)
        for pid in alive[count:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            self._file(url, pid).unlink(missing_ok=True)
        for _ in range(count - len(alive)):
            self._start(url, pool)

    def size(self, url: str, pool: str) -> int | None:  # noqa: D102
        return len(self._alive(url))

    def _start(self, url: str, pool: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        program = (
            "from pipeline.runtime.worker import serve; import sys; serve(sys.argv[1])"
        )
        environment = {**os.environ, "EM_QUEUE": url, f"EM_QUEUE_{pool.upper()}": url}
        with open(self.folder / f"{_token(url)}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", program, pool],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _STARTED.append(process)
        self._file(url, process.pid).write_text(f"{url}\n{_birth(process.pid)}")

    def _alive(self, url: str) -> list[int]:
        # Those that ended and were started here would stay as zombies.
        _STARTED[:] = [process for process in _STARTED if process.poll() is None]
        pids = []
        for file in sorted(self.folder.glob(f"{_token(url)}.*.pid")):
            pid = int(file.suffixes[-2].removeprefix("."))
            if _birth(pid) == file.read_text().partition("\n")[2]:
                pids.append(pid)
            else:
                file.unlink(missing_ok=True)
        return pids

    def _file(self, url: str, pid: int) -> Path:
        return self.folder / f"{_token(url)}.{pid}.pid"


def follow(scaler: Scaler, url: str, pool: str, most: int, *, up_only: bool) -> int | None:
    """Fit the number of workers to what a queue holds; return how many there are.

    Parameters
    ----------
    scaler : Scaler
        Who has the workers.
    url : str
        The queue.
    pool : str
        Kind of worker.
    most : int
        Most workers.
    up_only : bool
        Whether to leave those that there are, as while a wave is under way.
    """
    wanted = min(most, depth(url))
    there = scaler.size(url, pool)
    if there is None:
        return None
    if wanted > there or (not up_only and wanted == 0 < there):
        scaler.scale(url, pool, wanted)
        return wanted
    return there


def scaler_from_environment() -> Scaler:
    """Return the scaler that ``EM_SCALER`` names; without it, workers are elsewhere.

    Raises
    ------
    RootError
        If there is no such scaler.
    """
    name = os.environ.get("EM_SCALER", "none")
    if name == "none":
        return Elsewhere()
    if name == "processes":
        return Processes(Path(os.environ.get("EM_WORKERS", "workers.run")))
    if name == "kubernetes":
        from pipeline.orchestration.k8s import Deployments

        return Deployments()
    raise RootError(f"EM_SCALER is {name!r}; give none, processes or kubernetes")


def _token(url: str) -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in url)[-120:]


def _birth(pid: int) -> str | None:
    """Return when a process began, which tells it from a later one of its number.

    None if it has ended, or is a zombie.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]


_STARTED: list[subprocess.Popen[bytes]] = []
"""Workers that this process started."""
