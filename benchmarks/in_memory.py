"""Stages run to their end in memory: no files, no compression, no queue."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
from harness import Meter
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3
from pipeline.recipe import Recipe
from pipeline.specs import (
    Partitioned,
    Read,
    Record,
    Records,
    Region,
    Table,
    VolumeSpec,
)
from pipeline.stages.base import Stage

_RECIPE = Path(__file__).parents[1] / "dags/recipes/block.toml"


def segmentation_stages(
    bounds: Bbox, chunk: Vec3, *, node_limit_gb: float | None = None, **watershed: float
) -> tuple[Stage, ...]:
    """Return the stages of the example recipe from affinities to a segmentation.

    Parameters
    ----------
    bounds : Bbox
        Of the affinities.
    chunk : Vec3
        Extent of a chunk [voxel].
    node_limit_gb : float or None
        Memory that a node of the octree may take [GB].
    **watershed
        Fields of the stages that look at affinities, such as ``size_threshold``.
    """
    entries = tomllib.loads(_RECIPE.read_text())["stage"]
    outputs = [entry["output"] for entry in entries]
    wanted = entries[outputs.index("basins") : outputs.index("segmentation") + 1]
    # Storage chunks are the volume's form on disk, which nothing here is written to.
    form = {"storage_chunk": list(chunk)}
    limit = {} if node_limit_gb is None else {"node_limit_gb": node_limit_gb}
    return Recipe.parse(
        {
            "name": "block",
            "grid": {
                "bounds": {"start": list(bounds.start), "stop": list(bounds.stop)},
                "chunk": list(chunk),
                **limit,
            },
            "layers": {"affinities": ""},
            "stage": [
                {
                    **entry,
                    **(form if "storage_chunk" in entry else {}),
                    **(watershed if entry["use"] in ("basins", "basin_graph") else {}),
                }
                for entry in wanted
            ],
        }
    ).stages


class Layers:
    """Volumes and records, held.

    Parameters
    ----------
    bounds : Bbox
        Of every volume.
    volumes : mapping of str to array
        Layers that no stage writes, (x, y, z) or (x, y, z, channel).
    """

    def __init__(self, bounds: Bbox, volumes: Mapping[str, NDArray[Any]]) -> None:
        self.bounds = bounds
        self.volumes = dict(volumes)
        self.records: dict[str, dict[str, Table | Partitioned]] = {}

    def read(self, read: Read) -> Any:
        """Return what a stage reads, as the store would: arrays of its own."""
        if isinstance(read, list | Records):
            return [self.read(r) for r in read]
        if isinstance(read, Region):
            volume = self.volumes[read.layer]
            return np.asfortranarray(volume[read.box.slices(self.bounds.start)])
        record = self.records[read.layer][read.key]
        if read.part is None:
            return record
        if not isinstance(record, Partitioned):
            raise TypeError(f"record {read.key} of {read.layer} has no parts")
        return record.parts.get(read.part, {})

    def write(self, stage: Stage, target: Region | Record, value: Any) -> None:
        """Keep what a stage returned."""
        if isinstance(target, Region):
            if target.layer not in self.volumes:
                spec = stage.describe({name: _ids(self.bounds) for name in self.volumes})
                if not isinstance(spec, VolumeSpec):
                    raise TypeError(f"{target.layer} is no volume")
                shape = self.bounds.shape.astuple()
                self.volumes[target.layer] = np.zeros(shape, spec.dtype, order="F")
            self.volumes[target.layer][target.box.slices(self.bounds.start)] = value
        else:
            self.records.setdefault(target.layer, {})[target.key] = value


class Memory(Enum):
    """What counts as the memory of a task.

    Of a process that goes on from task to task, all that it holds. Otherwise free memory is
    given back to the system before each task, and what counts begins with the task. No
    worker gives memory back, and it makes the system clear the same pages again for every
    task, so their time is not that of a worker.
    """

    OF_PROCESS = auto()
    BEYOND_INPUTS = auto()
    WITH_INPUTS = auto()


def _bytes(value: Any) -> int:
    """Add up the arrays in what a task reads [byte]."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Partitioned):
        return _bytes(value.parts)
    if isinstance(value, Mapping):
        return sum(_bytes(v) for v in value.values())
    return sum(_bytes(v) for v in value) if isinstance(value, list) else 0


def _ids(bounds: Bbox) -> VolumeSpec:
    return VolumeSpec(
        dtype="uint64",
        bounds=bounds,
        voxel_size_nm=(6.0, 6.0, 30.0),
        kind_of_values="segmentation",
    )


def run(
    stages: Sequence[Stage],
    layers: Layers,
    meter: Meter,
    *,
    memory: Memory = Memory.OF_PROCESS,
) -> None:
    """Run stages to the end; only what they compute is measured, by output and level.

    Parameters
    ----------
    stages : sequence of Stage
        In their order.
    layers : Layers
        What they read, and where they write.
    meter : Meter
        Told the costs.
    memory : Memory
        What counts as the memory of a task.
    """
    for stage in stages:
        waves = stage.plan()
        for wave in waves:
            name = f"{stage.output} {wave.level}" if len(waves) > 1 else stage.output
            for key in wave:
                task = stage.task(key)
                inputs = {name: layers.read(r) for name, r in stage.reads(task).items()}
                if memory is not Memory.OF_PROCESS:
                    counts = memory is Memory.WITH_INPUTS
                    meter.rebase(_bytes(inputs) if counts else 0)
                with meter.phase(name):
                    value = stage.process(task, **inputs)
                layers.write(stage, stage.target(task), value)
