"""Local contrast: what sections are compared by, whatever their exposure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

_TRUNCATE = 3.0
_FAINT = 1.0
_CLIP = 2.5


def local_contrast(
    image: NDArray[np.uint8], valid: NDArray[np.bool_], *, fine: float, coarse: float
) -> NDArray[np.float32]:
    """Keep details between two sizes, divided by how strong they are around.

    Parameters
    ----------
    image : uint8 array, (x, y)
        One section.
    valid : bool array, (x, y)
        Pixels that show tissue; the others do not count, and become 0.
    fine, coarse : float
        Standard deviations of the two Gaussians whose difference is taken [pixel].

    Returns
    -------
    float32 array, (x, y)
        In deviations, clipped at 2.5 of them.
    """
    if not valid.any():
        return np.zeros(image.shape, np.float32)
    weight = valid.astype(np.float32)
    grey = image.astype(np.float32) * weight

    def mean(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        total = _blurred(values * weight, sigma)
        return np.asarray(total / np.maximum(_blurred(weight, sigma), 1e-3))

    detail = mean(grey, fine) - mean(grey, coarse)
    power = mean(detail * detail, 2 * coarse)
    strength = np.sqrt(np.maximum(power, _FAINT))
    return np.asarray(np.clip(detail / strength, -_CLIP, _CLIP) * weight, np.float32)


def contrast_halo(coarse: float) -> int:
    """Return how far away pixels have a say [pixel]."""
    return 2 * int(_TRUNCATE * 2 * coarse + 0.5)


def _blurred(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(
        gaussian_filter(values, sigma, mode="constant", truncate=_TRUNCATE), np.float32
    )
