"""How many voxels every segment shares with every object of the truth."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.specs import Read, Region, Table, VolumeSpec
from pipeline.stages.base import Layer, OctreeStage, Specs, Task
from pipeline.stages.volume import LABEL_DTYPES, expect_bounds, expect_volume


class Overlaps(OctreeStage):
    """The contingency table behind VOI and Rand scores, added up over the octree.

    Parameters
    ----------
    segmentation, truth : str
        Volumes of ids with the same voxels.
    """

    name: ClassVar[str] = "overlaps"
    bytes_per_voxel: ClassVar[float] = 32.0

    segmentation: Layer
    truth: Layer

    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Read both."""
        return {
            "segmentation": Region(self.segmentation, task.box),
            "truth": Region(self.truth, task.box),
        }

    def leaf(self, task: Task, segmentation: NDArray[Any], truth: NDArray[Any]) -> Table:
        """Count the chunk."""
        from pipeline.metrics.overlap import contingency

        table = contingency(segmentation, truth)
        return {"segment": table.segment, "truth": table.truth, "count": table.count}

    def merge(self, children: list[Table]) -> Table:
        """Add up."""
        from pipeline.metrics.overlap import ContingencyTable, merge

        table = merge(
            [ContingencyTable(c["segment"], c["truth"], c["count"]) for c in children]
        )
        return {"segment": table.segment, "truth": table.truth, "count": table.count}

    def check(self, specs: Specs) -> list[str]:
        """Check that both are ids over the same voxels."""
        faults = []
        for layer in (self.segmentation, self.truth):
            faults += expect_volume(self.name, specs, layer, dtypes=LABEL_DTYPES)
            faults += expect_bounds(self.name, specs, layer, self.bounds)
        a, b = specs.get(self.segmentation), specs.get(self.truth)
        if (
            isinstance(a, VolumeSpec)
            and isinstance(b, VolumeSpec)
            and not np.allclose(a.voxel_size_nm, b.voxel_size_nm)
        ):
            faults.append(
                f"{self.name}: voxels of {self.segmentation} are {a.voxel_size_nm} nm and "
                f"those of {self.truth} {b.voxel_size_nm} nm; give truth of the same voxels"
            )
        return faults
