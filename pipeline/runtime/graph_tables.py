"""The tables of a run's graph: what they hold, and the records that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingInputError
from pipeline.geometry import ChunkKey
from pipeline.kernels.agglomerate import MergeHistory
from pipeline.kernels.region_graph import RegionGraph
from pipeline.kernels.relabel import RemapTable
from pipeline.layers.parquet import ParquetColumn, ParquetTable, Rows
from pipeline.runtime.run import Run
from pipeline.specs import Record
from pipeline.stages.agglomeration import Agglomeration
from pipeline.stages.region_graph import RegionGraphs
from pipeline.stages.relabel import Relabel

_AXES = ("x", "y", "z")
_U8 = np.uint64
_I8 = np.int64
_F8 = np.float64


def _mean_of_contact(rows: Rows, scale: int) -> NDArray[np.float64]:
    affinity = sum(rows[f"affinity_{a}"] for a in _AXES)
    area = sum(rows[f"area_{a}"] for a in _AXES)
    return np.asarray(affinity / (area * float(scale)), np.float64)


def _mean(rows: Rows, scale: int) -> NDArray[np.float64]:
    return np.asarray(rows["affinity"] / (rows["area"] * float(scale)), np.float64)


def _centroid(axis: str) -> ParquetColumn:
    def derive(rows: Rows, scale: int) -> NDArray[np.float64]:
        return np.asarray(rows[f"sum_{axis}"] / rows["size"], np.float64)

    return ParquetColumn(
        f"centroid_{axis}",
        _F8,
        "voxel",
        f"mean {axis} of its voxels",
        "derive",
        derive,
    )


CONTACTS = ParquetTable(
    "region_graph",
    "a contact: two supervoxels that share faces",
    (
        ParquetColumn("a", _U8, "", "supervoxel with the smaller id", "key"),
        ParquetColumn("b", _U8, "", "supervoxel with the greater id", "key"),
        *(
            ParquetColumn(
                f"affinity_{a}",
                _U8,
                "1/scale",
                f"sum of the fixed-point affinities over the faces across {a}",
                "sum",
            )
            for a in _AXES
        ),
        *(
            ParquetColumn(f"area_{a}", _U8, "face", f"faces across {a}", "sum")
            for a in _AXES
        ),
        ParquetColumn(
            "key",
            _U8,
            "",
            "first face: 3 times the place of its upper voxel in the bounds, x fastest, "
            "plus its axis",
            "min",
        ),
        ParquetColumn(
            "mean_affinity",
            _F8,
            "",
            "sum of affinity_x, _y and _z by that of area_x, _y and _z and by the scale",
            "derive",
            _mean_of_contact,
        ),
    ),
)

SUPERVOXELS = ParquetTable(
    "supervoxels",
    "a supervoxel",
    (
        ParquetColumn("id", _U8, "", "supervoxel", "key"),
        ParquetColumn("size", _U8, "voxel", "how many voxels it has", "sum"),
        ParquetColumn(
            "anchor", _U8, "", "place of its first voxel in the bounds, x fastest", "min"
        ),
        *(
            ParquetColumn(f"sum_{a}", _I8, "voxel", f"sum of {a} over its voxels", "sum")
            for a in _AXES
        ),
        *(
            ParquetColumn(f"start_{a}", _I8, "voxel", f"least {a} of its voxels", "min")
            for a in _AXES
        ),
        *(
            ParquetColumn(
                f"stop_{a}", _I8, "voxel", f"greatest {a} of its voxels, plus 1", "max"
            )
            for a in _AXES
        ),
        *(_centroid(a) for a in _AXES),
    ),
)

REMAP = ParquetTable(
    "remap",
    "what a supervoxel becomes",
    (
        ParquetColumn("id", _U8, "", "supervoxel", "key"),
        ParquetColumn("segment", _U8, "", "segment that it is part of", "same"),
    ),
)

HISTORY = ParquetTable(
    "history",
    "a merge of two segments, in the order of the merges",
    (
        ParquetColumn("loser", _U8, "", "segment that takes the other's name", "keep"),
        ParquetColumn("winner", _U8, "", "segment that gives the name", "keep"),
        ParquetColumn(
            "affinity",
            _U8,
            "1/scale",
            "sum of the fixed-point affinities of their contact",
            "keep",
        ),
        ParquetColumn("area", _U8, "face", "faces of their contact", "keep"),
        ParquetColumn(
            "mean_affinity",
            _F8,
            "",
            "score: affinity by area and by the scale",
            "derive",
            _mean,
        ),
    ),
)

TABLES = (CONTACTS, SUPERVOXELS, REMAP, HISTORY)


@dataclass(frozen=True)
class GraphStages:
    """The stages of a run that make its graph and its segments.

    Parameters
    ----------
    graph : RegionGraphs
        Writes the region graph.
    agglomeration : Agglomeration
        Merges it.
    relabel : Relabel or None
        Writes the segments as a volume.
    """

    graph: RegionGraphs
    agglomeration: Agglomeration
    relabel: Relabel | None

    @classmethod
    def of(cls, run: Run) -> GraphStages:
        """Find them in a recipe.

        Raises
        ------
        MissingInputError
            If the recipe has no agglomeration of a region graph.
        """
        stages = run.recipe.stages
        for merged in (s for s in stages if isinstance(s, Agglomeration)):
            for graph in (s for s in stages if isinstance(s, RegionGraphs)):
                if graph.output == merged.graph:
                    by_table = (
                        s
                        for s in stages
                        if isinstance(s, Relabel)
                        and s.labels == graph.supervoxels
                        and s.table == merged.output
                    )
                    return cls(graph, merged, next(by_table, None))
        raise MissingInputError(
            f"recipe {run.recipe.name} agglomerates no region graph, so there is none to "
            "export; add the stages region_graph and agglomeration and run it"
        )


def region_graphs(run: Run, stages: GraphStages) -> Iterator[tuple[ChunkKey, RegionGraph]]:
    """Read the region graph, chunk by chunk."""
    for key in stages.graph.grid:
        table = run.store.read(Record(stages.graph.output, str(key)))
        yield key, RegionGraph.from_table(table)


def remaps(run: Run, stages: GraphStages) -> Iterator[tuple[ChunkKey, RemapTable]]:
    """Read the remap table from supervoxels to segments, node by node."""
    key = ChunkKey(0, 0, 0, 0)
    table = run.store.read(Record(stages.agglomeration.output, str(key), "remap"))
    yield key, RemapTable.from_table(table)


def histories(run: Run, stages: GraphStages) -> Iterator[tuple[ChunkKey, MergeHistory]]:
    """Read the merges, node by node."""
    key = ChunkKey(0, 0, 0, 0)
    table = run.store.read(Record(stages.agglomeration.output, str(key), "history"))
    yield key, MergeHistory.from_table(table)


def contact_columns(graph: RegionGraph) -> Mapping[str, NDArray[Any]]:
    """Return the columns of `CONTACTS`."""
    return {
        "a": graph.pairs[:, 0],
        "b": graph.pairs[:, 1],
        **_by_axis("affinity", graph.affinity),
        **_by_axis("area", graph.area),
        "key": graph.key,
    }


def supervoxel_columns(graph: RegionGraph) -> Mapping[str, NDArray[Any]]:
    """Return the columns of `SUPERVOXELS`."""
    return {
        "id": graph.ids,
        "size": graph.size,
        "anchor": graph.anchor,
        **_by_axis("sum", graph.coordinate_sum),
        **_by_axis("start", graph.start),
        **_by_axis("stop", graph.stop),
    }


def remap_columns(remap: RemapTable) -> Mapping[str, NDArray[Any]]:
    """Return the columns of `REMAP`."""
    return {"id": remap.ids, "segment": remap.targets}


def history_columns(history: MergeHistory) -> Mapping[str, NDArray[Any]]:
    """Return the columns of `HISTORY`."""
    return {
        "loser": history.loser,
        "winner": history.winner,
        "affinity": history.affinity,
        "area": history.area,
    }


def _by_axis(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{name}_{axis}": values[:, n] for n, axis in enumerate(_AXES)}
