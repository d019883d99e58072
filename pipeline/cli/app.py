"""The command ``em``, and its groups."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.errors import PipelineError, exit_status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From raw electron microscopy to neurons.\n\n"
    "One block:  em reconstruct block.h5:raw --voxel-size 6,6,30 --root out\n\n"
    "A recipe:   em plan|run|status|verify recipe.toml --root gs://lab/run1",
)
exports = typer.Typer(
    no_args_is_help=True, help="Write what a run made in the formats of other programs."
)
app.add_typer(exports, name="export")
clusters = typer.Typer(
    no_args_is_help=True, help="Pools of workers in Kubernetes: manifests, and how many."
)
app.add_typer(clusters, name="k8s")


def _show_version(wanted: bool) -> None:
    if wanted:
        from pipeline.runtime.run import code_version

        typer.echo(code_version())
        raise typer.Exit


@app.callback()
def em(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Take what is said before the command."""


def main() -> None:
    """Run the command; print an error of ours as one message, without a traceback."""
    try:
        app()
    except PipelineError as error:
        typer.echo(f"em: {error}", err=True)
        sys.exit(exit_status(error))
