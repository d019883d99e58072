"""Where two alignments of the same sections are joined.

In the sections that both hold, each says where every loose point belongs. So the map from
the places of one to those of the other is known there, without any matching: through the
loose section. Its affine part is how the two stand to one another, and is carried on
through all of the second; the rest fades away from the seam.

The affine part changes from section to section, for a slant or a twist of all the tissue
looks as one of the sections, and each alignment took it for the one or the other as well as
it could. Were that left out, the stack would have a kink at the seam; were it carried on
for ever, it would turn without end. So it goes on over the overlap, and fades beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.kernels.fields import Points, sample

Affine: TypeAlias = NDArray[np.float64]
"""float64, (2, 3): the shift of (x, y) is ``affine @ (x, y, 1)`` [unit of the places]."""

_ROUNDS = 60
_PRECISION = 1e-3
"""Beside the place that is sought [unit of the places]."""
_FEW = 0.05
"""Weight of known nodes around, below which a mean fades to nothing."""
_TRUNCATE = 3.0
_REWEIGHTED = 12


def to_loose(
    points: Points, angle: float, shift: NDArray[np.float64], middle: NDArray[np.float64]
) -> Points:
    """Return where points of a section that was laid in place lie in the loose one."""
    x, y = np.moveaxis(points - middle - shift, -1, 0)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1) + middle


def from_loose(
    points: Points, angle: float, shift: NDArray[np.float64], middle: NDArray[np.float64]
) -> Points:
    """Return where a pose puts points of a loose section; undoes `to_loose`."""
    x, y = np.moveaxis(points - middle, -1, 0)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1) + middle + shift


def found_again(
    points: Points,
    field: NDArray[np.floating],
    spacing: float,
    start: tuple[int, int],
    *,
    reach: float,
    tear: float = np.inf,
) -> tuple[Points, NDArray[np.bool_]]:
    """Return the places that a field takes from given points.

    By iteration, each point for itself, so that it does not matter which others are asked
    for, nor how much of the field is given beyond ``reach`` around them.

    Parameters
    ----------
    points : float64 array, (..., 2)
        What is shown.
    field : array, (x, y, 2)
        At the nodes of a box of a grid; pulls.
    spacing : float
        Of the grid, in the unit of points and field.
    start : (int, int)
        First node of the box.
    reach : float
        How far from a point its place is looked for, along either axis.
    tear : float
        See `fields.sample`.

    Returns
    -------
    places : float64 array, (..., 2)
        ``places + field(places) = points``.
    known : bool array, (...)
        Whether it was found; not on tears.
    """
    flat = points.reshape(-1, 2)
    by = np.zeros_like(flat)
    known = np.zeros(len(flat), bool)
    open_ = np.arange(len(flat))
    for _ in range(_ROUNDS):
        if not len(open_):
            break
        pulled = sample(field, flat[open_] + by[open_], spacing, start, tear=tear)
        nearer = np.clip(-pulled, -reach, reach)
        moved = np.abs(nearer - by[open_]).max(axis=-1)
        by[open_] = nearer
        done = moved < _PRECISION
        # What lies as far as was looked may lie further.
        known[open_[done]] = (np.abs(nearer[done]) < reach).all(axis=-1)
        open_ = open_[~done]
    shape = points.shape[:-1]
    return (flat + by).reshape(points.shape), known.reshape(shape)


def fit_affine(
    places: Points,
    shifts: Points,
    weight: NDArray[np.floating],
    steps: NDArray[np.floating] | None = None,
) -> tuple[Affine, Affine]:
    """Fit the affine map that most shifts agree with, and how it changes by step.

    Least squares, weighted anew by how far each is off (Geman and McClure), on the scale
    of the median. With too few places a shift alone is fitted, and with none nothing.

    Parameters
    ----------
    places, shifts : float64 array, (n, 2)
    weight : float array, (n,)
        Trust in each; 0 for none.
    steps : float array, (n,) or None
        Of the change; None where there is none.

    Returns
    -------
    affine, change : float64 arrays, (2, 3)
        At step 0, and by step.
    """
    used = weight > 0
    at, by, trust = places[used], shifts[used], weight[used].astype(np.float64)
    if not len(at):
        return np.zeros((2, 3)), np.zeros((2, 3))
    middle = at.mean(axis=0)
    extent = float(np.abs(at - middle).max())
    whole = len(at) >= 3 and extent > 0
    rows = np.ones((len(at), 1))
    if whole:
        rows = np.concatenate([(at - middle) / extent, rows], axis=1)
    count = rows.shape[1]
    step = None if steps is None else steps[used].astype(np.float64)
    if step is not None and np.ptp(step) > 0:
        rows = np.concatenate([rows, rows * step[:, None]], axis=1)
    left = trust
    for _ in range(_REWEIGHTED):
        root = np.sqrt(left)[:, None]
        fit = np.linalg.lstsq(rows * root, by * root, rcond=None)[0]
        off = np.linalg.norm(by - rows @ fit, axis=1)
        scale = max(1.5 * float(np.median(off)), _PRECISION)
        left = trust / (1 + (off / scale) ** 2) ** 2

    def affine(part: NDArray[np.floating]) -> Affine:
        if not len(part):
            return np.zeros((2, 3))
        slope = part[:2].T / extent if whole else np.zeros((2, 2))
        return np.concatenate([slope, (part[-1] - slope @ middle)[:, None]], axis=1)

    return affine(fit[:count]), affine(fit[count:])


def affine_shift(affine: Affine, points: Points) -> Points:
    """Return by how much an affine map shifts points."""
    return np.asarray(points @ affine[:, :2].T + affine[:, 2])


def overlap_trust(sections: int) -> NDArray[np.float64]:
    """Return the weight of each section of an overlap: least at the ends, 1 at the most."""
    steps = np.arange(1, sections + 1)
    weight = np.minimum(steps, steps[::-1]).astype(np.float64)
    return np.asarray(weight / weight.max())


@dataclass(frozen=True)
class Fading:
    """How what two alignments disagree by is spread around their seam.

    Parameters
    ----------
    first, last : int
        First section that both hold, and the one after the last.
    decay : float
        Sections beyond the seam in which it fades to 1/e.
    smooth : float
        Deviation of the Gaussian that it is smoothed by [node].
    """

    first: int
    last: int
    decay: float
    smooth: float

    @property
    def halo(self) -> int:
        """Nodes beyond a box that have a say in it."""
        return int(_TRUNCATE * self.smooth + 0.5) + int(_TRUNCATE + 0.5)

    def weight(self, section: int) -> float:
        """Return how much the second alignment counts in a section, 0 to 1."""
        steps = self.last - self.first + 1
        return min(1.0, max(0.0, (section - self.first + 1) / steps))

    def steps(self, section: int) -> float:
        """Return by how many steps the affine map has changed since the middle.

        Beyond the overlap the change fades, so that it ends after ``decay`` steps more.
        """
        last = self.last - 1
        beyond = max(0, section - last)
        within = min(section, last) - (self.first + last) / 2
        return within + self.decay * (1 - math.exp(-beyond / self.decay))

    @property
    def trust(self) -> NDArray[np.float64]:
        """How much each section says of how the two stand to one another.

        The outermost of either alignment have neighbours on one side alone, and lie less
        surely: the middle of the overlap, where both have them, says most.
        """
        return overlap_trust(self.last - self.first)

    def strength(self, section: int) -> float:
        """Return what is left of the disagreement in a section, 0 to 1."""
        return math.exp(-max(0, section - self.last + 1) / self.decay)


def carried(
    rest: NDArray[np.floating], known: NDArray[np.bool_], fading: Fading, section: int
) -> NDArray[np.float64]:
    """Return the shift of nodes of a section beside that of the affine map.

    In the overlap it goes from what the section itself says, which is where the first
    alignment has it, to the weighted median of all; beyond, that fades.

    Parameters
    ----------
    rest : float array, (x, y, section, 2)
        What the sections of the overlap say beside the affine map.
    known : bool array, (x, y, section)
        Where they say anything.
    fading : Fading
    section : int
        Its number.

    Returns
    -------
    float64 array, (x, y, 2)
    """
    anywhere = np.asarray(known.any(axis=2), bool)
    common = smoothed(_median(rest, known, fading.trust), anywhere, fading.smooth)
    if section >= fading.last:
        return common * fading.strength(section)
    own = section - fading.first
    alone = np.asarray(rest[:, :, own], np.float64) - common
    part = 1 - fading.weight(section)
    return common + part * smoothed(alone, known[:, :, own], 1.0)


def smoothed(
    values: NDArray[np.floating], known: NDArray[np.bool_], deviation: float
) -> NDArray[np.float64]:
    """Smooth what is known, and carry it on to where it is not, fading.

    Parameters
    ----------
    values : float array, (x, y, 2)
    known : bool array, (x, y)
    deviation : float
        Of the Gaussian [node].
    """

    def around(array: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(
            gaussian_filter(array, deviation, mode="constant", truncate=_TRUNCATE)
        )

    total = [around(np.where(known, values[..., axis], 0.0)) for axis in range(2)]
    share = np.maximum(around(known.astype(np.float64)), _FEW)
    return np.asarray(np.stack(total, axis=-1) / share[..., None])


def _median(
    rest: NDArray[np.floating], known: NDArray[np.bool_], trust: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Take the weighted median over the sections that say something; 0 where none does."""
    weight = np.where(known, trust, 0.0)
    result = np.zeros((*known.shape[:2], 2))
    for axis in range(2):
        values = rest[..., axis].astype(np.float64)
        order = np.argsort(values, axis=2, kind="stable")
        ordered = np.take_along_axis(values, order, axis=2)
        below = np.cumsum(np.take_along_axis(weight, order, axis=2), axis=2)
        middle = (below >= below[..., -1:] / 2).argmax(axis=2)[..., None]
        result[..., axis] = np.take_along_axis(ordered, middle, axis=2)[..., 0]
    return np.where(np.asarray(known.any(axis=2))[..., None], result, 0.0)


@dataclass(frozen=True)
class Disagreement:
    """By how much two alignments disagree about a section, beside an affine map.

    Parameters
    ----------
    known : float
        Share of the section of which both know where it belongs.
    median, p95 : float
        [unit of the shifts]; NaN where nothing is known.
    """

    known: float
    median: float
    p95: float


def disagreement(rest: NDArray[np.floating], weight: NDArray[np.floating]) -> Disagreement:
    """Say how large the rest is.

    Parameters
    ----------
    rest : float array, (..., 2)
    weight : float array, (...)
        Share of each place that is known; 0 for none.
    """
    used = weight > 0
    known = float(weight.mean()) if weight.size else 0.0
    if not used.any():
        return Disagreement(known, math.nan, math.nan)
    off = np.linalg.norm(rest[used], axis=-1)
    median, p95 = np.percentile(off, [50, 95])
    return Disagreement(known, float(median), float(p95))
