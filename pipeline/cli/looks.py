"""Commands that show and score what a run made."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.opening import open_runs
from pipeline.cli.options import Json, Root, RunName
from pipeline.cli.scoring import (
    print_alignment_scores,
    print_scores,
    print_synapse_scores,
    score_alignment,
    score_run,
    score_synapses,
)
from pipeline.cli.text import ints, print_json, print_table, steps_between
from pipeline.errors import RecipeError, RootError
from pipeline.geometry import Bbox

if TYPE_CHECKING:
    from pipeline.stages.base import Stage


@app.command("eval")
def evaluate(
    root: Root,
    recipe: RunName = None,
    synapses: Annotated[
        Path | None,
        typer.Option(
            help="CSV of true synapses: x, y, z [nm], and pre, post of the truth."
        ),
    ] = None,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="How well sections are aligned.")
    ] = False,
    truth: Annotated[
        Path | None,
        typer.Option(help="With --alignment: the file of em simulate that was aligned."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="How far a cleft may be from a true one [nm].")
    ] = 300.0,
    within: Annotated[
        str | None,
        typer.Option(
            help="Voxels whose synapses are known, x0,y0,z0,x1,y1,z1; all if left out."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score runs against the truth: segmentations, which writes scores.json, and synapses.

    With --alignment, score how sections are aligned, with a truth or without, and write
    alignment_scores.json, alignment_eval.html and its pictures.

    Example: em eval --root out --synapses true.csv
    """
    from pipeline.stages.overlaps import Overlaps
    from pipeline.stages.sections import SectionPoses
    from pipeline.stages.synapses import Connectome

    if alignment and synapses is not None:
        raise RecipeError("--alignment", ["is not of synapses; score them one by one"])
    if truth is not None and not alignment:
        raise RecipeError("--truth", ["is of an alignment; give --alignment too"])
    kind: type[Stage] = Overlaps if synapses is None else Connectome
    kind = SectionPoses if alignment else kind
    runs = [
        opened
        for opened in open_runs(root, recipe)
        if any(isinstance(s, kind) for s in opened.recipe.stages)
    ]
    if not runs and alignment:
        raise RootError(f"no run in {root} aligns sections; see em align")
    if not runs:
        raise RootError(
            f"no run in {root} compares with a truth; add a stage overlaps, or give "
            "--truth to em reconstruct"
            if synapses is None
            else f"no run in {root} has a connectome; see dags/recipes/connectome.toml"
        )
    for opened in runs:
        if alignment:
            found = score_alignment(opened, truth)
            if as_json:
                print_json(found)
            else:
                print_alignment_scores(found, opened.store.root)
            continue
        if synapses is not None:
            box = None if within is None else Bbox.parse(within)
            found = score_synapses(opened, synapses, tolerance, box)
            if as_json:
                print_json(found)
            else:
                print_synapse_scores(found)
            continue
        scores = score_run(opened)
        if as_json:
            print_json(scores)
        else:
            print_scores(scores)


@app.command()
def quality(root: Root, recipe: RunName = None, as_json: Json = False) -> None:
    """List how well defined every section is, where a recipe has image_quality.

    Criteria are per pixel, so that sections of unlike extent compare.

    Example: em quality --root out
    """
    from pipeline.stages.image_quality import ImageQuality

    found = [
        (opened, stage)
        for opened in open_runs(root, recipe)
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
        print_json({"sections": rows})
        return
    print_table(
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

    values = steps_between(thresholds)
    for opened in open_runs(root, recipe):
        stages = [s for s in opened.recipe.stages if isinstance(s, Agglomeration)]
        if not stages and recipe is None:
            continue
        found = score_all(opened, values, truth)
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "sweep.png"
            draw(picture, values, found, stages[0].threshold)
            opened.store.put_bytes(picture.name, picture.read_bytes())
        if as_json:
            print_json(
                {
                    "run": opened.recipe.name,
                    "thresholds": [
                        {"threshold": t, **s.model_dump(mode="json")}
                        for t, s in zip(values, found, strict=True)
                    ],
                }
            )
            continue
        print_table(
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

    With --segments the synapses of these are shown alone, and listed.

    Example: em view --root out
    """
    from pipeline import view as neuroglancer_view
    from pipeline.runtime.results import view_layers, view_lists, view_synapses

    chosen = None if segments is None else ints(segments)
    runs = open_runs(root, recipe)
    found = [v for r in runs for v in view_layers(r, segments=chosen)]
    layers = list({layer.location: layer for layer in found}.values())
    synapses = [s for r in runs for s in view_synapses(r, only_selected=bool(chosen))]
    place = None if position is None else ints(position)
    if url:
        typer.echo(neuroglancer_view.hosted_url(layers, place, synapses=synapses))
        return
    lists = [found for r in runs for found in view_lists(r, chosen or [])]
    with neuroglancer_view.launch(
        layers, place, synapses=synapses, listed=lists, port=port
    ) as viewer:
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
