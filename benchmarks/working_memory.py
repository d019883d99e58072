"""Memory that a node takes to decide, over the bytes of the states that it reads.

``python benchmarks/working_memory.py``

Together with the bytes of state for each voxel of open face, which ``open_state.py``
counts, these are the constants of the model behind ``em plan``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer
from harness import in_fresh_process
from numpy.typing import NDArray

from pipeline.kernels.agglomerate import CLASSES, Clusters, Constraints, agglomerate
from pipeline.kernels.merge_basins import OpenBasins, merge_basins
from pipeline.kernels.tables import Columns
from pipeline.runtime.memory import peak_memory, reset_peak_memory

NEIGHBOURS = 7
"""Contacts of a cluster, on average."""
Graph = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]


def graph(n: int) -> Graph:
    """Return ids, pairs of near ones, and a number for each pair."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(2**40, n, replace=False)).astype(np.uint64)
    low = rng.integers(0, n, n * NEIGHBOURS // 2)
    pairs = np.stack([low, (low + 1 + rng.integers(0, 300, len(low))) % n], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return ids, ids[pairs], rng.integers(1, 200, len(pairs)).astype(np.uint64)


def basins(n: int) -> tuple[Columns, Callable[[], Any]]:
    """Return a state of basins, half of them open, and what decides it."""
    ids, pairs, numbers = graph(n)
    half = ids[::2]
    state = OpenBasins(
        ids=ids,
        sizes=np.full(n, 200, np.uint64),
        anchors=ids,
        port_ids=half,
        port_faces=np.ones(len(half), np.uint8),
        port_clusters=half,
        joins=np.zeros((0, 2), np.uint64),
        pairs=pairs,
        affinities=numbers,
        keys=np.arange(len(pairs), dtype=np.uint64),
        cross_pairs=np.zeros((0, 2), np.uint64),
        cross_affinities=np.zeros(0, np.uint64),
        cross_keys=np.zeros(0, np.uint64),
        scale=255,
    )
    return state, lambda: merge_basins([state], size_threshold=400, dust=200)


def clusters(n: int) -> tuple[Columns, Callable[[], Any]]:
    """Return a state of clusters, half of them open, and what decides it."""
    ids, pairs, area = graph(n)
    mean = np.random.default_rng(1).integers(0, 256, len(pairs)).astype(np.uint64)
    state = Clusters(
        ids=ids,
        names=ids,
        size=np.full(n, 2000, np.uint64),
        merged=np.zeros(n, np.uint64),
        classes=np.zeros((n, len(CLASSES)), np.uint64),
        faces=(np.arange(n) % 2).astype(np.uint8),
        pairs=pairs,
        affinity=area * mean,
        area=area,
        key=np.arange(len(pairs), dtype=np.uint64),
        scale=255,
    )
    return state, lambda: agglomerate(
        [state], threshold=0.3, floor=0.05, constraints=Constraints()
    )


STATES = {"basin_graph": basins, "agglomeration": clusters}


def measured(name: str, n: int) -> dict[str, float]:
    """Decide a state in a process of its own; return its bytes and the peak over them."""
    state, decide = STATES[name](n)
    size = sum(column.nbytes for column in state.to_table().values())
    reset_peak_memory()
    before = peak_memory()
    decide()
    taken = peak_memory() - before
    return {"clusters": n, "state_bytes": size, "times_state": round(taken / size, 2)}


def main(
    n: Annotated[int, typer.Option(help="Clusters.")] = 300_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how many times its state a node takes."""
    result = {name: in_fresh_process(measured, name, n) for name in STATES}
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for name, row in result.items():
        typer.echo(f"{name}: {row['times_state']} times its state of {row['clusters']}")


if __name__ == "__main__":
    typer.run(main)
