"""Where aligned sections are not aligned: slips, steps, and what to keep from nets.

Sections are compared block by block: the correlation of what is left of both when coarse
grey levels are taken away. A *slip* is a section that is aligned to neither neighbour,
while these are aligned to one another; a *step* parts two sections that are each aligned
to those on their side (Macrina et al. 2021, *Methods*, segmentation masks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

DEFECTS: Mapping[str, int] = {"fold": 1, "crack": 2, "resin": 4}
"""Bits of a mask of defects."""
LEFT_OUT = 8
"""Bit of a section that is left out, beside those."""
SLIP, STEP = 1, 2
"""Bits of a map of misalignments."""

_HIGH_PASS = 5
_LEAST_SHOWN = 0.5
_UNKNOWN = -2.0


def block_correlation(
    first: NDArray[np.uint8], second: NDArray[np.uint8], block: int
) -> NDArray[np.float32]:
    """Correlate two sections, block by block.

    Parameters
    ----------
    first, second : uint8 array, (x, y)
        0 where there is nothing; extents are multiples of ``block``.
    block : int
        Extent of a block [pixel].

    Returns
    -------
    float32 array, (x / block, y / block)
        -1 to 1; -2 where less than half of a block is shown by both.
    """
    shown = (first > 0) & (second > 0)
    a, b = (_high_pass(image) * shown for image in (first, second))

    def blocks(values: NDArray[np.float32]) -> NDArray[np.float64]:
        x, y = (n // block for n in values.shape)
        squares = values.astype(np.float64).reshape(x, block, y, block)
        return np.asarray(squares.sum(axis=(1, 3)))

    product = blocks(a * b)
    power = np.sqrt(blocks(a * a) * blocks(b * b))
    share = blocks(shown.astype(np.float32)) / block**2
    known = (share >= _LEAST_SHOWN) & (power > 0)
    return np.where(known, product / np.where(known, power, 1.0), _UNKNOWN).astype(
        np.float32
    )


def _high_pass(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Take the mean around away, over what is shown."""
    shown = (image > 0).astype(np.float64)
    grey = image.astype(np.float64)
    total, count = _sums(grey, _HIGH_PASS), _sums(shown, _HIGH_PASS)
    return np.asarray((grey - total / np.maximum(count, 1)) * shown, np.float32)


def _sums(values: NDArray[np.float64], around: int) -> NDArray[np.float64]:
    """Add up whole numbers around each; exact in float64, so that no box matters."""
    # Here, because it takes as long to load as all stages together.
    from scipy.ndimage import uniform_filter

    mean = uniform_filter(values, around, mode="constant")
    return np.asarray(np.rint(mean * around**2))


def aligned_blocks(
    correlation: NDArray[np.float32], *, least: float, around: int
) -> NDArray[np.int8]:
    """Say which blocks are aligned: 1 if so, 0 if not, -1 where nothing is known.

    Parameters
    ----------
    correlation : float32 array, (x, y)
        By `block_correlation`.
    least : float
        Correlation above which a block is alike.
    around : int
        Blocks along each axis that vote; more than half of those known must be alike.
    """
    known = correlation > _UNKNOWN / 2 - 0.5
    alike = (correlation > least) & known
    votes, voters = (_sums(v.astype(np.float64), around) for v in (alike, known))
    return np.where(known, np.where(2 * votes > voters, 1, 0), -1).astype(np.int8)


def classify(
    is_aligned: Callable[[int, int], NDArray[np.int8]],
    shown: NDArray[np.bool_],
    section: int,
    distance: int,
) -> NDArray[np.uint8]:
    """Find the slips of a section, and the steps between it and the one before.

    Where the next section shows nothing, the one beyond takes its place, up to a distance.

    Parameters
    ----------
    is_aligned : function of two sections, the lower first
        By `aligned_blocks`.
    shown : bool array, (x, y, section)
        Blocks that show tissue.
    section : int
        Which, counted in ``shown``.
    distance : int
        How far neighbours may be.

    Returns
    -------
    uint8 array, (x, y)
        `SLIP` and `STEP`, added up.
    """
    before = _nearest(shown, section, -1, distance)
    after = _nearest(shown, section, 1, distance)
    further = _beyond(shown, before, -1, distance)

    def between(low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int8]:
        """Look up pairs that differ from block to block."""
        result = np.full(low.shape, -1, np.int8)
        both = (low >= 0) & (high >= 0)
        pairs = np.unique(np.column_stack([low[both], high[both]]), axis=0)
        for a, b in pairs.tolist():
            here = (low == a) & (high == b)
            result[here] = is_aligned(a, b)[here]
        return result

    me = np.where(shown[..., section], section, -1)
    with_before, with_after = between(before, me), between(me, after)
    across, below = between(before, after), between(further, before)
    slip = (with_before == 0) & (with_after == 0) & (across == 1)
    step = (with_before == 0) & (with_after == 1) & (below == 1) & (across != 1)
    return np.asarray(np.where(slip, SLIP, 0) | np.where(step, STEP, 0), np.uint8)


def _nearest(
    shown: NDArray[np.bool_], section: int, way: int, distance: int
) -> NDArray[np.int64]:
    """Return, by block, the nearest section that shows it; -1 if none."""
    result = np.full(shown.shape[:2], -1, np.int64)
    for k in range(1, distance + 1):
        other = section + way * k
        if 0 <= other < shown.shape[2]:
            result[(result < 0) & shown[..., other]] = other
    return result


def _beyond(
    shown: NDArray[np.bool_], sections: NDArray[np.int64], way: int, distance: int
) -> NDArray[np.int64]:
    """Return, by block, the nearest section beyond one that differs from block to block."""
    result = np.full(sections.shape, -1, np.int64)
    for section in np.unique(sections[sections >= 0]).tolist():
        here = sections == section
        result[here] = _nearest(shown, section, way, distance)[here]
    return result
