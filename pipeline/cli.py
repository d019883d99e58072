"""The command ``em``."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import (
    DataError,
    MissingInputError,
    ModelError,
    PipelineError,
    RecipeError,
    RootError,
    StaleOutputError,
    exit_status,
)
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.specs import VoxelSize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.layers.sources import Source
    from pipeline.nets.attribution import AttributionField
    from pipeline.nets.model import Model
    from pipeline.recipe import Recipe
    from pipeline.runtime.drive import StageSummary
    from pipeline.runtime.estimate import WaveEstimate
    from pipeline.runtime.executors import Executor
    from pipeline.runtime.forecast import Forecast, StageAccount
    from pipeline.runtime.progress import WaveProgress
    from pipeline.runtime.run import Run
    from pipeline.stages.base import Stage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From raw electron microscopy to neurons.\n\n"
    "One block:  em reconstruct block.h5:raw --voxel-size 6,6,30 --root out\n\n"
    "A recipe:   em plan|run|status|verify recipe.toml --root gs://lab/run1",
)

exports = typer.Typer(
    no_args_is_help=True, help="Write what a run made in the formats of other programs."
)
app.add_typer(exports, name="export")
clusters = typer.Typer(
    no_args_is_help=True, help="Pools of workers in Kubernetes: manifests, and how many."
)
app.add_typer(clusters, name="k8s")

Root = Annotated[
    str,
    typer.Option("--root", envvar="EM_ROOT", help="Folder of the run: path, gs://, s3://."),
]
Cost = Annotated[
    Path | None, typer.Option("--cost", help="TOML of prices: say what it costs.")
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", help="Rates by em calibrate; typical ones if left out."),
]
PlannedRoot = Annotated[
    str | None,
    typer.Option("--root", envvar="EM_ROOT", help="Folder that the run is to have."),
]
RecipePath = Annotated[
    str, typer.Argument(help="Recipe, a TOML file; or the name of a run in the root.")
]
RunName = Annotated[
    str | None,
    typer.Argument(help="Recipe or name of its run; all runs of the root if left out."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; the cores of this machine if left out."),
]
Queue = Annotated[
    str,
    typer.Option(
        envvar="EM_QUEUE",
        help="fq://FOLDER or sqs://NAME, {run} and {pool} in it: em work does the tasks.",
    ),
]
BboxOption = Annotated[
    str | None, typer.Option("--bbox", help="x0,y0,z0,x1,y1,z1 in voxels of mip 0.")
]
VoxelSizeOption = Annotated[
    str | None,
    typer.Option("--voxel-size", help="x,y,z [nm]; needed where the source does not say."),
]
ExportedRun = Annotated[
    str | None,
    typer.Argument(help="Recipe or name of its run; the only one if left out."),
]
To = Annotated[str, typer.Option("--to", help="Folder of the export: path, gs://, s3://.")]
ReplaceExport = Annotated[
    bool, typer.Option("--replace", help="Delete another export that is there.")
]
Namespace = Annotated[
    str | None, typer.Option(envvar="EM_NAMESPACE", help="Of the cluster; em if left out.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="File, folder or URL; file.h5:dataset.")],
    root: Root,
    layer: Annotated[str, typer.Option(help="Name of the layer.")] = "image",
    voxel_size: VoxelSizeOption = None,
    offset: Annotated[
        str | None, typer.Option(help="First voxel x,y,z; as the source says if left out.")
    ] = None,
    bbox: BboxOption = None,
    kind: Annotated[
        str | None, typer.Option(help="image or segmentation; by dtype if left out.")
    ] = None,
    intensity_range: Annotated[
        str | None, typer.Option(help="LOW,HIGH: values that become 0 and 255.")
    ] = None,
    chunk: Annotated[
        str | None, typer.Option(help="x,y,z of a task; whole sections of a stack.")
    ] = None,
    storage_chunk: Annotated[
        str | None, typer.Option(help="x,y,z of a storage chunk.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="raw, png, jpeg, ...")] = None,
    sharded: Annotated[bool, typer.Option(help="One shard file per task.")] = False,
    mips: Annotated[int, typer.Option(min=0, help="Coarser mips.")] = 3,
    workers: Workers = None,
    replace: Annotated[bool, typer.Option(help="Delete what stands in the way.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Copy a source of any format into a Precomputed layer, with its pyramid.

    Example: em ingest stack.tif --voxel-size 6,6,30 --root gs://lab/run1
    """
    from pipeline.recipe import Recipe
    from pipeline.reconstruction import ingest_chunks

    with _open(source) as opened:
        size, bounds, shift = _place(opened, voxel_size, offset, bbox)
        values = kind or opened.kind_of_values
        task, storage = ingest_chunks(opened.shape, opened.natural_chunk, sharded=sharded)
    task = task if chunk is None else _vector(chunk)
    storage = storage if storage_chunk is None else _vector(storage_chunk)
    stage = {
        "use": "ingest",
        "source": "source",
        "output": layer,
        "kind_of_values": values,
        "voxel_size_nm": list(size),
        "shift": list(shift),
        "storage_chunk": list(storage),
        "sharded": sharded,
        "encoding": encoding
        or ("compressed_segmentation" if values == "segmentation" else "raw"),
    }
    if intensity_range:
        stage["intensity_range"] = _range(intensity_range)
    stages = [stage]
    if mips:
        stages.append(
            {
                "use": "downsample",
                "layer": layer,
                "output": f"{layer}/pyramid",
                "mips": mips,
                "storage_chunk": list(storage),
            }
        )
    recipe = Recipe.parse(
        {
            "name": f"ingest-{layer}",
            "grid": {
                "bounds": {"start": list(bounds.start), "stop": list(bounds.stop)},
                "chunk": list(task),
            },
            "layers": {"source": _absolute(source)},
            "stage": stages,
        },
        source=f"ingest of {source}",
    )
    run, rows = _run(recipe, root, workers=workers, replace=replace, quiet=quiet or as_json)
    _report(run, rows, as_json=as_json)


@app.command()
def reconstruct(
    source: Annotated[str, typer.Argument(help="File, folder or URL; file.h5:dataset.")],
    root: Root,
    voxel_size: VoxelSizeOption = None,
    truth: Annotated[str | None, typer.Option(help="Labels with the same voxels.")] = None,
    bbox: BboxOption = None,
    offset: Annotated[
        str | None, typer.Option(help="First voxel x,y,z; as the source says if left out.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Affinity model: folder or name.")
    ] = "cortex-rsunet",
    threshold: Annotated[
        float | None,
        typer.Option(help="Mean affinity down to which segments are merged."),
    ] = None,
    intensity_range: Annotated[
        str | None, typer.Option(help="LOW,HIGH: values that become 0 and 255.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "reconstruct",
    workers: Workers = None,
    replace: Annotated[bool, typer.Option(help="Delete what stands in the way.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take one block from its image to neurons with meshes and skeletons.

    Example: em reconstruct block.h5:raw --voxel-size 6,6,30 --root out
    """
    from pipeline.recipe import Recipe
    from pipeline.reconstruction import Block, block_recipe

    with _open(source) as opened:
        size, bounds, shift = _place(opened, voxel_size, offset, bbox)
    truth_shift = Vec3(0, 0, 0)
    if truth is not None:
        with _open(truth) as labels:
            _, _, truth_shift = _place(labels, ",".join(map(str, size)), offset, bbox)
    block = Block(
        source=_absolute(source),
        bounds=bounds,
        voxel_size_nm=size,
        shift=shift,
        model=model,
        truth=None if truth is None else _absolute(truth),
        truth_shift=truth_shift,
        threshold=threshold,
        intensity_range=_range(intensity_range),
    )
    recipe = Recipe.parse(block_recipe(name, block), source=f"reconstruction of {source}")
    run, rows = _run(recipe, root, workers=workers, replace=replace, quiet=quiet or as_json)
    scores = None
    if truth is not None:
        scores = _score(run)
    sheet = _sheet(run, scores)
    _report(run, rows, as_json=as_json, scores=scores, sheet=sheet)


@app.command()
def plan(
    recipe: RecipePath,
    root: PlannedRoot = None,
    workers: Workers = None,
    memory_limit: Annotated[
        float | None,
        typer.Option(help="GiB for one task; this machine's, shared, if left out."),
    ] = None,
    cost: Cost = None,
    calibration: CalibrationFile = None,
    as_json: Json = False,
) -> None:
    """Say what a run will take, and refuse one that cannot work; write nothing.

    Without --root nothing is taken for done.

    Example: em plan recipe.toml --root gs://lab/run1 --cost prices.toml
    """
    from pipeline.runtime.estimate import estimate, require_memory
    from pipeline.runtime.run import Run

    with tempfile.TemporaryDirectory() as nowhere:
        run = Run.plan(_load_or_open(recipe, root or nowhere), root or nowhere)
        waves = estimate(run)
        priced = None if cost is None else _forecast(run, cost, calibration)
        stale = run.stale()
    if as_json:
        document = {"recipe": run.recipe.name, "waves": [w.to_json() for w in waves]}
        _print_json(document | ({} if priced is None else {"forecast": priced.to_json()}))
    else:
        _table(
            [
                "layer",
                "stage",
                "pool",
                "wave",
                "tasks",
                "done",
                "Mvoxel",
                "GB in",
                "GB out",
                "peak GiB",
            ],
            [_plan_row(list(alike)) for _, alike in groupby(waves, _but_for_its_number)],
        )
        total = sum(w.tasks for w in waves)
        typer.echo(
            f"{total} tasks in {len(waves)} waves; run them with: "
            f"em run {recipe} --root {root or 'ROOT'}"
        )
        if priced is not None:
            _print_forecast(priced)
    # What is priced runs on the machines of the prices, and not on this one.
    if priced is None or memory_limit is not None:
        require_memory(run, _limit(memory_limit, workers))
    if stale:
        raise StaleOutputError("\n".join(stale.values()))


@app.command()
def calibrate(
    recipe: RecipePath,
    root: Root,
    to: Annotated[Path, typer.Option(help="JSON of rates to write.")],
    samples: Annotated[int, typer.Option(min=1, help="Boxes that are run.")] = 3,
    extent: Annotated[
        str | None,
        typer.Option(help="x,y,z of each in the finest voxels; 2,2,1 chunks if left out."),
    ] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder to keep the samples in.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what tasks take on a few boxes of a volume, for em plan --cost.

    One task at a time, on one core: em plan tells the fleet's speed from the prices.

    Example: em calibrate recipe.toml --root gs://lab/run1 --to rates.json
    """
    from pipeline.runtime.calibrate import calibrate as measure

    with tempfile.TemporaryDirectory() as temporary:
        found = measure(
            _load_or_open(recipe, root),
            root,
            scratch or Path(temporary),
            samples=samples,
            extent=None if extent is None else _vector(extent),
            tell=lambda line: typer.echo(line, err=True),
        )
    to.write_text(found.model_dump_json(indent=1) + "\n")
    if as_json:
        _print_json(found.model_dump(mode="json"))
        return
    _table(
        ["layer", "stage", "by", "tasks", "ns / unit", "+-", "byte / unit", "objects"],
        [
            [
                r.output,
                r.stage,
                r.kind,
                r.tasks,
                f"{r.seconds_per_unit * 1e9:.3g}",
                f"{r.spread:.0%}",
                f"{r.stored_per_unit:.3g}",
                f"{r.objects_per_task:.1f}",
            ]
            for r in found.rates
        ],
    )
    typer.echo(f"em plan {recipe} --root {root} --cost PRICES.toml --calibration {to}")


@app.command()
def run(
    recipe: RecipePath,
    root: Root,
    queue: Queue = "",
    workers: Workers = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage or layer.")] = None,
    bbox: BboxOption = None,
    task: Annotated[
        list[str] | None, typer.Option(help="LAYER/level_x_y_z: do this task again.")
    ] = None,
    replace: Annotated[
        bool, typer.Option(help="Delete outputs of other settings.")
    ] = False,
    memory_limit: Annotated[float | None, typer.Option(help="GiB for one task.")] = None,
    cost: Cost = None,
    calibration: CalibrationFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a recipe to the end; what is already done is skipped.

    With --bbox or --task, tasks that are done are done again, and only those.

    Example: em run recipe.toml --root out --workers 2
    """
    started, rows = _run(
        _load_or_open(recipe, root),
        root,
        queue=queue,
        workers=workers,
        replace=replace,
        only=stage,
        bbox=bbox,
        tasks=task or [],
        memory_limit=memory_limit,
        quiet=quiet or as_json,
    )
    _report(started, rows, as_json=as_json, account=_accounted(started, cost, calibration))


@app.command()
def work(
    queue: Annotated[
        str, typer.Option(envvar="EM_QUEUE", help="fq://FOLDER or sqs://NAME.")
    ],
    lease_seconds: Annotated[int, typer.Option(min=1, help="Length of a lease [s].")] = 600,
    until_empty: Annotated[
        bool, typer.Option(help="Stop when the queue is empty.")
    ] = False,
    max_tasks: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores for each task.")] = 1,
    grace_seconds: Annotated[
        float | None,
        typer.Option(
            envvar="EM_GRACE_S",
            min=0,
            help="After SIGTERM, give back what cannot end in time [s]; wait if left out.",
        ),
    ] = None,
    liveness: Annotated[
        str | None,
        typer.Option(envvar="EM_LIVENESS", help="File that is touched while it lives."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(envvar="EM_METRICS_PORT", help="Serve metrics for Prometheus there."),
    ] = None,
    failures_in_row: Annotated[
        int,
        typer.Option(
            envvar="EM_FAILURES_IN_ROW", min=1, help="Stop after so many failures in a row."
        ),
    ] = 20,
) -> None:
    """Do tasks from a queue, for any run; SIGTERM lets the task in hand end.

    Example: em work --queue fq:///tmp/queue
    """
    from pipeline.runtime.logs import log_json
    from pipeline.runtime.worker import work as serve_queue

    log_json()
    if metrics_port is not None:
        from pipeline.runtime.metrics import METRICS

        METRICS.serve(metrics_port)
    count = serve_queue(
        queue,
        lease_s=lease_seconds,
        until_empty=until_empty,
        max_tasks=max_tasks,
        threads=threads,
        grace_s=grace_seconds,
        liveness=liveness,
        failures_in_row=failures_in_row,
    )
    typer.echo(f"{count} tasks ended")


@app.command()
def status(
    root: Root,
    recipe: RunName = None,
    queue: Annotated[
        str, typer.Option(help="Count the messages of fq://FOLDER or sqs://NAME too.")
    ] = "",
    cost: Cost = None,
    calibration: CalibrationFile = None,
    as_json: Json = False,
) -> None:
    """Count what is done, failed, missing and begun, stage by stage.

    What is begun was taken from a queue and has not ended; its worker may be dead.

    Example: em status --root out --queue sqs://em
    """
    rows = []
    opened_runs = _runs(root, recipe)
    for opened in opened_runs:
        for stage in opened.recipe.stages:
            total = sum(len(wave) for wave in stage.plan())
            done = opened.done_keys(stage)
            failed = opened.parked_keys(stage) - done
            rows.append(
                {
                    "run": opened.recipe.name,
                    "output": stage.output,
                    "stage": stage.name,
                    "tasks": total,
                    "done": len(done),
                    "failed": len(failed),
                    "missing": total - len(done) - len(failed),
                    "begun": len(opened.begun_keys(stage) - done),
                }
            )
    messages = None
    if queue:
        from pipeline.runtime.queue import TaskQueue

        messages = dict(zip(("waiting", "leased"), TaskQueue(queue).counts(), strict=True))
    accounts = {r.recipe.name: _accounted(r, cost, calibration) for r in opened_runs}
    if as_json:
        found: dict[str, Any] = {"stages": rows}
        if messages is not None:
            found["queue"] = messages
        if cost is not None:
            found["account"] = {
                name: [a.to_json() for a in account] for name, account in accounts.items()
            }
        _print_json(found)
        return
    columns = list(rows[0])
    _table(columns, [[row[c] for c in columns] for row in rows])
    if messages is not None:
        typer.echo(f"{queue}: {messages['waiting']} waiting, {messages['leased']} leased")
    for account in accounts.values():
        _print_account(account)


@app.command()
def failures(
    root: Root,
    recipe: RunName = None,
    traceback: Annotated[
        str | None,
        typer.Option(metavar="LAYER/KEY", help="Show the traceback of this task."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Group the tasks that were given up by reason and host; show a traceback.

    Example: em failures --root out --traceback affinities/0_1_0_0
    """
    from pipeline.runtime.triage import grouped

    found = [
        {"run": opened.recipe.name, **record}
        for opened in _runs(root, recipe)
        for record in opened.failures()
    ]
    if traceback is not None:
        named = [r for r in found if f"{r['output']}/{r['key']}" == traceback]
        if not named:
            raise MissingInputError(
                f"{root}: {traceback} has no failed record; em failures lists those that do"
            )
        if as_json:
            _print_json(named[0])
        else:
            typer.echo(named[0]["traceback"].rstrip())
        return
    groups = grouped(found)
    if as_json:
        _print_json({"failures": found, "groups": [g.to_json() for g in groups]})
        return
    for group in groups:
        hosts = ", ".join(f"{host} {n}" for host, n in group.hosts.most_common(5))
        more = f" and {len(group.hosts) - 5} hosts more" if len(group.hosts) > 5 else ""
        typer.echo(
            f"{len(group.keys)} of {group.output} ({group.code}; {hosts}{more}), first "
            f"{group.keys[0]}: {group.reason}"
        )
    if found:
        first = groups[0]
        typer.echo(
            f"{len(found)} failed\n"
            f"traceback: {_program()} failures --root {root} "
            f"--traceback {first.output}/{first.keys[0]}\n"
            f"run one here: {_program()} task {first.output} {first.keys[0]} "
            f"--root {root} --here --pdb\n"
            f"then: {_program()} retry --root {root} --failed, and em run"
        )
    else:
        typer.echo("0 failed")


@app.command()
def task(
    output: Annotated[str, typer.Argument(help="Layer that the task writes.")],
    key: Annotated[str, typer.Argument(help="level_x_y_z, as in the name of its record.")],
    root: Root,
    recipe: RunName = None,
    here: Annotated[
        bool, typer.Option("--here", help="Do it in this process, done or not.")
    ] = False,
    pdb: Annotated[
        bool, typer.Option("--pdb", help="Open the debugger where it fails.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is known of one task, or do it here, under a debugger if need be.

    Example: em task affinities 0_1_0_0 --root out --here --pdb
    """
    runs = [
        r for r in _runs(root, recipe) if any(s.output == output for s in r.recipe.stages)
    ]
    if not runs:
        raise RootError(f"no run in {root} writes a layer {output}; em status lists them")
    opened = runs[0]
    stage = opened.recipe.stage(output)
    _require_tasks(opened.recipe, stage, [ChunkKey.parse(key)])
    found = stage.task(ChunkKey.parse(key))
    if here:
        from pipeline.runtime.cores import machine_cores, use_threads

        use_threads(machine_cores())
        began = time.monotonic()
        try:
            outcome = opened.execute(stage, found.key, again=True)
        except Exception:
            if not pdb:
                raise
            import pdb as debugger
            import traceback

            traceback.print_exc()
            debugger.post_mortem(sys.exc_info()[2])
            raise typer.Exit(1) from None
        if as_json:
            _print_json({"output": output, "key": key, "outcome": outcome})
        else:
            seconds = time.monotonic() - began
            typer.echo(f"{output}/{key}: {outcome} in {seconds:.2f} s")
        return
    known = opened.task_state(stage, found.key)
    if as_json:
        _print_json(known)
        return
    for name, value in known.items():
        typer.echo(f"{name + ':':<10} {value}")


@app.command()
def retry(
    root: Root,
    recipe: RunName = None,
    stage: Annotated[str | None, typer.Option(help="Only this layer.")] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="All that failed, as without options.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(help="Only with this text in the reason, or this code.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let the next em run try the failed tasks again.

    Example: em retry --root out --failed --reason "out of memory"
    """
    count = sum(opened.retry(stage, reason) for opened in _runs(root, recipe))
    if as_json:
        _print_json({"retried": count})
    else:
        typer.echo(f"{count} failed tasks will be tried again by em run")


@app.command()
def cancel(root: Root, recipe: RunName = None, queue: Queue = "") -> None:
    """Stop a run; what is done is kept, and em run goes on from there.

    Messages are removed from a queue of the run's own, one with {run} in its name;
    tasks that workers have in hand end as usual.

    Example: em cancel block --root out --queue "sqs://em-{run}-{pool}"
    """
    from pipeline.runtime.run_queues import cancel_run

    for opened in _runs(root, recipe):
        removed, shared = cancel_run(opened, queue)
        typer.echo(f"{opened.recipe.name}: cancelled, {removed} messages removed")
        for url in shared:
            typer.echo(
                f"{url} is shared with other runs and left as it is: workers will do the "
                "tasks that wait there; a queue with {run} in its name is emptied"
            )


@app.command()
def verify(
    root: Root,
    recipe: RunName = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage or layer.")] = None,
    quick: Annotated[
        bool, typer.Option(help="See that objects are there; compare no checksum.")
    ] = False,
    forget: Annotated[
        bool, typer.Option(help="Let the next em run do what is damaged again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove that every chunk of every layer was written; exit 1 and list what is not.

    Example: em verify --root out --json
    """
    from pipeline.runtime.verify import forget_faults
    from pipeline.runtime.verify import verify as prove

    results = []
    complete = True
    for opened in _runs(root, recipe):
        proofs = prove(opened, contents=not quick, only=stage)
        if not proofs:
            continue
        whole = all(p.is_complete for p in proofs)
        complete = complete and whole
        results.append(
            {
                "run": opened.recipe.name,
                "complete": whole,
                "stages": [p.to_json() for p in proofs],
            }
        )
        if not as_json:
            for proof in proofs:
                for fault in proof.faults:
                    typer.echo(f"{proof.output}/{fault.key} {fault.kind}: {fault.detail}")
            _table(
                ["run", "layer", "stage", "tasks", "proved", "blank", "faults"],
                [
                    [
                        opened.recipe.name,
                        p.output,
                        p.stage,
                        p.tasks,
                        p.done,
                        p.blank,
                        len(p.faults),
                    ]
                    for p in proofs
                ],
            )
        if forget:
            forget_faults(opened, proofs)
    if not results:
        raise RootError(f"no run in {root} has a stage {stage}; em status lists them")
    if as_json:
        _print_json({"complete": complete, "runs": results})
    else:
        typer.echo(
            "complete: every task is proved"
            if complete
            else "not complete: em run does what is missing or lost; add --forget here "
            "for what is damaged"
        )
    if not complete:
        raise typer.Exit(1)


@app.command("eval")
def evaluate(root: Root, recipe: RunName = None, as_json: Json = False) -> None:
    """Score the segmentation against the truth; writes scores.json into the root.

    Example: em eval --root out
    """
    from pipeline.stages.overlaps import Overlaps

    runs = [
        opened
        for opened in _runs(root, recipe)
        if any(isinstance(s, Overlaps) for s in opened.recipe.stages)
    ]
    if not runs:
        raise RootError(
            f"no run in {root} compares with a truth; add a stage overlaps, or give "
            "--truth to em reconstruct"
        )
    for opened in runs:
        scores = _score(opened)
        if as_json:
            _print_json(scores)
        else:
            _print_scores(scores)


@app.command()
def quality(root: Root, recipe: RunName = None, as_json: Json = False) -> None:
    """List how well defined every section is, where a recipe has image_quality.

    Criteria are per pixel, so that sections of unlike extent compare.

    Example: em quality --root out
    """
    from pipeline.stages.image_quality import ImageQuality

    found = [
        (opened, stage)
        for opened in _runs(root, recipe)
        for stage in opened.recipe.stages
        if isinstance(stage, ImageQuality)
    ]
    if not found:
        raise RootError(
            f"no run in {root} measures its image; add a stage image_quality to a recipe "
            "and run it"
        )
    criteria = ("brenner", "smd2", "variance", "vollath")
    rows = []
    for opened, stage in found:
        table = opened.store.read(stage.root)
        for i, z in enumerate(table["z"]):
            pixels = int(table["pixels"][i])
            per_pixel = {name: float(table[name][i]) / pixels for name in criteria}
            mean = int(table["sum"][i]) / pixels
            rows.append(
                {
                    "run": opened.recipe.name,
                    "layer": stage.output,
                    "z": int(z),
                    "pixels": pixels,
                    "mean": mean,
                    **per_pixel,
                }
            )
    if as_json:
        _print_json({"sections": rows})
        return
    _table(
        list(rows[0]),
        [[f"{v:.3f}" if isinstance(v, float) else v for v in row.values()] for row in rows],
    )


@app.command()
def sweep(
    root: Root,
    recipe: RunName = None,
    thresholds: Annotated[
        str, typer.Option(help="FROM:TO:STEP, the ends counted.")
    ] = "0.1:0.9:0.05",
    truth: Annotated[str, typer.Option(help="Layer of the truth.")] = "truth",
    as_json: Json = False,
) -> None:
    """Score other thresholds from the merges that were kept; draws sweep.png.

    Example: em sweep demo --root demo --thresholds 0.1:0.9:0.05
    """
    from pipeline.runtime.sweep import draw
    from pipeline.runtime.sweep import sweep as score_all
    from pipeline.stages.agglomeration import Agglomeration

    values = _steps(thresholds)
    for opened in _runs(root, recipe):
        stages = [s for s in opened.recipe.stages if isinstance(s, Agglomeration)]
        if not stages and recipe is None:
            continue
        found = score_all(opened, values, truth)
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "sweep.png"
            draw(picture, values, found, stages[0].threshold)
            opened.store.put_bytes(picture.name, picture.read_bytes())
        if as_json:
            _print_json(
                {
                    "run": opened.recipe.name,
                    "thresholds": [
                        {"threshold": t, **s.model_dump(mode="json")}
                        for t, s in zip(values, found, strict=True)
                    ],
                }
            )
            continue
        _table(
            ["threshold", "VOI split", "VOI merge", "VOI", "ARAND", "NERL", "segments"],
            [
                [
                    f"{t:.3f}",
                    f"{s.voi_split:.3f}",
                    f"{s.voi_merge:.3f}",
                    f"{s.voi_sum:.3f}",
                    f"{s.arand:.4f}",
                    "-" if s.nerl is None else f"{s.nerl:.3f}",
                    s.n_segments,
                ]
                for t, s in zip(values, found, strict=True)
            ],
        )
        typer.echo(f"picture: {opened.store.root}/sweep.png".replace("file://", ""))


@exports.command("tables")
def export_tables(
    root: Root,
    to: To,
    recipe: ExportedRun = None,
    rows: Annotated[
        int, typer.Option(help="Rows that are held at once to merge tables.")
    ] = 1_000_000,
    replace: ReplaceExport = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write region graph, supervoxels, remap table and merges as Parquet.

    Each table is written by octree node, and merged into one file.

    Example: em export tables demo --root demo --to tables
    """
    from pipeline.runtime.export_tables import export_tables as write

    opened = _agglomerated(root, recipe)
    found = write(opened, to, limit=rows, replace=replace, quiet=quiet or as_json)
    if as_json:
        _print_json({"run": opened.recipe.name, "tables": [asdict(t) for t in found]})
        return
    _table(
        ["table", "nodes", "rows by node", "rows merged"],
        [[t.table, t.nodes, t.node_rows, t.rows] for t in found],
    )
    typer.echo(f"tables: {to}")


@exports.command("pychunkedgraph")
def export_pychunkedgraph(
    root: Root,
    to: To,
    recipe: ExportedRun = None,
    chunk: Annotated[
        str | None, typer.Option(help="x,y,z of the graph's chunks; the run's if left out.")
    ] = None,
    workers: Workers = None,
    replace: ReplaceExport = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write cut supervoxels, edges and components for PyChunkedGraph's ingest.

    An export that was stopped goes on where it was.

    Example: em export pychunkedgraph demo --root demo --to graph
    """
    from pipeline.runtime.cores import machine_cores
    from pipeline.runtime.export_pychunkedgraph import export_pychunkedgraph as write

    opened = _agglomerated(root, recipe)
    found = write(
        opened,
        to,
        chunk=None if chunk is None else _vector(chunk),
        workers=workers or machine_cores(),
        replace=replace,
        quiet=quiet or as_json,
    )
    if as_json:
        _print_json({"run": opened.recipe.name, **asdict(found)})
        return
    _table(
        ["chunks", "pieces", "in chunk", "between", "cross", "isolated"],
        [
            [
                found.chunks,
                found.pieces,
                found.in_chunk,
                found.between_chunk,
                found.cross_chunk,
                found.isolated,
            ]
        ],
    )
    typer.echo(f"configuration of the ingest: {to}/dataset.yml")


@clusters.command("render")
def k8s_render(
    recipe: Annotated[
        str | None,
        typer.Argument(help="Give workers the memory of this recipe's plan."),
    ] = None,
    root: Annotated[
        str | None, typer.Option("--root", envvar="EM_ROOT", help="Folder of its run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write; printed if left out.")
    ] = None,
) -> None:
    """Write the Deployments of all pools, with what scales and guards them, as YAML.

    Example: em k8s render --output k8s/base/workers.yaml
    """
    from pipeline.orchestration.k8s import pools_for, render
    from pipeline.runtime.pools import POOLS
    from pipeline.runtime.run import Run

    pools = POOLS
    if recipe is not None:
        if root is None:
            raise RootError("the plan of a recipe needs its layers; give --root")
        pools = pools_for(Run.plan(_load_or_open(recipe, root), root))
    text = render(pools)
    if output is None:
        typer.echo(text, nl=False)
        return
    output.write_text(text)
    typer.echo(f"{output}: pools {', '.join(pools)}")


@clusters.command("scale")
def k8s_scale(
    pool: Annotated[str, typer.Argument(help="cpu or gpu.")],
    count: Annotated[str, typer.Argument(help="Workers; auto gives it back to KEDA.")],
    namespace: Namespace = None,
) -> None:
    """Set the number of workers of a pool.

    Example: em k8s scale cpu 20
    """
    from pipeline.orchestration.k8s import Deployments
    from pipeline.runtime.pools import POOLS

    if pool not in POOLS:
        raise RootError(f"there is no pool {pool!r}; there are {', '.join(POOLS)}")
    if count != "auto" and not count.isdigit():
        raise RootError(f"{count!r} is no number of workers; give one, or auto")
    wanted = None if count == "auto" else int(count)
    typer.echo(Deployments(namespace).fix(pool, wanted))


@clusters.command("status")
def k8s_status(namespace: Namespace = None, as_json: Json = False) -> None:
    """List the Deployments of workers: their queues, how many are wanted and ready.

    Example: em k8s status
    """
    from pipeline.orchestration.k8s import Deployments

    cluster = Deployments(namespace)
    rows = cluster.status()
    if as_json:
        _print_json({"namespace": cluster.namespace, "deployments": rows})
        return
    if not rows:
        typer.echo(f"no workers in namespace {cluster.namespace}; apply an overlay of k8s/")
        return
    _table(list(rows[0]), [list(row.values()) for row in rows])


@app.command()
def attribute(
    model: Annotated[str, typer.Argument(help="Model: folder or name.")],
    image: Annotated[str, typer.Argument(help="File, folder or URL; file.h5:dataset.")],
    voxel: Annotated[
        list[str], typer.Option("--voxel", help="x,y,z of what is explained.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder for fields and pictures.")],
    output: Annotated[
        str | None,
        typer.Option(help="HEAD or HEAD/CHANNEL to explain; the first if left out."),
    ] = None,
    voxel_size: Annotated[
        str | None,
        typer.Option(help="x,y,z [nm]; the image's, or else the model's, if left out."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Relative contribution that counts.")
    ] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="Points between noise and image.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    as_json: Json = False,
) -> None:
    """Show which pixels a prediction rests on, by integrated gradients.

    Example: em attribute cortex-rsunet block.h5:raw --voxel 250,262,40 --to fields
    """
    import torch

    from pipeline.nets.attribution import patch_around
    from pipeline.nets.model import load_model
    from pipeline.stages.prediction import model_folder

    loaded = load_model(model_folder(model), "cuda" if torch.cuda.is_available() else "cpu")
    config = loaded.config
    if config.inputs != ("image",):
        raise ModelError(
            f"model {config.name} takes {', '.join(config.inputs)}, and only an image can "
            "be given here; take a model of images"
        )
    channel, named = config.channel_of(output)
    trained = ",".join(map(str, config.voxel_size_nm))
    with _open(image) as source:
        if source.dtype != "uint8" or source.channels != 1:
            raise DataError(
                f"{image} holds {source.channels} channels of {source.dtype}; give one of "
                "uint8, as em ingest --intensity-range makes it"
            )
        unknown = trained if source.voxel_size_nm is None else None
        size, bounds, _ = _place(source, voxel_size or unknown, None, None)
        places = [_vector(text) for text in voxel]
        boxes = [patch_around(place, bounds, config) for place in places]
        to.mkdir(parents=True, exist_ok=True)
        rows = []
        for place, box in zip(places, boxes, strict=True):
            field, row = _explain(
                loaded,
                source.read(box),
                place - box.start,
                channel,
                steps,
                seed,
                title=f"{config.name}: {named} at {place}",
                stem=to / "_".join(map(str, place)),
            )
            area = {"threshold": threshold, "area_nm2": field.area_nm2(threshold, size)}
            rows.append(
                {"voxel": list(place), "output": named, "box": str(box), **row, **area}
            )
    if as_json:
        _print_json({"fields": rows})
        return
    columns = ["voxel", "said", "reference", "error", "area_nm2", "field", "picture"]
    shown = [
        {
            **row,
            "voxel": ",".join(map(str, row["voxel"])),
            "area_nm2": f"{row['area_nm2']:.0f}",
            "error": f"{row['error']:.0e}",
            **{name: f"{row[name]:.4f}" for name in ("said", "reference")},
        }
        for row in rows
    ]
    _table(columns, [[row[c] for c in columns] for row in shown])


@app.command()
def view(
    root: Root,
    recipe: RunName = None,
    position: Annotated[str | None, typer.Option(help="x,y,z in voxels of mip 0.")] = None,
    segments: Annotated[
        str | None, typer.Option(help="Ids to select; the largest ones if left out.")
    ] = None,
    url: Annotated[
        bool, typer.Option("--url", help="Print a hosted link and end.")
    ] = False,
    screenshot: Annotated[
        Path | None, typer.Option(help="Take a picture in headless Chromium and end.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the viewer; any if 0.")] = 0,
) -> None:
    """Open the layers of a run in Neuroglancer, until Ctrl-C.

    Example: em view --root out
    """
    from pipeline import view as neuroglancer_view
    from pipeline.runtime.results import view_layers

    chosen = None if segments is None else _ints(segments)
    found = [v for r in _runs(root, recipe) for v in view_layers(r, segments=chosen)]
    layers = list({layer.location: layer for layer in found}.values())
    place = None if position is None else _ints(position)
    if url:
        typer.echo(neuroglancer_view.hosted_url(layers, place))
        return
    with neuroglancer_view.launch(layers, place, port=port) as viewer:
        if screenshot is not None:
            neuroglancer_view.screenshot(viewer, screenshot)
            typer.echo(f"picture: {screenshot}")
            return
        typer.echo(f"Neuroglancer: {viewer.url}   (Ctrl-C ends)")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            typer.echo("closed")


@app.command()
def simulate(
    source: Annotated[str, typer.Argument(help="Aligned image: file.h5:dataset, a layer.")],
    to: Annotated[Path, typer.Option(help="HDF5 file to write.")],
    bbox: BboxOption = None,
    voxel_size: VoxelSizeOption = None,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 0,
    defects: Annotated[
        float, typer.Option(help="Share of sections with cracks or folds.")
    ] = 0.25,
    resin: Annotated[float, typer.Option(help="Share that ends in bare resin.")] = 0.0,
    missing: Annotated[int, typer.Option(help="Sections that are missing.")] = 2,
    shift: Annotated[float, typer.Option(help="Greatest shift [pixel].")] = 40.0,
    rotation: Annotated[float, typer.Option(help="Greatest rotation [degree].")] = 2.0,
    elastic: Annotated[
        str,
        typer.Option(help="LENGTH@DISTANCE of smooth bends [pixel], with commas; or none."),
    ] = "12@300,3@80",
    fields: Annotated[bool, typer.Option(help="Write the true fields too.")] = False,
    replace: Annotated[bool, typer.Option(help="Write over a file that is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make loose sections with cracks and folds from aligned ones, with the truth.

    Example: em simulate ac4.h5:raw --voxel-size 6,6,30 --to loose.h5 --fields
    """
    from pydantic import ValidationError

    from pipeline.phantom.loose import Loosening
    from pipeline.runtime.progress import WaveProgress
    from pipeline.runtime.simulate import simulate_stack

    bends = [] if elastic == "none" else elastic.split(",")
    try:
        settings = Loosening(
            seed=seed,
            defects=defects,
            resin=resin,
            missing=missing,
            shift=shift,
            rotation=rotation,
            elastic=tuple(
                (length, distance)
                for length, distance in (
                    _floats(bend.replace("@", ","), 2, "--elastic") for bend in bends
                )
            ),
        )
    except ValidationError as error:
        faults = [f"--{e['loc'][0]}: {e['msg']}, not {e['input']}" for e in error.errors()]
        raise RecipeError("em simulate", faults) from None
    with _open(source) as opened:
        size, bounds, _ = _place(opened, voxel_size, None, bbox)
        pixels = bounds.shape.x * bounds.shape.y
        with WaveProgress("sections", bounds.shape.z, quiet=quiet) as progress:
            gone = simulate_stack(
                opened,
                to,
                settings,
                box=bounds,
                voxel_size_nm=size,
                with_fields=fields,
                replace=replace,
                tell=lambda: progress.add("done", pixels),
            )
    typer.echo(f"{bounds.shape.z} sections in {to}; missing: {sorted(gone) or 'none'}")


@app.command()
def train(
    config: Annotated[
        Path,
        typer.Argument(metavar="TRAIN_TOML", help="train.toml of a model, or its folder."),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(help="Of checkpoint, log and pictures; runs/MODEL if left out."),
    ] = None,
    data: Annotated[
        Path, typer.Option(envvar="EM_DATA", help="Folder of the volumes.")
    ] = Path("../shared/data"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="End after so many; as the file says if out.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="That share each step: one for each GPU.")
    ] = 1,
    tensorboard: Annotated[
        bool, typer.Option(help="Write scores for TensorBoard, too.")
    ] = False,
    export: Annotated[
        bool,
        typer.Option("--export", help="Train no more: write the weights of the folder."),
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="With --export: filters as bfloat16.")
    ] = False,
    score: Annotated[
        bool,
        typer.Option("--score", help="Train no more: score the exported weights, as JSON."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a net, or go on from its last checkpoint; then export and score it.

    Example: em train models/cortex-rsunet/train.toml --folder runs/cortex
    """
    config = config / "train.toml" if config.is_dir() else config
    directory = config.parent
    place = folder or Path("runs") / directory.resolve().name
    if score:
        from pipeline.training.run import score as score_model

        _print_json(score_model(config, data))
        return
    if export:
        from pipeline.training.export import export as export_model

        model = export_model(directory, place, half=half)
        typer.echo(f"{directory / model.weights}: {model.sha256}")
        return
    from pipeline.training.run import train as train_model
    from pipeline.training.run import where_to_look

    train_model(
        config,
        place,
        data,
        steps=steps,
        processes=processes,
        tensorboard=tensorboard,
        quiet=quiet,
    )
    typer.echo(where_to_look(place, tensorboard=tensorboard))
    typer.echo(f"weights  em train {config} --folder {place} --export")


def main() -> None:
    """Run the command; print an error of ours as one message, without a traceback."""
    try:
        app()
    except PipelineError as error:
        typer.echo(f"em: {error}", err=True)
        sys.exit(exit_status(error))


# -- parts -----------------------------------------------------------------------------


def _but_for_its_number(wave: WaveEstimate) -> WaveEstimate:
    return replace(wave, level=0, done=0)


def _plan_row(waves: list[WaveEstimate]) -> list[Any]:
    """Describe waves that follow one another and are alike, such as those of rounds."""
    first, last = waves[0], waves[-1]
    is_one = len(waves) == 1
    return [
        first.output,
        first.stage,
        first.pool,
        first.level if is_one else f"{first.level} to {last.level}",
        first.tasks if is_one else f"{len(waves)} x {first.tasks}",
        sum(w.done for w in waves),
        f"{first.voxels / 1e6:.1f}",
        f"{first.bytes_in / 1e9:.3f}",
        f"{first.bytes_out / 1e9:.3f}",
        f"{first.peak_memory / 2**30:.2f}",
    ]


def _forecast(run: Run, cost: Path, calibration: Path | None) -> Forecast:
    from pipeline.runtime.calibrate import Calibration
    from pipeline.runtime.forecast import Forecast, Prices

    rates = None if calibration is None else Calibration.load(calibration)
    return Forecast.of(run, Prices.load(cost), rates)


def _accounted(run: Run, cost: Path | None, calibration: Path | None) -> list[StageAccount]:
    """Return what a run took beside its forecast; nothing without prices."""
    if cost is None:
        return []
    from pipeline.runtime.calibrate import Calibration
    from pipeline.runtime.forecast import Prices, account

    rates = None if calibration is None else Calibration.load(calibration)
    return account(run, Prices.load(cost), rates)


def _print_account(account: Sequence[StageAccount]) -> None:
    """Print what stages took beside what was expected."""
    if not account:
        return
    rows = [
        [
            a.output,
            a.pool,
            f"{a.done}/{a.tasks}",
            f"{a.expected_hours:,.3g}",
            f"{a.hours:,.3g}",
            "" if a.hours_at_end is None else f"{a.hours_at_end:,.3g}",
            f"{a.stored_gb:,.3g}",
            f"{a.on_demand:,.2f}",
            f"{a.spot:,.2f}",
        ]
        for a in account
    ]
    columns = [
        *("layer", "pool", "tasks", "h forecast", "h so far", "h at this pace"),
        *("GB stored", "machines on demand", "spot"),
    ]
    _table(columns, rows)
    forecast, hours = (
        sum(getattr(a, name) for a in account) for name in ("expected_hours", "hours")
    )
    money = sum(a.on_demand for a in account), sum(a.spot for a in account)
    typer.echo(
        f"{hours:,.4g} worker hours so far, {forecast:,.4g} forecast in all; machines "
        f"{money[0]:,.2f} on demand, {money[1]:,.2f} spot"
    )


def _print_forecast(priced: Forecast) -> None:
    """Print what each stage will take, and all of it, with how far off that may be."""
    expected, low, high = priced.total
    currency = priced.prices.currency
    rows = [
        [
            s.output,
            s.pool,
            s.costs.tasks,
            f"{s.costs.hours:,.4g}",
            f"{s.low:.2g} - {s.high:.2g}",
            f"{s.costs.moved_gb:,.4g}",
            f"{s.costs.stored_gb:,.4g}",
            f"{(s.costs.reads + s.costs.writes) / 1e6:,.3g}",
            f"{s.costs.on_demand_money:,.2f}",
            f"{s.costs.spot_money:,.2f}",
            f"{s.costs.wall_h:,.3g}",
            f"{s.peak_memory / 1e9:,.3g}",
            s.basis,
        ]
        for s in priced.stages
    ]
    columns = [
        *("layer", "pool", "tasks", "worker h", "times", "GB moved", "GB kept"),
        *("M requests", f"{currency} on demand", "spot", "wall h", "GB of a task", "basis"),
    ]
    _table(columns, rows)
    hours = ", ".join(f"{h:,.4g} {pool} hours" for pool, h in expected.worker_hours.items())
    fleet = ", ".join(f"{n} {pool}" for pool, n in priced.prices.fleet.items())
    typer.echo(
        f"in all {expected.tasks:,} tasks, {hours}, {expected.moved_gb:,.4g} GB moved, "
        f"{expected.stored_gb:,.4g} GB kept, {expected.messages / 1e6:,.3g} M messages\n"
        f"on demand {expected.on_demand_money:,.2f} {currency} "
        f"({low.on_demand_money:,.2f} to {high.on_demand_money:,.2f}), "
        f"spot {expected.spot_money:,.2f} ({low.spot_money:,.2f} to "
        f"{high.spot_money:,.2f}); prices of {priced.prices.date}\n"
        f"{expected.wall_h / 24:,.3g} days ({low.wall_h / 24:,.3g} to "
        f"{high.wall_h / 24:,.3g}) on workers: {fleet}"
    )


def _run(
    recipe: Recipe,
    root: str,
    *,
    queue: str = "",
    workers: int | None = None,
    replace: bool = False,
    only: str | None = None,
    bbox: str | None = None,
    tasks: Sequence[str] = (),
    memory_limit: float | None = None,
    quiet: bool = False,
) -> tuple[Run, list[StageSummary]]:
    from pipeline.runtime.cores import machine_cores
    from pipeline.runtime.drive import run_to_end
    from pipeline.runtime.estimate import require_memory
    from pipeline.runtime.executors import Pool, serial
    from pipeline.runtime.run import Run

    within = None if bbox is None else Bbox.parse(bbox)
    chosen = None
    if tasks:
        outputs = {t.rpartition("/")[0] for t in tasks}
        if len(outputs) > 1:
            raise RecipeError(
                recipe.name, [f"--task names the layers {sorted(outputs)}; name one"]
            )
        only = outputs.pop()
        chosen = [ChunkKey.parse(t.rpartition("/")[2]) for t in tasks]
    if only is not None:
        only = recipe.stage(only).output
    if chosen is not None:
        _require_tasks(recipe, recipe.stage(str(only)), chosen)
    planned = Run.plan(recipe, root)
    if not queue:
        require_memory(planned, _limit(memory_limit, workers))
    if within is not None and not planned.bounds.contains(within):
        raise RecipeError(
            recipe.name,
            [f"bbox {within} is outside the run, which covers {planned.bounds}"],
        )
    # Opened first: a queue that is not there is told before anything is written.
    manager: Any = nullcontext(_queued(planned, queue) if queue else serial)
    started = Run.start(recipe, root, replace=replace)
    count = workers or machine_cores()
    if not queue and count > 1:
        manager = Pool(count)
    with manager as executor:
        rows = run_to_end(
            started, executor, only=only, within=within, tasks=chosen, quiet=quiet
        )
    return started, rows


def _queued(run: Run, template: str) -> Executor:
    """Return who puts the tasks of each kind of worker on its queue."""
    from pipeline.runtime.executors import Queued
    from pipeline.runtime.run_queues import create_queue, queue_urls
    from pipeline.runtime.waves import require_not_cancelled

    urls = queue_urls(template, run)
    if "{" in template:
        for url in urls.values():
            create_queue(url)
            typer.echo(f"em: tasks go to {url}", err=True)
    queues = {
        pool: Queued(url, on_wait=lambda: require_not_cancelled(run))
        for pool, url in urls.items()
    }

    def execute(
        run: Run, stage: Stage, keys: list[ChunkKey], progress: WaveProgress
    ) -> None:
        queues[stage.pool](run, stage, keys, progress)

    return execute


def _require_tasks(recipe: Recipe, stage: Stage, keys: list[ChunkKey]) -> None:
    levels = [wave.level for wave in stage.plan()]
    faults = [
        f"--task {stage.output}/{key} is no task of {stage.name}; it has "
        + " and ".join(f"{_counts(stage, level)} at level {level}" for level in levels)
        for key in keys
        if key.level not in levels
        or any(p >= n for p, n in zip(key.position, _counts(stage, key.level), strict=True))
    ]
    if faults:
        raise RecipeError(recipe.name, faults)


def _counts(stage: Stage, level: int) -> Vec3:
    return stage.grid_at(level).counts(stage.octree_level(level))


def _limit(memory_limit: float | None, workers: int | None) -> int:
    from pipeline.runtime.cores import machine_cores
    from pipeline.runtime.memory import machine_memory

    if memory_limit is not None:
        return int(memory_limit * 2**30)
    return machine_memory() // (workers or machine_cores())


def _report(
    run: Run,
    rows: list[StageSummary],
    *,
    as_json: bool,
    scores: dict[str, Any] | None = None,
    sheet: str | None = None,
    account: Sequence[StageAccount] = (),
) -> None:
    if as_json:
        _print_json(
            {
                "run": run.recipe.name,
                "root": run.store.root,
                "stages": [r.to_json() for r in rows],
                "scores": scores,
                "contact_sheet": sheet,
                "account": [a.to_json() for a in account],
            }
        )
        return
    _table(
        [
            "layer",
            "stage",
            "tasks",
            "blank",
            "Mvoxel",
            "seconds",
            "wall s",
            "Mvox/s",
            "peak MiB",
        ],
        [
            [
                r.output,
                r.stage,
                r.tasks,
                r.blank,
                f"{r.voxels / 1e6:.2f}",
                f"{r.seconds:.1f}",
                f"{r.wall_s:.1f}",
                f"{r.rate:.2f}",
                f"{r.peak_memory / 2**20:.0f}",
            ]
            for r in rows
        ],
    )
    _print_account(account)
    if scores is not None:
        _print_scores(scores)
    where = run.store.root.removeprefix("file://")
    typer.echo(f"layers:  {where}")
    if sheet is not None:
        typer.echo(f"picture: {sheet}")
    typer.echo(f"look:    {_program()} view --root {where}")


def _program() -> str:
    """Return what to type for this command where it was typed from."""
    if shutil.which("em"):
        return "em"
    beside = os.path.relpath(sys.argv[0])
    return sys.argv[0] if beside.startswith("..") else beside


def _score(run: Run) -> dict[str, Any]:
    from pipeline.runtime.evaluate import evaluate as score

    scores = score(run).model_dump(mode="json")
    run.store.put_json("scores.json", scores)
    return scores


def _print_scores(scores: dict[str, Any]) -> None:
    typer.echo(
        f"VOI split {scores['voi_split']:.3f} + merge {scores['voi_merge']:.3f} = "
        f"{scores['voi_sum']:.3f} bits; adapted Rand error {scores['arand']:.4f} "
        f"(precision {scores['rand_precision']:.3f}, recall {scores['rand_recall']:.3f})"
    )
    if scores["erl_nm"] is not None:
        typer.echo(
            f"ERL {scores['erl_nm'] / 1000:.2f} um of "
            f"{scores['truth_erl_nm'] / 1000:.2f} um (NERL {scores['nerl']:.3f})"
        )
    typer.echo(
        f"{scores['n_segments']} segments over {scores['n_truth']} objects of the truth"
    )


def _explain(
    model: Model,
    image: NDArray[Any],
    voxel: Vec3,
    channel: int,
    steps: int,
    seed: int,
    *,
    title: str,
    stem: Path,
) -> tuple[AttributionField, dict[str, Any]]:
    """Explain a voxel of a patch; write the field and its picture, and say where."""
    import numpy as np

    from pipeline.attribution_picture import draw_field
    from pipeline.nets.attribution import attribute

    field = attribute(
        model, image.astype(np.float32), voxel, channel, steps=steps, seed=seed
    )
    array, picture = stem.with_name(f"{stem.name}.npy"), stem.with_name(f"{stem.name}.png")
    np.save(array, field.values)
    said = f"{field.said:.3f}, of noise {field.reference:.3f}"
    draw_field(image, field.relative, voxel, f"{title}: {said}", picture)
    return field, {
        "said": field.said,
        "reference": field.reference,
        "error": field.error,
        "field": str(array),
        "picture": str(picture),
    }


def _sheet(run: Run, scores: dict[str, Any] | None) -> str:
    from pipeline.runtime.results import contact_sheet_of

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "contact_sheet.png"
        contact_sheet_of(run, picture, scores)
        run.store.put_bytes(picture.name, picture.read_bytes())
    return f"{run.store.root}/{picture.name}".removeprefix("file://")


def _open(source: str) -> Source:
    from pipeline.layers.sources import open_source

    return open_source(source)


def _place(
    source: Source, voxel_size: str | None, offset: str | None, bbox: str | None
) -> tuple[VoxelSize, Bbox, Vec3]:
    """Return voxel size, bounds of the output, and its shift from the source."""
    size = source.voxel_size_nm
    if voxel_size is not None:
        x, y, z = _floats(voxel_size, 3, "--voxel-size")
        size = (x, y, z)
    if size is None:
        raise RecipeError(
            source.location,
            ["does not say how large its voxels are; give --voxel-size X,Y,Z in nm"],
        )
    if not all(0 < s < math.inf for s in size):
        raise RecipeError(
            "--voxel-size", [f"{size} is not positive and finite; give x,y,z in nm"]
        )
    shift = Vec3(0, 0, 0)
    if offset is not None:
        shift = _vector(offset) - source.bounds.start
    bounds = source.bounds.shifted(shift)
    if bbox is not None:
        wanted = Bbox.parse(bbox)
        if wanted.is_empty or not bounds.contains(wanted):
            raise RecipeError(
                "--bbox",
                [f"{wanted} is not inside {source.location}, which holds {bounds}"],
            )
        bounds = wanted
    return size, bounds, shift


def _absolute(location: str) -> str:
    """Make a local location independent of the working folder."""
    if "://" in location:
        return location
    return os.path.abspath(os.path.expanduser(location))


def _load(path: str) -> Recipe:
    from pipeline.recipe import Recipe

    return Recipe.load(path)


def _load_or_open(recipe: str, root: str) -> Recipe:
    """Read a recipe from its file, or that of a run that was started."""
    from pipeline.runtime.run import Run

    if not Path(recipe).is_file() and recipe in Run.names(root):
        return Run.open(root, recipe).recipe
    return _load(recipe)


def _runs(root: str, recipe: str | None) -> list[Run]:
    from pipeline.runtime.run import Run

    if recipe is not None:
        name = _load(recipe).name if Path(recipe).is_file() else recipe
        return [Run.open(root, name)]
    names = Run.names(root)
    if not names:
        raise RootError(f"{root} holds no run; start one with em run RECIPE --root {root}")
    return [Run.open(root, name) for name in names]


def _agglomerated(root: str, recipe: str | None) -> Run:
    """Open the run whose graph is meant: the one named, or the only one that has one."""
    from pipeline.stages.agglomeration import Agglomeration

    runs = _runs(root, recipe)
    found = [r for r in runs if any(isinstance(s, Agglomeration) for s in r.recipe.stages)]
    if recipe is not None or len(found) == 1:
        return (found or runs)[0]
    raise RootError(
        f"{root} holds the runs {', '.join(r.recipe.name for r in found)}; name one"
        if found
        else f"no run in {root} has an agglomeration; add one to its recipe and run it"
    )


def _ints(text: str) -> list[int]:
    try:
        return [int(t) for t in text.split(",")]
    except ValueError:
        raise RecipeError(repr(text), ["is not whole numbers between commas"]) from None


def _vector(text: str) -> Vec3:
    return Vec3.of(_ints(text))


def _floats(text: str, count: int, option: str) -> list[float]:
    try:
        numbers = [float(t) for t in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise RecipeError(option, [f"{text!r} is not {count} numbers between commas"])
    return numbers


def _steps(text: str) -> list[float]:
    try:
        start, stop, step = (float(t) for t in text.split(":"))
    except ValueError:
        start, stop, step = 0.0, 0.0, 0.0
    if not (0 <= start <= stop <= 1 and step > 0):
        raise RecipeError(
            "--thresholds", [f"{text!r} is not FROM:TO:STEP within 0 and 1, upward"]
        )
    count = int((stop - start) / step + 1e-9) + 1
    return [round(start + i * step, 9) for i in range(count)]


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, high = _floats(text, 2, "--intensity-range")
    return low, high


def _print_json(document: object) -> None:
    typer.echo(json.dumps(document, indent=2))


def _table(columns: list[str], rows: list[list[Any]]) -> None:
    cells = [columns, *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    is_number = [
        bool(rows) and all(not isinstance(r[i], str) or _is_number(r[i]) for r in rows)
        for i in range(len(columns))
    ]
    for row in cells:
        typer.echo(
            "  ".join(
                c.rjust(w) if number else c.ljust(w)
                for c, w, number in zip(row, widths, is_number, strict=True)
            ).rstrip()
        )


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
