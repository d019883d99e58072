"""Entries of recipes from a mask to a wiring diagram, and what no chunking may change."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.runtime.run import Run
from pipeline.specs import Record, Table
from pipeline.stages.components import joined

SHARDING = {"shard_bits": 1, "minishard_bits": 2}


def components(chunk: Any, mask: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the entries from a mask to measured components."""
    near = {"connectivity": fields.pop("connectivity", 26)}
    form = {"storage_chunk": list(chunk)}
    pieces = {"use": "component_pieces", "mask": mask, "output": "cleft_pieces"}
    return [
        {**pieces, "threshold": 0.62, **near, **form},
        {
            "use": "component_graph",
            "pieces": "cleft_pieces",
            "output": "cleft_graph",
            "dust": 3,
            **near,
            **fields,
        },
        {"use": "component_table", "decisions": "cleft_graph", "output": "cleft_table"},
        {
            "use": "relabel",
            "labels": "cleft_pieces",
            "table": "cleft_table",
            "output": "clefts",
            **form,
        },
        {
            "use": "component_extents",
            "components": "clefts",
            "output": "cleft_extents",
            "sharding": SHARDING,
        },
        {
            "use": "components",
            "fragments": "cleft_extents",
            "output": "cleft_list",
            "sharding": SHARDING,
        },
    ]


def rows(run: Run, layer: str, parts: str = "") -> Table:
    """Return all rows of the records of a layer by id, whatever the parts.

    With parts, only those whose name begins so.
    """
    tables = []
    for key in run.recipe.stage(layer).plan()[0]:
        record = run.store.read(Record(layer, str(key)))
        found = [record] if isinstance(record, dict) else []
        if not found:
            found = [t for name, t in record.parts.items() if name.startswith(parts)]
        tables += [t for t in found if len(t["ids"])]
    return _by_id(joined(tables))


def _by_id(table: Table) -> Table:
    """Put rows in order; what is the same in all, such as one cleft each, is left out."""
    order = np.argsort(table["ids"], kind="stable")
    return {
        name: values[order] for name, values in table.items() if len(np.unique(values)) > 1
    }


def extents(run: Run) -> Table:
    """Add up what chunks hold."""
    from pipeline.kernels.components import Extents, merge_extents

    return merge_extents([Extents.from_table(rows(run, "cleft_extents"))]).to_table()


VOXEL = [16.0, 16.0, 40.0]
WINDOW = [9, 8, 4]


def wiring(chunk: Any, mask: str, *, segments: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the entries from a mask to lines in a viewer.

    With a model, partners are by a net.
    """
    sharding = {"sharding": SHARDING}
    size = {"voxel_size_nm": VOXEL}
    use = "net_partners" if "model" in fields else "contact_partners"
    return [
        *components(chunk, mask),
        {
            "use": use,
            "clefts": "clefts",
            "components": "cleft_list",
            "segmentation": segments,
            "semantics": "classes",
            "output": "partners",
            "window": WINDOW,
            **size,
            **sharding,
            **fields,
        },
        {
            "use": "synapse_segments",
            "partners": "partners",
            "segmentation": segments,
            "output": "synapse_segments",
            "window": WINDOW,
            **size,
            **sharding,
        },
        {
            "use": "synapses",
            "fragments": "synapse_segments",
            "output": "synapses",
            **size,
            **sharding,
        },
        {
            "use": "synapse_cells",
            "synapses": "synapses",
            "output": "synapse_cells",
            "limit": 2,
            **sharding,
        },
        {
            "use": "connectome",
            "synapses": "synapses",
            "output": "connectome",
            **size,
            **sharding,
        },
        {
            "use": "annotations",
            "synapses": "synapses",
            "cells": "synapse_cells",
            "output": "annotations",
            "limit": 2,
            **size,
            **sharding,
        },
    ]


def cells(run: Run) -> Table:
    """Return what all cells of all levels show, by id: every synapse once."""
    stage = run.recipe.stage("synapse_cells")
    tables = []
    for wave in stage.plan():
        for key in wave:
            shown = run.store.read(Record("synapse_cells", str(key), "cell"))
            tables += [shown] if shown else []
    return _by_id(joined(tables))


def tables(run: Run) -> dict[str, Any]:
    """Read every file of the connectome."""
    from pipeline.layers.connectome import DIRECTIONS, ConnectomeReader

    reader = ConnectomeReader.open(run.store.location("connectome"))
    return {
        direction: [
            {n: rows[n] for n in rows.dtype.names if len(np.unique(rows[n])) > 1}
            for rows in reader.blocks(direction)
        ]
        for direction in DIRECTIONS
    }


def lines(run: Run) -> dict[str, str]:
    """Return the checksums of what is written of lines by id and by segment."""
    records = run.done_records(run.recipe.stage("annotations"))
    return {
        path: sum_
        for done in records
        for path, sum_ in done.objects.items()
        if not path.startswith("spatial")
    }
