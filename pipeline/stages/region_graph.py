"""The region graph: supervoxels, and the area and affinity of their contacts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Halo
from pipeline.kernels.region_graph import REGION_GRAPH_HALO, region_graph
from pipeline.specs import LayerSpec, Read, Record, RecordsSpec, Region, Table
from pipeline.stages.base import ChunkStage, Layer, Specs, Task
from pipeline.stages.volume import (
    AFFINITY_DTYPES,
    LABEL_DTYPES,
    expect_bounds,
    expect_volume,
)


class RegionGraphs(ChunkStage):
    """Who touches whom, over what area and with what affinity, as exact sums.

    A chunk owns the faces whose upper voxel it holds, so it reads one plane below itself
    and every face is counted once, whatever the chunk shape. The records of all chunks
    add up to the graph of the whole. Supervoxels hang together by faces, as those of the
    watershed do: one that does not would seem whole to a chunk that sees a piece of it.

    Parameters
    ----------
    supervoxels, affinities : str
        Volumes of ids and of three channels.
    semantics : str
        Volume of semantic labels: 0 unknown, 1 soma, 2 axon, 3 dendrite, 4 glia,
        5 vessel. Without it no supervoxel has a class.
    """

    name: ClassVar[str] = "region_graph"
    halo: ClassVar[Halo] = REGION_GRAPH_HALO
    bytes_per_voxel: ClassVar[float] = 12.0

    supervoxels: Layer
    affinities: Layer
    semantics: Layer = ""

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the volumes with one plane below."""
        return {field: Region(layer, task.read_box) for field, layer in self.inputs.items()}

    def process(
        self,
        task: Task,
        supervoxels: NDArray[Any],
        affinities: NDArray[Any],
        semantics: NDArray[np.uint8] | None = None,
    ) -> Table:
        """Measure the chunk."""
        return region_graph(
            supervoxels,
            affinities,
            box=task.box,
            read_box=task.read_box,
            bounds=task.bounds,
            semantics=semantics,
        ).to_table()

    def target(self, task: Task) -> Record:
        """Write the record of the chunk."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def check(self, specs: Specs) -> list[str]:
        """Check the volumes."""
        faults = [
            *expect_volume(self.name, specs, self.supervoxels, dtypes=LABEL_DTYPES),
            *expect_volume(
                self.name, specs, self.affinities, dtypes=AFFINITY_DTYPES, channels=3
            ),
            *expect_volume(self.name, specs, self.semantics, dtypes=("uint8",)),
        ]
        for layer in self.inputs.values():
            faults += expect_bounds(self.name, specs, layer, self.bounds)
        return faults
