"""The tables of a run's graph as Parquet, by node and merged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.errors import MissingInputError, RecipeError
from pipeline.geometry import ChunkKey
from pipeline.kernels.agglomerate import Merges, merge_history
from pipeline.kernels.tables import common_scale
from pipeline.layers import parquet
from pipeline.layers.folder import Folder, open_folder
from pipeline.layers.parquet import Extent, ParquetTable, Rows
from pipeline.runtime.export import claim, require_done
from pipeline.runtime.graph_tables import (
    CONTACTS,
    HISTORY,
    NODE_MERGES,
    REFUSED,
    REMAP,
    SUPERVOXELS,
    GraphStages,
    contact_columns,
    decisions,
    history_columns,
    merge_columns,
    refusal_columns,
    region_graphs,
    remap_columns,
    remaps,
    supervoxel_columns,
)
from pipeline.runtime.progress import WaveProgress
from pipeline.runtime.run import Run
from pipeline.specs import VolumeSpec


@dataclass(frozen=True)
class TableSummary:
    """How large a table is.

    Parameters
    ----------
    table : str
        Its name, which is that of its files.
    nodes : int
        Files by node.
    node_rows, rows : int
        Rows of these, and of the merged file.
    """

    table: str
    nodes: int
    node_rows: int
    rows: int


def export_tables(
    run: Run, to: str, *, limit: int, replace: bool = False, quiet: bool = False
) -> list[TableSummary]:
    """Write region graph, supervoxels, remap table and merges as Parquet.

    ``<to>/<table>/<key>.parquet`` holds the rows of a node and ``<to>/<table>.parquet``
    all of them, merged and in order. The same run gives the same bytes. All merges are
    held at once to put them in order, 40 byte for each.

    Parameters
    ----------
    run : Run
        Complete.
    to : str
        Folder, on a path, ``gs://`` or ``s3://``.
    limit : int
        Rows that are held at once where tables are merged.
    replace : bool
        Whether to delete another export that is there.
    quiet : bool
        Show no progress.

    Raises
    ------
    MissingInputError
        If the run has no agglomeration, or has not come to its end.
    StaleOutputError
        If the folder holds another export.
    """
    if limit < 2:
        raise RecipeError("--rows", [f"{limit} rows cannot be merged; give 2 or more"])
    stages = GraphStages.of(run)
    if stages.table is None:
        raise MissingInputError(
            f"recipe {run.recipe.name} does not say what supervoxels become; add a stage "
            f"segment_table of {stages.agglomeration.output} and run it"
        )
    require_done(run, [stages.graph, stages.agglomeration, stages.table])
    spec = run.specs[stages.graph.supervoxels]
    assert isinstance(spec, VolumeSpec)
    metadata = {
        "run": run.recipe.name,
        "lineage": run.lineage[stages.table.output],
        "bounds": str(stages.graph.bounds),
        "voxel_size_nm": ",".join(f"{v:g}" for v in spec.voxel_size_nm),
    }
    tables = (CONTACTS, SUPERVOXELS, REMAP, NODE_MERGES, REFUSED)
    folder = open_folder(to)
    document = {"export": "tables", **metadata}
    claim(folder, document, [t.name for t in tables], replace=replace)

    _, first = next(region_graphs(run, stages))
    files = {t: _Files(folder, t, first.scale, metadata) for t in tables}
    grid = stages.graph.grid
    with WaveProgress("region graph", grid.counts().product, quiet=quiet) as progress:
        for key, graph in region_graphs(run, stages):
            common_scale([first.scale, graph.scale])
            files[CONTACTS].put(key, contact_columns(graph))
            files[SUPERVOXELS].put(key, supervoxel_columns(graph))
            progress.add("done", grid.box(key).volume)
    with WaveProgress("remap", grid.counts().product, quiet=quiet) as progress:
        for key, remap in remaps(run, stages.table):
            files[REMAP].put(key, remap_columns(remap))
            progress.add("done", grid.box(key).volume)
    made: list[Merges] = []
    nodes = sum(len(wave) for wave in stages.agglomeration.plan())
    with WaveProgress("history", nodes, quiet=quiet) as progress:
        for key, merges, refusals in decisions(run, stages):
            files[NODE_MERGES].put(key, merge_columns(merges))
            files[REFUSED].put(key, refusal_columns(refusals))
            made.append(merges)
            progress.add("done", 0)

    with (
        WaveProgress("merged", len(tables), quiet=quiet) as progress,
        tempfile.TemporaryDirectory() as scratch,
    ):
        summaries = []
        for table, written in files.items():
            whole, rows = table, written.merged(limit, Path(scratch))
            if table is NODE_MERGES:
                history = history_columns(merge_history(made))
                whole, rows = HISTORY, iter([HISTORY.rows(history)])
            summaries.append(written.finish(whole, rows, Path(scratch)))
            progress.add("done", 0)
    return summaries


@dataclass
class _Files:
    """The files of a table: those of nodes, then the merged one."""

    folder: Folder
    table: ParquetTable
    scale: int
    metadata: Mapping[str, str]
    keys: list[ChunkKey] = field(default_factory=list)
    node_rows: int = 0
    extent: Extent = field(default_factory=list)

    def put(self, key: ChunkKey, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write the file of a node."""
        rows = self.table.rows(columns)
        content = parquet.encode(
            self.table, rows, scale=self.scale, metadata={**self.metadata, "node": str(key)}
        )
        self.folder.put(self._path(key), content)
        self.keys.append(key)
        self.node_rows += len(rows)
        if len(rows) and self.table.key:
            known = [self.extent] if self.extent else []
            self.extent = parquet.hull([*known, parquet.extent_of(self.table, rows)])

    def merged(self, limit: int, scratch: Path) -> Iterator[Rows]:
        """Yield the rows of all nodes, merged."""
        return parquet.merge(
            self.table, self._nodes(), extent=self.extent, limit=limit, scratch=scratch
        )

    def finish(
        self, table: ParquetTable, rows: Iterator[Rows], scratch: Path
    ) -> TableSummary:
        """Write the merged file, whose rows may be those of another table."""
        path = scratch / "merged.parquet"
        count = parquet.write_merged(
            path, table, rows, scale=self.scale, metadata=self.metadata
        )
        self.folder.put_file(f"{self.table.name}.parquet", path)
        path.unlink()
        return TableSummary(self.table.name, len(self.keys), self.node_rows, count)

    def _path(self, key: ChunkKey) -> str:
        return f"{self.table.name}/{key}.parquet"

    def _nodes(self) -> Iterator[Rows]:
        for key in self.keys:
            path = self._path(key)
            content = self.folder.get(path)
            yield parquet.decode(self.table, path, content or b"")
