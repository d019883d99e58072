"""How far patches of an aligned section lie from where they are most like another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.contrast import local_contrast

PATCH = 32
"""Extent of a patch [pixel]."""
REACH = 6
"""Greatest shift along either axis that is tried [pixel]."""
_FINE, _COARSE = 1.0, 8.0
_LEAST_SHOWN = 0.9
_SURE = 0.3
_STILL_PIXELS, _STILL_GAIN = 1.0, 0.02
"""Of AC4 as delivered, sections 20 to 35 at 12 nm, patches lie 1.5 pixels off and could
gain 0.07; bent section by section by dense flow (DIS), 0.5 pixels and 0.000."""


@dataclass(frozen=True)
class PatchShifts:
    """What is found of the patches of a section that both show.

    Parameters
    ----------
    corner : int64 array, (patch, 2)
        Their first pixels.
    shift : float64 array, (patch, 2)
        From where a patch lies to where it is most like the other section [pixel].
    here, best : float64 array, (patch,)
        Correlation where it lies, and where it is greatest.
    """

    corner: NDArray[np.int64]
    shift: NDArray[np.float64]
    here: NDArray[np.float64]
    best: NDArray[np.float64]

    @property
    def sure(self) -> NDArray[np.bool_]:
        """Which are like anything at all."""
        return self.best > _SURE


def patch_shifts(section: NDArray[np.uint8], other: NDArray[np.uint8]) -> PatchShifts:
    """Look for every patch of a section around its place in another.

    Patches lie side by side, and do not overlap.

    Parameters
    ----------
    section, other : uint8 array, (x, y)
        Of one shape; 0 where there is no tissue.
    """
    shown = (section > 0) & (other > 0)
    contrast = [
        local_contrast(image, image > 0, fine=_FINE, coarse=_COARSE)
        for image in (section, other)
    ]
    rows = []
    starts = [range(REACH, n - PATCH - REACH + 1, PATCH) for n in section.shape]
    for x in starts[0]:
        for y in starts[1]:
            wide = (
                slice(x - REACH, x + PATCH + REACH),
                slice(y - REACH, y + PATCH + REACH),
            )
            if shown[wide].mean() < _LEAST_SHOWN:
                continue
            patch = contrast[0][x : x + PATCH, y : y + PATCH]
            found = cv2.matchTemplate(contrast[1][wide], patch, cv2.TM_CCOEFF_NORMED)
            u, v = np.unravel_index(int(found.argmax()), found.shape)
            shift = (
                u - REACH + _vertex(found[max(u - 1, 0) : u + 2, v]),
                v - REACH + _vertex(found[u, max(v - 1, 0) : v + 2]),
            )
            rows.append((x, y, *shift, found[REACH, REACH], found[u, v]))
    table = np.array(rows, np.float64).reshape(-1, 6)
    return PatchShifts(
        table[:, :2].astype(np.int64), table[:, 2:4], table[:, 4], table[:, 5]
    )


def joined(several: Sequence[PatchShifts]) -> PatchShifts:
    """Return the patches of several sections, or pieces of one."""
    if not several:
        return PatchShifts(
            np.zeros((0, 2), np.int64), np.zeros((0, 2)), np.zeros(0), np.zeros(0)
        )
    return PatchShifts(
        *(
            np.concatenate([getattr(p, name) for p in several])
            for name in ("corner", "shift", "here", "best")
        )
    )


def off_by(patches: PatchShifts) -> tuple[float, float]:
    """Return how far patches lie from where they are most alike, and what they could gain.

    Medians over the patches that are like anything: a distance [pixel], and a difference of
    correlations. NaN without any.
    """
    sure = patches.sure
    if not sure.any():
        return float("nan"), float("nan")
    away = np.linalg.norm(patches.shift[sure], axis=1)
    gain = (patches.best - patches.here)[sure]
    return float(np.median(away)), float(np.median(gain))


def is_too_good(patches: PatchShifts) -> bool:
    """Say whether sections are so alike that they must have been bent to be.

    Tissue moves from one section of 30 nm to the next, so most patches of sections that
    are truly aligned are a little more alike beside their place.
    """
    off, gain = off_by(patches)
    return off < _STILL_PIXELS and gain < _STILL_GAIN


def _vertex(three: NDArray[Any]) -> float:
    """Return where a parabola through three samples is highest, from the middle one."""
    if len(three) < 3:
        return 0.0
    before, at, after = (float(v) for v in three)
    bend = before - 2 * at + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
