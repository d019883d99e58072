"""Ids replaced by a table: basins become supervoxels, supervoxels become segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.relabel import RemapTable, relabel
from pipeline.specs import Read, Record, Region, Table, VolumeSpec
from pipeline.stages.base import Layer, Specs, Task
from pipeline.stages.volume import (
    LABEL_DTYPES,
    VolumeStage,
    expect_bounds,
    expect_volume,
)


class Relabel(VolumeStage):
    """Applies a remap table, the last step of what was decided over the whole volume.

    Parameters
    ----------
    labels : str
        Volume of ids.
    table : str
        Records of a table for each chunk, over the same grid.
    """

    name: ClassVar[str] = "relabel"
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {"table": ("bounds", "chunk")}
    bytes_per_voxel: ClassVar[float] = 16.0

    labels: Layer
    table: Layer

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the ids and the rows for them."""
        return {
            "labels": Region(self.labels, task.box),
            "table": Record(self.table, str(task.key)),
        }

    def process(self, task: Task, labels: NDArray[Any], table: Table) -> NDArray[np.uint64]:
        """Replace."""
        return relabel(labels, RemapTable.from_table(table), threads=task.threads)

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write uint64 ids at the same voxel size."""
        labels = specs[self.labels]
        if not isinstance(labels, VolumeSpec):
            raise TypeError(f"{self.labels} holds {labels.kind}, and a volume is needed")
        return self.volume(
            dtype="uint64",
            voxel_size_nm=labels.voxel_size_nm,
            kind_of_values="segmentation",
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the ids and that the table is a record."""
        faults = expect_volume(self.name, specs, self.labels, dtypes=LABEL_DTYPES)
        faults += expect_bounds(self.name, specs, self.labels, self.bounds)
        table = specs.get(self.table)
        if table is not None and table.kind != "records":
            faults.append(f"{self.name}: {self.table} holds {table.kind}, not a table")
        return faults + super().check(specs)
