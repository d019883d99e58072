"""Commands that make a run and bring it to its end."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.app import app
from pipeline.cli.forecasts import accounted, forecast_of, print_account, print_forecast
from pipeline.cli.opening import (
    absolute,
    load_or_open,
    open_input,
    placement,
    program,
    require_tasks,
)
from pipeline.cli.options import (
    BboxOption,
    CalibrationFile,
    Cost,
    Json,
    PlannedRoot,
    Queue,
    Quiet,
    RecipePath,
    Root,
    VoxelSizeOption,
    Workers,
)
from pipeline.cli.scoring import print_scores, score_run
from pipeline.cli.text import number_range, print_json, print_table, vector
from pipeline.errors import (
    RecipeError,
    StaleOutputError,
)
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.specs import ConnectomeSpec

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.runtime.drive import StageSummary
    from pipeline.runtime.estimate import WaveEstimate
    from pipeline.runtime.executors import Executor
    from pipeline.runtime.forecast import StageAccount
    from pipeline.runtime.run import Run


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

    with open_input(source) as opened:
        size, bounds, shift = placement(opened, voxel_size, offset, bbox)
        values = kind or opened.kind_of_values
        task, storage = ingest_chunks(opened.shape, opened.natural_chunk, sharded=sharded)
    task = task if chunk is None else vector(chunk)
    storage = storage if storage_chunk is None else vector(storage_chunk)
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
        stage["intensity_range"] = number_range(intensity_range)
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
            "layers": {"source": absolute(source)},
            "stage": stages,
        },
        source=f"ingest of {source}",
    )
    run, rows = run_recipe(
        recipe, root, workers=workers, replace=replace, quiet=quiet or as_json
    )
    report(run, rows, as_json=as_json)


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

    with open_input(source) as opened:
        size, bounds, shift = placement(opened, voxel_size, offset, bbox)
    truth_shift = Vec3(0, 0, 0)
    if truth is not None:
        with open_input(truth) as labels:
            _, _, truth_shift = placement(labels, ",".join(map(str, size)), offset, bbox)
    block = Block(
        source=absolute(source),
        bounds=bounds,
        voxel_size_nm=size,
        shift=shift,
        model=model,
        truth=None if truth is None else absolute(truth),
        truth_shift=truth_shift,
        threshold=threshold,
        intensity_range=number_range(intensity_range),
    )
    recipe = Recipe.parse(block_recipe(name, block), source=f"reconstruction of {source}")
    run, rows = run_recipe(
        recipe, root, workers=workers, replace=replace, quiet=quiet or as_json
    )
    scores = None
    if truth is not None:
        scores = score_run(run)
    sheet = _sheet(run, scores)
    report(run, rows, as_json=as_json, scores=scores, sheet=sheet)


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
        run = Run.plan(load_or_open(recipe, root or nowhere), root or nowhere)
        waves = estimate(run)
        priced = None if cost is None else forecast_of(run, cost, calibration)
        stale = run.stale()
    if as_json:
        document = {"recipe": run.recipe.name, "waves": [w.to_json() for w in waves]}
        print_json(document | ({} if priced is None else {"forecast": priced.to_json()}))
    else:
        print_table(
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
            print_forecast(priced)
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
            load_or_open(recipe, root),
            root,
            scratch or Path(temporary),
            samples=samples,
            extent=None if extent is None else vector(extent),
            tell=lambda line: typer.echo(line, err=True),
        )
    to.write_text(found.model_dump_json(indent=1) + "\n")
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_table(
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
    started, rows = run_recipe(
        load_or_open(recipe, root),
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
    report(started, rows, as_json=as_json, account=accounted(started, cost, calibration))


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


def run_recipe(
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
    """Start or go on with a run, and bring it to its end; say what its stages took."""
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
        require_tasks(recipe, recipe.stage(str(only)), chosen)
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
    return Queued(urls, on_wait=lambda: require_not_cancelled(run))


def _limit(memory_limit: float | None, workers: int | None) -> int:
    from pipeline.runtime.cores import machine_cores
    from pipeline.runtime.memory import machine_memory

    if memory_limit is not None:
        return int(memory_limit * 2**30)
    return machine_memory() // (workers or machine_cores())


def report(
    run: Run,
    rows: list[StageSummary],
    *,
    as_json: bool,
    scores: dict[str, Any] | None = None,
    sheet: str | None = None,
    account: Sequence[StageAccount] = (),
) -> None:
    """Print what the stages of a run took, how it scored, and where to look."""
    if as_json:
        print_json(
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
    print_table(
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
    print_account(account)
    if scores is not None:
        print_scores(scores)
    where = run.store.root.removeprefix("file://")
    typer.echo(f"layers:  {where}")
    if sheet is not None:
        typer.echo(f"picture: {sheet}")
    if any(isinstance(spec, ConnectomeSpec) for spec in run.specs.values()):
        typer.echo(f"wiring:  {program()} connectome --root {where}")
    typer.echo(f"look:    {program()} view --root {where}")


def _sheet(run: Run, scores: dict[str, Any] | None) -> str:
    from pipeline.runtime.results import contact_sheet_of

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "contact_sheet.png"
        contact_sheet_of(run, picture, scores)
        run.store.put_bytes(picture.name, picture.read_bytes())
    return f"{run.store.root}/{picture.name}".removeprefix("file://")
