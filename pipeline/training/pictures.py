"""A training in pictures: curves, and samples of what the net says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.nets.model import Model
from pipeline.training.sampler import Example
from pipeline.training.validation import channel_names

CURVES_FILE = "training.png"
SAMPLES_FILE = "samples.png"

_MOST_CHANNELS = 4
_DPI = 110


def draw_curves(log: Sequence[dict[str, Any]], to: Path) -> None:
    """Draw losses, scores of voxels and scores of segments over the steps of a training.

    Parameters
    ----------
    log : sequence of dict
        What `read_log` returns.
    to : Path
        The PNG to write.
    """
    segmented = [e for e in log if e.get("segments")]
    figure = _figure(1, 3 if segmented else 2)
    axes = figure.axes
    steps = [entry["step"] for entry in log]
    axes[0].plot(steps, [e["loss"]["total"] for e in log], label="training, altered")
    scored = [e for e in log if e["validation"]]
    if scored:
        at = [e["step"] for e in scored]
        axes[0].plot(at, [e["validation"]["loss"] for e in scored], label="validation")
        for name, (measure, values) in _curves(scored).items():
            axes[1].plot(at, values, label=f"{name}: {measure}")
        axes[1].legend(fontsize=6)
    axes[0].set(xlabel="step", ylabel="loss")
    axes[0].legend(fontsize=6)
    axes[1].set(xlabel="step", ylabel="validation, voxels")
    if segmented:
        at = [e["step"] for e in segmented]
        for volume in segmented[-1]["segments"]:
            for measure in ("arand", "voi_split", "voi_merge"):
                values = [e["segments"].get(volume, {}).get(measure) for e in segmented]
                axes[2].plot(at, values, "o-", label=f"{volume}: {measure}")
        axes[2].set(xlabel="step", ylabel="validation, segments")
        axes[2].legend(fontsize=6)
    _save(figure, to)


def _curves(scored: Sequence[dict[str, Any]]) -> dict[str, tuple[str, list[float]]]:
    curves = {}
    for name, scores in scored[-1]["validation"]["channels"].items():
        measure = "f1" if "f1" in scores else next(iter(scores))
        curves[name] = (
            measure,
            [e["validation"]["channels"].get(name, {}).get(measure) for e in scored],
        )
    return curves


def draw_samples(model: Model, examples: Sequence[Example], to: Path) -> None:
    """Draw the middle section of patches: the image, what is true, what the net says.

    Parameters
    ----------
    model : Model
        What predicts.
    examples : sequence of Example
        Patches, a column each.
    to : Path
        The PNG to write.
    """
    shown = _channels(model)
    figure = _figure(1 + 2 * len(shown), len(examples), size=1.9)
    grid = np.array(figure.axes).reshape(1 + 2 * len(shown), len(examples))
    for column, example in zip(grid.T, examples, strict=True):
        said = model.probabilities(example.inputs)
        z = example.inputs.shape[2] // 2
        _show(column[0], example.inputs[:, :, z, 0], 255)
        column[0].set_title(f"{example.volume}\n{example.box.start}", fontsize=6)
        for row, channel in enumerate(shown.values()):
            true = np.where(
                example.target.known[:, :, z, channel],
                example.target.value[:, :, z, channel],
                np.float32(0.5),
            )
            _show(column[1 + 2 * row], true, 1)
            _show(column[2 + 2 * row], said[:, :, z, channel], 1)
    grid[0, 0].set_ylabel("image", fontsize=6)
    for row, name in enumerate(shown):
        grid[1 + 2 * row, 0].set_ylabel(f"{name}\ntrue", fontsize=6)
        grid[2 + 2 * row, 0].set_ylabel(f"{name}\nsaid", fontsize=6)
    _save(figure, to)


def _channels(model: Model) -> dict[str, int]:
    names = [f"{h.name}.{c}" for h in model.config.head for c in channel_names(h)]
    return {name: i for i, name in enumerate(names[:_MOST_CHANNELS])}


def _figure(rows: int, columns: int, size: float = 3.2) -> Figure:
    figure = Figure(figsize=(size * columns, size * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(rows, columns, squeeze=False)
    return figure


def _show(axes: Axes, section: NDArray[Any], white: float) -> None:
    axes.imshow(section.T, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _save(figure: Figure, to: Path) -> None:
    temporary = to.with_name(f"{to.name}.part")
    figure.savefig(temporary, format="png", dpi=_DPI)
    temporary.replace(to)
