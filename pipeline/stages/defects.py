"""Folds, cracks and bare resin of sections, by a net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.kernels.misalignment import DEFECTS
from pipeline.specs import VolumeSpec
from pipeline.stages.base import Specs, Task
from pipeline.stages.prediction import NamedHead

if TYPE_CHECKING:
    from pipeline.nets import Head


class Defects(NamedHead):
    """What is wrong with a pixel: 1 for a fold, 2 for a crack, 4 for bare resin, added up.

    The 2D U-Net of Macrina et al. 2021, with all three in one net.

    Parameters
    ----------
    head : str
        Head of the model, of masks that are called fold, crack or resin.
    threshold : float
        Least probability.
    """

    name: ClassVar[str] = "defects"

    head: str = "defects"
    threshold: float = Field(default=0.5, gt=0, lt=1)

    def process(
        self,
        task: Task,
        image: NDArray[np.uint8],
        image_mask: NDArray[np.uint8] | None = None,
        output_mask: NDArray[np.uint8] | None = None,
    ) -> NDArray[Any]:
        """Predict, and add up the bits."""
        said = self.said(task, image, image_mask, output_mask)
        result = self.blank(task, "uint8")
        if said is None:
            return result
        for channel, name in enumerate(self.head_of_model.channels):
            result |= (said[..., channel] >= self.threshold) * np.uint8(DEFECTS[name])
        return np.asfortranarray(result)

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write one channel at the image's voxel size."""
        return self.volume(
            dtype="uint8",
            voxel_size_nm=self.voxel_size(specs),
            kind_of_values="image",
        )

    def head_faults(self, head: Head) -> list[str]:
        """Say so if the head is of another kind, or of other things."""
        if head.kind != "masks":
            return [
                f"{self.name}: head {head.name} of model {self.model} gives {head.kind}; "
                "take one of masks"
            ]
        strange = sorted(set(head.channels) - set(DEFECTS))
        if strange:
            return [
                f"{self.name}: head {head.name} of model {self.model} has channels "
                f"{', '.join(strange)}; it takes {', '.join(DEFECTS)}"
            ]
        return []
