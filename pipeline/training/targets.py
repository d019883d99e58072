"""What a net is asked to say, from labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def affinities(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Say which voxels share a cell with their predecessors.

    Parameters
    ----------
    labels : integer array, (x, y, z)
        Ids of cells; 0 belongs to none and shares nothing, not even with itself.

    Returns
    -------
    bool array, (x, y, z, 3), Fortran order
        Channel a joins a voxel to its predecessor along axis a. The first plane along an
        axis has no predecessor and is false.
    """
    joined = np.zeros((*labels.shape, 3), dtype=bool, order="F")
    for axis in range(3):
        here = np.moveaxis(labels, axis, 0)
        out = np.moveaxis(joined[..., axis], axis, 0)
        out[1:] = (here[1:] == here[:-1]) & (here[1:] != 0)
    return joined
