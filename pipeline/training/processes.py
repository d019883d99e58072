"""Several processes that train one net: a GPU each, or a few cores each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(hours=2)
"""How long a process waits for another; the first one alone scores."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this is.

    Parameters
    ----------
    rank : int
        Number of this process; 0 saves, scores and logs.
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process saves, scores and logs."""
        return self.rank == 0

    def wrapped(self, net: nn.Module, device: torch.device) -> nn.Module:
        """Return a net whose gradients are the mean over all processes."""
        if self.size == 1:
            return net
        places = [device.index or 0] if device.type == "cuda" else None
        return DistributedDataParallel(net, device_ids=places)

    def agreed(self, value: float) -> float:
        """Return the value that the leading process has."""
        if self.size == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64)
        held = held.cuda() if distributed.get_backend() == "nccl" else held
        distributed.broadcast(held, src=0)
        return float(held)

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            distributed.barrier()


def device_of(name: str, world: World) -> torch.device:
    """Return the device of a process: `auto` is a GPU of its own where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return torch.device(name)
    here = int(os.environ.get("LOCAL_RANK", world.rank)) % torch.cuda.device_count()
    torch.cuda.set_device(here)
    return torch.device("cuda", here)


def spread(count: int, work: Callable[..., None], *args: Any) -> None:
    """Do a work in as many processes, or in those that torchrun has started.

    Parameters
    ----------
    count : int
        How many; under torchrun it is torchrun that says so.
    work : callable
        Takes a `World`, then `args`; of a module, as processes are started anew.
    args : objects
        That can be pickled.

    Raises
    ------
    Exception
        What a process raised; the others are ended.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        with _joined("env://", rank, size):
            work(World(rank, size), *args)
    elif count == 1:
        work(World(), *args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            meeting = (Path(folder) / "meeting").as_uri()
            start_processes(  # type: ignore[no-untyped-call]
                _process, (meeting, count, work, args), nprocs=count, start_method="spawn"
            )


def _process(
    rank: int, meeting: str, size: int, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    with _joined(meeting, rank, size):
        work(World(rank, size), *args)


@contextmanager
def _joined(meeting: str, rank: int, size: int) -> Iterator[None]:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, init_method=meeting, rank=rank, world_size=size, timeout=_PATIENCE
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
