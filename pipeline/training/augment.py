"""What goes wrong with sections, done on purpose.

Every function takes a generator first and arrays in the order x, y, z, changes nothing in
place, and draws the same numbers for the same generator. Images are float32 from 0 to 1.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.training.config import Augmentation

Image: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.integer]


def augment(
    rng: Generator, image: Image, labels: Labels, config: Augmentation
) -> tuple[Image, Labels]:
    """Alter a patch as configured.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image : float32 array, (x, y, z)
        Wider in x and y by `config.max_shift` on each side than what is returned.
    labels : integer array, (x, y, z)
        The cells of the same voxels.
    config : Augmentation
        How often and how far.

    Returns
    -------
    tuple of (float32 array, integer array), (x, y, z)
        The altered patch; labels follow the image where it moves and stay where it is lost.
    """
    shifts = np.zeros((image.shape[2], 2), dtype=int)
    if rng.random() < config.misalign:
        shifts = misalignment(rng, image.shape[2], config.max_shift, config.slip)
    image = shift_sections(image, shifts, config.max_shift)
    labels = shift_sections(labels, shifts, config.max_shift)
    image, labels = flip_and_transpose(rng, image, labels)
    if rng.random() < config.grey:
        image = vary_grey(rng, image, config.grey_range)
    if rng.random() < config.blur:
        image = blur_sections(rng, image, config.max_sigma)
    if rng.random() < config.missing:
        image = lose_sections(rng, image, config.max_missing)
    return image, labels


def misalignment(
    rng: Generator, n_sections: int, furthest: int, slip: float
) -> NDArray[np.int_]:
    """Draw how far each section moves.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    n_sections : int
        How many there are.
    furthest : int
        Greatest displacement along x and along y [voxel].
    slip : float
        Chance that one section moves, and not it with all that follow.

    Returns
    -------
    int array, (section, 2)
        Displacement along x and y [voxel].
    """
    shifts = np.zeros((n_sections, 2), dtype=int)
    at = int(rng.integers(1, n_sections)) if n_sections > 1 else 0
    moved = slice(at, at + 1) if rng.random() < slip else slice(at, None)
    shifts[moved] = rng.integers(-furthest, furthest + 1, size=2)
    return shifts


def shift_sections(
    array: NDArray[Any], shifts: NDArray[np.int_], margin: int
) -> NDArray[Any]:
    """Cut a margin off in x and y, from a place of its own in each section.

    Parameters
    ----------
    array : array, (x, y, z)
        Sections with a margin.
    shifts : int array, (section, 2)
        Where each section's content comes from, relative to the middle [voxel].
    margin : int
        What is cut off on each side [voxel]; no shift is greater.

    Returns
    -------
    array, (x - 2 margin, y - 2 margin, z), Fortran order
        The sections.
    """
    nx, ny = (n - 2 * margin for n in array.shape[:2])
    out = np.empty((nx, ny, array.shape[2]), dtype=array.dtype, order="F")
    for z, (dx, dy) in enumerate(shifts + margin):
        out[:, :, z] = array[dx : dx + nx, dy : dy + ny, z]
    return out


def flip_and_transpose(
    rng: Generator, image: Image, labels: Labels
) -> tuple[Image, Labels]:
    """Turn a patch to one of the sixteen ways that sections can lie.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image, labels : arrays, (x, y, z)
        The patch.

    Returns
    -------
    tuple of arrays, (x, y, z)
        Both, turned alike.
    """
    flips = tuple(slice(None, None, -1 if rng.random() < 0.5 else 1) for _ in range(3))
    image, labels = image[flips], labels[flips]
    if rng.random() < 0.5:
        image, labels = image.swapaxes(0, 1), labels.swapaxes(0, 1)
    return image, labels


def vary_grey(rng: Generator, image: Image, span: float) -> Image:
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


def blur_sections(rng: Generator, image: Image, max_sigma: float) -> Image:
    """Put some sections out of focus.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image : float32 array, (x, y, z)
        The sections.
    max_sigma : float
        Greatest width of the blur [voxel].

    Returns
    -------
    float32 array, (x, y, z)
        A copy.
    """
    out = image.copy(order="K")
    n = int(rng.integers(1, max(2, image.shape[2] // 4)))
    for z in rng.choice(image.shape[2], size=n, replace=False):
        out[:, :, z] = gaussian_filter(image[:, :, z], rng.uniform(0.5, max_sigma))
    return out


def lose_sections(rng: Generator, image: Image, most: int) -> Image:
    """Blank some sections, whole or on one side of a straight line.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image : float32 array, (x, y, z)
        The sections.
    most : int
        How many are lost at most.

    Returns
    -------
    float32 array, (x, y, z)
        A copy; what is lost is black, or all of one grey.
    """
    out = image.copy(order="K")
    nx, ny, nz = image.shape
    n = int(rng.integers(1, min(most, nz) + 1))
    for z in rng.choice(nz, size=n, replace=False):
        fill = np.float32(0.0 if rng.random() < 0.5 else rng.random())
        if rng.random() < 0.5:
            out[:, :, z] = fill
            continue
        angle = rng.uniform(0, 2 * np.pi)
        x, y = np.ogrid[:nx, :ny]
        through = rng.uniform(0, nx), rng.uniform(0, ny)
        side = (x - through[0]) * np.cos(angle) + (y - through[1]) * np.sin(angle)
        out[:, :, z] = np.where(side > 0, fill, out[:, :, z])
    return out
