"""What every net of `models/` is made of, and what it takes for a voxel.

``python benchmarks/nets.py``

Nothing is run: torch counts the multiplications and additions of convolutions and of
attention over one patch of tensors without memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from pipeline.nets.config import ModelConfig
from pipeline.nets.model import build_net

MODELS = Path(__file__).parents[1] / "models"
LIGHTER = {
    "cleftnet, augmented = 2": {"augmented": 2},
    'cleftnet, query = "none"': {"query": "none"},
}
"""CleftNet with less attention."""


def configurations() -> Iterator[tuple[str, ModelConfig]]:
    """Yield every model, and CleftNet again as it gets lighter."""
    for path in sorted(MODELS.glob("*/model.toml")):
        config = ModelConfig.load(path.parent)
        yield config.name, config
        if config.name == "cleftnet":
            for name, fields in LIGHTER.items():
                architecture = config.architecture.model_copy(update=fields)
                yield name, config.model_copy(update={"architecture": architecture})


def costs(config: ModelConfig) -> dict[str, Any]:
    """Count parameters, and operations for each voxel of a patch."""
    patch = config.inference.patch
    with torch.device("meta"):
        net = build_net(config).eval().requires_grad_(False)
        inputs = torch.zeros(1, len(config.inputs), patch.z, patch.y, patch.x)
        with FlopCounterMode(display=False) as counter:
            net(inputs)
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "patch": list(patch),
        "operations_per_voxel": counter.get_total_flops() / patch.product,
    }


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print one row for each model."""
    rows = [{"model": name, **costs(config)} for name, config in configurations()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("model", "parameters", "patch", "operations / voxel")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['parameters'] / 1e6:.2f} M",
            " x ".join(map(str, row["patch"])),
            f"{row['operations_per_voxel'] / 1e3:.0f} k",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
