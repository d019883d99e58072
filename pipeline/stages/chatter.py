"""Sections without the bands that a vibrating knife leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.geometry import Bbox, Vec3
from pipeline.specs import Read, Region, VolumeSpec
from pipeline.stages.base import Layer, Specs, Task
from pipeline.stages.volume import VolumeStage, expect_bounds, expect_volume, missing_mip

if TYPE_CHECKING:
    from pipeline.kernels.chatter import ChatterFilter

_LONGEST = 150
"""Pixels from one band to the next that are still damped."""


class Chatter(VolumeStage):
    """An image whose bands of one orientation and of a range of wavelengths are damped.

    Bands within the range, turned by no more than half of `spread_degrees`, are taken away;
    those of three times the longest, or half the shortest, wavelength are kept, and so are
    those turned by 45 degrees and more. Worked out in squares of a fixed grid, whatever the
    chunks, so that the result does not depend on them to the last bit; a square reads three
    of the longest wavelengths around it. Where the image is 0 it stays so.

    Parameters
    ----------
    image : str
        Volume of uint8 intensities, of sections; 0 where there is no tissue.
    mip : int
        Mip of it that is damped; ``bounds`` are in its voxels.
    orientation_degrees : float
        Of the bands, from x towards y: 0 for bands along x, 90 for bands along y.
    shortest_nm, longest_nm : float
        From one band to the next [nm].
    spread_degrees : float
        How far bands may be turned from the orientation.
    block : int
        Extent of the squares [pixel].
    voxel_size_nm : (x, y, z)
        Of the image at that mip.
    """

    name: ClassVar[str] = "chatter"

    image: Layer
    mip: int = Field(default=0, ge=0)
    orientation_degrees: float = Field(ge=-180, le=180)
    shortest_nm: float = Field(gt=0)
    longest_nm: float = Field(gt=0)
    spread_degrees: float = Field(default=10.0, gt=0, le=40)
    block: int = Field(default=512, ge=8)
    voxel_size_nm: tuple[float, float, float]

    @property
    def read_mip(self) -> int:
        """Mip that is damped."""
        return self.mip

    def _filter(self) -> ChatterFilter:
        from pipeline.kernels.chatter import ChatterFilter

        pixel = self.voxel_size_nm[0]
        return ChatterFilter(
            self.orientation_degrees,
            self.shortest_nm / pixel,
            self.longest_nm / pixel,
            self.spread_degrees,
        )

    def _squares(self, task: Task) -> Bbox:
        """Return the squares that a chunk touches, in places of their grid."""
        first = self.bounds.start
        side = Vec3(self.block, self.block, 1)
        return Bbox(task.box.start - first, task.box.stop - first).coarser(side)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the squares that the chunk touches, and what is around them."""
        reach = self._filter().reach
        around = Vec3(reach, reach, 0)
        squares = self._squares(task).finer(Vec3(self.block, self.block, 1))
        wide = squares.shifted(self.bounds.start)
        box = Bbox(wide.start - around, wide.stop + around).intersection(self.bounds)
        return {"image": Region(self.image, box, self.mip)}

    def process(self, task: Task, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Damp every square of every section."""
        from pipeline.kernels.chatter import Damping

        result = np.zeros(task.box.shape.astuple(), np.uint8, order="F")
        if not image.any():
            return result
        chatter = self._filter()
        damping = Damping(chatter, (self.block, self.block))
        read = self.reads(task)["image"]
        assert isinstance(read, Region)
        side = Vec3(self.block, self.block, 1)
        around = Vec3(chatter.reach, chatter.reach, 0)
        for place in self._squares(task).positions():
            square = Bbox(place, place + 1).finer(side).shifted(self.bounds.start)
            wide = Bbox(square.start - around, square.stop + around)
            known = wide.intersection(read.box)
            pixels = np.zeros(wide.shape.astuple()[:2], np.uint8)
            pixels[known.slices(wide.start)[:2]] = image[known.slices(read.box.start)][
                ..., 0
            ]
            mine = square.intersection(task.box)
            calm = damping(pixels)[mine.slices(square.start)[:2]]
            result[mine.slices(task.box.start)] = calm[..., None]
        return result

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write the voxels of the image."""
        return self.volume(
            dtype="uint8", voxel_size_nm=self.voxel_size_nm, kind_of_values="image"
        )

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the image read, and from the transforms of a square [byte]."""
        task = self.task(next(iter(self.keys(level))))
        read = self.reads(task)["image"]
        assert isinstance(read, Region)
        reach = self._filter().reach
        wide = self.block + 2 * reach
        spectra = 80 * max(wide * wide, 16 * reach * reach)
        return 2 * read.box.volume + 3 * task.box.volume + spectra

    def check(self, specs: Specs) -> list[str]:
        """Check the image and the range of wavelengths."""
        x, y, _ = self.voxel_size_nm
        faults = [
            *super().check(specs),
            *expect_volume(self.name, specs, self.image, dtypes=("uint8",)),
        ]
        if not 2 * x <= self.shortest_nm < self.longest_nm:
            faults.append(
                f"{self.name}: bands {self.shortest_nm} to {self.longest_nm} nm apart are "
                f"no range that pixels of {x} nm show; give {2 * x} nm or more, the "
                "shortest first"
            )
        if self.longest_nm > _LONGEST * x:
            faults.append(
                f"{self.name}: bands {self.longest_nm} nm apart are more than {_LONGEST} "
                f"pixels of {x} nm; read a coarser mip"
            )
        if x != y:
            faults.append(
                f"{self.name}: pixels of {self.image} are {x} x {y} nm; they must be square"
            )
        spec = specs.get(self.image)
        if not isinstance(spec, VolumeSpec):
            return faults
        if self.mip >= len(spec.factors):
            return [*faults, missing_mip(self.name, self.image, spec, self.mip)]
        faults += expect_bounds(self.name, specs, self.image, self.bounds, mip=self.mip)
        if spec.voxel_size_at(self.mip) != self.voxel_size_nm:
            faults.append(
                f"{self.name}: voxels of {self.image} at mip {self.mip} are "
                f"{spec.voxel_size_at(self.mip)} nm, not {self.voxel_size_nm}; give those"
            )
        return faults
