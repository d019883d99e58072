"""The region graph: supervoxels, and the area and affinity of their contacts."""

from __future__ import annotations

from typing import Any, ClassVar

from numpy.typing import NDArray

from pipeline.geometry import Halo
from pipeline.kernels.region_graph import (
    REGION_GRAPH_HALO,
    RegionGraph,
    merge_region_graphs,
    region_graph,
)
from pipeline.specs import Read, Region, Table
from pipeline.stages.base import Layer, OctreeStage, Specs, Task
from pipeline.stages.volume import (
    AFFINITY_DTYPES,
    LABEL_DTYPES,
    expect_bounds,
    expect_volume,
)


class RegionGraphs(OctreeStage):
    """Who touches whom, over what area and with what affinity, as exact sums.

    A chunk owns the faces whose upper voxel it holds, so it reads one plane below itself
    and every face is counted once, whatever the chunk shape.

    Parameters
    ----------
    supervoxels, affinities : str
        Volumes of ids and of three channels.
    """

    name: ClassVar[str] = "region_graph"
    halo: ClassVar[Halo] = REGION_GRAPH_HALO
    bytes_per_voxel: ClassVar[float] = 12.0

    supervoxels: Layer
    affinities: Layer

    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Read ids and affinities with one plane below."""
        return {
            "supervoxels": Region(self.supervoxels, task.read_box),
            "affinities": Region(self.affinities, task.read_box),
        }

    def leaf(
        self, task: Task, supervoxels: NDArray[Any], affinities: NDArray[Any]
    ) -> Table:
        """Measure the chunk."""
        return region_graph(
            supervoxels,
            affinities,
            box=task.box,
            read_box=task.read_box,
            bounds=task.bounds,
        ).to_table()

    def merge(self, children: list[Table]) -> Table:
        """Add up."""
        graphs = [RegionGraph.from_table(c) for c in children]
        return merge_region_graphs(graphs).to_table()

    def check(self, specs: Specs) -> list[str]:
        """Check both volumes."""
        return [
            *expect_volume(self.name, specs, self.supervoxels, dtypes=LABEL_DTYPES),
            *expect_volume(
                self.name, specs, self.affinities, dtypes=AFFINITY_DTYPES, channels=3
            ),
            *expect_bounds(self.name, specs, self.supervoxels, self.bounds),
            *expect_bounds(self.name, specs, self.affinities, self.bounds),
        ]
