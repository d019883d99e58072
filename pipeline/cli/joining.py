"""The command that joins alignments, and what makes one go on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.app import app
from pipeline.cli.options import Json, Quiet, Root, Workers
from pipeline.cli.runs import report, run_recipe
from pipeline.cli.text import print_json, print_table
from pipeline.errors import RecipeError
from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VolumeSpec, VoxelSize


def grown(source: str, bounds: Bbox, size: VoxelSize, after: str, overlap: int) -> Bbox:
    """Return the sections of a source that are new to an alignment, and some before."""
    from pipeline.alignment import aligned_box
    from pipeline.runtime.joining import alignment_in

    spec = alignment_in(after).specs["image"]
    assert isinstance(spec, VolumeSpec)
    known, start = spec.bounds, spec.bounds.stop.z - overlap
    one, other = (_across(b) for b in (known, aligned_box(bounds, size)))
    if one != other or spec.voxel_size_nm != size:
        raise RecipeError(
            source,
            [
                f"covers {other} along x and y in voxels of {size} nm, and {after} "
                f"{one} in voxels of {spec.voxel_size_nm} nm; give the same --bbox and "
                "--voxel-size"
            ],
        )
    if bounds.stop.z <= known.stop.z:
        raise RecipeError(
            source,
            [
                f"ends with section {bounds.stop.z - 1}, and {after} is aligned up to "
                f"{known.stop.z - 1}; there is nothing to append"
            ],
        )
    if bounds.start.z > start or start <= known.start.z:
        raise RecipeError(
            source,
            [
                f"begins with section {bounds.start.z}, and {after} has {known.start.z} to "
                f"{known.stop.z - 1}, of which the last {overlap} are aligned anew; give a "
                "source with these too, say by --offset where it begins, or give a smaller "
                "--overlap"
            ],
        )
    return Bbox(Vec3(bounds.start.x, bounds.start.y, start), bounds.stop)


def _across(box: Bbox) -> tuple[int, int, int, int]:
    return box.start.x, box.start.y, box.stop.x, box.stop.y


@app.command()
def join(
    first: Annotated[str, typer.Argument(help="Root of an alignment.")],
    second: Annotated[
        str, typer.Argument(help="Root of one that begins in it and goes on beyond it.")
    ],
    root: Root,
    limit: Annotated[
        float | None,
        typer.Option(min=0, help="Greatest disagreement, median [pixel]; 60 nm if not."),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(min=0.1, help="Sections in which it fades to 1/e; 8 if left out."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "join",
    workers: Workers = None,
    replace: Annotated[bool, typer.Option(help="Delete what stands in the way.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Join two alignments of overlapping sections into one image with its masks.

    Sections before the overlap stay as the first has them; from there on they are drawn
    anew, so that they go on from it.

    Example: em join out1 out2 --root joined
    """
    how: dict[str, Any] = {
        "workers": workers,
        "replace": replace,
        "quiet": quiet,
        "as_json": as_json,
    }
    join_alignments(first, second, root, limit=limit, decay=decay, name=name, **how)


def join_alignments(
    first: str,
    second: str,
    root: str,
    *,
    limit: float | None = None,
    decay: float | None = None,
    name: str = "join",
    **how: Any,
) -> None:
    """Join, run as other commands are: workers, replace, quiet and as_json."""
    from pipeline.joining import joining_recipe
    from pipeline.recipe import Recipe
    from pipeline.runtime.joining import alignment_in, joint_of, seam_report

    joint = joint_of(alignment_in(first), alignment_in(second), limit_px=limit, decay=decay)
    recipe = Recipe.parse(
        joining_recipe(name, joint), source=f"joining of {first} and {second}"
    )
    as_json = how.pop("as_json")
    how["quiet"] = how["quiet"] or as_json
    run, rows = run_recipe(recipe, root, **how)
    seam = seam_report(run)
    document = [s.to_json() for s in seam]
    run.store.put_json("seam.json", {"sections": document})
    if as_json:
        print_json({"run": name, "root": run.store.root, "sections": document})
        return
    print_table(
        ["section", "known", "median px", "95 % px"],
        [
            [
                s.z,
                f"{s.known:.0%}",
                "-" if s.median_px is None else f"{s.median_px:.2f}",
                "-" if s.p95_px is None else f"{s.p95_px:.2f}",
            ]
            for s in seam
        ],
    )
    for s in seam:
        if s.median_px is None:
            typer.echo(
                f"em: section {s.z} was not placed by both; it lies as the sections around "
                "it say, and is blank if the second has not placed it; look at the source",
                err=True,
            )
    report(run, rows, as_json=False)
