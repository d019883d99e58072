"""Mean-affinity agglomeration, up the octree, and the segment of every supervoxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from pipeline.kernels.agglomerate import Clusters, Constraints, MeanLinkage, agglomerate
from pipeline.kernels.partition import Unfinished
from pipeline.kernels.region_graph import RegionGraph
from pipeline.specs import Partitioned, Read, Record, Table
from pipeline.stages.base import Layer, Task
from pipeline.stages.octree import OUTCOMES, STATE, DownSweep, OpenBytes, UpSweep

MERGES = "merges"
"""Part of a node's record: the merges that it made."""
REFUSALS = "refusals"
"""Part: the merges that the constraints refused."""

AGGLOMERATION_OPEN_BYTES = OpenBytes(per_face_voxel=20.0)


class Agglomeration(UpSweep):
    """Merges supervoxels in order of mean affinity (Lu, Zlateski & Seung 2021).

    A node merges what is the best of both sides and goes on nowhere outside; the rest
    is its parent's. Two more parts of its record are ``merges``, with their contacts,
    down to the floor, and ``refusals``, what the constraints kept apart, where and why.
    Any threshold above the floor can be read from the merges (`em sweep`).

    Parameters
    ----------
    graph : str
        Records of the region graph, over the same grid.
    threshold : float
        Contacts of this mean affinity or more are merged.
    floor : float
        The history goes on to this mean affinity, or to the threshold if that is lower.
    constraints : Constraints
        What does not merge where the mean affinity is weak.
    """

    name: ClassVar[str] = "agglomeration"
    open_bytes: ClassVar[OpenBytes] = AGGLOMERATION_OPEN_BYTES
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {"graph": ("bounds", "chunk")}

    graph: Layer
    threshold: float = Field(default=0.2, ge=0, le=1)
    floor: float = Field(default=0.05, ge=0, le=1)
    constraints: Constraints = Constraints()

    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Read the chunk's region graph."""
        return {"graph": Record(self.graph, str(task.key))}

    def leaf(self, task: Task, *args: Any, graph: Table) -> Table:
        """Take every supervoxel as a cluster."""
        return Clusters.of(RegionGraph.from_table(graph)).to_table()

    def decide(
        self,
        task: Task,
        children: Sequence[Table],
        *,
        octants: Sequence[int],
        outward: Sequence[int],
    ) -> Partitioned:
        """Merge."""
        done = agglomerate(
            [Clusters.from_table(c) for c in children],
            threshold=self.threshold,
            floor=self.floor,
            constraints=self.constraints,
            octants=octants,
            outward=outward,
        )
        return Partitioned(
            {
                STATE: done.state.to_table(),
                OUTCOMES: done.outcomes.to_table(),
                MERGES: done.merges.to_table(),
                REFUSALS: done.refusals.to_table(),
            }
        )

    def linkage(self, scale: int) -> MeanLinkage:
        """Merge by mean affinity."""
        return MeanLinkage(self.threshold, self.floor, self.constraints, scale)

    def unfinished(self, scale: int, state: Table) -> Unfinished:
        """Leave what is open or waits."""
        return self.linkage(scale).unfinished(Clusters.from_table(state))


class SegmentTable(DownSweep):
    """The segment of every supervoxel, chunk by chunk.

    Parameters
    ----------
    decisions : str
        Records of the agglomeration, over the same grid.
    """

    name: ClassVar[str] = "segment_table"
    open_bytes: ClassVar[OpenBytes] = AGGLOMERATION_OPEN_BYTES
