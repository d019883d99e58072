"""Copies a source, whatever its format, into a Precomputed volume."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Vec3
from pipeline.specs import Read, Region, VolumeSpec, VoxelSize
from pipeline.stages.base import Layer, Specs, Task
from pipeline.stages.volume import VolumeStage


class Ingest(VolumeStage):
    """Writes an image or a segmentation from a source.

    ``bounds`` are in voxels of the output; the voxel ``v`` of the output is the voxel
    ``v - shift`` of the source.

    Parameters
    ----------
    source : str
        Layer that names the source.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    shift : Vec3
        Offset of the output from the source [voxel].
    kind_of_values : {"image", "segmentation"}
        Intensities become uint8, ids become uint64.
    intensity_range : (float, float) or None
        Values that become 0 and 255; what lies beyond is clipped. Needed for every
        image that is not uint8.
    """

    name: ClassVar[str] = "ingest"

    source: Layer
    voxel_size_nm: VoxelSize
    shift: Vec3 = Vec3(0, 0, 0)
    kind_of_values: Literal["image", "segmentation"] = "image"
    intensity_range: tuple[float, float] | None = None

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the same voxels of the source."""
        return {"source": Region(self.source, task.box.shifted(Vec3(0, 0, 0) - self.shift))}

    def process(self, task: Task, source: NDArray[Any]) -> NDArray[Any]:
        """Turn the values into those of the layer.

        Raises
        ------
        DataError
            If a value is NaN or infinite, or an id is negative.
        """
        if source.dtype.kind == "f" and not np.isfinite(source).all():
            at = np.argwhere(~np.isfinite(source))[0]
            raise DataError(
                f"ingest: {self.source} holds {source[tuple(at)]} at voxel "
                f"{task.box.start + Vec3.of([int(v) for v in at[:3]])}; "
                "replace it in the source"
            )
        if self.kind_of_values == "segmentation":
            if source.dtype.kind == "i" and source.min() < 0:
                raise DataError(
                    f"ingest: {self.source} holds the id {source.min()} in {task.box}; "
                    "ids are 0 (background) or more"
                )
            return source.astype(np.uint64, order="F")
        if self.intensity_range is None:
            return np.asfortranarray(source)
        low, high = self.intensity_range
        scaled = (source.astype(np.float64) - low) * (255.0 / (high - low))
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8, order="F")

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write uint8 intensities or uint64 ids."""
        return self.volume(
            dtype="uint64" if self.kind_of_values == "segmentation" else "uint8",
            voxel_size_nm=self.voxel_size_nm,
            kind_of_values=self.kind_of_values,
        )

    def check(self, specs: Specs) -> list[str]:
        """Check that the source can become what is asked for."""
        faults = super().check(specs)
        spec = specs.get(self.source)
        if not isinstance(spec, VolumeSpec):
            return faults
        wanted = self.bounds.shifted(Vec3(0, 0, 0) - self.shift)
        if not spec.bounds.contains(wanted):
            faults.append(
                f"ingest: bbox {self.bounds} is outside the source {self.source}, which "
                f"holds {spec.bounds.shifted(self.shift)}; give a box within it"
            )
        if spec.channels != 1:
            faults.append(f"ingest: {self.source} has {spec.channels} channels, not one")
        floating = np.dtype(spec.dtype).kind == "f"
        if self.kind_of_values == "segmentation" and floating:
            faults.append(f"ingest: ids of {self.source} are {spec.dtype}, not integers")
        if (
            self.kind_of_values == "image"
            and spec.dtype != "uint8"
            and self.intensity_range is None
        ):
            faults.append(
                f"ingest: {self.source} is {spec.dtype} and images are uint8; give the "
                "values that become 0 and 255 with --intensity-range LOW,HIGH"
            )
        if self.intensity_range and not self.intensity_range[0] < self.intensity_range[1]:
            faults.append(
                f"ingest: intensity range {self.intensity_range} is empty; give LOW < HIGH"
            )
        if not all(0 < s < math.inf for s in self.voxel_size_nm):
            faults.append(
                f"ingest: voxel size {self.voxel_size_nm} nm is not positive and "
                "finite; give x,y,z"
            )
        return faults
