"""Maps of what is still misaligned, and the masks that follow for nets."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.misalignment import (
    SLIP,
    STEP,
    aligned_blocks,
    block_correlation,
    classify,
)
from pipeline.specs import Read, Region, VolumeSpec
from pipeline.stages.base import Layer, Specs, Task
from pipeline.stages.volume import VolumeStage, expect_volume, missing_mip

_CONSECUTIVE = 3


class Misalignments(VolumeStage):
    """Slips and steps of an aligned image: 1 a slip, 2 a step to the section before.

    A voxel is a block of ``block`` x ``block`` pixels. Blocks are compared with those of
    the nearest sections that show tissue there, up to ``distance`` away, and vote with the
    blocks around them; see `pipeline.kernels.misalignment`.

    Parameters
    ----------
    image : str
        Volume of uint8 intensities; 0 where there is no tissue.
    mip : int
        Mip that is compared.
    block : int
        Extent of a block [pixel].
    least : float
        Correlation above which blocks are alike.
    around : int
        Blocks along each axis that vote; odd.
    distance : int
        How far neighbours may be [section].
    voxel_size_nm : (x, y, z)
        Of the image at that mip.
    """

    name: ClassVar[str] = "misalignments"
    bytes_per_voxel: ClassVar[float] = 40.0

    image: Layer
    mip: int = Field(default=0, ge=0)
    block: int = Field(default=8, ge=2)
    least: float = Field(default=0.1, gt=-1, lt=1)
    around: int = Field(default=5, ge=1)
    distance: int = Field(default=5, ge=1, le=16)
    voxel_size_nm: tuple[float, float, float]

    @property
    def read_mip(self) -> int:
        """Mip that is compared."""
        return self.mip

    def _wide(self, task: Task) -> Bbox:
        """Return the blocks that have a say."""
        # The high-pass sees two pixels beyond: one block more.
        across = self.around // 2 + 1
        around = Vec3(across, across, 2 * self.distance)
        return Bbox(task.box.start - around, task.box.stop + around).intersection(
            task.bounds
        )

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the blocks around, of the sections around."""
        fine = self._wide(task).finer(Vec3(self.block, self.block, 1))
        return {"image": Region(self.image, fine, self.mip)}

    def process(self, task: Task, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Classify every section of the chunk."""
        wide, block = self._wide(task), self.block
        shape = (wide.shape.x, block, wide.shape.y, block, wide.shape.z)
        shown = (image > 0).reshape(shape).mean(axis=(1, 3)) >= 0.5

        @cache
        def is_aligned(low: int, high: int) -> NDArray[np.int8]:
            correlation = block_correlation(image[..., low], image[..., high], block)
            return aligned_blocks(correlation, least=self.least, around=self.around)

        mine = task.box.slices(wide.start)
        result = np.zeros(task.box.shape.astuple(), np.uint8, order="F")
        for z in range(task.box.shape.z):
            section = z + task.box.start.z - wide.start.z
            found = classify(is_aligned, shown, section, self.distance)
            result[..., z] = found[mine[0], mine[1]]
        return result

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write a voxel for each block."""
        x, y, z = self.voxel_size_nm
        return self.volume(
            dtype="uint8",
            voxel_size_nm=(x * self.block, y * self.block, z),
            kind_of_values="image",
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the image, and that blocks lie within it."""
        faults = [
            *super().check(specs),
            *expect_volume(self.name, specs, self.image, dtypes=("uint8",)),
        ]
        spec = specs.get(self.image)
        if not isinstance(spec, VolumeSpec):
            return faults
        if self.mip >= len(spec.factors):
            return [*faults, missing_mip(self.name, self.image, spec, self.mip)]
        if spec.voxel_size_at(self.mip) != self.voxel_size_nm:
            faults.append(
                f"{self.name}: voxels of {self.image} at mip {self.mip} are "
                f"{spec.voxel_size_at(self.mip)} nm, not {self.voxel_size_nm}; give those"
            )
        fine = self.bounds.finer(Vec3(self.block, self.block, 1))
        if not spec.bounds_at(self.mip).contains(fine):
            faults.append(
                f"{self.name}: blocks of {self.bounds} cover {fine} of {self.image}, which "
                f"holds {spec.bounds_at(self.mip)} at mip {self.mip}; give bounds within it"
            )
        return faults


class SegmentationMasks(VolumeStage):
    """What nets should not see, or should not say: 1 to keep, 0 to mask.

    The *input* mask takes out slips, defects, and what shows nothing. The *output* mask
    takes out steps, on both sides, and what the input mask takes out of three sections
    that follow one another (Macrina et al. 2021).

    Parameters
    ----------
    image : str
        Aligned volume of uint8.
    mip : int
        Mip of it that has the voxels of the masks.
    kind : {"input", "output"}
        Which mask.
    defects : str
        Aligned volume of uint8, 0 where a section is whole. Empty for none.
    defect_block : int
        Voxels of the masks in a voxel of it, along x and y.
    misalignments : str
        Volume written by `misalignments`. Empty for none.
    coarse_misalignments : str
        Another one, of coarser blocks. Empty for none.
    block, coarse_block : int
        Voxels of the masks in a voxel of the maps.
    """

    name: ClassVar[str] = "segmentation_masks"
    bytes_per_voxel: ClassVar[float] = 4.0

    image: Layer
    mip: int = Field(default=0, ge=0)
    kind: Literal["input", "output"]
    defects: Layer = ""
    misalignments: Layer = ""
    coarse_misalignments: Layer = ""
    defect_block: int = Field(default=1, ge=1)
    block: int = Field(default=8, ge=1)
    coarse_block: int = Field(default=32, ge=1)

    @property
    def read_mip(self) -> int:
        """Mip of the image."""
        return self.mip

    def _wide(self, task: Task) -> Bbox:
        if self.kind == "input":
            return task.box
        along = Vec3(0, 0, _CONSECUTIVE - 1)
        return Bbox(task.box.start - along, task.box.stop + along).intersection(task.bounds)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the same voxels; for the output mask, those of two sections around too."""
        wide = self._wide(task)
        reads: dict[str, Read] = {"image": Region(self.image, wide, self.mip)}
        for name, layer, block in self._maps:
            limit = self.bounds.coarser(Vec3(block, block, 1))
            box = wide.coarser(Vec3(block, block, 1)).intersection(limit)
            reads[name] = Region(layer, box)
        return reads

    @property
    def _maps(self) -> list[tuple[str, str, int]]:
        maps = [
            ("defects", self.defects, self.defect_block),
            ("misalignments", self.misalignments, self.block),
            ("coarse_misalignments", self.coarse_misalignments, self.coarse_block),
        ]
        return [m for m in maps if m[1]]

    def process(
        self,
        task: Task,
        image: NDArray[np.uint8],
        defects: NDArray[np.uint8] | None = None,
        misalignments: NDArray[np.uint8] | None = None,
        coarse_misalignments: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Mask."""
        wide = self._wide(task)
        hidden: NDArray[np.bool_] = np.asarray(image == 0)
        wrong = np.zeros(image.shape, np.uint8)
        given = {
            "defects": defects,
            "misalignments": misalignments,
            "coarse_misalignments": coarse_misalignments,
        }
        for name, _, block in self._maps:
            found = given[name]
            assert found is not None
            there = self._finer(found, wide, block)
            if name == "defects":
                hidden |= there > 0
            else:
                wrong |= there
        hidden = np.logical_or(hidden, (wrong & SLIP) > 0)
        if self.kind == "input":
            return np.asfortranarray((~hidden).astype(np.uint8))
        masked = _in_a_row(hidden)
        step = np.asarray((wrong & STEP) > 0, bool)
        # The net reads a step from both sides.
        beside = np.concatenate([step[:, :, 1:], np.zeros_like(step[:, :, :1])], axis=2)
        masked = masked | step | beside
        core = task.box.slices(wide.start)
        return np.asfortranarray(np.logical_not(masked)[core].astype(np.uint8))

    def _finer(self, found: NDArray[np.uint8], wide: Bbox, block: int) -> NDArray[np.uint8]:
        """Repeat the values of blocks over the voxels of a box."""
        limit = self.bounds.coarser(Vec3(block, block, 1))
        start = wide.coarser(Vec3(block, block, 1)).intersection(limit).start
        x, y = (
            np.clip(np.arange(a, b) // block - first, 0, n - 1)
            for a, b, first, n in (
                (wide.start.x, wide.stop.x, start.x, found.shape[0]),
                (wide.start.y, wide.stop.y, start.y, found.shape[1]),
            )
        )
        return found[np.ix_(x, y)]

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write the voxels of the image."""
        spec = specs[self.image]
        if not isinstance(spec, VolumeSpec):
            raise TypeError(f"{self.image} holds {spec.kind}, and a volume is needed")
        return self.volume(
            dtype="uint8",
            voxel_size_nm=spec.voxel_size_at(self.mip),
            kind_of_values="image",
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the layers."""
        faults = super().check(specs)
        layers = (self.image, self.defects, self.misalignments, self.coarse_misalignments)
        for layer in filter(None, layers):
            faults += expect_volume(self.name, specs, layer, dtypes=("uint8",))
        image = specs.get(self.image)
        if isinstance(image, VolumeSpec) and self.mip >= len(image.factors):
            return [*faults, missing_mip(self.name, self.image, image, self.mip)]
        for name, layer, block in self._maps:
            spec = specs.get(layer)
            if not isinstance(spec, VolumeSpec) or not isinstance(image, VolumeSpec):
                continue
            x, y, z = image.voxel_size_at(self.mip)
            if spec.voxel_size_nm != (x * block, y * block, z):
                faults.append(
                    f"{self.name}: voxels of {layer} ({name}) are {spec.voxel_size_nm} nm, "
                    f"not {block} of {self.image}; give the block that fits"
                )
        return faults


def _in_a_row(hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return voxels that are hidden with two more sections in a row."""
    result = np.zeros(hidden.shape, bool)
    n = hidden.shape[2]
    for first in range(n - _CONSECUTIVE + 1):
        run = np.asarray(hidden[:, :, first : first + _CONSECUTIVE].all(axis=2))
        result[:, :, first : first + _CONSECUTIVE] |= run[..., None]
    return result
