"""Makes the golden files; run as a module to refresh them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3
from pipeline.reconstruction import Block, block_recipe
from tests.conformance.examples import EXAMPLES, SHAPE, World, finished

HERE = Path(__file__).parent
CHUNK = Vec3(19, 14, 9)

BLOCK = Block(
    source="block.h5:raw",
    bounds=Bbox.parse("40,24,8,720,536,108"),
    voxel_size_nm=(6.0, 6.0, 30.0),
    shift=Vec3(40, 24, 8),
    truth="block.h5:labels",
    truth_shift=Vec3(40, 24, 8),
    threshold=0.3,
    intensity_range=(0.0, 4095.0),
)

EXACT = (
    "ingest",
    "ingest ids",
    "basins",
    "basin_graph",
    "supervoxel_table",
    "relabel",
    "region_graph",
    "agglomeration",
    "segment_table",
    "downsample",
    "downsample ids",
    "overlaps",
)
"""Examples that are the same on every machine, given the same input."""


def digests() -> dict[str, str]:
    """Return the digest of every example, which no place changes."""
    nowhere = World("nowhere", "nowhere", "nowhere")
    return {name: e.stage(CHUNK, nowhere).digest for name, e in EXAMPLES.items()}


def checksums() -> dict[str, dict[str, str]]:
    """Return what some examples write."""
    with tempfile.TemporaryDirectory() as folder:
        world = World.of(arithmetic(), Path(folder) / "world")
        found = {}
        for name in EXACT:
            run = finished(EXAMPLES[name].recipe(CHUNK, world), Path(folder) / name)
            records = run.done_records(run.recipe.stages[-1])
            found[name] = {p: c for done in records for p, c in done.objects.items()}
    return found


def arithmetic() -> dict[str, NDArray[Any]]:
    """Return layers that no machine can round otherwise."""
    x, y, z = np.indices(SHAPE.astuple(), np.uint64)
    labels = ((x // 7 + 2 * (y // 5) + 5 * (z // 4)) % 11).astype(np.uint64)
    image = ((x * 7 + y * 13 + z * 29) % 251).astype(np.uint8)
    sixteenths = (np.stack([x * y + z, y * z + x, z * x + y], axis=3) * 7919) % 17
    return {
        "raw": image.astype(np.uint16) * 257,
        "image": image,
        "labels": labels,
        "parts": np.where(labels == 0, 0, labels * 16 + x // 9).astype(np.uint64),
        "classes": (labels % 6).astype(np.uint8),
        "mask": ((x + y + z) % 13 > 0).astype(np.uint8),
        "affinities": (sixteenths / 16).astype(np.float32),
        "ties": (sixteenths * 15).astype(np.uint8),
    }


GOLDEN: dict[str, Callable[[], Any]] = {
    "digests.json": digests,
    "block_recipe.json": lambda: block_recipe("golden", BLOCK),
    "examples.json": checksums,
}


def text(value: Any) -> str:
    """Write a value as its file holds it."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name, make in GOLDEN.items():
        (HERE / name).write_text(text(make()))
