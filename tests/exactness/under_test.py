"""The stages under test, and what they say, in the words of the definitions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.specs import Table
from pipeline.stages import STAGES
from pipeline.stages.base import Stage

from .cases import Case
from .in_memory import Memory
from .oracle import Contact, Graph, Merge, Region


@dataclass(frozen=True)
class Result:
    """What is compared."""

    supervoxels: NDArray[np.uint64]
    graph: Graph
    history: list[Merge]
    segments: NDArray[np.uint64]


def stages(case: Case) -> list[Stage]:
    """Return the stages of a case, from affinities or from supervoxels to segments."""
    v = case.volume
    watershed = {"affinities": "affinities", "low": v.low, "high": v.high}
    entries: list[dict[str, Any]] = [
        {"use": "basins", "output": "basins", **watershed},
        {"use": "basin_graph", "output": "basin_graph", "basins": "basins", **watershed},
        {
            "use": "supervoxel_table",
            "output": "supervoxel_table",
            "graph": "basin_graph",
            "size_threshold": v.size_threshold,
            "dust": v.dust,
            "id_chunk": v.id_chunk,
        },
        {
            "use": "relabel",
            "output": "supervoxels",
            "labels": "basins",
            "table": "supervoxel_table",
            "part": "chunk",
        },
        {
            "use": "region_graph",
            "output": "region_graph",
            "supervoxels": "supervoxels",
            "affinities": "affinities",
        },
        {
            "use": "agglomeration",
            "output": "agglomeration",
            "graph": "region_graph",
            "threshold": v.threshold,
            "floor": v.floor,
        },
        {
            "use": "relabel",
            "output": "segments",
            "labels": "supervoxels",
            "table": "agglomeration",
            "part": "remap",
        },
    ]
    if v.given:
        made = [entry["output"] for entry in entries].index("supervoxels")
        del entries[: made + 1]
    grid = {"bounds": v.bounds, "chunk": case.chunk}
    return [STAGES[e.pop("use")].model_validate({**e, **grid}) for e in entries]


def run(case: Case, layers: dict[str, NDArray[Any]]) -> Result:
    """Run the stages of a case on the layers that it is given."""
    memory = Memory(layers, case.volume.bounds)
    memory.run(stages(case), random.Random(case.order))
    table = memory.records["agglomeration", "0_0_0_0"].parts["history"]
    columns = (table[name].tolist() for name in ("loser", "winner", "affinity", "area"))
    graph = {k: t for (layer, k), t in memory.records.items() if layer == "region_graph"}
    return Result(
        memory.volumes["supervoxels"],
        added_up([table for key, table in graph.items() if key.startswith("0_")]),
        [Merge(*row, 0) for row in zip(*columns, strict=True)],
        memory.volumes["segments"],
    )


def added_up(tables: list[Table]) -> Graph:
    """Add up the region graphs of all chunks, in plain numbers."""
    regions: dict[int, Region] = {}
    contacts: dict[tuple[int, int], Contact] = {}
    for table in tables:
        columns = {name: column.tolist() for name, column in table.items()}
        for row, name in enumerate(columns["ids"]):
            first, start, stop = (columns[c][row] for c in ("anchor", "start", "stop"))
            region = regions.setdefault(name, Region(first, start=start, stop=stop))
            region.first = min(region.first, first)
            region.size += columns["size"][row]
            region.coordinate_sum = _sum(
                region.coordinate_sum, columns["coordinate_sum"][row]
            )
            region.start = list(map(min, region.start, start))
            region.stop = list(map(max, region.stop, stop))
        for row, (a, b) in enumerate(columns["pairs"]):
            key = columns["key"][row]
            contact = contacts.setdefault((a, b), Contact(key))
            contact.key = min(contact.key, key)
            contact.affinity = _sum(contact.affinity, columns["affinity"][row])
            contact.area = _sum(contact.area, columns["area"][row])
    return Graph(regions, contacts)


def _sum(a: list[int], b: list[int]) -> list[int]:
    return [p + q for p, q in zip(a, b, strict=True)]
