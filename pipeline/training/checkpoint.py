"""A training's folder: its checkpoint and its log."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ModelError

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.jsonl"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint of a folder; a kill on the way leaves the old one."""
    path = folder / CHECKPOINT_FILE
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a training's folder.

    Raises
    ------
    ModelError
        If there is none.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        raise ModelError(
            f"{path} does not exist; train until the first checkpoint is saved"
        )
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def append_log(folder: Path, entry: dict[str, Any]) -> None:
    """Add a line to the log of a training's folder."""
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the log of a training's folder, one entry per score; none if there is none."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def cut_log(folder: Path, step: int) -> None:
    """Take out of the log what came after a step."""
    kept = [entry for entry in read_log(folder) if entry["step"] <= step]
    lines = "".join(json.dumps(entry) + "\n" for entry in kept)
    replace_file(folder / LOG_FILE, lines.encode())
