"""Sections come loose: shifted, turned, bent, torn and folded, with the truth kept.

A section is drawn as a microscope would have found it, on a canvas of the same extent:
pixel p of the canvas shows pixel q of the tissue. From p to q the tissue is first closed
again along its cracks and folds, along straight normals and so exactly invertible, and
then moved by one smooth map. The field that puts a section back is the inverse, from q to
p, as it is for whoever renders: ``aligned(q) = loose(q + field(q))``.

Every section is a function of the seed and its number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Points: TypeAlias = NDArray[np.float32]
"""float32, (x, y, 2): a place for each pixel [pixel]."""
Mask: TypeAlias = NDArray[np.bool_]
Share = Annotated[float, Field(ge=0, le=1)]
Extent = Annotated[float, Field(ge=0)]

MASKS = ("fold", "crack", "resin")
"""What is marked on a canvas."""

_INVERSIONS = 40
_EXACT = 0.02  # OpenCV looks up at 1/32 of a pixel, times the slope of the bend [pixel]
_STEEP = 0.9


class Loosening(BaseModel):
    """What becomes of sections.

    Parameters
    ----------
    seed : int
        Of everything.
    shift : float
        How far a section moves at most, along x and along y [pixel].
    rotation : float
        How far it turns at most, either way [degree].
    elastic : tuple of (float, float)
        Smooth random displacements, each of a greatest length (three standard deviations)
        and of a distance over which it changes [pixel].
    defects : float
        Share of the sections that have cracks or folds, one or two.
    width : (float, float)
        Least and greatest width of a crack, and of what a fold hides [pixel].
    resin : float
        Share of the sections that end in bare resin.
    missing : int
        Sections of which there is nothing.
    grey : float
        Greatest change of brightness and contrast [fraction].
    blurred : float
        Share of the sections that are out of focus.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    shift: Extent = 40.0
    rotation: Extent = 2.0
    elastic: tuple[tuple[Extent, Annotated[float, Field(gt=0)]], ...] = (
        (12.0, 300.0),
        (3.0, 80.0),
    )
    defects: Share = 0.25
    width: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (8.0, 30.0)
    resin: Share = 0.0
    missing: Annotated[int, Field(ge=0)] = 2
    grey: Annotated[float, Field(ge=0, lt=1)] = 0.1
    blurred: Share = 0.05

    def missing_of(self, n: int) -> frozenset[int]:
        """Return which of n sections are missing; not the first or the last."""
        if self.missing == 0 or n <= 2:
            return frozenset()
        inner = default_rng([self.seed, 1]).permutation(np.arange(1, n - 1))
        return frozenset(int(z) for z in inner[: self.missing])


@dataclass(frozen=True)
class LooseSection:
    """A section as it was found, and what is true of it.

    Parameters
    ----------
    image : uint8 array, (x, y), Fortran order
        0 where there is no tissue, or where the canvas shows none of it.
    masks : dict of str to bool array, (x, y)
        `fold`, `crack` and `resin`, over the canvas.
    field : float32 array, (x, y, 2)
        From a pixel of the tissue to where the canvas shows it [pixel].
    lost : bool array, (x, y)
        Pixels of the tissue that the canvas does not show: in a fold, below resin, or
        beyond its border.
    tissue : float32 array, (x, y, 2)
        The other way: which place of the tissue a pixel of the canvas shows [pixel].
    """

    image: NDArray[np.uint8]
    masks: dict[str, Mask]
    field: Points
    lost: Mask
    tissue: Points


def loosen(tissue: NDArray[np.uint8], section: int, settings: Loosening) -> LooseSection:
    """Draw one section as it was found.

    Parameters
    ----------
    tissue : uint8 array, (x, y)
        The aligned section.
    section : int
        Its number.
    settings : Loosening
        What becomes of it.

    Returns
    -------
    LooseSection
    """
    rng = default_rng([settings.seed, 2, section])
    shape = (int(tissue.shape[0]), int(tissue.shape[1]))
    moved = _Smooth.drawn(rng, shape, settings)
    torn = _tears(rng, shape, settings)
    canvas = _pixels(shape)
    closed, masks = canvas, {name: np.zeros(shape, bool) for name in MASKS}
    for tear in torn:
        masks[tear.kind] |= tear.inside(closed)
        closed = tear.closed(closed)
    if rng.random() < settings.resin:
        masks["resin"] = _end_of_tissue(rng, shape)
        masks["fold"] &= ~masks["resin"]
        masks["crack"] &= ~masks["resin"]
    shown = moved(closed)
    image = _exposed(rng, _look_up(tissue, shown), masks, settings)

    tight = moved.inverse(canvas)
    found, hidden = tight, np.zeros(shape, bool)
    for tear in reversed(torn):
        hidden |= tear.hides(found)
        found = tear.opened(found)
    outside = (found < 0).any(-1) | (found > np.array(shape) - 1).any(-1)
    buried = _look_up(masks["resin"].view(np.uint8), found) > 0
    lost = hidden | outside | buried
    return LooseSection(image, masks, found - canvas, lost, shown)


# -- smooth ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Smooth:
    """A turn about the middle, a shift, and a displacement that is known everywhere.

    Parameters
    ----------
    turn : float64 array, (2, 2)
    shift, middle : float64 array, (2,)
    bend : float32 array, (x, y, 2)
        Beyond its border it goes on as it ends.
    """

    turn: NDArray[np.float64]
    shift: NDArray[np.float64]
    middle: NDArray[np.float64]
    bend: Points

    @classmethod
    def drawn(cls, rng: Generator, shape: tuple[int, int], settings: Loosening) -> _Smooth:
        angle = np.deg2rad(rng.uniform(-settings.rotation, settings.rotation))
        c, s = np.cos(angle), np.sin(angle)
        shift = rng.uniform(-settings.shift, settings.shift, 2)
        bend = np.zeros((*shape, 2), np.float32)
        for length, distance in settings.elastic:
            bend += _wave(rng, shape, length / 3, distance)
        _require_gentle(bend, settings)
        return cls(np.array([[c, -s], [s, c]]), shift, (np.array(shape) - 1) / 2, bend)

    def __call__(self, points: Points) -> Points:
        turned = _turned(points - self.middle.astype(np.float32), self.turn)
        turned += (self.middle + self.shift).astype(np.float32)
        return turned + _at(self.bend, points)

    def inverse(self, points: Points) -> Points:
        """Find where each point comes from, by iteration: the bend is a contraction."""
        middle = self.middle.astype(np.float32)
        target = points - (self.middle + self.shift).astype(np.float32)
        found = _turned(target, self.turn.T) + middle
        for _ in range(_INVERSIONS):
            nearer = _turned(target - _at(self.bend, found), self.turn.T) + middle
            moved = float(np.abs(nearer - found).max())
            found = nearer
            if moved < _EXACT:
                break
        return found


def _turned(points: Points, turn: NDArray[np.float64]) -> Points:
    """Multiply by a 2 x 2 matrix; by components, as products of tiny matrices are slow."""
    x, y = points[..., 0], points[..., 1]
    ((a, b), (c, d)) = turn.astype(np.float32)
    return np.stack([a * x + b * y, c * x + d * y], axis=-1)


def _wave(
    rng: Generator, shape: tuple[int, int], deviation: float, distance: float
) -> Points:
    """Draw a smooth random displacement: splines through knots a distance apart."""
    knots = [max(4, int(np.ceil(n / distance)) + 3) for n in shape]
    coarse = rng.normal(0, deviation, (knots[1], knots[0], 2)).astype(np.float32)
    extent = [round(k * distance) for k in knots]
    fine = cv2.resize(coarse, extent, interpolation=cv2.INTER_CUBIC)
    corner = [
        int(rng.integers(0, max(1, e - n))) for e, n in zip(extent, shape, strict=True)
    ]
    x, y = corner
    cut = fine[y : y + shape[1], x : x + shape[0]]
    return np.ascontiguousarray(cut.transpose(1, 0, 2))


def _require_gentle(bend: Points, settings: Loosening) -> None:
    steepest = max(float(np.abs(np.diff(bend, axis=axis)).max()) for axis in (0, 1))
    if steepest >= _STEEP:
        raise ValueError(
            f"elastic {settings.elastic} folds the tissue over itself: neighbouring pixels "
            f"move apart by {steepest:.2f}; give shorter displacements or longer distances"
        )


# -- cracks and folds -----------------------------------------------------------------


@dataclass(frozen=True)
class _Tear:
    """A crack or a fold along a curve that is a graph over a straight line.

    Points move along the normal of the line alone, by what depends on the place along the
    line alone; so opening and closing undo one another exactly.

    Parameters
    ----------
    kind : {"crack", "fold"}
    through : float64 array, (2,)
        A point of the line [pixel].
    along, normal : float64 array, (2,)
        Unit vectors.
    curve, width : float64 array, (n,)
        How far the curve lies off the line, and how wide the crack is or how much the fold
        hides, at every pixel along the line from -n/2 on [pixel].
    ridge : float
        Visible width of a fold, for each pixel that it hides.
    """

    kind: Literal["crack", "fold"]
    through: NDArray[np.float64]
    along: NDArray[np.float64]
    normal: NDArray[np.float64]
    curve: NDArray[np.float64]
    width: NDArray[np.float64]
    ridge: float

    @classmethod
    def drawn(
        cls, rng: Generator, shape: tuple[int, int], width: tuple[float, float]
    ) -> _Tear:
        angle = rng.uniform(0, 2 * np.pi)
        along = np.array([np.cos(angle), np.sin(angle)])
        n = 4 * max(shape)
        place = np.arange(n) - n / 2
        curve = sum(
            rng.uniform(0, 0.04 * length)
            * np.sin(2 * np.pi * (place / length + rng.random()))
            for length in rng.uniform(0.3, 1.0, 2) * max(shape)
        )
        widest = rng.uniform(*width)
        # One end, both or none lies within the section.
        first, last = np.sort(rng.uniform(-1.0, 1.0, 2)) * max(shape)
        last = max(last, first + 0.4 * max(shape))
        taper = np.clip(np.minimum(place - first, last - place) / (4 * widest), 0, 1)
        kind: Literal["crack", "fold"] = "crack" if rng.random() < 0.5 else "fold"
        return cls(
            kind=kind,
            through=rng.uniform(0.2, 0.8, 2) * shape,
            along=along,
            normal=np.array([-along[1], along[0]]),
            curve=np.asarray(curve, np.float64),
            width=widest * taper,
            ridge=float(rng.uniform(0.35, 0.8)),
        )

    def _off(self, points: Points) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return how far points lie off the curve, and the width there."""
        apart = points - self.through.astype(np.float32)
        frame = _turned(apart, np.stack([self.along, self.normal]))
        place = np.clip(frame[..., 0] + len(self.curve) / 2, 0, len(self.curve) - 2)
        before = place.astype(np.int32)
        rest = place - before
        profile = np.stack([self.curve, self.width]).astype(np.float32)
        curve, width = (p[before] * (1 - rest) + p[before + 1] * rest for p in profile)
        return frame[..., 1] - curve, width

    def _moved(self, points: Points, by: NDArray[Any]) -> Points:
        return points + by[..., None].astype(np.float32) * self.normal.astype(np.float32)

    def inside(self, points: Points) -> Mask:
        """Whether the canvas shows the gap, or the ridge of the fold."""
        off, width = self._off(points)
        half = width / 2 if self.kind == "crack" else self.ridge * width / 2
        return np.asarray(np.abs(off) < half)

    def closed(self, points: Points) -> Points:
        """Move points of the canvas to where the tissue was before it tore."""
        off, width = self._off(points)
        if self.kind == "crack":
            by = -np.sign(off) * np.minimum(np.abs(off), width / 2)
            return self._moved(points, by)
        half = self.ridge * width / 2
        reach = np.divide(off, half, out=np.sign(off), where=half > 0)
        return self._moved(points, np.clip(reach, -1, 1) * width / 2)

    def opened(self, points: Points) -> Points:
        """Move points of the tissue to where the canvas shows them."""
        off, width = self._off(points)
        side = np.where(off < 0, np.float32(-1), np.float32(1))
        if self.kind == "crack":
            return self._moved(points, side * width / 2)
        half = (1 + self.ridge) * width / 2
        reach = np.divide(off, half, out=side.copy(), where=half > 0)
        return self._moved(points, -np.clip(reach, -1, 1) * width / 2)

    def hides(self, points: Points) -> Mask:
        """Whether points of the tissue lie in the fold."""
        off, width = self._off(points)
        if self.kind == "crack":
            return np.zeros(off.shape, bool)
        return np.asarray(np.abs(off) < (1 + self.ridge) * width / 2)


def _tears(rng: Generator, shape: tuple[int, int], settings: Loosening) -> list[_Tear]:
    if rng.random() >= settings.defects:
        return []
    return [_Tear.drawn(rng, shape, settings.width) for _ in range(rng.integers(1, 3))]


def _end_of_tissue(rng: Generator, shape: tuple[int, int]) -> Mask:
    """Draw where the tissue ends: beyond a bent line."""
    along = _Tear.drawn(rng, shape, (1.0, 1.0))
    off, _ = along._off(_pixels(shape))
    return np.asarray(off > rng.uniform(0, 0.3) * max(shape))


# -- grey levels ----------------------------------------------------------------------


def _exposed(
    rng: Generator,
    image: NDArray[np.float32],
    masks: dict[str, Mask],
    settings: Loosening,
) -> NDArray[np.uint8]:
    """Darken folds, fill cracks and resin, change contrast, and digitise."""
    empty = image == 0
    grain = rng.normal(0, 1, image.shape).astype(np.float32)
    grain = _blurred(grain, 0.7)
    image = image * (1 - rng.uniform(0.5, 0.75) * _blurred(masks["fold"], 1.5))
    for name, tone in (("crack", rng.choice([25.0, 215.0])), ("resin", 195.0)):
        share = _blurred(masks[name], 1.2)
        bare = tone + rng.uniform(-15, 15) + rng.uniform(3, 12) * grain
        image = image * (1 - share) + bare * share
    gain, offset = 1 + rng.uniform(-1, 1, 2) * settings.grey
    image = (image - 128) * gain + 128 * offset
    if rng.random() < settings.blurred:
        image = _blurred(image, rng.uniform(1, 2.5))
    grey = np.clip(np.rint(image), 1, 255).astype(np.uint8)
    # Where the canvas shows nothing, nothing was imaged; a crack there is one all the same.
    grey[empty & ~masks["crack"] & ~masks["resin"]] = 0
    return np.asfortranarray(grey)


def _blurred(values: NDArray[np.float32] | Mask, sigma: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(values.astype(np.float32), (0, 0), sigma))


# -- look-ups -------------------------------------------------------------------------


def _pixels(shape: tuple[int, int]) -> Points:
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    return np.stack([x, y], axis=-1)


def _look_up(image: NDArray[np.uint8], points: Points) -> NDArray[np.float32]:
    """Interpolate between the four nearest pixels; 0 beyond the border."""
    x, y = np.ascontiguousarray(points[..., 1]), np.ascontiguousarray(points[..., 0])
    # OpenCV's first axis is its y.
    return np.asarray(
        cv2.remap(image.astype(np.float32), x, y, cv2.INTER_LINEAR, borderValue=0.0)
    )


def _at(bend: Points, points: Points) -> Points:
    x, y = np.ascontiguousarray(points[..., 1]), np.ascontiguousarray(points[..., 0])
    return np.asarray(
        cv2.remap(bend, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )
