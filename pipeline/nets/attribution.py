"""Which pixels of the image a prediction rests on: integrated gradients.

The gradient of what the model says of one voxel is summed along the straight line from a
reference image to the image (Sundararajan et al. 2017). As in U-RISC (Shi et al. 2021) the
reference is noise, and the result is called an attribution field.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import GeometryError
from pipeline.geometry import Bbox, Vec3
from pipeline.nets.config import ModelConfig
from pipeline.nets.model import Model, activate, normalised
from pipeline.nets.turn import from_torch, to_torch

_VOXELS_AT_ONCE = 1 << 17
"""Of the images on the line that the net sees in one batch; a larger patch goes alone."""


@dataclass(frozen=True)
class AttributionField:
    """What every voxel of a patch adds to a prediction.

    Parameters
    ----------
    values : float32 array, (x, y, z)
        Contributions; they add up to `said` - `reference`, but for the steps of the sum.
    voxel : Vec3
        Voxel of the patch whose prediction is explained.
    said, reference : float
        What the model says there of the image, and of the reference image.
    """

    values: NDArray[np.float32]
    voxel: Vec3
    said: float
    reference: float

    @property
    def error(self) -> float:
        """How far the contributions are from adding up; more steps make it smaller."""
        return float(self.values.sum(dtype=np.float64)) - (self.said - self.reference)

    @property
    def relative(self) -> NDArray[np.float32]:
        """Contributions over the largest of them, from -1 to 1."""
        largest = np.abs(self.values).max()
        scaled: NDArray[np.float32] = self.values / (largest or 1)
        return scaled

    def area_nm2(
        self, threshold: float, voxel_size_nm: tuple[float, float, float]
    ) -> float:
        """Measure how much of the voxel's section speaks for the prediction.

        Parameters
        ----------
        threshold : float
            Relative contribution above which a pixel counts.
        voxel_size_nm : (x, y, z)
            Extent of a voxel [nm].

        Returns
        -------
        float
            The area S_k of the paper [nm²].
        """
        above = int((self.relative[:, :, self.voxel.z] > threshold).sum())
        return above * voxel_size_nm[0] * voxel_size_nm[1]


def attribute(
    model: Model,
    inputs: NDArray[np.float32],
    voxel: Vec3,
    channel: int,
    *,
    steps: int = 64,
    seed: int = 0,
) -> AttributionField:
    """Explain what a model says of one voxel.

    The net runs in float32, whatever the model's precision: rounding would break the sum.

    Parameters
    ----------
    model : Model
        What predicts.
    inputs : float32 array, (x, y, z) or (x, y, z, input)
        A patch as `Model.logits` takes it. Contributions are those of the image; other
        inputs are the same all along the line.
    voxel : Vec3
        Which voxel of the patch.
    channel : int
        Which output channel.
    steps : int
        Points on the line, by Gauss and Legendre.
    seed : int
        Of the reference image: grey levels 0 to 255, each as likely.

    Returns
    -------
    AttributionField
        Of the patch.

    Raises
    ------
    DataError
        If the patch is not one for the model.
    GeometryError
        If the voxel lies outside the patch.
    """
    model.require(inputs)
    patch = Bbox.of_shape(inputs.shape[:3])
    if not patch.contains(Bbox.of_shape((1, 1, 1), voxel)):
        raise GeometryError(f"voxel {voxel} is not in the patch {patch}; give one inside")
    noise = np.random.default_rng(seed).uniform(0, 255, inputs.shape[:3])
    given = to_torch(inputs)
    reference = given.clone()
    reference[:, 0] = to_torch(noise.astype(np.float32))[:, 0]
    norm = model.config.normalisation
    image, others = normalised(given, norm).to(model.device).tensor_split([1], dim=1)
    noise_image = normalised(reference, norm).to(model.device)[:, :1]

    def say(images: Tensor) -> Tensor:
        beside = others.expand(images.shape[0], -1, -1, -1, -1)
        logits = model.net(torch.cat([images, beside], dim=1))
        said = activate(model.config.head, logits)
        at: Tensor = said[:, channel, voxel.z, voxel.y, voxel.x]
        return at

    with torch.no_grad():
        said, at_reference = say(image).item(), say(noise_image).item()
    at_once = min(steps, max(1, _VOXELS_AT_ONCE // patch.volume))
    gradients = IntegratedGradients(say).attribute(
        image, noise_image, n_steps=steps, internal_batch_size=at_once
    )
    values = from_torch(gradients)[..., 0].astype(np.float32)
    return AttributionField(values, voxel, said, at_reference)


def patch_around(voxel: Vec3, bounds: Bbox, config: ModelConfig) -> Bbox:
    """Return the patch in whose middle a voxel lies, moved inward to lie in the bounds.

    Parameters
    ----------
    voxel : Vec3
        Which.
    bounds : Bbox
        Of the image [voxel].
    config : ModelConfig
        Of the model.

    Returns
    -------
    Bbox
        Of the extent of the model's patches, or of the largest one that the net takes where
        the image is smaller.

    Raises
    ------
    GeometryError
        If the voxel lies outside the bounds, or the image is too small for the net.
    """
    if not bounds.contains(Bbox.of_shape((1, 1, 1), voxel)):
        raise GeometryError(f"voxel {voxel} is not in the image {bounds}; give one inside")
    architecture = config.architecture
    granule, patch = architecture.granule, config.inference.patch
    extent = patch.minimum(bounds.shape // granule * granule)
    if extent.product == 0 or (architecture.fixed_patch and extent != patch):
        needed = patch if architecture.fixed_patch else granule
        raise GeometryError(
            f"image {bounds} is smaller than {needed}, the least that model {config.name} "
            "takes; give a larger one"
        )
    start = (voxel - extent // 2).minimum(bounds.stop - extent).maximum(bounds.start)
    return Bbox.of_shape(extent, start)
