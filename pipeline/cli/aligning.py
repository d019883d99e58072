"""The commands that align sections, and join what was aligned apart."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.app import app
from pipeline.cli.opening import absolute, mask_placement, open_input, placement
from pipeline.cli.options import BboxOption, Json, Quiet, Root, VoxelSizeOption, Workers
from pipeline.cli.runs import report, run_recipe
from pipeline.cli.text import floats, ints, number_range, print_json, print_table
from pipeline.errors import RecipeError
from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VolumeSpec, VoxelSize

_WARNINGS = 40
"""Warnings that are printed; alignment.json has all of them."""


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
    chatter: Annotated[
        str | None,
        typer.Option(
            help="ANGLE,SHORT,LONG: damp bands at this angle from x to y, so many nm apart."
        ),
    ] = None,
    chatter_image: Annotated[
        bool, typer.Option("--chatter-image", help="Damp them in the aligned image too.")
    ] = False,
    leave_out: Annotated[
        str | None,
        typer.Option(help="Sections that the masks are to leave out, 3,17,18."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(help="Root of an alignment that these sections go on from."),
    ] = None,
    overlap: Annotated[
        int, typer.Option(min=2, help="Of its sections, how many are aligned anew.")
    ] = 8,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "align",
    workers: Workers = None,
    replace: Annotated[bool, typer.Option(help="Delete what stands in the way.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Align loose sections, across cracks and folds, and make the masks that go with it.

    Writes the layers image, defects, input_mask and output_mask, alignment.png and .json,
    and matches.png where sections did not match.

    With --after, sections that have been added to a source are aligned, with the last of
    those that were there, in the folder appended of the root; and then joined (em join).

    Example: em align sections/ --voxel-size 8,8,40 --root out
    """
    if chatter_image and chatter is None:
        raise RecipeError("--chatter-image", ["needs the bands; give --chatter too"])
    from pipeline.alignment import LooseStack, alignment_recipe, work_mip
    from pipeline.point_pairs import read_point_pairs
    from pipeline.recipe import Recipe
    from pipeline.runtime.alignment_report import alignment_report, complaints
    from pipeline.runtime.match_pictures import doubtful_pairs, draw_pairs

    with open_input(source) as opened:
        size, bounds, moved = placement(opened, voxel_size, offset, bbox)
        natural = opened.natural_chunk
        whole = opened.bounds
        mask_mip, mask_shift = 0, moved
        if defects is not None:
            with open_input(defects) as mask:
                mask_mip, mask_shift = mask_placement(mask, opened, moved, work_mip(size))
    how: dict[str, Any] = {
        "workers": workers,
        "replace": replace,
        "quiet": quiet,
        "as_json": as_json,
    }
    whole_root = root
    if after is not None:
        bounds = _grown(source, bounds, size, after, overlap)
        root = f"{root.rstrip('/')}/appended"
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
        defect_mip=mask_mip,
        defect_shift=mask_shift,
        farthest_nm=shift,
        turn_degrees=turn,
        distance=distance,
        interpolation=interpolation,
        intensity_range=number_range(intensity_range),
        pairs=pairs,
        chatter=None if chatter is None else _bands(chatter),
        chatter_in_image=chatter_image,
        left_out=() if leave_out is None else tuple(sorted(set(ints(leave_out)))),
    )
    recipe = Recipe.parse(alignment_recipe(name, stack), source=f"alignment of {source}")
    run, rows = run_recipe(
        recipe, root, workers=workers, replace=replace, quiet=quiet or as_json
    )
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "alignment.png"
        sections = alignment_report(run, picture)
        run.store.put_bytes(picture.name, picture.read_bytes())
        doubtful = doubtful_pairs(run)
        failures = Path(folder) / "matches.png"
        run.store.delete_document(failures.name)
        if doubtful:
            draw_pairs(run, doubtful, {s.z: s.name for s in sections}, failures)
            run.store.put_bytes(failures.name, failures.read_bytes())
    document = [s.to_json() for s in sections]
    warnings = complaints(sections)
    if doubtful:
        looked_at = f"{run.store.root}/{failures.name}".removeprefix("file://")
        warnings.append(
            f"{len(doubtful)} pairs of sections did not match, or contradict the rest; "
            f"look at {looked_at}"
        )
    said = {"sections": document, "warnings": warnings}
    run.store.put_json("alignment.json", said)
    where = f"{run.store.root}/alignment.png".removeprefix("file://")
    if as_json:
        if after is None:
            print_json({"run": name, "root": run.store.root, **said})
        else:
            _join(after, root, whole_root, **how)
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
            "focus",
            "contrast",
            "defects",
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
                f"{s.focus:.2f}",
                f"{s.contrast:.2f}",
                f"{s.defects:.0%}" if s.defects >= 0 else "-",
            ]
            for s in sections
        ],
    )
    for line in warnings[:_WARNINGS]:
        typer.echo(f"em: {line}", err=True)
    if len(warnings) > _WARNINGS:
        more = len(warnings) - _WARNINGS
        typer.echo(f"em: {more} more of these, in alignment.json", err=True)
    report(run, rows, as_json=False, sheet=where)
    if after is not None:
        _join(after, root, whole_root, **how)


def _grown(source: str, bounds: Bbox, size: VoxelSize, after: str, overlap: int) -> Bbox:
    """Return the sections of a source that are new to an alignment, and some before."""
    from pipeline.runtime.joining import alignment_in

    spec = alignment_in(after).specs["image"]
    assert isinstance(spec, VolumeSpec)
    known, start = spec.bounds, spec.bounds.stop.z - overlap
    one, other = (_across(b) for b in (known, bounds))
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
    _join(first, second, root, limit=limit, decay=decay, name=name, **how)


def _join(
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


def _bands(text: str) -> tuple[float, float, float]:
    """Read the orientation and the wavelengths of bands."""
    orientation, shortest, longest = floats(text, 3, "--chatter")
    return orientation, shortest, longest
