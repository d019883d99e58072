"""How well defined every section of an image is."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Halo
from pipeline.kernels.image_quality import (
    IMAGE_QUALITY_HALO,
    SectionSums,
    image_quality,
    merge_section_sums,
)
from pipeline.specs import Read, Region, Table
from pipeline.stages.base import Layer, OctreeStage, Specs, Task
from pipeline.stages.volume import expect_bounds, expect_volume

_BYTES_PER_PIXEL = 32
"""Of a section in hand: its pixels as int32, and what their differences take."""


class ImageQuality(OctreeStage):
    """The criteria of Brenner, SMD2, variance and Vollath, of every section.

    A record has a row for each section (`z`) of its node: `pixels`, `sum`, `squares`,
    `brenner`, `smd2` and `products` as exact sums, and `variance` and `vollath`, which
    follow from them. Sums add up over the octree, so that the record at its top measures
    whole sections, whatever the chunks. Divide by `pixels` to compare sections of unlike
    extent. A chunk owns the pixels that it holds, and reads their partners to the right
    (two) and below (one).

    Parameters
    ----------
    image : str
        Volume of uint8 intensities.
    """

    name: ClassVar[str] = "image_quality"
    halo: ClassVar[Halo] = IMAGE_QUALITY_HALO
    merge_bytes_per_voxel: ClassVar[float] = 0.1

    image: Layer

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the chunk, which is worked through by sections [byte]."""
        if level > 0:
            return super().memory(specs, level)
        read = self.task(next(iter(self.keys(level)))).read_box.shape
        return read.product + _BYTES_PER_PIXEL * read.x * read.y

    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Read the chunk with the partners of its pixels."""
        return {"image": Region(self.image, task.read_box)}

    def leaf(self, task: Task, image: NDArray[np.uint8]) -> Table:
        """Sum over the chunk."""
        return image_quality(
            image, box=task.box, read_box=task.read_box, bounds=task.bounds
        ).to_table()

    def merge(self, children: list[Table]) -> Table:
        """Add up."""
        return merge_section_sums([SectionSums.from_table(c) for c in children]).to_table()

    def check(self, specs: Specs) -> list[str]:
        """Check the image."""
        return [
            *expect_volume(self.name, specs, self.image, dtypes=("uint8",)),
            *expect_bounds(self.name, specs, self.image, self.bounds),
        ]
