"""What becomes of the greys of a patch; images are float32, from 0 to 1."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.training.config import Augmentation

Image: TypeAlias = NDArray[np.float32]


def alter(
    rng: Generator, image: Image, missing: NDArray[np.bool_], config: Augmentation
) -> Image:
    """Alter greys as configured, and blank what is missing.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image : float32 array, (x, y, z)
        The patch.
    missing : bool array, (z,)
        Sections that are missing.
    config : Augmentation
        How often and how far.

    Returns
    -------
    float32 array, (x, y, z)
        From 0 to 1.
    """
    if rng.random() < config.grey:
        image = vary(rng, image, config.grey_range)
    if rng.random() < config.blur:
        image = defocus(rng, image, config)
    if missing.any():
        image = blank(rng, image, missing, config.partial)
    return image


def vary(rng: Generator, image: Image, span: float) -> Image:
    """Change brightness, contrast and gamma, of all sections alike or of each its own.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image : float32 array, (x, y, z)
        From 0 to 1.
    span : float
        Greatest change of brightness and contrast.

    Returns
    -------
    float32 array, (x, y, z)
        From 0 to 1.
    """
    n = image.shape[2] if rng.random() < 0.5 else 1
    contrast, brightness = 1 + rng.uniform(-span, span, n), rng.uniform(-span, span, n)
    gamma = 2 ** rng.uniform(-1, 1, n)
    scaled: Image = (image - np.float32(0.5)) * contrast.astype(np.float32)
    scaled += (brightness + 0.5).astype(np.float32)
    np.clip(scaled, 0, 1, out=scaled)
    np.power(scaled, gamma.astype(np.float32), out=scaled)
    return scaled


def defocus(rng: Generator, image: Image, config: Augmentation) -> Image:
    """Put some sections out of focus, whole or on one side of a line.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image : float32 array, (x, y, z)
        The sections.
    config : Augmentation
        How many, how far.

    Returns
    -------
    float32 array, (x, y, z)
        A copy.
    """
    out = image.copy(order="K")
    nz = image.shape[2]
    n = int(rng.integers(1, max(1, min(config.max_blurred, nz // 2)) + 1))
    for z in rng.choice(nz, size=n, replace=False):
        blurred = gaussian_filter(image[:, :, z], rng.uniform(0.5, config.max_sigma))
        where = _part(rng, image.shape[:2], config.partial)
        out[:, :, z] = np.where(where, blurred, image[:, :, z])
    return out


def blank(
    rng: Generator, image: Image, missing: NDArray[np.bool_], partial: float
) -> Image:
    """Blank sections, whole or on one side of a line.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image : float32 array, (x, y, z)
        The sections.
    missing : bool array, (z,)
        Which.
    partial : float
        Share of those that keep one side.

    Returns
    -------
    float32 array, (x, y, z)
        A copy; what is missing is black, or all of one grey.
    """
    out = image.copy(order="K")
    for z in np.flatnonzero(missing):
        fill = np.float32(0.0 if rng.random() < 0.5 else rng.random())
        out[:, :, z][_part(rng, image.shape[:2], partial)] = fill
    return out


def _part(rng: Generator, extent: tuple[int, ...], partial: float) -> NDArray[np.bool_]:
    if rng.random() >= partial:
        return np.ones(extent, dtype=bool)
    angle, through = rng.uniform(0, 2 * np.pi), rng.uniform(0, extent)
    x, y = np.ogrid[: extent[0], : extent[1]]
    side: NDArray[np.bool_] = (x - through[0]) * np.cos(angle) > (through[1] - y) * np.sin(
        angle
    )
    return side
