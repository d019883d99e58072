"""Mean-affinity agglomeration of the whole region graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from pipeline.geometry import Grid
from pipeline.kernels.agglomerate import agglomerate
from pipeline.kernels.region_graph import RegionGraph
from pipeline.specs import LayerSpec, Partitioned, Read, Record, RecordsSpec, Table
from pipeline.stages.base import Layer, Specs, Stage, Task, root_record


class Agglomeration(Stage):
    """Merges in order of mean affinity: one task, over the top of the region graph.

    The record has two parts: ``history``, the merges with their scores down to the
    floor, and ``remap``, the segment of every supervoxel at the threshold. Any threshold
    above the floor can be read from the history (`em sweep`).

    Parameters
    ----------
    graph : str
        Records of the region graph, over the same grid.
    threshold : float
        Contacts of this mean affinity or more are merged.
    floor : float
        The history goes on to this mean affinity, or to the threshold if that is lower.
    """

    name: ClassVar[str] = "agglomeration"
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {"graph": ("bounds", "chunk")}

    graph: Layer
    threshold: float = Field(default=0.3, ge=0, le=1)
    floor: float = Field(default=0.05, ge=0, le=1)

    def grid_at(self, level: int) -> Grid:
        """Return a grid of one chunk."""
        return Grid(self.bounds, self.bounds.shape)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the top."""
        return {"graph": root_record(self.graph, self.grid)}

    def process(self, task: Task, graph: Table) -> Partitioned:
        """Merge."""
        regions = RegionGraph.from_table(graph)
        history, _ = agglomerate(regions, threshold=min(self.floor, self.threshold))
        remap = history.at(self.threshold, regions.ids)
        return Partitioned({"history": history.to_table(), "remap": remap.to_table()})

    def target(self, task: Task) -> Record:
        """Write one record."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write a record."""
        return RecordsSpec()

    def memory(self, specs: Specs) -> int:
        """Estimate from the supervoxels that a volume of neuropil has [byte]."""
        return int(SUPERVOXEL_BYTES * self.bounds.volume / VOXELS_PER_SUPERVOXEL)


VOXELS_PER_SUPERVOXEL = 200
"""As many as the usual dust limit lets through at worst."""
SUPERVOXEL_BYTES = 6000
"""A supervoxel, its contacts, and the heap over them."""
