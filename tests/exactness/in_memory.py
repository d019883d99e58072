"""Runs stages as a run does, chunk by chunk and wave by wave, in memory.

What a wave writes is seen only when the wave is over, and the order of its tasks is
drawn: tasks of a wave need nothing from one another, and a stage that breaks that promise
fails here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox
from pipeline.runtime.run import cut_halo
from pipeline.specs import (
    LayerSpec,
    Partitioned,
    Read,
    Record,
    Records,
    Region,
    Table,
    Value,
    VolumeSpec,
)
from pipeline.stages.base import Specs, Stage

VOXEL = (8.0, 8.0, 40.0)


class Memory:
    """Layers as arrays and tables.

    Parameters
    ----------
    volumes : dict of array
        Layers that are given, (x, y, z) or (x, y, z, channel).
    bounds : Bbox
        Box of them all.
    order : {"F", "C"}
        Memory order of the arrays that tasks read.
    """

    def __init__(
        self,
        volumes: dict[str, NDArray[Any]],
        bounds: Bbox,
        order: Literal["F", "C"] = "F",
    ) -> None:
        self.bounds = bounds
        self.order = order
        self.volumes: dict[str, NDArray[Any]] = {}
        self.written: dict[str, NDArray[np.bool_]] = {}
        self.records: dict[tuple[str, str], Table | Partitioned] = {}
        self.specs: Specs = {}
        for layer, array in volumes.items():
            spec = VolumeSpec(
                dtype=array.dtype.name,
                channels=array.shape[3] if array.ndim == 4 else 1,
                bounds=bounds,
                voxel_size_nm=VOXEL,
                kind_of_values="image",
            )
            self._create(layer, spec)
            self._write(Region(layer, bounds), array)

    def run(self, stages: Iterable[Stage], order: random.Random, threads: int = 1) -> None:
        """Run stages to their end, in a drawn order of the tasks of a wave."""
        for stage in stages:
            spec = stage.describe(self.specs)
            self._create(stage.output, spec)
            for wave in stage.plan():
                keys = list(wave)
                order.shuffle(keys)
                results = []
                for key in keys:
                    task = replace(stage.task(key), threads=threads)
                    reads = stage.reads(task).items()
                    value = stage.process(task, **{name: self.read(r) for name, r in reads})
                    target = stage.target(task)
                    results.append((target, cut_halo(stage, task, target, spec, value)))
                for target, value in results:
                    self._write(target, value)

    def read(self, read: Read) -> Any:
        """Return what a task reads, read-only as the store would."""
        if isinstance(read, list | Records):
            return [self.read(r) for r in read]
        if isinstance(read, Region):
            at = read.box.slices(self.bounds.start)
            assert self.bounds.contains(read.box), f"{read} is outside the bounds"
            assert self.written[read.layer][at].all(), f"{read} was not written"
            return _frozen(np.array(self.volumes[read.layer][at], order=self.order))
        value = self.records[read.layer, read.key]
        if isinstance(value, Partitioned):
            if read.part is not None:
                return _table(value.parts.get(read.part, {}))
            return Partitioned({part: _table(t) for part, t in value.parts.items()})
        assert read.part is None, f"{read} asks for a part of a table"
        return _table(value)

    def _create(self, layer: str, spec: LayerSpec) -> None:
        self.specs[layer] = spec
        if not isinstance(spec, VolumeSpec):
            return
        shape = self.bounds.shape.astuple()
        channels = (spec.channels,) if spec.channels > 1 else ()
        self.volumes[layer] = np.zeros((*shape, *channels), spec.dtype, order="F")
        self.written[layer] = np.zeros(shape, bool)

    def _write(self, target: Region | Record, value: Value) -> None:
        if isinstance(target, Region):
            at = target.box.slices(self.bounds.start)
            assert not self.written[target.layer][at].any(), f"{target} is written twice"
            self.volumes[target.layer][at] = value
            self.written[target.layer][at] = True
            return
        place = (target.layer, target.key)
        assert place not in self.records, f"{target} is written twice"
        assert isinstance(value, (dict, Partitioned)), f"{target} is not a record"
        self.records[place] = value


def _table(table: Table) -> Table:
    return {name: _frozen(np.array(table[name])) for name in sorted(table)}


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
