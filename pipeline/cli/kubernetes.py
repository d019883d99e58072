"""Commands for pools of workers in a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import clusters
from pipeline.cli.opening import load_or_open
from pipeline.cli.options import Json, Namespace
from pipeline.cli.text import print_json, print_table
from pipeline.errors import (
    RootError,
)

if TYPE_CHECKING:
    pass


@clusters.command("render")
def k8s_render(
    recipe: Annotated[
        str | None,
        typer.Argument(help="Give workers the memory of this recipe's plan."),
    ] = None,
    root: Annotated[
        str | None, typer.Option("--root", envvar="EM_ROOT", help="Folder of its run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write; printed if left out.")
    ] = None,
) -> None:
    """Write the Deployments of all pools, with what scales and guards them, as YAML.

    Example: em k8s render --output k8s/base/workers.yaml
    """
    from pipeline.orchestration.k8s import pools_for, render
    from pipeline.runtime.pools import POOLS
    from pipeline.runtime.run import Run

    pools = POOLS
    if recipe is not None:
        if root is None:
            raise RootError("the plan of a recipe needs its layers; give --root")
        pools = pools_for(Run.plan(load_or_open(recipe, root), root))
    text = render(pools)
    if output is None:
        typer.echo(text, nl=False)
        return
    output.write_text(text)
    typer.echo(f"{output}: pools {', '.join(pools)}")


@clusters.command("scale")
def k8s_scale(
    pool: Annotated[str, typer.Argument(help="cpu or gpu.")],
    count: Annotated[str, typer.Argument(help="Workers; auto gives it back to KEDA.")],
    namespace: Namespace = None,
) -> None:
    """Set the number of workers of a pool.

    Example: em k8s scale cpu 20
    """
    from pipeline.orchestration.k8s import Deployments
    from pipeline.runtime.pools import POOLS

    if pool not in POOLS:
        raise RootError(f"there is no pool {pool!r}; there are {', '.join(POOLS)}")
    if count != "auto" and not count.isdigit():
        raise RootError(f"{count!r} is no number of workers; give one, or auto")
    wanted = None if count == "auto" else int(count)
    typer.echo(Deployments(namespace).fix(pool, wanted))


@clusters.command("status")
def k8s_status(namespace: Namespace = None, as_json: Json = False) -> None:
    """List the Deployments of workers: their queues, how many are wanted and ready.

    Example: em k8s status
    """
    from pipeline.orchestration.k8s import Deployments

    cluster = Deployments(namespace)
    rows = cluster.status()
    if as_json:
        print_json({"namespace": cluster.namespace, "deployments": rows})
        return
    if not rows:
        typer.echo(f"no workers in namespace {cluster.namespace}; apply an overlay of k8s/")
        return
    print_table(list(rows[0]), [list(row.values()) for row in rows])
