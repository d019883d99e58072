"""The tables of a run's graph: what they hold, and the records that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingInputError
from pipeline.geometry import ChunkKey
from pipeline.kernels.agglomerate import (
    REASONS,
    MergeHistory,
    Merges,
    Refusals,
)
from pipeline.kernels.region_graph import CLASSES, RegionGraph
from pipeline.kernels.relabel import RemapTable
from pipeline.layers.parquet import ParquetColumn, ParquetTable, Rows
from pipeline.runtime.run import Run
from pipeline.specs import Record
from pipeline.stages.agglomeration import (
    MERGES,
    REFUSALS,
    Agglomeration,
    SegmentTable,
)
from pipeline.stages.base import Stage
from pipeline.stages.region_graph import RegionGraphs
from pipeline.stages.relabel import Relabel

_Stage = TypeVar("_Stage", bound=Stage)

_AXES = ("x", "y", "z")
_U1 = np.uint8
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
        *(
            ParquetColumn(name, _U8, "voxel", f"voxels of the semantic class {name}", "sum")
            for name in CLASSES
        ),
        ParquetColumn(
            "faces",
            _U1,
            "",
            "faces of the chunk that it touches, but for those of the bounds: bit 0, 1, 2 "
            "for the lower face of x, y, z, bit 3, 4, 5 for the upper",
            "drop",
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

_CONTACT = (
    ParquetColumn(
        "affinity",
        _U8,
        "1/scale",
        "sum of the fixed-point affinities of their contact",
        "same",
    ),
    ParquetColumn("area", _U8, "face", "faces of their contact", "same"),
)

_SCORE = ParquetColumn(
    "mean_affinity", _F8, "", "score: affinity by area and by the scale", "derive", _mean
)

_FIRST_FACE = "first face of their contact, as in region_graph"

NODE_MERGES = ParquetTable(
    "history",
    "a merge that a node made",
    (
        ParquetColumn("a", _U8, "", "supervoxel that one cluster is known by", "keep"),
        ParquetColumn("b", _U8, "", "supervoxel that the other is known by", "keep"),
        *_CONTACT,
        ParquetColumn("key", _U8, "", _FIRST_FACE, "keep"),
        _SCORE,
    ),
)

HISTORY = ParquetTable(
    "history",
    "a merge of two segments, in the order in which one pass over the volume makes them",
    (
        ParquetColumn("loser", _U8, "", "segment that takes the other's name", "keep"),
        ParquetColumn(
            "winner", _U8, "", "segment that gives its name, the lesser of both ids", "keep"
        ),
        *_CONTACT,
        _SCORE,
    ),
)

REFUSED = ParquetTable(
    "refusals",
    "a merge that the constraints refused",
    (
        ParquetColumn("a", _U8, "", "cluster, by its least supervoxel", "key"),
        ParquetColumn("b", _U8, "", "the other, by its least supervoxel", "key"),
        ParquetColumn("key", _U8, "", _FIRST_FACE, "key"),
        *_CONTACT,
        *(ParquetColumn(f"size_{c}", _U8, "voxel", f"voxels of {c}", "same") for c in "ab"),
        *(
            ParquetColumn(f"members_{c}", _U8, "supervoxel", f"supervoxels in {c}", "same")
            for c in "ab"
        ),
        *(
            ParquetColumn(
                f"class_{c}",
                _U1,
                "",
                f"predominant class of {c}: "
                + ", ".join(f"{n} {name}" for n, name in enumerate(CLASSES))
                + ", or 255",
                "same",
            )
            for c in "ab"
        ),
        ParquetColumn(
            "reason",
            _U1,
            "",
            "what refused it: "
            + ", ".join(f"{n} {name}" for n, name in enumerate(REASONS) if name),
            "same",
        ),
        _SCORE,
    ),
)

TABLES = (CONTACTS, SUPERVOXELS, REMAP, NODE_MERGES, HISTORY, REFUSED)
"""Every table that is written."""


@dataclass(frozen=True)
class GraphStages:
    """The stages of a run that make its graph and its segments.

    Parameters
    ----------
    graph : RegionGraphs
        Writes the region graph.
    agglomeration : Agglomeration
        Merges it.
    table : SegmentTable or None
        Writes the segment of every supervoxel.
    relabel : Relabel or None
        Writes the segments as a volume.
    """

    graph: RegionGraphs
    agglomeration: Agglomeration
    table: SegmentTable | None
    relabel: Relabel | None

    @classmethod
    def of(cls, run: Run) -> GraphStages:
        """Find them in a recipe.

        Raises
        ------
        MissingInputError
            If the recipe has no agglomeration of a region graph.
        """
        by_output = {s.output: s for s in run.recipe.stages}
        for merged in by_output.values():
            if not isinstance(merged, Agglomeration):
                continue
            graph = by_output.get(merged.graph)
            if isinstance(graph, RegionGraphs):
                table = _first(
                    s
                    for s in by_output.values()
                    if isinstance(s, SegmentTable) and s.decisions == merged.output
                )
                relabel = _first(
                    s
                    for s in by_output.values()
                    if isinstance(s, Relabel)
                    and s.labels == graph.supervoxels
                    and table is not None
                    and s.table == table.output
                )
                return cls(graph, merged, table, relabel)
        raise MissingInputError(
            f"recipe {run.recipe.name} agglomerates no region graph, so there is none to "
            "export; add the stages region_graph and agglomeration and run it"
        )


def _first(stages: Iterator[_Stage]) -> _Stage | None:
    return next(stages, None)


def region_graphs(run: Run, stages: GraphStages) -> Iterator[tuple[ChunkKey, RegionGraph]]:
    """Read the region graph, chunk by chunk."""
    for key in stages.graph.grid:
        table = run.store.read(Record(stages.graph.output, str(key)))
        yield key, RegionGraph.from_table(table)


def remaps(run: Run, table: SegmentTable) -> Iterator[tuple[ChunkKey, RemapTable]]:
    """Read the remap table from supervoxels to segments, chunk by chunk."""
    for key in table.grid:
        rows = run.store.read(Record(table.output, str(key)))
        yield key, RemapTable.from_table(rows)


def decisions(run: Run, stages: GraphStages) -> Iterator[tuple[ChunkKey, Merges, Refusals]]:
    """Read the merges and the refusals, node by node.

    Tasks that merge nothing by their nature, as most of those of partitions, are left out.
    """
    output = stages.agglomeration.output
    for wave in stages.agglomeration.plan():
        for key in wave:
            merges = run.store.read(Record(output, str(key), MERGES))
            refusals = run.store.read(Record(output, str(key), REFUSALS))
            if merges:
                yield key, Merges.from_table(merges), Refusals.from_table(refusals)


def contact_columns(graph: RegionGraph) -> Mapping[str, NDArray[Any]]:
    """Return the columns of `CONTACTS`."""
    return {
        **_by_side("", graph.pairs),
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
        **{name: graph.classes[:, n] for n, name in enumerate(CLASSES)},
        "faces": graph.faces,
    }


def remap_columns(remap: RemapTable) -> Mapping[str, NDArray[Any]]:
    """Return the columns of `REMAP`."""
    return {"id": remap.ids, "segment": remap.targets}


def merge_columns(merges: Merges) -> Mapping[str, NDArray[Any]]:
    """Return the columns of `NODE_MERGES`."""
    return {
        **_by_side("", merges.pairs),
        "affinity": merges.affinity,
        "area": merges.area,
        "key": merges.key,
    }


def refusal_columns(refusals: Refusals) -> Mapping[str, NDArray[Any]]:
    """Return the columns of `REFUSED`."""
    return {
        **_by_side("", refusals.names),
        "key": refusals.key,
        "affinity": refusals.affinity,
        "area": refusals.area,
        **_by_side("size_", refusals.sizes),
        **_by_side("members_", refusals.members),
        **_by_side("class_", refusals.classes),
        "reason": refusals.reason,
    }


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


def _by_side(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{name}{side}": values[:, n] for n, side in enumerate("ab")}
