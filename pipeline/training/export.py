"""From a training's folder to a model's folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from pipeline.errors import ModelError
from pipeline.nets.config import CONFIG_FILE, ModelConfig
from pipeline.nets.model import build_net, pack_weights
from pipeline.training.checkpoint import read_checkpoint, read_log, replace_file
from pipeline.training.pictures import CURVES_FILE, draw_curves


def export(directory: Path, folder: Path, *, half: bool = False) -> ModelConfig:
    """Write a model's weights, their checksum into its `model.toml`, and the curves.

    Parameters
    ----------
    directory : Path
        The model's folder, which holds `model.toml`.
    folder : Path
        The training's folder; the averaged weights of its checkpoint are taken.
    half : bool
        Whether filters are written as bfloat16, in half the bytes. To a net that computes
        in bfloat16 they are the same.

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
    if half:
        weights = {
            name: w.to(torch.bfloat16) if w.ndim > 1 else w for name, w in weights.items()
        }
    content = pack_weights(weights)
    text, found = re.subn(
        r'(?m)^sha256 = ".*"$',
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"',
        path.read_text("utf-8"),
        count=1,
    )
    if not found:
        raise ModelError(f'{path} has no line for the checksum; add sha256 = ""')
    replace_file(directory / config.weights, content)
    replace_file(path, text.encode())
    if log := read_log(folder):
        draw_curves(log, directory / CURVES_FILE)
    return ModelConfig.load(directory)
