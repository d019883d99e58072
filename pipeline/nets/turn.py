"""The turn between arrays, x, y, z, and tensors, z, y, x: a view, nothing moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_torch(array: NDArray[Any]) -> Tensor:
    """See an array as a batch of one.

    Parameters
    ----------
    array : array, (x, y, z) or (x, y, z, channel)
        Fortran-contiguous is free; another order is copied.

    Returns
    -------
    Tensor, (1, channel, z, y, x)
        The same voxels, contiguous.
    """
    turned = array.T if array.ndim == 4 else array.T[None]
    return torch.from_numpy(np.ascontiguousarray(turned))[None]


def from_torch(tensor: Tensor) -> NDArray[Any]:
    """See a batch of one as an array.

    Parameters
    ----------
    tensor : Tensor, (1, channel, z, y, x)
        On any device.

    Returns
    -------
    array, (x, y, z, channel), Fortran order
        The same voxels.
    """
    return tensor.detach()[0].contiguous().cpu().numpy().T
