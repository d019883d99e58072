"""Affinities of an image, by a net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.specs import VolumeSpec
from pipeline.stages.base import Specs, Task
from pipeline.stages.prediction import Prediction

if TYPE_CHECKING:
    from pipeline.nets import Head

_HEAD = "affinities"


class Affinities(Prediction):
    """Probability that each voxel and its predecessor along x, y, z share a cell.

    Across the lower faces of the bounds the affinity is 0.

    Parameters
    ----------
    dtype : {"uint8", "float32"}
        255 stands for 1 in uint8.
    """

    name: ClassVar[str] = "affinities"

    dtype: Literal["uint8", "float32"] = "uint8"

    @property
    def head_name(self) -> str:
        """The one that is called affinities."""
        return _HEAD

    def process(
        self,
        task: Task,
        image: NDArray[np.uint8],
        image_mask: NDArray[np.uint8] | None = None,
        output_mask: NDArray[np.uint8] | None = None,
    ) -> NDArray[Any]:
        """Predict."""
        said = self.said(task, image, image_mask, output_mask)
        if said is None:
            return self.blank(task, self.dtype, channels=3)

        from pipeline.nets.inference import quantise

        affinities = said[..., :3]
        for axis in range(3):
            if task.box.start[axis] == task.bounds.start[axis]:
                np.moveaxis(affinities[..., axis], axis, 0)[0] = 0
        return quantise(affinities) if self.dtype == "uint8" else affinities

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write one channel per axis at the image's voxel size."""
        return self.volume(
            dtype=self.dtype,
            channels=3,
            voxel_size_nm=self.voxel_size(specs),
            kind_of_values="image",
        )

    def head_faults(self, head: Head) -> list[str]:
        """Say so if the head does not begin with the nearest along x, y and z."""
        from pipeline.nets import NEAREST

        if head.offsets[:3] == NEAREST:
            return []
        return [
            f"{self.name}: head {head.name} of model {self.model} does not begin with the "
            "nearest along x, y and z; take another model"
        ]
