"""Surface meshes of segments: marching cubes by chunk, welded and simplified by shard."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.geometry import Vec3
from pipeline.specs import LayerSpec, Mesh, Meshes, MeshesSpec, Table, VoxelSize
from pipeline.stages.base import Specs, Task
from pipeline.stages.shards import FragmentStage, ShardStage, unpack


class MeshFragments(FragmentStage):
    """Triangles of every segment in each chunk, unsimplified.

    A chunk owns the cubes whose lower corner it holds, and those between its first
    voxels and the outside where it lies at the bounds: there surfaces are closed.
    Simplifying waits for the whole segment, so that no seam can show.
    """

    name: ClassVar[str] = "mesh_fragments"

    def pieces(
        self, task: Task, segmentation: NDArray[np.uint64]
    ) -> dict[int, dict[str, NDArray[Any]]]:
        """Triangulate, with a plane of background where the bounds end."""
        from pipeline.kernels.surface_mesh import surfaces

        before = [
            int(a == b) for a, b in zip(task.box.start, task.bounds.start, strict=True)
        ]
        after = [int(a == b) for a, b in zip(task.box.stop, task.bounds.stop, strict=True)]
        padded = np.pad(segmentation, list(zip(before, after, strict=True)))
        found = surfaces(
            padded,
            voxel_size_nm=self.voxel_size_nm,
            start=(task.read_box.start - Vec3.of(before)).astuple(),
        )
        return {
            segment: {"vertices": vertices, "faces": faces}
            for segment, (vertices, faces) in found.items()
        }


class SurfaceMeshes(ShardStage):
    """Surface meshes that Neuroglancer opens, one task per shard of ids.

    Parameters
    ----------
    form : {"multiresolution", "legacy"}
        Draco at several levels of detail, or single-resolution with manifests.
    voxel_size_nm : (x, y, z)
        Voxel that the pieces were computed at [nm].
    dust_um3 : float
        Segments that enclose less have no mesh [um^3].
    reduction : int
        How many times fewer triangles the finest level has than marching cubes gave.
    max_error_nm : float
        Farthest that simplification moves a vertex of the finest level, and half as far as
        for the next [nm].
    levels_of_detail : int
        Levels of a multiresolution mesh, each with a quarter of the triangles.
    sharded : bool
        Whether a task writes one shard file, or files for each segment.
    """

    name: ClassVar[str] = "meshes"

    form: Literal["multiresolution", "legacy"] = "multiresolution"
    voxel_size_nm: VoxelSize
    dust_um3: float = Field(default=0.01, ge=0)
    reduction: int = Field(default=10, ge=1)
    max_error_nm: float = Field(default=30.0, gt=0)
    levels_of_detail: int = Field(default=3, ge=1, le=8)
    sharded: bool = True

    def process(self, task: Task, fragments: list[Table]) -> Meshes:
        """Weld, clear dust, simplify."""
        from pipeline.kernels.surface_mesh import enclosed_volume, simplify, weld

        result: dict[int, list[Mesh]] = {}
        for segment, pieces in unpack(fragments):
            vertices, faces = weld([(p["vertices"], p["faces"]) for p in pieces])
            if enclosed_volume(vertices, faces) < self.dust_um3 * 1e9:
                continue
            levels = []
            wanted = 1 if self.form == "legacy" else self.levels_of_detail
            for level in range(wanted):
                vertices, faces = simplify(
                    vertices,
                    faces,
                    reduction=self.reduction if level == 0 else 4,
                    max_error_nm=self.max_error_nm * 2**level,
                )
                if len(faces) == 0:
                    break
                levels.append(Mesh(vertices, faces))
            if levels:
                result[segment] = levels
        return Meshes(result)

    def describe(self, specs: Specs) -> LayerSpec:
        """Write meshes."""
        return MeshesSpec(
            form=self.form,
            voxel_size_nm=self.voxel_size_nm,
            sharding=self.sharding if self.sharded else None,
        )

    def check(self, specs: Specs) -> list[str]:
        """Check that shards go with the form."""
        faults = super().check(specs)
        if self.form == "legacy" and self.sharded:
            faults.append(
                f"{self.name}: legacy meshes of {self.output} are files per segment; "
                'set sharded = false or form = "multiresolution"'
            )
        return faults
