"""Averages and majorities over cells of voxels, by tinybrain."""

from __future__ import annotations

from typing import Any

import numpy as np
import tinybrain
from numpy.typing import NDArray

_Triple = tuple[int, int, int]


def average(
    array: NDArray[Any], factor: _Triple, *, phase: _Triple = (0, 0, 0)
) -> NDArray[Any]:
    """Average intensities over cells.

    Parameters
    ----------
    array : array, (x, y, z) or (x, y, z, c)
        Intensities.
    factor : (x, y, z)
        Voxels of a cell.
    phase : (x, y, z)
        How many voxels of the first cell lie before the array; they do not count.

    Returns
    -------
    array of the same dtype, (x, y, z) or (x, y, z, c)
        One value for each cell that holds a voxel; cut cells average what they hold.
        Halves round to even.
    """
    total: NDArray[np.float64] = array.astype(np.float64)
    for axis in range(3):
        starts = _cells(array.shape[axis], factor[axis], phase[axis])
        total = np.add.reduceat(total, starts, axis=axis)
    count = np.ones((1, 1, 1))
    for axis in range(3):
        starts = _cells(array.shape[axis], factor[axis], phase[axis])
        sizes = np.diff(np.append(starts, array.shape[axis]))
        count = count * sizes.reshape([-1 if a == axis else 1 for a in range(3)])
    mean = total / (count[..., None] if array.ndim == 4 else count)
    if array.dtype.kind in "ui":
        mean = np.rint(mean)
    return mean.astype(array.dtype, order="F")


def most_frequent(
    labels: NDArray[Any], factor: _Triple, *, phase: _Triple = (0, 0, 0)
) -> NDArray[Any]:
    """Take the most frequent id of every cell.

    Parameters
    ----------
    labels : unsigned array, (x, y, z)
        Ids; 0 counts as any other.
    factor, phase : (x, y, z)
        As in `average`.

    Returns
    -------
    array of the same dtype, (x, y, z)
        One id for each cell. In a tie tinybrain decides, by the order of the cell.
    """
    if any(phase):
        # tinybrain counts cells from the array's first voxel: complete the first cell
        # with its own first plane, which does not change which id is there.
        labels = np.pad(labels, [(p, 0) for p in phase], mode="edge")
    (coarse,) = tinybrain.downsample_segmentation(np.asfortranarray(labels), factor, 1)
    return np.asfortranarray(coarse)


def _cells(size: int, factor: int, phase: int) -> NDArray[np.intp]:
    starts = np.arange(-phase, size, factor)
    return np.maximum(starts, 0)
