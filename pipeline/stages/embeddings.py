"""What sections are aligned by, from a net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.specs import VolumeSpec
from pipeline.stages.base import Specs, Task
from pipeline.stages.prediction import NamedHead

if TYPE_CHECKING:
    from pipeline.nets import Head


class Embeddings(NamedHead):
    """What a net finds in each place of a section that the next ones show too.

    `flows` compares them instead of greys. Channels are uint8: 0 and 255 are the ends, and
    in the middle between them there is nothing.

    Parameters
    ----------
    head : str
        Head of the model, an embedding.
    """

    name: ClassVar[str] = "embeddings"

    head: str = "embedding"

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
            return self.blank(task, "uint8", self.head_of_model.width)

        from pipeline.nets.inference import quantise

        return quantise(said)

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write the channels of the head at the image's voxel size."""
        return self.volume(
            dtype="uint8",
            voxel_size_nm=self.voxel_size(specs),
            kind_of_values="image",
            channels=self.head_of_model.width,
        )

    def head_faults(self, head: Head) -> list[str]:
        """Say so if the head is of another kind."""
        if head.kind == "embedding":
            return []
        return [
            f"{self.name}: head {head.name} of model {self.model} gives {head.kind}; take "
            "an embedding"
        ]
