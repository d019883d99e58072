"""Commands for nets: training, its data, what a net looks at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.app import app
from pipeline.cli.opening import open_input, placement
from pipeline.cli.options import BboxOption, Json, Quiet, VoxelSizeOption
from pipeline.cli.text import floats, print_json, print_table, vector
from pipeline.errors import (
    DataError,
    ModelError,
    RecipeError,
)
from pipeline.geometry import Vec3

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.nets.attribution import AttributionField
    from pipeline.nets.model import Model


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
    with open_input(image) as source:
        if source.dtype != "uint8" or source.channels != 1:
            raise DataError(
                f"{image} holds {source.channels} channels of {source.dtype}; give one of "
                "uint8, as em ingest --intensity-range makes it"
            )
        unknown = trained if source.voxel_size_nm is None else None
        size, bounds, _ = placement(source, voxel_size or unknown, None, None)
        places = [vector(text) for text in voxel]
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
        print_json({"fields": rows})
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
    print_table(columns, [[row[c] for c in columns] for row in shown])


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
                    floats(bend.replace("@", ","), 2, "--elastic") for bend in bends
                )
            ),
        )
    except ValidationError as error:
        faults = [f"--{e['loc'][0]}: {e['msg']}, not {e['input']}" for e in error.errors()]
        raise RecipeError("em simulate", faults) from None
    with open_input(source) as opened:
        size, bounds, _ = placement(opened, voxel_size, None, bbox)
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

        print_json(score_model(config, data))
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
