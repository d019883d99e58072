"""Memory of this process and of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

PROCESS_BYTES = 300 * 2**20
"""Python with the libraries of a stage, before any data."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_CGROUP = Path("/sys/fs/cgroup")


def reset_peak_memory() -> None:
    """Start a new peak, where the system lets a process do so (Linux)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Return the largest resident size since the last reset [byte]."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)


def machine_memory() -> int:
    """Return the memory that this machine, or its container, has [byte]."""
    total = int(psutil.virtual_memory().total)
    for path in (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ):
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return total


def memory_limit() -> int:
    """Return what this process may use [byte]: ``EM_MEMORY_GB``, or all there is."""
    own = os.environ.get("EM_MEMORY_GB")
    return int(float(own) * 2**30) if own else machine_memory()


def memory_in_use() -> int:
    """Return what counts against the limit now [byte].

    In a container with a limit, what its group holds less what the system would drop;
    else the resident memory of this process.
    """
    try:
        if "EM_MEMORY_GB" not in os.environ:
            int((_CGROUP / "memory.max").read_text())
            held = int((_CGROUP / "memory.current").read_text())
            for line in (_CGROUP / "memory.stat").read_text().splitlines():
                if line.startswith("inactive_file "):
                    held -= int(line.split()[1])
            return held
    except (OSError, ValueError):
        pass
    return int(psutil.Process().memory_info().rss)
