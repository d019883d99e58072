"""How right the nets are, from the image to segments, on what none has learnt from.

``python benchmarks/accuracy.py --json --check``

Blocks of cortex are segmented by `em reconstruct` with the stages' defaults. Masks are
predicted over the sections that `train.toml` keeps for validation, and compared voxel by
voxel at a probability of one half. Nothing is chosen here: thresholds are those of the
stages, which were set on AC4 alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from numpy.typing import NDArray
from rich.console import Console

from pipeline.geometry import Bbox
from pipeline.metrics import cremi_scores, voxel_scores
from pipeline.specs import VoxelSize

MODELS = Path(__file__).parents[1] / "models"


@dataclass(frozen=True)
class Block:
    """Cortex that is segmented: the file and the box, in voxels."""

    file: str
    bbox: str
    model: str = "cortex-rsunet"
    voxel_size: str = "6,6,30"


BLOCKS = {
    "ac4 z 80-99": Block("ac4.h5", "0,0,80,1024,1024,100"),
    "ac3": Block("ac3_x0_512.h5", "0,0,0,512,512,100"),
}
"""The first is what settings were chosen on; the second nothing was."""
CHOSEN_ON = "ac4 z 80-99"
MASKS = ("isbi-membrane", "vnc-cleft", "vnc-cleftnet")
"""Models of masks; their `train.toml` says what they are scored on."""


# -- segmentations --------------------------------------------------------------------


def segmented(block: Block, data: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Take a block from its image to neurons, as a user would; return its scores."""
    path = Path(data) / block.file
    with tempfile.TemporaryDirectory() as root:
        command = [
            *(Path(sys.executable).with_name("em"), "reconstruct", f"{path}:raw"),
            *("--truth", f"{path}:labels", "--voxel-size", block.voxel_size),
            *("--bbox", block.bbox, "--model", block.model, "--root", root, "--quiet"),
            *options,
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        found: dict[str, Any] = json.loads((Path(root) / "scores.json").read_text())
    return found


# -- masks ----------------------------------------------------------------------------


def masked(name: str, data: str) -> Outcome:
    """Predict what a model keeps for validation, and compare it with the truth."""
    from pipeline.nets.inference import predict
    from pipeline.nets.model import load_model
    from pipeline.training.config import TrainConfig
    from pipeline.training.volumes import load_volume

    model = load_model(MODELS / name)
    plan = TrainConfig.load(MODELS / name / "train.toml")
    (head,) = [h for h in model.config.head if h.kind == "masks"]
    channel = model.config.channels_of(head.name).start
    (what,) = head.channels
    (wanted,) = [v for v in plan.volume if v.validation]
    size = wanted.voxel_size_nm
    assert size is not None  # the sources of these say nothing of it
    given = load_volume(Path(data), wanted, model.config, "validation")
    finest = model.config.model_copy(update={"voxel_size_nm": size})
    full = load_volume(Path(data), wanted, finest, "validation")
    assert given is not None
    assert full is not None  # nor is there a model of masks without a validation box
    bounds = Bbox.of_shape(given.shape)
    meter = Meter()
    with meter.phase("predict"):
        said = predict(
            model, given.inputs["image"], read=bounds, core=bounds, bounds=bounds
        )[..., channel]
    truth = full.truth[what] == 1
    found = _enlarged(said >= 0.5, truth.shape)
    return meter.outcome(
        **_compared(found, truth, size, sections=wanted.validation), what=what
    )


def _enlarged(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Repeat voxels of a mask until it has a shape."""
    for axis, extent in enumerate(shape):
        mask = np.repeat(mask, round(extent / mask.shape[axis]), axis=axis)
    return mask


def _compared(
    found: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    voxel_size_nm: VoxelSize,
    *,
    sections: tuple[int, ...],
) -> dict[str, Any]:
    inside, outside = voxel_scores(found, truth), voxel_scores(~found, ~truth)
    return {
        "sections": list(sections),
        "share_true": float(truth.mean()),
        "inside": inside._asdict(),
        "outside": outside._asdict(),
        "cremi": cremi_scores(found, truth, voxel_size_nm)._asdict(),
    }


# -- the command ----------------------------------------------------------------------


def figures_of(
    blocks: Mapping[str, Mapping[str, Any]], masks: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Return what targets are held against, by input."""
    figures: dict[str, dict[str, float]] = {
        name: {
            "validation_arand" if name == CHOSEN_ON else "arand": found["arand"],
        }
        for name, found in blocks.items()
    }
    for name, found in masks.items():
        if found["what"] == "membrane":
            figures[name] = {
                "membrane_f1": found["inside"]["f1"],
                "inside_f1": found["outside"]["f1"],
            }
        else:
            figures[name] = {
                "synapse_f1": found["inside"]["f1"],
                "cremi_nm": found["cremi"]["mean_nm"],
            }
    return figures


def show(
    console: Console,
    blocks: Mapping[str, Mapping[str, Any]],
    masks: Mapping[str, Mapping[str, Any]],
) -> None:
    """Print the scores."""
    names = ("arand", "voi_split", "voi_merge", "nerl")
    rows = [
        [name, *("-" if found.get(n) is None else f"{found[n]:.3f}" for n in names)]
        for name, found in blocks.items()
    ]
    console.print(table("segmentations", ["block", *names], rows))
    rows = []
    for name, found in masks.items():
        inside, outside, cremi = found["inside"], found["outside"], found["cremi"]
        rows.append(
            [
                name,
                found["what"],
                "{} - {}".format(found["sections"][0], found["sections"][1] - 1),
                *(f"{inside[n]:.3f}" for n in ("precision", "recall", "f1")),
                f"{outside['f1']:.3f}",
                *(f"{cremi[n]:.1f}" for n in ("adgt_nm", "adf_nm", "mean_nm")),
            ]
        )
    columns = [
        *("model", "mask", "sections", "precision", "recall", "F1", "F1 of the rest"),
        *("ADGT [nm]", "ADF [nm]", "mean [nm]"),
    ]
    console.print(table("masks, voxel by voxel", columns, rows))


def main(
    data: Annotated[
        str, typer.Option(envvar="EM_DATA", help="Folder of the real data.")
    ] = "",
    inputs: Annotated[
        str, typer.Option(help="Which blocks and models, with commas.")
    ] = ",".join((*BLOCKS, *MASKS)),
    threshold: Annotated[
        float | None, typer.Option(help="Another agglomeration threshold.")
    ] = None,
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Score the nets on what none has learnt from."""
    console = Console(stderr=as_json, width=140)
    wanted = inputs.split(",")
    skipped = {n: "there are no data; set EM_DATA" for n in wanted if not data}
    options = () if threshold is None else ("--threshold", str(threshold))
    blocks, masks = {}, {}
    for name in wanted:
        if name in skipped:
            continue
        console.log(name)
        if name in BLOCKS:
            blocks[name] = segmented(BLOCKS[name], os.path.abspath(data), options)
        else:
            masks[name] = in_fresh_process(masked, name, os.path.abspath(data)).facts
    show(console, blocks, masks)
    for what, why in skipped.items():
        console.print(f"skipped {what}: {why}")
    result = {
        "benchmark": "accuracy",
        "machine": machine("em-pipeline", "torch", "openvino"),
        "settings": {"blocks": {n: asdict(BLOCKS[n]) for n in blocks}},
        "segmentations": blocks,
        "masks": masks,
        "skipped": skipped,
    }
    verdicts = judge(figures_of(blocks, masks), load_targets("accuracy", targets))
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    typer.run(main)
