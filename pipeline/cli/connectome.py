"""The wiring diagram: counts, partners of a neuron, pictures, exports."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import app, exports
from pipeline.cli.opening import open_runs
from pipeline.cli.options import ExportedRun, Json, ReplaceExport, Root, RunName, To
from pipeline.cli.text import print_json, print_table
from pipeline.errors import RecipeError, RootError

if TYPE_CHECKING:
    from pipeline.runtime.connectome import Partner
    from pipeline.runtime.run import Run


@app.command()
def connectome(
    root: Root,
    recipe: RunName = None,
    neuron: Annotated[
        int | None, typer.Option(help="Segment whose partners are listed.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows that are printed.")] = 20,
    picture: Annotated[
        Path | None, typer.Option(help="PNG: matrix and histograms, or the neuron.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count synapses, or list the partners of a neuron.

    Example: em connectome --root out --neuron 7
    """
    from pipeline.runtime.connectome import census, draw, open_connectome, wiring_of

    run = _the_run(root, recipe)
    reader = open_connectome(run)
    if neuron is not None:
        wiring = wiring_of(reader, neuron)
        if as_json:
            print_json({"run": run.recipe.name, **asdict(wiring)})
        else:
            _print_partners("synapses onto it from", wiring.inputs, top)
            _print_partners("synapses from it onto", wiring.outputs, top)
    else:
        found = census(reader, top)
        facts = {
            "synapses": found.synapses,
            "assigned": found.assigned,
            "clefts": found.clefts,
            "edges": found.edges,
            "segments": found.segments,
            "flags": found.flags,
            "strongest": [list(edge) for edge in found.strongest],
        }
        if as_json:
            print_json({"run": run.recipe.name, **facts})
        else:
            typer.echo(
                f"{found.synapses} synapses of {found.clefts} clefts, {found.assigned} "
                f"with both partners; {found.edges} edges between {found.segments} segments"
            )
            flags = ", ".join(f"{k} {v}" for k, v in found.flags.items() if v)
            typer.echo(f"flags: {flags or 'none'}")
            print_table(["pre", "post", "synapses"], [list(e) for e in found.strongest])
    if picture is not None:
        draw(run, picture, neuron)
        typer.echo(f"picture: {picture}", err=as_json)


@exports.command("synapses")
def export_synapses(
    root: Root,
    to: To,
    recipe: ExportedRun = None,
    forms: Annotated[
        str, typer.Option(help="Of cave, csv and graphml, with commas between.")
    ] = "cave,csv,graphml",
    replace: ReplaceExport = False,
    as_json: Json = False,
) -> None:
    """Write synapses as a table of CAVE, and edges as CSV and GraphML.

    Example: em export synapses --root out --to wiring
    """
    from pipeline.runtime.connectome import FORMS
    from pipeline.runtime.connectome import export_synapses as write

    wanted = [form for form in FORMS if form in forms.split(",")]
    strange = sorted(set(forms.split(",")) - set(FORMS))
    if strange:
        raise RecipeError(
            "--forms", [f"{', '.join(strange)} is no form; there are {', '.join(FORMS)}"]
        )
    run = _the_run(root, recipe)
    found = write(run, to, forms=wanted, replace=replace)
    if as_json:
        print_json({"run": run.recipe.name, **asdict(found)})
        return
    typer.echo(f"{found.synapses} synapses, {found.edges} edges")
    for name in found.files:
        typer.echo(f"{to}/{name}")


def _the_run(root: str, recipe: str | None) -> Run:
    """Open the run that is named, or the only one that has a connectome."""
    from pipeline.stages.synapses import Connectome

    runs = open_runs(root, recipe)
    found = [r for r in runs if any(isinstance(s, Connectome) for s in r.recipe.stages)]
    if recipe is not None or len(found) == 1:
        return (found or runs)[0]
    raise RootError(
        f"{root} holds the runs {', '.join(r.recipe.name for r in found)}; name one"
        if found
        else f"no run in {root} has a connectome; see dags/recipes/connectome.toml"
    )


def _print_partners(title: str, partners: list[Partner], top: int) -> None:
    total = sum(p.synapses for p in partners)
    typer.echo(f"{total} {title} {len(partners)} segments")
    if partners:
        print_table(
            ["segment", "synapses", "flagged", "voxels", "score"],
            [
                [p.segment or "none", p.synapses, p.flagged, p.size, f"{p.score:.2f}"]
                for p in partners[:top]
            ],
        )
