"""Train, export and score a model from the shell: `python -m pipeline.training --help`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import PipelineError
from pipeline.nets.config import ModelConfig
from pipeline.nets.model import load_model
from pipeline.training.config import TrainConfig
from pipeline.training.export import CURVES_FILE, draw_curves, export
from pipeline.training.sampler import load_block
from pipeline.training.trainer import Trainer, score_block

app = typer.Typer(no_args_is_help=True, add_completion=False)

TrainFile = Annotated[
    Path,
    typer.Argument(metavar="TRAIN_TOML", help="train.toml of a model, beside model.toml."),
]
Folder = Annotated[Path, typer.Option(help="Folder of checkpoint and log.")]
DataFolder = Annotated[Path, typer.Option(envvar="EM_DATA", help="Folder of the data.")]

DATA = Path("../shared/data")


@app.command("train")
def train_model(config: TrainFile, folder: Folder, data: DataFolder = DATA) -> None:
    """Train a model, or go on from its checkpoint.

    Example: python -m pipeline.training train models/cortex-rsunet/train.toml --folder t
    """
    plan = TrainConfig.load(config)
    trainer = Trainer(ModelConfig.load(config.parent), plan, folder)
    trainer.run(
        load_block(data, plan.data, plan.data.train),
        load_block(data, plan.data, plan.data.validation),
    )


@app.command("export")
def export_model(config: TrainFile, folder: Folder) -> None:
    """Write the averaged weights of a checkpoint, their checksum and the curves.

    Example: python -m pipeline.training export models/cortex-rsunet/train.toml --folder t
    """
    model = export(config.parent, folder)
    draw_curves(folder, config.parent / CURVES_FILE)
    typer.echo(f"{config.parent / model.weights}: {model.sha256}")


@app.command("score")
def score_model(config: TrainFile, data: DataFolder = DATA) -> None:
    """Score the exported weights on all validation sections, as JSON.

    Example: python -m pipeline.training score models/cortex-rsunet/train.toml
    """
    plan = TrainConfig.load(config)
    block = load_block(data, plan.data, plan.data.validation)
    typer.echo(json.dumps(asdict(score_block(load_model(config.parent), block))))


def main() -> None:
    """Run a command; what is wrong is said in one line and ends with 2."""
    try:
        app()
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
