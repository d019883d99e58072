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
    table = joined(tables)
    order = np.argsort(table["ids"], kind="stable")
    return {name: values[order] for name, values in table.items()}


def extents(run: Run) -> Table:
    """Add up what chunks hold."""
    from pipeline.kernels.components import Extents, merge_extents

    return merge_extents([Extents.from_table(rows(run, "cleft_extents"))]).to_table()
