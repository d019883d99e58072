"""Semantic labels of an image, by a net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.kernels.region_graph import CLASSES
from pipeline.specs import VolumeSpec
from pipeline.stages.base import Specs, Task
from pipeline.stages.prediction import NamedHead

if TYPE_CHECKING:
    from pipeline.nets import Head


class Semantic(NamedHead):
    """Which class of tissue a voxel is of, as ``semantics`` of ``region_graph`` takes it.

    0 unknown, 1 soma, 2 axon, 3 dendrite, 4 glia, 5 vessel: the class of greatest
    probability, of two that are equal the one that the net gives first.

    Parameters
    ----------
    head : str
        Head of the model, of classes; each is one of those, or unknown.
    least : float
        Where no class has at least this probability the label is 0.
    """

    name: ClassVar[str] = "semantic"

    head: str = "semantic"
    least: float = Field(default=0.0, ge=0, le=1)

    def process(
        self,
        task: Task,
        image: NDArray[np.uint8],
        image_mask: NDArray[np.uint8] | None = None,
        output_mask: NDArray[np.uint8] | None = None,
    ) -> NDArray[Any]:
        """Predict, and take the most likely class."""
        said = self.said(task, image, image_mask, output_mask)
        if said is None:
            return self.blank(task, "uint8")
        names = ("unknown", *CLASSES)
        labels = np.array([names.index(c) for c in self.head_of_model.channels], np.uint8)
        most = said.max(axis=3)
        found = labels[said.argmax(axis=3)]
        found[(most < self.least) | (most == 0)] = 0
        return np.asfortranarray(found)

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write uint8 labels at the image's voxel size."""
        return self.volume(
            dtype="uint8",
            voxel_size_nm=self.voxel_size(specs),
            kind_of_values="segmentation",
        )

    def head_faults(self, head: Head) -> list[str]:
        """Say so if the head is of another kind, or has classes that nobody knows."""
        if head.kind != "classes":
            return [
                f"{self.name}: head {head.name} of model {self.model} gives {head.kind}; "
                "take one of classes"
            ]
        strange = sorted(set(head.channels) - {"unknown", *CLASSES})
        if not strange:
            return []
        return [
            f"{self.name}: head {head.name} of model {self.model} has classes "
            f"{', '.join(strange)}; there are unknown, {', '.join(CLASSES)}"
        ]
