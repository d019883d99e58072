"""Cores of this machine, and how many of them a task of this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_in_use = {"threads": 1}


def machine_cores() -> int:
    """Return the cores that this process, or its container, may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    cores = cores or os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(cores, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def use_threads(threads: int) -> None:
    """Let a task of this process use so many cores; no result depends on it."""
    _in_use["threads"] = threads


def threads() -> int:
    """Return how many cores a task of this process may use."""
    return _in_use["threads"]
