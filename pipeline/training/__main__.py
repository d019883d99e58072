"""Train and export from the shell: `python -m pipeline.training`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.nets.config import ModelConfig
from pipeline.training.config import TrainConfig
from pipeline.training.sampler import load_block
from pipeline.training.trainer import Trainer

app = typer.Typer(no_args_is_help=True, add_completion=False)

TrainFile = Annotated[
    Path, typer.Argument(help="train.toml of a model; model.toml lies beside it.")
]
Folder = Annotated[Path, typer.Option(help="Folder of checkpoint and log.")]


@app.command()
def train(
    config: TrainFile,
    folder: Folder,
    data: Annotated[
        Path, typer.Option(envvar="EM_DATA", help="Folder of the data.")
    ] = Path("../shared/data"),
) -> None:
    """Train a model, or go on from its checkpoint.

    Example: python -m pipeline.training train models/cortex-rsunet/train.toml --folder try/t
    """
    plan = TrainConfig.load(config)
    trainer = Trainer(ModelConfig.load(config.parent), plan, folder)
    trainer.run(
        load_block(data, plan.data, plan.data.train),
        load_block(data, plan.data, plan.data.validation),
    )


if __name__ == "__main__":
    app()
