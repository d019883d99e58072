"""A training as TensorBoard shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.training.trainer import Progress

BOARD_FOLDER = "tensorboard"


class Board:
    """Writes every score into a folder that `tensorboard --logdir` reads.

    Parameters
    ----------
    folder : Path
        The training's folder.

    Raises
    ------
    MissingInputError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingInputError(
                "TensorBoard is not installed; pip install 'em-pipeline[train]', or leave "
                "out --tensorboard"
            ) from None
        self.writer: Any = SummaryWriter(str(folder / BOARD_FOLDER))

    def __call__(self, progress: Progress) -> None:
        """Write what was logged after a step, if anything was."""
        if progress.entry is None:
            return
        for name, value in flat(progress.entry).items():
            self.writer.add_scalar(name, value, progress.step)
        self.writer.flush()


def flat(entry: dict[str, Any], above: str = "") -> dict[str, float]:
    """Return the numbers of a log's entry by their path, such as `validation/loss`."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        path = f"{above}/{name}" if above else name
        if isinstance(value, dict):
            found.update(flat(value, path))
        elif path != "step":
            found[path] = float(value)
    return found
