"""Memory of the largest task where nodes of the octree have a limit, beside without one.

``python benchmarks/bounded.py --limit-gb 0.02``

The same affinities are segmented twice in chunks: node by node up to the root, and with
``node_limit_gb``, by which the upper nodes are replaced by merging in partitions. The
segmentations must have the same bytes. The memory of a task counts with its inputs.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from harness import (
    TARGETS,
    AsJson,
    Check,
    Meter,
    Outcome,
    Targets,
    finish,
    in_fresh_process,
    judge,
    load_targets,
    machine,
    table,
)
from in_memory import Layers, Memory, run, segmentation_stages
from inputs import BLOCK, NAMES, open_input
from rich.console import Console

from pipeline.geometry import Bbox, Vec3
from pipeline.stages.octree import UpSweep


def measured(path: Path, chunk: Vec3, limit_gb: float | None) -> Outcome:
    """Segment affinities; return the cost of each wave, and what the model says of it."""
    affinities = np.load(path)
    bounds = Bbox.of_shape(affinities.shape[:3])
    layers = Layers(bounds, {"affinities": affinities})
    stages = segmentation_stages(bounds, chunk, node_limit_gb=limit_gb)
    meter = Meter()
    run(stages, layers, meter, memory=Memory.WITH_INPUTS)
    up = [stage for stage in stages if isinstance(stage, UpSweep)]
    return meter.outcome(
        sha256=hashlib.sha256(layers.volumes["segmentation"].tobytes("F")).hexdigest(),
        model={
            f"{stage.output} {wave.level}": stage.memory({}, wave.level)
            for stage in up
            for wave in stage.plan()
            if wave.level > 0
        },
        partitions={stage.output: stage.n_partitions for stage in up},
        tops={stage.output: stage.top for stage in up},
        shares={
            stage.output: [
                stage.round_share(wave.level)
                for wave in stage.plan()
                if wave.level > stage.top
            ]
            for stage in up
        },
    )


def largest(outcome: Outcome) -> dict[str, int]:
    """Return the memory of the largest task above the chunks, by sweep [byte]."""
    found: dict[str, int] = {}
    for wave in outcome.facts["model"]:
        layer = wave.split()[0]
        found[layer] = max(found.get(layer, 0), outcome.phases[wave].peak_bytes)
    return found


def show(console: Console, name: str, cases: Mapping[str, Outcome]) -> None:
    """Print what tasks took and what the model says, the largest waves first."""
    for case, outcome in cases.items():
        model = outcome.facts["model"]
        largest = sorted(model, key=lambda wave: -outcome.phases[wave].peak_bytes)
        rows = [
            [
                wave,
                f"{outcome.phases[wave].peak_bytes / 1e6:.1f}",
                f"{model[wave] / 1e6:.1f}",
            ]
            for wave in largest[:8]
        ]
        title = f"{name}, {case}: largest task of the largest waves"
        console.print(table(title, ["wave", "measured [MB]", "by the model [MB]"], rows))


def rounds(outcome: Outcome) -> dict[str, list[list[float]]]:
    """Return by sweep the time of the three steps of each round [s of one core]."""
    found: dict[str, list[list[float]]] = {}
    for layer, partitions in outcome.facts["partitions"].items():
        if not partitions:
            continue
        names = [w for w in outcome.facts["model"] if w.split()[0] == layer]
        last = names[outcome.facts["tops"][layer] :]
        seconds = [outcome.phases[name].cpu_s for name in last]
        found[layer] = [seconds[i : i + 3] for i in range(0, len(seconds), 3)]
    return found


def show_rounds(console: Console, name: str, outcome: Outcome) -> None:
    """Print how the work of rounds falls, beside what the forecast charges."""
    for layer, steps in rounds(outcome).items():
        shares = outcome.facts["shares"][layer]
        rows = [
            [
                str(n + 1),
                *(f"{s / steps[0][0]:.3f}" for s in steps[n]),
                *(f"{s:.3f}" for s in shares[3 * n : 3 * n + 3]),
            ]
            for n in (0, 1, 2, 3, 5, 7, 11, 15, 23)
            if n < len(steps) - 1
        ]
        columns = ["round", "settle", "lead", "tell"]
        charged = [f"{c}, charged" for c in columns[1:]]
        title = f"{name}, {layer}: time over that of the first step"
        console.print(table(title, [*columns, *charged], rows))


def main(
    size: Annotated[
        str, typer.Option(help="Extent of the phantom, x,y,z.")
    ] = "512,512,128",
    chunks: Annotated[str, typer.Option(help="Chunks along x,y,z.")] = "8,8,4",
    limit_gb: Annotated[float, typer.Option(help="Memory of a node [GB].")] = 0.02,
    inputs: Annotated[str, typer.Option(help="Which, with commas.")] = NAMES[-1],
    data: Annotated[
        str, typer.Option(envvar="EM_DATA", help=f"Folder that holds {BLOCK}.")
    ] = "",
    cache: Annotated[
        str, typer.Option(help="Folder to keep inputs in; otherwise they are made anew.")
    ] = "",
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Measure the largest task with a limit and without."""
    console = Console(stderr=as_json, width=140)
    shape = Vec3(*map(int, size.split(",")))
    cut = Vec3(*map(int, chunks.split(",")))
    results: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    skipped = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(cache or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in inputs.split(","):
            given = open_input(name, folder, shape, data, console.log)
            if given is None:
                skipped[name] = f"there is no {BLOCK} in {data or '$EM_DATA'}"
                continue
            chunk = given.shape.ceil_div(cut)
            console.log(f"{name}: chunks of {chunk}")
            cases = {
                "without a limit": in_fresh_process(measured, given.path, chunk, None),
                f"limit of {limit_gb * 1e3:g} MB": in_fresh_process(
                    measured, given.path, chunk, limit_gb
                ),
            }
            show(console, name, cases)
            free, bound = cases.values()
            show_rounds(console, name, bound)
            if free.facts["sha256"] != bound.facts["sha256"]:
                raise SystemExit(f"{name}: the limit changed the segmentation")
            results[name] = {
                "partitions": bound.facts["partitions"],
                "largest_task_bytes": {
                    case: largest(outcome) for case, outcome in cases.items()
                },
                "model_bytes": {
                    case: outcome.facts["model"] for case, outcome in cases.items()
                },
            }
            figures[name] = {
                "peak_over_limit": max(largest(bound).values()) / (limit_gb * 1e9),
            }
    for what, why in skipped.items():
        console.print(f"skipped {what}: {why}")
    result = {
        "benchmark": "bounded",
        "machine": machine("em-pipeline", "numpy"),
        "settings": {"chunks": list(cut), "limit_gb": limit_gb},
        "inputs": results,
        "figures": figures,
        "skipped": skipped,
    }
    verdicts = judge(figures, load_targets("bounded", targets))
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    typer.run(main)
