"""Maps of one thing, such as myelin, by a net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.specs import VolumeSpec
from pipeline.stages.base import Specs, Task
from pipeline.stages.prediction import NamedHead

if TYPE_CHECKING:
    from pipeline.nets import Head


class Masks(NamedHead):
    """Probability that a voxel is of something, such as myelin, a vessel or a cleft.

    As ``myelin`` of ``basins`` and ``basin_graph`` it takes affinities out.

    Parameters
    ----------
    head : str
        Head of the model, of masks.
    channel : str
        Which of its channels; may be left out if it has one.
    dtype : {"uint8", "float32"}
        255 stands for 1 in uint8.
    """

    name: ClassVar[str] = "masks"

    head: str
    channel: str = ""
    dtype: Literal["uint8", "float32"] = "uint8"

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
            return self.blank(task, self.dtype)

        from pipeline.nets.inference import quantise

        channels = self.head_of_model.channels
        one = said[..., channels.index(self.channel) if self.channel else 0]
        return quantise(one) if self.dtype == "uint8" else one

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write one channel at the image's voxel size."""
        return self.volume(
            dtype=self.dtype,
            voxel_size_nm=self.voxel_size(specs),
            kind_of_values="image",
        )

    def head_faults(self, head: Head) -> list[str]:
        """Say so if the head is of another kind, or has no such channel."""
        if head.kind != "masks":
            return [
                f"{self.name}: head {head.name} of model {self.model} gives {head.kind}; "
                "take one of masks"
            ]
        wanted = self.channel or (head.channels[0] if head.width == 1 else "")
        if wanted in head.channels:
            return []
        return [
            f"{self.name}: head {head.name} of model {self.model} has channels "
            f"{', '.join(head.channels)}, not {self.channel!r}; name one of them"
        ]
