"""The command that aligns sections."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.opening import absolute, open_input, placement
from pipeline.cli.options import BboxOption, Json, Quiet, Root, VoxelSizeOption, Workers
from pipeline.cli.runs import report, run_recipe
from pipeline.cli.text import number_range, print_json, print_table


@app.command()
def align(
    source: Annotated[str, typer.Argument(help="File, folder or URL of loose sections.")],
    root: Root,
    voxel_size: VoxelSizeOption = None,
    bbox: BboxOption = None,
    offset: Annotated[
        str | None, typer.Option(help="First voxel x,y,z; as the source says if left out.")
    ] = None,
    defects: Annotated[
        str | None, typer.Option(help="Mask of folds and cracks that is known already.")
    ] = None,
    defect_model: Annotated[
        str, typer.Option(help="Model that finds them; empty for none.")
    ] = "defects-cortex",
    defect_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Least probability of a defect.")
    ] = 0.5,
    embedding_model: Annotated[
        str,
        typer.Option(help="Model of what patches are compared by; empty: local contrast."),
    ] = "embedding-cortex",
    cracks: Annotated[
        Path | None,
        typer.Option(
            help="Point pairs that close large cracks: CSV, or JSON of Neuroglancer lines."
        ),
    ] = None,
    distance: Annotated[
        int, typer.Option(min=1, max=8, help="Sections before and after that are compared.")
    ] = 3,
    shift: Annotated[
        float, typer.Option(help="Greatest shift between near sections [nm].")
    ] = 720.0,
    turn: Annotated[
        float, typer.Option(help="Greatest turn between near sections [degree].")
    ] = 4.0,
    interpolation: Annotated[str, typer.Option(help="linear or lanczos.")] = "linear",
    intensity_range: Annotated[
        str | None, typer.Option(help="LOW,HIGH: values that become 0 and 255.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "align",
    workers: Workers = None,
    replace: Annotated[bool, typer.Option(help="Delete what stands in the way.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Align loose sections, across cracks and folds, and make the masks that go with it.

    Writes the layers image, defects, input_mask and output_mask, and alignment.png.

    Example: em align sections/ --voxel-size 8,8,40 --root out
    """
    from pipeline.alignment import LooseStack, alignment_recipe
    from pipeline.point_pairs import read_point_pairs
    from pipeline.recipe import Recipe
    from pipeline.runtime.alignment_report import alignment_report

    with open_input(source) as opened:
        size, bounds, moved = placement(opened, voxel_size, offset, bbox)
        natural = opened.natural_chunk
        whole = opened.bounds
    pairs = (
        ()
        if cracks is None
        else read_point_pairs(
            cracks, source=whole, bounds=bounds, shift=moved, voxel_size_nm=size
        )
    )
    stack = LooseStack(
        source=absolute(source),
        bounds=bounds,
        voxel_size_nm=size,
        shift=moved,
        natural_chunk=natural,
        defect_model="" if defects else defect_model,
        defect_threshold=defect_threshold,
        embedding_model=embedding_model,
        defect_source="" if defects is None else absolute(defects),
        farthest_nm=shift,
        turn_degrees=turn,
        distance=distance,
        interpolation=interpolation,
        intensity_range=number_range(intensity_range),
        pairs=pairs,
    )
    recipe = Recipe.parse(alignment_recipe(name, stack), source=f"alignment of {source}")
    run, rows = run_recipe(
        recipe, root, workers=workers, replace=replace, quiet=quiet or as_json
    )
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "alignment.png"
        sections = alignment_report(run, picture)
        run.store.put_bytes(picture.name, picture.read_bytes())
    document = [s.to_json() for s in sections]
    run.store.put_json("alignment.json", {"sections": document})
    where = f"{run.store.root}/alignment.png".removeprefix("file://")
    if as_json:
        print_json({"run": name, "root": run.store.root, "sections": document})
        return
    print_table(
        [
            "section",
            "state",
            "turn",
            "x nm",
            "y nm",
            "outliers",
            "before",
            "after",
            "slips",
            "steps",
        ],
        [
            [
                s.z,
                s.state,
                f"{s.turn_degrees:.2f}",
                f"{s.x_nm:.0f}",
                f"{s.y_nm:.0f}",
                s.outliers,
                f"{s.before:.2f}",
                f"{s.after:.2f}",
                s.slips,
                s.steps,
            ]
            for s in sections
        ],
    )
    for s in sections:
        if s.state in ("mirrored", "matches nothing"):
            typer.echo(
                f"em: section {s.z} {s.state}; it is left blank, and bridged by the "
                "sections around it; look at the source",
                err=True,
            )
    report(run, rows, as_json=False, sheet=where)
