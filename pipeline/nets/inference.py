"""A net run over a box of any size, patch by patch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Bbox
from pipeline.nets.model import Model
from pipeline.nets.patches import bump, patches_touching, read_box


def predict(
    model: Model, image: NDArray[np.uint8], *, read: Bbox, core: Bbox, bounds: Bbox
) -> NDArray[np.float32]:
    """Predict a box from overlapping patches, blended with a bump weight.

    A voxel's value is the weighted mean over all patches of the layer's grid that cover it,
    summed in the order of that grid. So it depends on neither the box asked for nor the
    chunk it is asked with, and neighbouring chunks meet without a seam.

    Parameters
    ----------
    model : Model
        What predicts.
    image : uint8 array, (x, y, z)
        Grey levels of `read`; a patch that is 0 throughout is blank and gives 0.
    read : Bbox
        Box of the image; it contains `read_box` of the core [voxel].
    core : Bbox
        Box asked for, inside the bounds [voxel].
    bounds : Bbox
        The layer's bounds, from whose start patches are counted [voxel]. Where a patch
        reaches beyond, the image is mirrored.

    Returns
    -------
    float32 array, (x, y, z, channel), Fortran order
        Of `core`, from 0 to 1. What an affinity says of a predecessor outside the bounds
        means nothing.

    Raises
    ------
    DataError
        If the image has another shape or dtype, or the boxes do not hold one another.
    """
    inference = model.config.inference
    needed = read_box(core, bounds, inference)
    if image.shape != read.shape.astuple() or image.dtype != np.uint8:
        raise DataError(
            f"image has shape {image.shape} and dtype {image.dtype}; give uint8 of shape "
            f"{read.shape}, the box {read}"
        )
    if not (bounds.contains(core) and bounds.contains(read) and read.contains(needed)):
        raise DataError(
            f"box {core} in bounds {bounds} needs an image of {needed}, not of {read}; "
            "read that box"
        )
    weight = bump(inference.patch)
    values = np.zeros((*core.shape, model.config.width), np.float32, order="F")
    weights = np.zeros(core.shape.astuple(), np.float32, order="F")
    with single_thread():
        for patch in patches_touching(core, bounds, inference):
            shared = patch.intersection(core)
            inside, there = shared.slices(patch.start), shared.slices(core.start)
            weights[there] += weight[inside]
            pixels = _pixels(image, patch, read)
            if pixels.any():
                said = model.probabilities(pixels.astype(np.float32))
                values[there] += said[inside] * weight[inside][..., None]
    values /= weights[..., None]
    return values


def _pixels(image: NDArray[np.uint8], patch: Bbox, read: Bbox) -> NDArray[np.uint8]:
    held = patch.intersection(read)
    pixels = image[held.slices(read.start)]
    beyond = [(0, n) for n in patch.stop - held.stop]
    return np.pad(pixels, beyond, mode="symmetric") if patch != held else pixels


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute in one thread: sums split among threads depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round probabilities to bytes, 255 for certainty.

    Parameters
    ----------
    probabilities : float32 array
        From 0 to 1.

    Returns
    -------
    uint8 array
        Same shape and memory order.
    """
    rounded: NDArray[np.float32] = np.rint(probabilities * np.float32(255))
    return rounded.astype(np.uint8)
