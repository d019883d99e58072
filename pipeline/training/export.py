"""From a training's folder to a model's folder."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.errors import ModelError
from pipeline.nets.config import CONFIG_FILE, ModelConfig
from pipeline.nets.model import build_net, pack_weights
from pipeline.training.trainer import read_checkpoint, read_log

CURVES_FILE = "training.png"


def export(directory: Path, folder: Path) -> ModelConfig:
    """Write a model's weights, and their checksum into its `model.toml`.

    Parameters
    ----------
    directory : Path
        The model's folder, which holds `model.toml`.
    folder : Path
        The training's folder; the averaged weights of its checkpoint are taken.

    Returns
    -------
    ModelConfig
        With the new checksum.

    Raises
    ------
    ModelError
        If there is no checkpoint, if it belongs to another net, or if `model.toml` has no
        line for the checksum.
    """
    config = ModelConfig.load(directory)
    path = directory / CONFIG_FILE
    weights = read_checkpoint(folder)["average"]
    try:
        build_net(config).load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"the checkpoint in {folder} does not fit the net in {path}: {error}; "
            "export it to the model that it was trained for"
        ) from error
    content = pack_weights(weights)
    text, found = re.subn(
        r'(?m)^sha256 = ".*"$',
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"',
        path.read_text("utf-8"),
        count=1,
    )
    if not found:
        raise ModelError(f'{path} has no line for the checksum; add sha256 = ""')
    _replace(directory / config.weights, content)
    _replace(path, text.encode())
    return ModelConfig.load(directory)


def draw_curves(folder: Path, to: Path) -> None:
    """Draw loss, validation and accuracy over the steps of a training.

    Parameters
    ----------
    folder : Path
        The training's folder, which holds its log.
    to : Path
        The PNG to write.
    """
    log = read_log(folder)
    steps = [entry["step"] for entry in log]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(steps, [e["loss"] for e in log], label="training, altered patches")
    loss.plot(steps, [e["validation_balanced"] for e in log], label="validation")
    loss.set(xlabel="step", ylabel="balanced cross entropy [nat]")
    loss.legend()
    for axis, name in enumerate("xyz"):
        accuracy.plot(steps, [e["validation_accuracy"][axis] for e in log], label=name)
    accuracy.set(xlabel="step", ylabel="balanced accuracy, validation")
    accuracy.legend()
    figure.savefig(to, dpi=110)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
