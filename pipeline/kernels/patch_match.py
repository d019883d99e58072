"""The shift of small patches of a section to its neighbours, by masked correlation.

A patch is compared with a wider window of another section at every shift, by normalised
correlation over what both show. Where the section is torn, a patch holds only what hangs
together with its middle, so that the two sides of a crack or a fold move apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

_APART = 5
"""Where another peak is another answer [pixel]."""
_LEAST_OVERLAP = 0.35
_LEAST_MASS = 0.15
_LEAST_PEAK = 0.05
_BATCH = 64
_WITH_CHANNELS = 4
_STEPS = 64
"""Shifts are told to this part of a pixel, so that no rounding reaches what is stored."""


@dataclass(frozen=True)
class PatchGrid:
    """Which patches there are.

    Parameters
    ----------
    step : int
        Distance of the middles of patches; the first lies at ``step // 2`` [pixel].
    patch : int
        Extent of a patch [pixel].
    search : int
        Greatest shift along either axis [pixel].
    """

    step: int
    patch: int
    search: int

    @property
    def reach(self) -> int:
        """How far from its middle a patch is compared [pixel]."""
        return self.patch // 2 + self.search

    @property
    def window(self) -> NDArray[np.float32]:
        """Weight of the pixels of a patch: the root of a Hann window."""
        edge = np.hanning(self.patch + 2)[1:-1]
        return np.asarray(np.sqrt(np.outer(edge, edge)), np.float32)


@dataclass(frozen=True)
class Patches:
    """The patches of one section, ready to be compared.

    Made by `patches_of`; holds their transforms.
    """

    grid: PatchGrid
    size: int
    values: NDArray[np.complex64]
    weight: NDArray[np.complex64]
    power: NDArray[np.complex64]
    is_enough: NDArray[np.bool_]


@dataclass(frozen=True)
class Windows:
    """The windows of one section that patches are looked for in; see `windows_of`."""

    values: NDArray[np.complex64]
    weight: NDArray[np.complex64]
    power: NDArray[np.complex64]


def patches_of(
    contrast: NDArray[np.float32],
    shown: NDArray[np.bool_],
    torn: NDArray[np.bool_],
    middles: NDArray[np.int64],
    grid: PatchGrid,
) -> Patches:
    """Cut out patches around points.

    Parameters
    ----------
    contrast : float32 array, (x, y, channel)
        What a section is known again by: its local contrast, or an embedding.
    shown : bool array, (x, y)
        Where it shows tissue.
    torn : bool array, (x, y)
        Its cracks and folds.
    middles : int64 array, (n, 2)
        Pixels, each at least ``grid.reach`` within the border.
    grid : PatchGrid
    """
    half = grid.patch // 2
    size = _size(grid)
    cut = _cut(contrast, middles, half, grid.patch)
    seen = _cut(shown, middles, half, grid.patch)
    tears = _cut(torn, middles, half, grid.patch)
    for i in np.flatnonzero(tears.any(axis=(1, 2))):
        seen[i] &= _hanging_together(~tears[i], half)
    window = grid.window
    weight = window * seen
    total = float(window.sum())
    return Patches(
        grid,
        size,
        np.conj(_forward(cut * weight[..., None], size)),
        np.conj(_forward(weight, size)),
        np.conj(_forward((cut * cut).sum(axis=-1) * weight, size)),
        np.asarray(weight.sum(axis=(1, 2)) / total > _LEAST_MASS),
    )


def windows_of(
    contrast: NDArray[np.float32],
    shown: NDArray[np.bool_],
    middles: NDArray[np.int64],
    grid: PatchGrid,
) -> Windows:
    """Cut out the windows that patches are looked for in; see `patches_of`."""
    extent = grid.patch + 2 * grid.search
    size = _size(grid)
    cut = _cut(contrast, middles, grid.reach, extent)
    weight = _cut(shown, middles, grid.reach, extent).astype(np.float32)
    return Windows(
        _forward(cut * weight[..., None], size),
        _forward(weight, size),
        _forward((cut * cut).sum(axis=-1) * weight, size),
    )


def match_patches(
    patches: Patches, windows: Windows
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find the shift of every patch.

    Parameters
    ----------
    patches, windows
        Around the same points of two sections.

    Returns
    -------
    shift : float32 array, (n, 2)
        Along x and y, in steps of 1/64 [pixel].
    trust : float32 array, (n,)
        How far the peak stands above the next, 0 to 1; 0 where nothing was found.
    """
    n = len(patches.is_enough)
    shift = np.zeros((n, 2), np.float32)
    trust = np.zeros(n, np.float32)
    for first in range(0, n, _BATCH):
        part = slice(first, min(first + _BATCH, n))
        shift[part], trust[part] = _match(patches, windows, part)
    return shift, trust


def _match(
    patches: Patches, windows: Windows, part: slice
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    grid = patches.grid
    reach, count = grid.search, 2 * grid.search + 1

    def correlated(a: NDArray[np.complex64], b: NDArray[np.complex64]) -> NDArray[Any]:
        product = a[part] * b[part]
        if product.ndim == _WITH_CHANNELS:
            product = product.sum(axis=-1)
        whole = irfft2(product, (patches.size, patches.size), axes=(1, 2))
        return np.asarray(whole[:, :count, :count])

    overlap = correlated(patches.weight, windows.weight) / float(grid.window.sum())
    energy = np.maximum(correlated(patches.weight, windows.power), 1e-3) * np.maximum(
        correlated(patches.power, windows.weight), 1e-3
    )
    likeness = correlated(patches.values, windows.values) / np.sqrt(energy)
    likeness = np.where(overlap > _LEAST_OVERLAP, likeness, -1.0)
    n = len(likeness)
    every = np.arange(n)
    best = likeness.reshape(n, -1).argmax(axis=1)
    x, y = best // count, best % count
    peak = likeness[every, x, y]
    gx, gy = np.arange(count)[:, None], np.arange(count)[None, :]
    apart = (gx - x[:, None, None]) ** 2 + (gy - y[:, None, None]) ** 2 > _APART**2
    second = np.where(apart, likeness, -1.0).reshape(n, -1).max(axis=1)
    inner = (x > 0) & (y > 0) & (x < count - 1) & (y < count - 1)
    cx, cy = np.clip(x, 1, count - 2), np.clip(y, 1, count - 2)
    middle = likeness[every, cx, cy]
    fine = np.column_stack(
        [
            _vertex(likeness[every, cx - 1, cy], middle, likeness[every, cx + 1, cy]),
            _vertex(likeness[every, cx, cy - 1], middle, likeness[every, cx, cy + 1]),
        ]
    )
    found = np.column_stack([x, y]) - reach + np.where(inner[:, None], fine, 0.0)
    good = inner & (peak > _LEAST_PEAK) & patches.is_enough[part]
    trust = np.where(good, np.clip(peak - np.maximum(second, 0.0), 0, 1), 0.0)
    told = np.rint(found * _STEPS) / _STEPS
    return (
        np.where(trust[:, None] > 0, told, 0.0).astype(np.float32),
        (np.rint(trust * 255) / 255).astype(np.float32),
    )


def _vertex(
    before: NDArray[np.float32], at: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return where parabolas through three samples are highest, from the middle ones."""
    bend = before - 2 * at + after
    curved = bend < -1e-6
    return np.where(
        curved, np.clip(0.5 * (before - after) / np.where(curved, bend, 1.0), -1, 1), 0.0
    )


def _size(grid: PatchGrid) -> int:
    return int(next_fast_len(grid.patch + 2 * grid.search, real=True))


def _forward(values: NDArray[np.float32], size: int) -> NDArray[np.complex64]:
    return np.asarray(rfft2(values, (size, size), axes=(1, 2)))


def _cut(
    values: NDArray[Any], middles: NDArray[np.int64], before: int, extent: int
) -> NDArray[Any]:
    """Return the squares around points, (n, x, y, ...)."""
    shape = (len(middles), extent, extent, *values.shape[2:])
    result = np.empty(shape, values.dtype)
    for square, (x, y) in zip(result, middles - before, strict=True):
        square[:] = values[x : x + extent, y : y + extent]
    return result


def _hanging_together(whole: NDArray[np.bool_], half: int) -> NDArray[np.bool_]:
    """Return what hangs together with the middle; nothing if that is torn itself."""
    pieces = cc3d.connected_components(
        np.asfortranarray(whole.astype(np.uint8)), connectivity=4
    )
    piece = pieces[half, half]
    return np.asarray((pieces == piece) & (piece > 0))
