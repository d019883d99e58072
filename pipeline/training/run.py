"""A training from its files: what `em train` does."""

from __future__ import annotations

import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TextColumn,
)
from rich.progress import (
    Progress as Bar,
)

from pipeline.errors import DataError
from pipeline.nets.config import ModelConfig
from pipeline.nets.model import load_model
from pipeline.training.board import BOARD_FOLDER, Board
from pipeline.training.checkpoint import read_log
from pipeline.training.config import TrainConfig
from pipeline.training.losses import loss_terms
from pipeline.training.pictures import (
    CURVES_FILE,
    SAMPLES_FILE,
    draw_curves,
    draw_samples,
)
from pipeline.training.processes import World, spread
from pipeline.training.sampler import tiles, validation_examples
from pipeline.training.trainer import Listener, Progress, Trainer
from pipeline.training.validation import (
    can_be_segmented,
    score_patches,
    segment_volume,
)
from pipeline.training.volumes import load_volumes

_SAMPLES = 4


def train(
    path: Path,
    folder: Path,
    data: Path,
    *,
    steps: int | None = None,
    processes: int = 1,
    tensorboard: bool = False,
    quiet: bool = False,
) -> None:
    """Train a model, or go on from its checkpoint.

    Parameters
    ----------
    path : Path
        A `train.toml`, beside a `model.toml`.
    folder : Path
        Where checkpoint, log and pictures go.
    data : Path
        Where the volumes lie.
    steps : int, optional
        End after so many, whatever `train.toml` says.
    processes : int
        How many share each step.
    tensorboard : bool
        Whether scores are also written for TensorBoard.
    quiet : bool
        Whether no progress is shown.
    """
    config = TrainConfig.load(path)
    if steps is not None:
        plan = config.optimisation.model_copy(update={"steps": steps, "seconds": None})
        config = config.model_copy(update={"optimisation": plan})
    spread(processes, _train, config, path, folder, data, tensorboard, quiet)


def _train(
    world: World,
    config: TrainConfig,
    path: Path,
    folder: Path,
    data: Path,
    tensorboard: bool,
    quiet: bool,
) -> None:
    model = ModelConfig.load(path.parent)
    train_volumes = load_volumes(data, config, model, "train")
    scored = load_volumes(data, config, model, "validation") if world.leads else []
    start = None
    if config.start:
        begun = path.parent / config.start
        start = begun / ModelConfig.load(begun).weights
    trainer = Trainer(model, config, folder, start=start, world=world)
    listen: list[Listener] = []
    if world.leads:
        listen.append(_Painter(trainer, scored))
        if tensorboard:
            listen.append(Board(folder))
        if not quiet:
            listen.append(_Console(config.optimisation.steps, trainer))
    trainer.run(train_volumes, scored, listen)


class _Painter:
    """Draws curves and samples beside the log, after every score."""

    def __init__(self, trainer: Trainer, scored: list[Any]) -> None:
        self.trainer = trainer
        config = trainer.config
        self.samples = []
        if scored:
            count = -(-_SAMPLES // len(scored))
            found = validation_examples(scored, trainer.model.config, config.patch, count)
            self.samples = list(islice(found, _SAMPLES))

    def __call__(self, progress: Progress) -> None:
        if progress.entry is None:
            return
        folder = self.trainer.folder
        draw_curves(read_log(folder), folder / CURVES_FILE)
        if self.samples:
            draw_samples(self.trainer.average, self.samples, folder / SAMPLES_FILE)


class _Console:
    """Shows progress, rate and remaining time; on a terminal as a bar, else as lines."""

    def __init__(self, steps: int, trainer: Trainer) -> None:
        self.began, self.first = time.monotonic(), trainer.progress
        self.first_step = trainer.step
        self.bar: Bar | None = None
        if sys.stderr.isatty():
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[said]}"),
            )
            self.task = self.bar.add_task(trainer.model.config.name, total=steps, said="")
            self.bar.start()

    def __call__(self, progress: Progress) -> None:
        elapsed = time.monotonic() - self.began
        gained = progress.share - self.first
        left = elapsed * (1 - progress.share) / gained if gained > 0 else 0.0
        rate = (progress.step - self.first_step) / elapsed if elapsed else 0.0
        said = f"{rate:.2f} steps/s, {_clock(left)} left, loss {progress.loss:.4f}"
        if self.bar is not None:
            self.bar.update(self.task, completed=progress.step, said=said)
            if progress.share == 1:
                self.bar.stop()
        if progress.entry is not None:
            summary = summary_of(progress.entry)
            text = f"step {progress.step} ({progress.share:.0%}): {said}; {summary}"
            if self.bar is not None:
                self.bar.console.print(text, highlight=False)
            else:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()


def summary_of(entry: dict[str, Any]) -> str:
    """Say a log's entry in one line."""
    said = [f"training loss {entry['loss']['total']:.4f}"]
    if entry["validation"]:
        said.append(f"validation {entry['validation']['loss']:.4f}")
    for volume, scores in (entry.get("segments") or {}).items():
        said.append(
            f"{volume} ARAND {scores['arand']:.4f}, VOI {scores['voi_split']:.3f} + "
            f"{scores['voi_merge']:.3f}"
        )
    return ", ".join(said)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def where_to_look(folder: Path, *, tensorboard: bool) -> str:
    """Say what lies in a training's folder, at its end."""
    log = read_log(folder)
    lines = [summary_of(log[-1])] if log else []
    lines.append(f"curves   {folder / CURVES_FILE}")
    if (folder / SAMPLES_FILE).exists():
        lines.append(f"samples  {folder / SAMPLES_FILE}")
    if tensorboard:
        lines.append(f"scores   tensorboard --logdir {folder / BOARD_FOLDER}")
    return "\n".join(lines)


def score(path: Path, data: Path) -> dict[str, Any]:
    """Score a model's exported weights on the whole of its validation boxes.

    Parameters
    ----------
    path : Path
        A `train.toml`, beside a `model.toml`.
    data : Path
        Where the volumes lie.

    Returns
    -------
    dict
        By volume: `loss` and `channels` over patches that cover it, and `segments`.

    Raises
    ------
    DataError
        If there is no validation box.
    """
    config = TrainConfig.load(path)
    model = load_model(path.parent)
    terms = loss_terms(model.config, config.loss)
    volumes = load_volumes(data, config, model.config, "validation")
    if not volumes:
        raise DataError(f"{path} has no validation box to score on; add one to a volume")
    found: dict[str, Any] = {}
    for volume in volumes:
        patches = tiles(volume, model.config, config.patch)
        found[volume.name] = score_patches(model, terms, patches)
        if can_be_segmented(model.config, volume):
            _, scores = segment_volume(model, volume)
            found[volume.name]["segments"] = scores.model_dump(mode="json")
    return found
