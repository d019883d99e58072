"""Commands that write results in formats of other programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import exports
from pipeline.cli.opening import open_agglomerated
from pipeline.cli.options import ExportedRun, Json, Quiet, ReplaceExport, Root, To, Workers
from pipeline.cli.text import print_json, print_table, vector

if TYPE_CHECKING:
    pass


@exports.command("tables")
def export_tables(
    root: Root,
    to: To,
    recipe: ExportedRun = None,
    rows: Annotated[
        int, typer.Option(help="Rows that are held at once to merge tables.")
    ] = 1_000_000,
    replace: ReplaceExport = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write region graph, supervoxels, remap table and merges as Parquet.

    Each table is written by octree node, and merged into one file.

    Example: em export tables demo --root demo --to tables
    """
    from pipeline.runtime.export_tables import export_tables as write

    opened = open_agglomerated(root, recipe)
    found = write(opened, to, limit=rows, replace=replace, quiet=quiet or as_json)
    if as_json:
        print_json({"run": opened.recipe.name, "tables": [asdict(t) for t in found]})
        return
    print_table(
        ["table", "nodes", "rows by node", "rows merged"],
        [[t.table, t.nodes, t.node_rows, t.rows] for t in found],
    )
    typer.echo(f"tables: {to}")


@exports.command("pychunkedgraph")
def export_pychunkedgraph(
    root: Root,
    to: To,
    recipe: ExportedRun = None,
    chunk: Annotated[
        str | None, typer.Option(help="x,y,z of the graph's chunks; the run's if left out.")
    ] = None,
    workers: Workers = None,
    replace: ReplaceExport = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write cut supervoxels, edges and components for PyChunkedGraph's ingest.

    An export that was stopped goes on where it was.

    Example: em export pychunkedgraph demo --root demo --to graph
    """
    from pipeline.runtime.cores import machine_cores
    from pipeline.runtime.export_pychunkedgraph import export_pychunkedgraph as write

    opened = open_agglomerated(root, recipe)
    found = write(
        opened,
        to,
        chunk=None if chunk is None else vector(chunk),
        workers=workers or machine_cores(),
        replace=replace,
        quiet=quiet or as_json,
    )
    if as_json:
        print_json({"run": opened.recipe.name, **asdict(found)})
        return
    print_table(
        ["chunks", "pieces", "in chunk", "between", "cross", "isolated"],
        [
            [
                found.chunks,
                found.pieces,
                found.in_chunk,
                found.between_chunk,
                found.cross_chunk,
                found.isolated,
            ]
        ],
    )
    typer.echo(f"configuration of the ingest: {to}/dataset.yml")
