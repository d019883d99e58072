"""The stages as they are run, and what they say, in the words of the definitions."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.agglomerate import REASONS, Merges, merge_history
from pipeline.kernels.region_graph import CLASSES
from pipeline.specs import Table
from pipeline.stages import STAGES
from pipeline.stages.agglomeration import MERGES, REFUSALS
from pipeline.stages.base import Stage
from pipeline.stages.octree import DownSweep, UpSweep

from .cases import MYELIN_THRESHOLD, Case
from .in_memory import Memory
from .oracle import Contact, Graph, Merge, Refusal, Region

ROUNDS = 25
"""Rounds of merging in partitions: more than these volumes need."""
SHARES = (1.0, 0.4, 0.15)
"""Limits of partitions, over those of nodes."""


@dataclass(frozen=True)
class Result:
    """What is compared."""

    supervoxels: NDArray[np.uint64]
    graph: Graph
    history: list[Merge]
    refused: list[Refusal]
    segments: NDArray[np.uint64]


def stages(case: Case) -> list[Stage]:
    """Return the stages of a case, from affinities or from supervoxels to segments."""
    v = case.volume
    watershed = {
        "affinities": "affinities",
        "low": v.low,
        "high": v.high,
        "size_threshold": v.size_threshold,
        "dust": v.dust,
        **{name: name for name in ("mask", "myelin") if name in v.masks},
        "myelin_threshold": MYELIN_THRESHOLD,
    }
    semantics = {"semantics": "semantics"} if v.rules else {}
    rules = asdict(v.rules) if v.rules else {"activation": 0}
    entries: list[dict[str, Any]] = [
        {"use": "basins", "output": "basins", **watershed},
        {"use": "basin_graph", "output": "basin_graph", "basins": "basins", **watershed},
        {
            "use": "supervoxel_table",
            "output": "supervoxel_table",
            "decisions": "basin_graph",
            "id_chunk": v.id_chunk,
        },
        {
            "use": "relabel",
            "output": "supervoxels",
            "labels": "basins",
            "table": "supervoxel_table",
        },
        {
            "use": "region_graph",
            "output": "region_graph",
            "supervoxels": "supervoxels",
            "affinities": "affinities",
            **semantics,
        },
        {
            "use": "agglomeration",
            "output": "agglomeration",
            "graph": "region_graph",
            "threshold": v.threshold,
            "floor": v.floor,
            "constraints": rules,
        },
        {"use": "segment_table", "output": "segment_table", "decisions": "agglomeration"},
        {
            "use": "relabel",
            "output": "segments",
            "labels": "supervoxels",
            "table": "segment_table",
        },
    ]
    if v.given:
        made = [entry["output"] for entry in entries].index("supervoxels")
        del entries[: made + 1]
    grid = {"bounds": v.bounds, "chunk": case.chunk}
    made = [STAGES[e.pop("use")].model_validate({**e, **grid}) for e in entries]
    share = SHARES[case.order % len(SHARES)]
    return [limited(stage, share) for stage in made] if v.in_partitions else made


def limited(stage: Stage, share: float) -> Stage:
    """Let an octree end below its top, and the rest be merged in partitions.

    Parameters
    ----------
    stage : Stage
        Any; others are left as they are.
    share : float
        Limit of a partition over that of a node: the less, the more partitions.
    """
    if not isinstance(stage, (UpSweep, DownSweep)) or stage.grid.height == 0:
        return stage
    limit = 0.999 * stage.node_bytes(stage.grid.height) / 1e9
    limits = {"node_limit_gb": limit, "partition_limit_gb": share * limit}
    return stage.model_copy(update={**limits, "rounds": ROUNDS})


def run(case: Case, layers: dict[str, NDArray[Any]]) -> Result:
    """Run the stages of a case on the layers that it is given."""
    memory = Memory(layers, case.volume.bounds, case.memory_order)
    memory.run(stages(case), random.Random(case.order), case.volume.threads)
    graphs = records_of(memory, "region_graph")
    decisions = records_of(memory, "agglomeration")
    return Result(
        memory.volumes["supervoxels"],
        added_up(list(graphs)),
        history([node.parts[MERGES] for node in decisions if MERGES in node.parts]),
        refused([node.parts[REFUSALS] for node in decisions if REFUSALS in node.parts]),
        memory.volumes["segments"],
    )


def records_of(memory: Memory, layer: str) -> list[Any]:
    """Return the records of a layer."""
    return [value for (of, _), value in memory.records.items() if of == layer]


def history(tables: list[Table]) -> list[Merge]:
    """Put the merges of all nodes in order, as a sweep over thresholds does."""
    merges = merge_history([Merges.from_table(table) for table in tables])
    columns = (merges.loser, merges.winner, merges.affinity, merges.area)
    return [Merge(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def refused(tables: list[Table]) -> list[Refusal]:
    """Gather the refusals of all nodes, by the place of their first face."""
    found = []
    for table in tables:
        names = (
            "names",
            "sizes",
            "members",
            "classes",
            "affinity",
            "area",
            "key",
            "reason",
        )
        columns = (table[name].tolist() for name in names)
        for *pairs, classes, affinity, area, key, reason in zip(*columns, strict=True):
            known = tuple(None if c == 255 else CLASSES[c] for c in classes)
            found.append(
                Refusal(*map(tuple, pairs), known, affinity, area, key, REASONS[reason])
            )
    return sorted(found, key=lambda refusal: refusal.key)


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
            region.classes = _sum(region.classes, columns["classes"][row])
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
