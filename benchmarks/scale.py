"""What the merging would take of a cubic millimetre and of a whole mouse brain.

``python benchmarks/scale.py``

Nothing is run: the model of the open state, whose constants ``open_state.py`` measures,
is evaluated for the grid of 10 million chunks of Macrina et al. (2021), and for ten times
its extent along each axis.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.geometry import Bbox, Vec3
from pipeline.stages.agglomeration import Agglomeration
from pipeline.stages.octree import UpSweep
from pipeline.stages.supervoxels import BasinGraphs

CHUNK = Vec3(256, 256, 512)
VOLUMES = {
    "cubic millimetre, 10 million chunks": Vec3(450, 450, 50),
    "mouse brain, 1000 times that": Vec3(4500, 4500, 500),
}


def sweeps(chunks: Vec3, limit_gb: float | None) -> list[UpSweep]:
    """Return the two up-sweeps over a grid of chunks."""
    shared: dict[str, Any] = {
        "bounds": Bbox.of_shape(chunks * CHUNK),
        "chunk": CHUNK,
        "node_limit_gb": limit_gb,
    }
    return [
        BasinGraphs(affinities="a", basins="b", output="basin_graph", **shared),
        Agglomeration(graph="g", output="agglomeration", **shared),
    ]


def levels(sweep: UpSweep) -> list[dict[str, Any]]:
    """Return the memory of nodes, level by level, and of partitions."""
    rows = [
        {
            "level": level,
            "tasks": sweep.grid.counts(level).product,
            "gb": sweep.memory({}, level) / 1e9,
        }
        for level in range(1, sweep.top + 1)
    ]
    if sweep.n_partitions:
        level = sweep.top + 1
        rows.append(
            {
                "level": "rounds",
                "tasks": sweep.n_partitions,
                "gb": sweep.memory({}, level) / 1e9,
            }
        )
    return rows


def main(
    limit_gb: Annotated[float, typer.Option(help="Memory that a task may take [GB].")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the largest tasks without a limit and with one."""
    result = {
        volume: {
            sweep.output: {
                "without a limit": levels(sweep),
                f"{limit_gb:g} GB": levels(bounded),
            }
            for sweep, bounded in zip(
                sweeps(chunks, None), sweeps(chunks, limit_gb), strict=True
            )
        }
        for volume, chunks in VOLUMES.items()
    }
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    console = Console(width=100)
    for volume, stages in result.items():
        table = Table(title=volume)
        for column in (
            "stage",
            "limit",
            "highest nodes",
            "each [GB]",
            "partitions",
            "each [GB]",
        ):
            table.add_column(
                column, justify="left" if column in ("stage", "limit") else "right"
            )
        for stage, limits in stages.items():
            for limit, rows in limits.items():
                nodes = [r for r in rows if r["level"] != "rounds"][-1]
                parts = rows[-1] if rows[-1]["level"] == "rounds" else None
                table.add_row(
                    stage,
                    limit,
                    f"{nodes['tasks']} at level {nodes['level']}",
                    f"{nodes['gb']:.1f}",
                    str(parts["tasks"]) if parts else "",
                    f"{parts['gb']:.1f}" if parts else "",
                )
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
