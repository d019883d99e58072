"""A petabyte on paper: planned, put on queues, merged, and worked through by a fleet.

``python benchmarks/scale.py --picture scale.png``

The recipe is that of a cubic millimetre, 10 million chunks (Macrina et al. 2021). Its plan
is made for real, and tasks of it are put on real queues. Merging is evaluated by the model
of the open state, whose constants ``open_state.py`` measures, for it and for a mouse
brain. The fleet is simulated: times of tasks come from the forecast, spread as tasks
spread, with stragglers and machines that are taken away; with a barrier after every wave,
as under Airflow, and with tasks that start when they are ready, as `em run` drives them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from fleet import Campaign, Weather, Work, campaign
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
from ready_fleet import HEARD_S, Overlapped, overlapped
from rich.console import Console

from pipeline.geometry import Bbox, Vec3
from pipeline.recipe import Recipe
from pipeline.runtime.dependencies import Dependencies
from pipeline.stages.agglomeration import Agglomeration
from pipeline.stages.octree import UpSweep
from pipeline.stages.supervoxels import BasinGraphs

PROJECT = Path(__file__).parents[1]
RECIPE = PROJECT / "dags/recipes/minnie65.toml"
PRICES = PROJECT / "examples/prices.toml"
SMALL = "0,0,0,512,512,1024"
KEYS = 1_000_000
ENQUEUED = 2000
CHUNK = Vec3(256, 256, 512)
VOLUMES = {
    "cubic millimetre, 10 million chunks": Vec3(450, 450, 50),
    "mouse brain, 1000 times that": Vec3(4500, 4500, 500),
}


def sweeps(chunks: Vec3, limit_gb: float | None) -> list[UpSweep]:
    """Return the two up-sweeps over a grid of chunks."""
    shared: dict[str, Any] = {
        "bounds": Bbox.of_shape(chunks * CHUNK),
        "chunk": CHUNK,
        "node_limit_gb": limit_gb,
    }
    return [
        BasinGraphs(affinities="a", basins="b", output="basin_graph", **shared),
        Agglomeration(graph="g", output="agglomeration", **shared),
    ]


def levels(sweep: UpSweep) -> list[dict[str, Any]]:
    """Return the memory of nodes, level by level, and of partitions."""
    rows = [
        {
            "level": level,
            "tasks": sweep.grid.counts(level).product,
            "gb": sweep.memory({}, level) / 1e9,
        }
        for level in range(1, sweep.top + 1)
    ]
    if sweep.n_partitions:
        level = sweep.top + 1
        rows.append(
            {
                "level": "rounds",
                "tasks": sweep.n_partitions,
                "gb": sweep.memory({}, level) / 1e9,
            }
        )
    return rows


# -- the plan -------------------------------------------------------------------------


def planned(box: str) -> Outcome:
    """Plan the recipe, or a box of it, to its first task, and list a million more."""
    from pipeline.runtime.calibrate import cropped
    from pipeline.runtime.run import Run

    with tempfile.TemporaryDirectory() as root:
        meter = Meter()
        with meter.phase("to the first task"):
            recipe = Recipe.load(RECIPE)
            if box:
                recipe = cropped(recipe, Bbox.parse(box), root)
            run = Run.plan(recipe, root)
            stage = run.recipe.stages[0]
            stage.task(next(iter(stage.plan()[0].keys())))
        with meter.phase("keys"):
            wave = max((w for s in run.recipe.stages for w in s.plan()), key=len)
            listed = sum(1 for _, key in zip(range(KEYS), wave.keys(), strict=False))
        tasks = sum(len(w) for s in run.recipe.stages for w in s.plan())
        return meter.outcome(tasks=tasks, listed=listed)


# -- queues ---------------------------------------------------------------------------


def enqueued(url: str, n: int) -> Outcome:
    """Put tasks of the plan on a queue."""
    from pipeline.runtime.queue import TaskQueue

    wave = Recipe.load(RECIPE).stages[0].plan()[0]
    queue = TaskQueue(url)
    keys = [key for _, key in zip(range(n), wave.keys(), strict=False)]
    meter = Meter()
    with meter.phase("enqueue"):
        queue.insert("gs://lab/run1", "minnie65", "image", keys)
    return meter.outcome(tasks_per_s=n / meter.phases["enqueue"].wall_s)


def written(folder: str, n: int) -> Outcome:
    """Write as many files of the size of a message: the least that a folder takes."""
    content = b"x" * 200
    meter = Meter()
    with meter.phase("write"):
        for number in range(n):
            (Path(folder) / str(number)).write_bytes(content)
    return meter.outcome(tasks_per_s=n / meter.phases["write"].wall_s)


def queues(n: int) -> dict[str, Any]:
    """Return tasks per second by queue; SQS is a server on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {
            "fq": in_fresh_process(enqueued, f"fq://{folder}/queue", n).facts,
        }
        plain = Path(folder) / "plain"
        plain.mkdir()
        found["files"] = in_fresh_process(written, str(plain), n).facts
    try:
        found["sqs"] = _on_sqs(n)
    except ImportError as error:
        found["skipped"] = f"sqs: {error}; install the extra test"
    return found


def _on_sqs(n: int) -> dict[str, Any]:
    import boto3
    import moto.server

    command = [sys.executable, "-m", moto.server.__name__, "-p", "0", "-H", "127.0.0.1"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "Running on" in line)
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": line.split("Running on ")[1].split()[0],
        }
        boto3.client("sqs").create_queue(QueueName="scale")
        return in_fresh_process(enqueued, "sqs://scale", n).facts
    finally:
        server.terminate()
        server.wait()


# -- the fleet ------------------------------------------------------------------------


def waves_of(prices: Path, calibration: Path | None) -> list[tuple[str, Work]]:
    """Return the pool and the work of every wave of the plan, by the forecast."""
    from pipeline.runtime.calibrate import Calibration
    from pipeline.runtime.forecast import Forecast, Prices
    from pipeline.runtime.run import Run

    with tempfile.TemporaryDirectory() as root:
        run = Run.plan(Recipe.load(RECIPE), root)
        rates = None if calibration is None else Calibration.load(calibration)
        found = Forecast.of(run, Prices.load(prices), rates)
    return [
        (
            stage.pool,
            Work(f"{stage.output} {n}", wave.tasks, wave.hours * 3600 / wave.tasks),
        )
        for stage in found.stages
        for n, wave in enumerate(stage.waves)
    ]


def worked(
    waves: list[tuple[str, Work]], workers: int, gpu_share: float, weather: Weather
) -> dict[str, Campaign]:
    """Return how the waves of each pool went; pools do not work at once."""
    fleets = {"cpu": workers, "gpu": max(1, round(workers * gpu_share))}
    return {
        pool: campaign([w for p, w in waves if p == pool], fleets[pool], weather)
        for pool in dict.fromkeys(p for p, _ in waves)
    }


def summed(campaigns: dict[str, Campaign]) -> dict[str, Any]:
    """Add up the pools, which follow one another."""
    wall, ideal, path = (
        sum(getattr(c, name) for c in campaigns.values())
        for name in ("wall_s", "ideal_s", "path_s")
    )
    return {
        "wall_days": wall / 86400,
        "ideal_days": ideal / 86400,
        "barriers": wall / ideal - 1,
        "beyond_the_order_of_waves": wall / path - 1,
        "lost_attempts": sum(c.lost for c in campaigns.values()),
        "utilisation": {pool: c.utilisation for pool, c in campaigns.items()},
    }


def ready(
    known: Dependencies,
    waves: list[tuple[str, Work]],
    workers: int,
    gpu_share: float,
    barriers: dict[str, Any],
) -> tuple[dict[str, Any], Overlapped]:
    """Return how the plan went without barriers, beside what it was with them."""
    fleet = {"cpu": workers, "gpu": max(1, round(workers * gpu_share))}
    found = overlapped(known, waves, fleet, Weather())
    figures = {
        "wall_days": found.wall_s / 86400,
        "path_days": found.path_s / 86400,
        "waiting": found.wall_s / 86400 / barriers["ideal_days"] - 1,
        "saved": 1 - found.wall_s / 86400 / barriers["wall_days"],
        "lost_attempts": sum(p.lost for p in found.passed.values()),
        "utilisation": {
            pool: p.busy_s / found.wall_s / fleet[pool] for pool, p in found.passed.items()
        },
    }
    return figures, found


def longest_spans(found: Overlapped, waves: list[tuple[str, Work]]) -> dict[str, float]:
    """Return by layer how much later it ended than the layers before it in the plan [h]."""
    spans: dict[str, float] = {}
    latest = 0.0
    for (_, work), end in zip(waves, found.ends, strict=True):
        layer = work.name.rpartition(" ")[0]
        spans[layer] = spans.get(layer, 0.0) + max(0.0, end - latest) / 3600
        latest = max(latest, end)
    return dict(sorted(spans.items(), key=lambda item: -item[1]))


def longest_waits(
    campaigns: dict[str, Campaign], fleet: dict[str, int]
) -> dict[str, float]:
    """Return by layer how long the fleet waited at barriers [h]."""
    waited: dict[str, float] = {}
    for pool, found in campaigns.items():
        for work, passed in found.waves:
            layer = work.name.rpartition(" ")[0]
            idle = passed.wall_s - (passed.busy_s + passed.lost_s) / fleet[pool]
            waited[layer] = waited.get(layer, 0.0) + idle / 3600
    return dict(sorted(waited.items(), key=lambda item: -item[1]))


def draw(
    path: Path,
    fleets: dict[int, dict[str, Any]],
    without: dict[int, dict[str, Any]],
    spans: dict[str, float],
) -> None:
    """Draw days by workers, and which layers the largest fleet waits for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    workers = list(fleets)
    for label, results in (
        ("a barrier after every wave", fleets),
        ("tasks start when they are ready", without),
    ):
        left.loglog(workers, [f["wall_days"] for f in results.values()], "o-", label=label)
    left.loglog(
        workers, [f["ideal_days"] for f in fleets.values()], "k--", label="nobody waits"
    )
    for n, found in fleets.items():
        for days, waiting, above in (
            (found["wall_days"], found["barriers"], 9),
            (without[n]["wall_days"], without[n]["waiting"], -15),
        ):
            said = f"{days:.1f} d, {waiting:+.0%}"
            left.annotate(
                said, (n, days), (0, above), textcoords="offset points", ha="center"
            )
    left.set(xlabel="CPU workers", ylabel="days", title="a cubic millimetre")
    left.set_xticks(workers, [f"{n:,}" for n in workers])
    left.set_xticks([], minor=True)
    left.legend(loc="lower left")
    left.margins(x=0.2, y=0.15)
    names = [name for name, hours in spans.items() if hours > 0.01][:10]
    right.barh(names[::-1], [spans[name] for name in names[::-1]])
    right.set(xlabel="h", title=f"{workers[-1]:,} workers: when ready, what takes the time")
    figure.savefig(path, dpi=110)


# -- the command ----------------------------------------------------------------------


def show_merging(console: Console, result: dict[str, Any]) -> None:
    """Print the largest tasks without a limit and with one."""
    rows = []
    for volume, stages in result.items():
        for stage, limits in stages.items():
            for limit, found in limits.items():
                nodes = [r for r in found if r["level"] != "rounds"][-1]
                parts = found[-1] if found[-1]["level"] == "rounds" else None
                rows.append(
                    [
                        volume,
                        stage,
                        limit,
                        f"{nodes['tasks']} at level {nodes['level']}",
                        f"{nodes['gb']:.1f}",
                        str(parts["tasks"]) if parts else "",
                        f"{parts['gb']:.1f}" if parts else "",
                    ]
                )
    columns = [
        *("volume", "stage", "limit", "highest nodes", "each [GB]"),
        *("partitions", "each [GB]"),
    ]
    console.print(table("merging", columns, rows))


def show_fleets(console: Console, fleets: dict[int, dict[str, Any]]) -> None:
    """Print how long fleets take."""
    rows = [
        [
            f"{n:,}",
            f"{f['wall_days']:.2f}",
            f"{f['ideal_days']:.2f}",
            f"{f['barriers']:.1%}",
            f"{f['beyond_the_order_of_waves']:.1%}",
            f"{f['lost_attempts']:,}",
            ", ".join(f"{pool} {u:.0%}" for pool, u in f["utilisation"].items()),
        ]
        for n, f in fleets.items()
    ]
    columns = [
        *("CPU workers", "days", "nobody waits", "barriers add"),
        *("beyond the order of waves", "attempts lost", "utilisation"),
    ]
    console.print(table("fleets", columns, rows))


def show_ready(console: Console, without: dict[int, dict[str, Any]]) -> None:
    """Print how long fleets take without barriers."""
    rows = [
        [
            f"{n:,}",
            f"{f['wall_days']:.2f}",
            f"{f['path_days']:.2f}",
            f"{f['waiting']:.1%}",
            f"{f['saved']:.1%}",
            f"{f['lost_attempts']:,}",
            ", ".join(f"{pool} {u:.0%}" for pool, u in f["utilisation"].items()),
        ]
        for n, f in without.items()
    ]
    columns = [
        *("CPU workers", "days", "longest chain", "beyond the work"),
        *("less than with barriers", "attempts lost", "utilisation"),
    ]
    console.print(table("tasks start when they are ready", columns, rows))


def main(
    limit_gb: Annotated[float, typer.Option(help="Memory that a task may take [GB].")] = 64,
    workers: Annotated[
        str, typer.Option(help="Sizes of fleets, with commas.")
    ] = "1000,4000,16000,50000",
    gpu_share: Annotated[float, typer.Option(help="GPU workers for each CPU one.")] = 0.125,
    prices: Annotated[Path, typer.Option(help="TOML of prices, for speeds.")] = PRICES,
    calibration: Annotated[
        Path | None, typer.Option(help="Rates by em calibrate; typical ones if left out.")
    ] = None,
    tasks: Annotated[int, typer.Option(help="Tasks put on each queue.")] = ENQUEUED,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Plan, enqueue, merge and simulate a cubic millimetre."""
    console = Console(stderr=as_json, width=140)
    merging = {
        volume: {
            sweep.output: {
                "without a limit": levels(sweep),
                f"{limit_gb:g} GB": levels(bounded),
            }
            for sweep, bounded in zip(
                sweeps(chunks, None), sweeps(chunks, limit_gb), strict=True
            )
        }
        for volume, chunks in VOLUMES.items()
    }
    show_merging(console, merging)

    plans = {
        name: in_fresh_process(planned, box)
        for name, box in (("a box of 8 chunks", SMALL), ("minnie65", ""))
    }
    rows = [
        [
            name,
            f"{found.facts['tasks']:,}",
            f"{found.phases['to the first task'].wall_s:.2f}",
            f"{found.facts['listed'] / found.phases['keys'].wall_s:,.0f}",
            f"{found.facts['peak_rss_bytes'] / 2**20:.0f}",
        ]
        for name, found in plans.items()
    ]
    columns = ["recipe", "tasks", "s to the first", "keys / s", "peak MiB"]
    console.print(table("plans", columns, rows))

    rates = queues(tasks)
    rows = [[k, f"{v['tasks_per_s']:,.0f}"] for k, v in rates.items() if k != "skipped"]
    console.print(table("enqueued", ["where", "tasks / s"], rows))

    waves = waves_of(prices, calibration)
    sizes = [int(n) for n in workers.split(",")]
    started = time.perf_counter()
    campaigns = {n: worked(waves, n, gpu_share, Weather()) for n in sizes}
    fleets = {n: summed(found) for n, found in campaigns.items()}
    known = Dependencies(Recipe.load(RECIPE).stages)
    overlaps = {n: ready(known, waves, n, gpu_share, fleets[n]) for n in sizes}
    without = {n: figures for n, (figures, _) in overlaps.items()}
    console.log(f"simulated in {time.perf_counter() - started:.0f} s")
    show_fleets(console, fleets)
    show_ready(console, without)
    spans = longest_spans(overlaps[sizes[-1]][1], waves)
    largest = {"cpu": sizes[-1], "gpu": max(1, round(sizes[-1] * gpu_share))}
    waits = longest_waits(campaigns[sizes[-1]], largest)
    if picture is not None:
        draw(picture, fleets, without, spans)
        console.print(f"picture {picture}")

    memory = [found.facts["peak_rss_bytes"] for found in plans.values()]
    figures = {
        "minnie65": {
            "first_task_s": plans["minnie65"].phases["to the first task"].wall_s,
            "memory_over_small_plan": memory[1] / memory[0],
        },
        **{f"{n} workers": {"waiting": f["waiting"]} for n, f in without.items()},
    }
    result = {
        "benchmark": "scale",
        "machine": machine("em-pipeline", "task-queue"),
        "settings": {
            "weather": asdict(Weather()),
            "gpu_share": gpu_share,
            "heard_s": HEARD_S,
        },
        "merging": merging,
        "plans": {name: found.to_json() for name, found in plans.items()},
        "queues": rates,
        "fleets": fleets,
        "ready": without,
        "waits_h": waits,
        "spans_h": spans,
    }
    verdicts = judge(figures, load_targets("scale", targets))
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    typer.run(main)
