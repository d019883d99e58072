"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    pass


Root = Annotated[
    str,
    typer.Option("--root", envvar="EM_ROOT", help="Folder of the run: path, gs://, s3://."),
]
Cost = Annotated[
    Path | None, typer.Option("--cost", help="TOML of prices: say what it costs.")
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", help="Rates by em calibrate; typical ones if left out."),
]
PlannedRoot = Annotated[
    str | None,
    typer.Option("--root", envvar="EM_ROOT", help="Folder that the run is to have."),
]
RecipePath = Annotated[
    str, typer.Argument(help="Recipe, a TOML file; or the name of a run in the root.")
]
RunName = Annotated[
    str | None,
    typer.Argument(help="Recipe or name of its run; all runs of the root if left out."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; the cores of this machine if left out."),
]
Queue = Annotated[
    str,
    typer.Option(
        envvar="EM_QUEUE",
        help="fq://FOLDER or sqs://NAME, {run} and {pool} in it: em work does the tasks.",
    ),
]
BboxOption = Annotated[
    str | None, typer.Option("--bbox", help="x0,y0,z0,x1,y1,z1 in voxels of mip 0.")
]
VoxelSizeOption = Annotated[
    str | None,
    typer.Option("--voxel-size", help="x,y,z [nm]; needed where the source does not say."),
]
ExportedRun = Annotated[
    str | None,
    typer.Argument(help="Recipe or name of its run; the only one if left out."),
]
To = Annotated[str, typer.Option("--to", help="Folder of the export: path, gs://, s3://.")]
ReplaceExport = Annotated[
    bool, typer.Option("--replace", help="Delete another export that is there.")
]
Namespace = Annotated[
    str | None, typer.Option(envvar="EM_NAMESPACE", help="Of the cluster; em if left out.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
