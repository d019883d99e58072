"""Skeletons of segments: TEASAR by chunk, joined and cleared by shard."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.specs import LayerSpec, Skeleton, Skeletons, SkeletonsSpec, Table
from pipeline.stages.base import Specs, Task
from pipeline.stages.shards import FragmentStage, ShardStage, unpack


class SkeletonFragments(FragmentStage):
    """Centrelines of every segment in each chunk.

    Paths depend on what a chunk sees of a segment, so another chunking gives other
    paths; at a seam both sides end at the same vertex.

    Parameters
    ----------
    scale, const_nm : float
        Invalidation radius is ``scale * distance to boundary + const_nm``.
    dust_voxels : int
        Pieces smaller than this have no centreline [voxel].
    """

    name: ClassVar[str] = "skeleton_fragments"
    chunking: ClassVar[Literal["exact", "seams"]] = "seams"
    bytes_per_voxel: ClassVar[float] = 90.0

    scale: float = Field(default=4.0, gt=0)
    const_nm: float = Field(default=500.0, ge=0)
    dust_voxels: int = Field(default=50, ge=0)

    def pieces(
        self, task: Task, segmentation: NDArray[np.uint64]
    ) -> dict[int, dict[str, NDArray[Any]]]:
        """Skeletonise what the chunk sees."""
        from pipeline.kernels.centerline import centerlines

        found = centerlines(
            segmentation,
            voxel_size_nm=self.voxel_size_nm,
            start=task.read_box.start.astuple(),
            scale=self.scale,
            const_nm=self.const_nm,
            dust_voxels=self.dust_voxels,
        )
        return {
            segment: {"vertices": c.vertices, "edges": c.edges, "radius": c.radius}
            for segment, c in found.items()
        }


class CenterlineSkeletons(ShardStage):
    """Skeletons that Neuroglancer opens, one task per shard of ids.

    Parameters
    ----------
    dust_nm : float
        Components with less cable are dropped [nm].
    tick_nm : float
        Terminal twigs shorter than this are cut [nm].
    sharded : bool
        Whether a task writes one shard file, or files for each segment.
    """

    name: ClassVar[str] = "skeletons"
    chunking: ClassVar[Literal["exact", "seams"]] = "seams"

    dust_nm: float = Field(default=1000.0, ge=0)
    tick_nm: float = Field(default=500.0, ge=0)
    sharded: bool = True

    def process(self, task: Task, fragments: list[Table]) -> Skeletons:
        """Join the pieces of each segment."""
        from pipeline.kernels.centerline import Centerline, join

        result: dict[int, Skeleton] = {}
        for segment, pieces in unpack(fragments):
            parts = [Centerline(p["vertices"], p["edges"], p["radius"]) for p in pieces]
            whole = join(parts, dust_nm=self.dust_nm, tick_nm=self.tick_nm)
            if whole is not None:
                result[segment] = Skeleton(whole.vertices, whole.edges, whole.radius)
        return Skeletons(result)

    def describe(self, specs: Specs) -> LayerSpec:
        """Write skeletons."""
        return SkeletonsSpec(sharding=self.sharding if self.sharded else None)
