"""Sections drawn through a map: each pixel looked up between those of another image."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Interpolation: TypeAlias = Literal["nearest", "linear", "lanczos"]

REACH = {"nearest": 1, "linear": 1, "lanczos": 3}
"""How far from a point pixels have a say [pixel]."""


def draw(
    image: NDArray[np.uint8],
    points: NDArray[np.float64],
    start: tuple[int, int],
    how: Interpolation,
) -> NDArray[np.uint8]:
    """Look an image up at points.

    0 means that there is nothing. It is never mixed with what there is: a pixel that would
    take from both takes the nearest. A result of something is at least 1.

    Parameters
    ----------
    image : uint8 array, (x, y)
        A box of a section.
    points : float64 array, (..., 2)
        Where, in pixels of the section; pixel i lies at i. Beyond the box there is nothing.
    start : (int, int)
        First pixel of the box.
    how : {"nearest", "linear", "lanczos"}
        Lanczos of three lobes; its weights are made to add up to 1.

    Returns
    -------
    uint8 array, (...)
    """
    at = np.floor(points)
    part = points - at
    low = at.astype(np.int64) - np.asarray(start)
    nearest = _pick(image, low + (part >= 0.5))
    if how == "nearest":
        return nearest
    taps = range(1 - REACH[how], REACH[how] + 1)
    weights = [_lanczos(part, t) if how == "lanczos" else _linear(part, t) for t in taps]
    norm = np.sum(weights, axis=0)
    total = np.zeros(points.shape[:-1])
    whole = nearest > 0
    for tx, wx in zip(taps, weights, strict=True):
        for ty, wy in zip(taps, weights, strict=True):
            weight = wx[..., 0] * wy[..., 1]
            value = _pick(image, low + np.array([tx, ty]))
            whole &= (value > 0) | (weight == 0)
            total += weight * value
    mixed = total / (norm[..., 0] * norm[..., 1])
    rounded = np.clip(np.rint(mixed), 1, 255).astype(np.uint8)
    return np.where(whole, rounded, nearest)


def _pick(image: NDArray[np.uint8], index: NDArray[np.int64]) -> NDArray[np.uint8]:
    x, y = index[..., 0], index[..., 1]
    inside = (x >= 0) & (y >= 0) & (x < image.shape[0]) & (y < image.shape[1])
    return np.where(inside, image[np.where(inside, x, 0), np.where(inside, y, 0)], 0)


def _linear(part: NDArray[np.float64], tap: int) -> NDArray[np.float64]:
    return part if tap else 1 - part


def _lanczos(part: NDArray[np.float64], tap: int) -> NDArray[np.float64]:
    off = part - tap
    return np.where(np.abs(off) < 3, np.sinc(off) * np.sinc(off / 3), 0.0)
