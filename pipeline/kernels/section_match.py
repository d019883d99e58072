"""The turn and shift between two whole sections, by masked correlation.

All turns within a range are tried, and for each every shift at once, by the normalised
correlation of what both sections show (Padfield 2012, *IEEE Transactions on Image
Processing*). Pairs of feature points (SIFT) give further candidates, for turns beyond the
range; the candidate that correlates best is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

_APART = 8
"""Where another peak is another answer [pixel]."""
_LEAST_OVERLAP = 0.3
_SIFT_RATIO = 0.85
_SIFT_REACH = 6.0
_SIFT_INLIERS = 8
_FEATURES = 2000


@dataclass(frozen=True)
class SectionMatch:
    """How a section lies on another.

    The point p of the section lies at ``turn (p - c) + c + shift`` of the other, with c the
    middle of both, and turn a rotation by ``angle``.

    Parameters
    ----------
    angle : float
        From x towards y [radian].
    shift : (float, float)
        Along x and y [pixel].
    correlation : float
        Of what both show, -1 to 1.
    significance : float
        How far the peak stands above the next, in standard deviations of all others.
    by : {"correlation", "features"}
        What found it.
    """

    angle: float
    shift: tuple[float, float]
    correlation: float
    significance: float
    by: str


def match_sections(
    section: NDArray[np.float32],
    shown: NDArray[np.bool_],
    other: NDArray[np.float32],
    other_shown: NDArray[np.bool_],
    *,
    angles: NDArray[np.float64],
    reach: float,
) -> SectionMatch | None:
    """Find how a section lies on another.

    Parameters
    ----------
    section, other : float32 array, (x, y)
        Local contrast of both, of one shape.
    shown, other_shown : bool array, (x, y)
        Where they show tissue.
    angles : float64 array, (n,)
        Turns that are tried, evenly spaced [radian].
    reach : float
        Greatest shift along either axis [pixel].

    Returns
    -------
    SectionMatch or None
        None if a section shows next to nothing, or if no candidate overlaps enough.
    """
    if shown.mean() < 0.02 or other_shown.mean() < 0.02:
        return None
    target = _Target(other, other_shown, reach)
    found = [m for a in angles if (m := target.place(section, shown, float(a)))]
    if len(angles) > 1 and found:
        best = max(found, key=lambda m: m.correlation)
        half = abs(float(angles[1] - angles[0])) / 2
        found += [
            m
            for a in (best.angle - half, best.angle + half)
            if (m := target.place(section, shown, a))
        ]
    hinted = _angle_by_features(section, shown, other, other_shown)
    if hinted is not None:
        hint = target.place(section, shown, hinted, by="features")
        found += [hint] if hint else []
    return max(found, key=lambda m: m.correlation, default=None)


class _Target:
    """A section that others are laid on; its transforms are made once."""

    def __init__(
        self, values: NDArray[np.float32], shown: NDArray[np.bool_], reach: float
    ) -> None:
        self._reach = min(int(np.ceil(reach)), min(values.shape) - 1)
        self._size = [next_fast_len(n + self._reach, real=True) for n in values.shape]
        weight = shown.astype(np.float32)
        self._values = self._forward(values * weight)
        self._weight = self._forward(weight)
        self._power = self._forward(values * values * weight)

    def _forward(self, values: NDArray[np.float32]) -> NDArray[np.complex64]:
        return np.asarray(rfft2(values, self._size))

    def _offsets(self, product: NDArray[np.complex64]) -> NDArray[np.float32]:
        """Return a correlation at all shifts within reach, the least first."""
        whole = irfft2(product, self._size)
        index = np.arange(-self._reach, self._reach + 1)
        return np.asarray(whole[np.ix_(index, index)])

    def place(
        self,
        values: NDArray[np.float32],
        shown: NDArray[np.bool_],
        angle: float,
        by: str = "correlation",
    ) -> SectionMatch | None:
        turned = _turned(values, angle, cv2.INTER_LINEAR)
        weight = _turned(shown.astype(np.float32), angle, cv2.INTER_NEAREST)
        first, mask, power = (
            np.conj(self._forward(v)) for v in (turned * weight, weight, turned**2 * weight)
        )
        overlap = self._offsets(mask * self._weight) / max(float(weight.sum()), 1.0)
        energy = np.maximum(self._offsets(mask * self._power), 1e-3) * np.maximum(
            self._offsets(power * self._weight), 1e-3
        )
        # A peak of a small overlap is chance more easily.
        likeness = self._offsets(first * self._values) / np.sqrt(energy)
        likeness *= np.sqrt(np.clip(overlap, 0, 1))
        allowed = overlap > _LEAST_OVERLAP
        if not allowed.any():
            return None
        likeness = np.where(allowed, likeness, -1)
        x, y = np.unravel_index(int(likeness.argmax()), likeness.shape)
        gx, gy = np.ogrid[: likeness.shape[0], : likeness.shape[1]]
        apart = ((gx - x) ** 2 + (gy - y) ** 2 > _APART**2) & allowed
        rest = likeness[apart]
        peak = float(likeness[x, y])
        spread = float(rest.std()) if rest.size else 0.0
        stands = (peak - float(rest.max())) / spread if spread > 0 else 0.0
        fine = (
            _vertex(likeness[max(x - 1, 0) : x + 2, y]),
            _vertex(likeness[x, max(y - 1, 0) : y + 2]),
        )
        shift = (float(x + fine[0] - self._reach), float(y + fine[1] - self._reach))
        return SectionMatch(angle, shift, peak, stands, by)


def _vertex(three: NDArray[np.float32]) -> float:
    """Return where a parabola through three samples is highest, from the middle one."""
    if len(three) < 3 or (three < -0.999).any():
        return 0.0
    before, at, after = (float(v) for v in three)
    bend = before - 2 * at + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0


def _turned(
    values: NDArray[np.float32], angle: float, interpolation: int
) -> NDArray[np.float32]:
    """Turn an image about its middle, from x towards y; 0 comes in."""
    middle = (np.array(values.shape) - 1) / 2
    cos, sin = np.cos(angle), np.sin(angle)
    # OpenCV's x is the second axis of an array; its matrix maps the source to the result.
    turn = np.array([[cos, sin], [-sin, cos]])
    centre = middle[::-1]
    matrix = np.column_stack([turn, centre - turn @ centre])
    extent = (values.shape[1], values.shape[0])
    return np.asarray(cv2.warpAffine(values, matrix, extent, flags=interpolation))


def _angle_by_features(
    section: NDArray[np.float32],
    shown: NDArray[np.bool_],
    other: NDArray[np.float32],
    other_shown: NDArray[np.bool_],
) -> float | None:
    """Return the turn that pairs of like points agree on, or None if they do not."""
    sift = cv2.SIFT.create(nfeatures=_FEATURES, contrastThreshold=0.01)
    points, looks = [], []
    for values, mask in ((section, shown), (other, other_shown)):
        grey = np.clip(values * 40 + 128, 0, 255).astype(np.uint8)
        keys, described = sift.detectAndCompute(grey, mask.astype(np.uint8) * 255)
        if described is None or len(keys) < _SIFT_INLIERS:
            return None
        points.append(np.array([k.pt for k in keys], np.float64)[:, ::-1])
        looks.append(described)
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(looks[0], looks[1], k=2)
    alike = [
        a
        for a, b in (p for p in pairs if len(p) == 2)
        if a.distance < _SIFT_RATIO * b.distance
    ]
    if len(alike) < _SIFT_INLIERS:
        return None
    here = points[0][[m.queryIdx for m in alike]]
    there = points[1][[m.trainIdx for m in alike]]
    cv2.setRNGSeed(0)
    matrix, agree = cv2.estimateAffinePartial2D(
        here, there, ransacReprojThreshold=_SIFT_REACH, maxIters=4000
    )
    if matrix is None or int(agree.sum()) < _SIFT_INLIERS:
        return None
    return float(np.arctan2(matrix[1, 0], matrix[0, 0]))
