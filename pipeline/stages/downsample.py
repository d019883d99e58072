"""Coarser mips of a volume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.geometry import Bbox, ChunkKey, Grid, Vec3
from pipeline.specs import Read, Region, VolumeSpec
from pipeline.stages.base import ChunkStage, Layer, Specs, Task, Wave
from pipeline.stages.volume import chunk_faults


class Downsample(ChunkStage):
    """Writes the pyramid of a volume: a wave for each mip, from the one below it.

    Intensities are averaged and ids are the most frequent of their cell (tinybrain).
    Cells are counted from voxel 0 of the layer's scale, and chunks hold whole cells, so
    no voxel depends on the chunking.

    Parameters
    ----------
    layer : str
        Volume to coarsen; ``output`` is its name followed by ``/pyramid``.
    mips : int
        Number of coarser scales.
    factor : Vec3
        Voxels of a mip in one voxel of the next.
    """

    name: ClassVar[str] = "downsample"
    bytes_per_voxel: ClassVar[float] = 16.0

    layer: Layer
    mips: int = Field(default=3, ge=1, le=16)
    factor: Vec3 = Vec3(2, 2, 1)
    storage_chunk: Vec3 = Vec3(64, 64, 64)

    @model_validator(mode="after")
    def _names_its_layer(self) -> Downsample:
        if self.output != f"{self.layer}/pyramid":
            raise ValueError(f"output {self.output!r} is not {self.layer + '/pyramid'!r}")
        return self

    def _factor_at(self, mip: int) -> Vec3:
        return Vec3.of([f**mip for f in self.factor])

    def grid_at(self, level: int) -> Grid:
        """Return the grid of the mip of that number."""
        return Grid(self.bounds.coarser(self._factor_at(level)), self.chunk)

    def plan(self) -> list[Wave]:
        """Return a wave for each mip from 1."""
        return [Wave(self, mip) for mip in range(1, self.mips + 1)]

    def touches(self, key: ChunkKey, box: Bbox) -> bool:
        """Compare at mip 0."""
        fine = self.task(key).box.finer(self._factor_at(key.level))
        return not fine.intersection(box).is_empty

    def keys(self, level: int) -> Iterator[ChunkKey]:
        """Yield the chunks of a mip, x fastest."""
        for key in self.grid_at(level):
            yield ChunkKey(level, key.x, key.y, key.z)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the cells of the mip below."""
        below = self.bounds.coarser(self._factor_at(task.key.level - 1))
        box = below.intersection(task.box.finer(self.factor))
        return {"voxels": Region(self.layer, box, task.key.level - 1)}

    def process(self, task: Task, voxels: NDArray[Any]) -> NDArray[Any]:
        """Average, or take the most frequent id."""
        from pipeline.kernels.downsample import average, most_frequent

        below = self.bounds.coarser(self._factor_at(task.key.level - 1))
        start = below.intersection(task.box.finer(self.factor)).start
        reduce = most_frequent if self._holds_ids(voxels) else average
        return reduce(voxels, self.factor.astuple(), phase=(start % self.factor).astuple())

    @staticmethod
    def _holds_ids(voxels: NDArray[Any]) -> bool:
        return voxels.dtype.itemsize >= 4 and voxels.dtype.kind == "u"

    def target(self, task: Task) -> Region:
        """Write the mip into the layer itself."""
        return Region(self.layer, task.box, task.key.level)

    def describe(self, specs: Specs) -> VolumeSpec:
        """Return the layer with its further mips."""
        spec = specs[self.layer]
        if not isinstance(spec, VolumeSpec):
            raise TypeError(f"{self.layer} holds {spec.kind}, and a volume is needed")
        factors = tuple(self._factor_at(mip) for mip in range(self.mips + 1))
        return spec.model_copy(update={"factors": factors})

    def check(self, specs: Specs) -> list[str]:
        """Check that the layer is a volume with these bounds, and that chunks divide."""
        spec = specs.get(self.layer)
        if spec is None:
            return []
        if not isinstance(spec, VolumeSpec):
            return [f"downsample: {self.layer} holds {spec.kind}, and a volume is needed"]
        faults = []
        if spec.bounds != self.bounds:
            faults.append(
                f"downsample: bounds {self.bounds} are not those of {self.layer}, "
                f"{spec.bounds}; use those"
            )
        if spec.storage_chunk != self.storage_chunk:
            faults.append(
                f"downsample: storage chunk {self.storage_chunk} is not that of "
                f"{self.layer}, {spec.storage_chunk}; use that"
            )
        sharded = spec.shard is not None
        if sharded and spec.shard != self.chunk:
            faults.append(
                f"downsample: chunk {self.chunk} is not the shard of {self.layer}, "
                f"{spec.shard}; use that"
            )
        faults += chunk_faults(
            self.name, self.grid_at(1), self.storage_chunk, sharded=sharded
        )
        return faults
