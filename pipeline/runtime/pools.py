"""The table of pools: the kinds of worker that there are, and what each asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerPool:
    """A kind of worker.

    Parameters
    ----------
    cores : int
        Cores of a worker, which one task may use.
    memory_gib : int
        Memory of a worker, for the tasks that it has in hand [GiB].
    scratch_gib : int
        Room for temporary files [GiB].
    gpus : int
        Accelerators of a worker.
    most : int
        Most workers at a time.
    tasks_per_worker : int
        Messages that wait for each worker that is brought up.
    grace_s : int
        How long a worker that is told to stop may take to end its tasks [s].
    """

    cores: int
    memory_gib: int
    scratch_gib: int
    gpus: int
    most: int
    tasks_per_worker: int
    grace_s: int


POOLS: dict[str, WorkerPool] = {
    "cpu": WorkerPool(
        cores=2,
        memory_gib=8,
        scratch_gib=8,
        gpus=0,
        most=1000,
        tasks_per_worker=4,
        grace_s=110,
    ),
    "gpu": WorkerPool(
        cores=4,
        memory_gib=16,
        scratch_gib=8,
        gpus=1,
        most=100,
        tasks_per_worker=8,
        grace_s=110,
    ),
}
"""By the names that stages give as their ``pool``."""
