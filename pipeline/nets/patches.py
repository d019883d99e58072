"""Where patches lie, what they weigh, and the memory that they take.

Patches lie on one grid, counted from the lower corner of the layer's bounds and never from
a chunk, so that every chunk that reads a patch reads the same patch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3
from pipeline.nets.config import Inference, ModelConfig

LEAST_WEIGHT = 1e-6

# Working set of a net, in copies of its largest tensor, and what torch takes by itself;
# both measured.
_LIVE_COPIES = 12
_TORCH_BYTES = 300 << 20


def patches_touching(core: Bbox, bounds: Bbox, inference: Inference) -> list[Bbox]:
    """List the patches that share a voxel with a box.

    Parameters
    ----------
    core : Bbox
        The box, inside the bounds [voxel].
    bounds : Bbox
        The layer's bounds, from whose start patches are counted [voxel].
    inference : Inference
        Extent and overlap of patches.

    Returns
    -------
    list of Bbox
        In the order of the grid, x fastest, whatever the box. The last patch along an axis
        is moved inward to end at the bounds; bounds smaller than a patch have one, which
        begins with them and reaches beyond.
    """
    xs, ys, zs = (
        _starts(
            core.start[a] - bounds.start[a],
            core.stop[a] - bounds.start[a],
            bounds.shape[a],
            inference.patch[a],
            inference.stride[a],
        )
        for a in range(3)
    )
    return [
        Bbox.of_shape(inference.patch, bounds.start + Vec3(x, y, z))
        for z in zs
        for y in ys
        for x in xs
    ]


def _starts(first: int, stop: int, extent: int, patch: int, stride: int) -> list[int]:
    n = max(0, -(-(extent - patch) // stride)) + 1
    last = max(0, extent - patch)
    low = max(0, (first - patch) // stride)
    candidates = [i * stride for i in range(low, min(n - 1, -(-stop // stride)))]
    return [s for s in (*candidates, last) if s < stop and s + patch > first]


def read_box(core: Bbox, bounds: Bbox, inference: Inference) -> Bbox:
    """Return what must be read to predict a box: all of every patch that touches it.

    Parameters
    ----------
    core, bounds, inference
        As in `patches_touching`.

    Returns
    -------
    Bbox
        Inside the bounds.
    """
    patches = patches_touching(core, bounds, inference)
    box = core
    for patch in patches:
        box = box.hull(patch)
    return box.intersection(bounds)


def bump(patch: Vec3) -> NDArray[np.float32]:
    """Weigh the voxels of a patch: most in the middle, next to nothing at the faces.

    The smooth bump exp(-sum 1/(1 - u²)), with u from -1 to 1 across the patch, of
    Wu et al. 2021. Exponents are summed before they are raised, relative to the middle, and
    no weight is less than `LEAST_WEIGHT`, so that none vanishes.

    Parameters
    ----------
    patch : Vec3
        Extent [voxel].

    Returns
    -------
    float32 array, (x, y, z), Fortran order
        At most 1.
    """
    exponents = []
    for n in patch:
        u = (np.arange(n) + 1) / (n + 1) * 2 - 1
        exponents.append(-1 / (1 - u * u))
    x, y, z = np.ix_(*exponents)
    total = x + y + z
    weight = np.maximum(np.exp(total - total.max()), LEAST_WEIGHT)
    return np.asfortranarray(weight, dtype=np.float32)


def peak_bytes(
    config: ModelConfig, core: Vec3, *, width: int, batch: int = 1, turns: int = 1
) -> int:
    """Estimate the memory that predicting a box takes at its peak, in one lane.

    Parameters
    ----------
    config : ModelConfig
        The model.
    core : Vec3
        Extent of the box [voxel].
    width : int
        Number of channels that are wanted.
    batch : int
        Patches that are computed at once.
    turns : int
        In how many ways each is computed; more than one take weights for each channel.

    Returns
    -------
    int
        Image, sums, one batch in the net, and torch itself [byte].
    """
    inference, architecture = config.inference, config.architecture
    read = core + inference.patch * 2
    weights = width if turns > 1 else 1
    sums = core.product * 4 * (width + weights)
    size = 2 if inference.precision == "bfloat16" else 4
    widest = architecture.values_per_voxel
    outputs = 3 * 4 * width
    patch = math.ceil(inference.patch.product * (widest * size * _LIVE_COPIES + outputs))
    return read.product + sums + batch * patch + _TORCH_BYTES
