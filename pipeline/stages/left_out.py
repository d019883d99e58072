"""Sections that a person leaves out of the masks of nets."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.kernels.misalignment import LEFT_OUT
from pipeline.specs import Read, Region, VolumeSpec
from pipeline.stages.base import Layer, Specs, Task
from pipeline.stages.volume import VolumeStage, expect_bounds, expect_volume, missing_mip


class LeftOut(VolumeStage):
    """Defects, and 8 where a section that is left out shows anything.

    `segmentation_masks` reads it in place of the defects alone, so that three sections in a
    row are masked in what nets say, whatever they are masked for.

    Parameters
    ----------
    image : str
        Aligned volume of uint8; 0 where there is no tissue.
    mip : int
        Mip of it that has the voxels of the output.
    defects : str
        Aligned volume of uint8 in these voxels, 0 where a section is whole. Empty for none.
    sections : tuple of int
        Which sections are left out [voxel].
    """

    name: ClassVar[str] = "left_out"

    image: Layer
    mip: int = Field(default=0, ge=0)
    defects: Layer = ""
    sections: tuple[int, ...]

    @property
    def read_mip(self) -> int:
        """Mip of the image."""
        return self.mip

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the same voxels."""
        reads: dict[str, Read] = {"image": Region(self.image, task.box, self.mip)}
        if self.defects:
            reads["defects"] = Region(self.defects, task.box)
        return reads

    def process(
        self,
        task: Task,
        image: NDArray[np.uint8],
        defects: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Mark the sections."""
        result = np.zeros(image.shape, np.uint8, order="F")
        if defects is not None:
            result |= defects
        for z in self.sections:
            if task.box.start.z <= z < task.box.stop.z:
                at = z - task.box.start.z
                result[..., at] |= (image[..., at] > 0) * np.uint8(LEFT_OUT)
        return result

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write the voxels of the image at the mip."""
        spec = specs[self.image]
        if not isinstance(spec, VolumeSpec):
            raise TypeError(f"{self.image} holds {spec.kind}, and a volume is needed")
        return self.volume(
            dtype="uint8",
            voxel_size_nm=spec.voxel_size_at(self.mip),
            kind_of_values="image",
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the layers, and that the sections are there."""
        spec = specs.get(self.image)
        if isinstance(spec, VolumeSpec) and self.mip >= len(spec.factors):
            return [missing_mip(self.name, self.image, spec, self.mip)]
        faults = [
            *super().check(specs),
            *expect_bounds(self.name, specs, self.image, self.bounds, mip=self.mip),
        ]
        for layer in filter(None, (self.image, self.defects)):
            faults += expect_volume(self.name, specs, layer, dtypes=("uint8",))
        known = specs.get(self.defects)
        if isinstance(spec, VolumeSpec) and isinstance(known, VolumeSpec):
            size = spec.voxel_size_at(self.mip)
            if known.voxel_size_nm != size:
                faults.append(
                    f"{self.name}: voxels of {self.defects} are {known.voxel_size_nm} nm, "
                    f"not {size} as of {self.image} at mip {self.mip}; give those"
                )
        ends = (self.bounds.start.z, self.bounds.stop.z)
        beyond = [z for z in self.sections if not ends[0] <= z < ends[1]]
        if beyond:
            faults.append(
                f"{self.name}: there is no section {', '.join(map(str, beyond))}; sections "
                f"go from {ends[0]} to {ends[1] - 1}"
            )
        return faults
