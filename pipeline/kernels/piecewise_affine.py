"""Maps that are affine in every triangle: a section whose pieces a person put together.

A pair of points says where tissue lies in the loose section, and where it belongs. Between
pairs, the map is affine in each triangle of the Delaunay triangulation of the places where
they belong; it *pulls*: for a point of the closed section it says where the loose one has
it. So a crack with pairs on either side closes::

    loose    A . . . a          b . . . B        a, b: pairs at the rims
                      |  crack  |
    closed           A . . . a b . . . B         what lay between them is pressed together

Pairs lie along cracks, and the rest of the section follows them. Whoever let it follow the
mean of all pairs would tear every side from its own rim. So *guides* are added around the
pairs, and each moves with the pairs on its side: with the nearest, and with others the less
the longer the way to them along edges of the triangulation that no crack crosses. They
move it rigidly, and turn it as far as they pin a turn down: two clicks side by side do not.
"""

from __future__ import annotations

import cmath
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import ConvexHull, Delaunay, cKDTree

from pipeline.kernels.fields import Points

_LEAST = 3
_FLAT = 1e-6
_TORN = 0.15
"""An edge whose ends move apart by more than this share of its length crosses a crack."""
_CLEARLY = 4.0
"""They move apart by more than clicks are off, too; and a fold is as high as that, where
less is a flat triangle that clicks turned over [accuracy of a click]."""
_USUAL_TURN = 0.035
"""How far a side of a crack is turned against the others, as a deviation [radian]."""
_BAND = 3
"""Spacings that guides go on beyond the section, and that dense ones do around pairs."""
_DENSEST = 32
"""Guides along the longer side of all pairs together."""
_EDGE = 1e-9
"""Share of a triangle by which points beside it still belong to it."""


@dataclass(frozen=True)
class Anchors:
    """The corners of the triangles.

    Parameters
    ----------
    loose, closed : float64 array, (n, 2)
        Where they lie and where they belong; pairs first, guides after.
    folded : list of tuple of int
        Pairs at the corners of each triangle that the map turns over, by more than clicks
        are off. Without any, the map is one-to-one but for what clicks blur.
    """

    loose: Points
    closed: Points
    folded: list[tuple[int, ...]]


def pair_faults(loose: Points, closed: Points) -> list[tuple[tuple[int, ...], str]]:
    """Say which pairs cannot be the corners of triangles.

    Parameters
    ----------
    loose, closed : float64 array, (n, 2)
        Where points lie, and where they belong.

    Returns
    -------
    list of (tuple of int, str)
        Pairs, and what is wrong with them and how to mend it.
    """
    every = tuple(range(len(loose)))
    faults = []
    for points, meant in ((loose, "lie at one point"), (closed, "belong at one point")):
        order = np.lexsort(points.T)
        same = (points[order[1:]] == points[order[:-1]]).all(axis=1)
        for first, second in zip(order[:-1][same], order[1:][same], strict=True):
            both = tuple(sorted((int(first), int(second))))
            faults.append(
                (both, f"{meant}; remove one, or set each on its own side of the crack")
            )
    if len(loose) < _LEAST:
        faults.append((every, f"are fewer than {_LEAST}; give pairs on both sides"))
    elif not faults:
        for points, meant in ((loose, "lie"), (closed, "belong")):
            spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
            if spread[1] <= _FLAT * spread[0]:
                faults.append(
                    (every, f"{meant} on one line; add pairs on both sides of the crack")
                )
                break
    return faults


def anchored(
    loose: Points,
    closed: Points,
    low: Points,
    high: Points,
    *,
    guides: int,
    accuracy: float,
) -> Anchors:
    """Add guides to pairs, so that triangles cover a section and what is around it.

    Guides with which the map would fold are left out.

    Parameters
    ----------
    loose, closed : float64 array, (n, 2)
        Pairs without faults: where points lie, and where they belong.
    low, high : float64 array, (2,)
        Corners of the section.
    guides : int
        How many there are along the longer side of it.
    accuracy : float
        How far off a pair may be, in the unit of the points.
    """
    low, high = np.minimum(low, closed.min(axis=0)), np.maximum(high, closed.max(axis=0))
    extent = float((high - low).max())
    spacing = extent / guides
    x, y = zip(low - extent, high + extent, strict=True)
    far = np.array([(a, b) for a in x for b in y])
    to = np.concatenate([far, _around(closed, low, high, spacing)])
    at = _carried(to, loose, closed, accuracy)
    keep = np.ones(len(to), bool)
    n = len(loose)
    while True:
        both = np.concatenate([loose, at[keep]]), np.concatenate([closed, to[keep]])
        turned = _turned_over(*both)
        # The far corners hold the rest, and stay.
        bad = np.unique(turned[turned >= n + len(far)]) - n
        if not len(bad):
            break
        keep[np.flatnonzero(keep)[bad]] = False
    clearly = turned[_height(both[0][turned]) > _CLEARLY * accuracy]
    folded = [tuple(sorted(int(i) for i in t if i < n)) for t in clearly]
    return Anchors(*both, [t for t in folded if t])


def _turned_over(loose: Points, closed: Points) -> NDArray[np.int64]:
    """Return the triangles that change their orientation or lose their area, (m, 3)."""
    triangles = _triangles(closed)
    area = _area(loose[triangles]) * np.sign(_area(closed[triangles]))
    return triangles[area <= 0]


def _triangles(closed: Points) -> NDArray[np.int64]:
    middle = closed.mean(axis=0)
    return np.asarray(Delaunay(closed - middle).simplices, np.int64)


def _area(corners: Points) -> NDArray[np.float64]:
    """Twice the area of triangles, (..., 3, 2), positive if they turn from x to y."""
    first, second = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :]
    second = second - corners[..., 0, :]
    return np.asarray(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0])


def _height(corners: Points) -> NDArray[np.float64]:
    """Heights of triangles, (..., 3, 2), over their longest edges."""
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=-2), axis=-1)
    return np.asarray(np.abs(_area(corners)) / edges.max(axis=-1))


# -- guides ---------------------------------------------------------------------------


def _around(closed: Points, low: Points, high: Points, spacing: float) -> Points:
    """Place guides around pairs, near them about as dense as they are, (m, 2).

    Without near ones, pairs of one rim would make flat triangles with one another, which
    turn over if a click is a little off.
    """
    hull = ConvexHull(closed).equations
    ends = closed.min(axis=0), closed.max(axis=0)
    apart = np.median(cKDTree(closed).query(closed, k=2)[0][:, 1])
    finest = max(float(apart), float((ends[1] - ends[0]).max()) / _DENSEST)
    found = []
    least, halvings = 0.5, max(0, int(np.log2(spacing / finest)))
    for level in range(halvings, -1, -1):
        step = spacing / 2**level
        grid = _grid(low, high, step, *ends) if level else _grid(low, high, step)
        off = (grid @ hull[:, :2].T + hull[:, 2]).max(axis=1) / step
        found.append(grid[(off > least) & ((off <= _BAND) | (level == 0))])
        # The next begins where this one ends.
        least = _BAND / 2
    return np.concatenate(found)


def _grid(
    low: Points,
    high: Points,
    step: float,
    first: Points | None = None,
    last: Points | None = None,
) -> Points:
    """Return the nodes of a grid that begins at ``low``, of all of it or around a part."""
    axes = []
    for axis in range(2):
        start = 0.0 if first is None else np.floor((first[axis] - low[axis]) / step)
        stop = ((high if last is None else last)[axis] - low[axis]) / step
        numbers = np.arange(start - _BAND, np.ceil(stop) + _BAND + 1)
        axes.append(low[axis] + numbers * step)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _carried(to: Points, loose: Points, closed: Points, accuracy: float) -> Points:
    """Say where the loose section has points beyond the pairs, (m, 2)."""
    # A turn is known to within the accuracy of a pair, over the square root of the arm.
    least = (accuracy / _USUAL_TURN) ** 2
    whole = _Motion.between(closed, loose, np.ones(len(loose))).believed(least)
    # What is left when the section as a whole has been moved.
    rough = whole(closed)
    distance, nearest = cKDTree(closed).query(to)
    along = dijkstra(_whole_edges(rough, loose, accuracy), indices=nearest)
    result = np.empty_like(to)
    for i, point in enumerate(to):
        weight = np.maximum(distance[i] + along[i], accuracy) ** -2.0
        rest = _Motion.between(rough, loose, weight).believed(least)
        result[i] = rest(whole(point[None]))[0]
    return result


def _whole_edges(rough: Points, loose: Points, accuracy: float) -> csr_array:
    """Return the lengths of the edges between pairs that no crack crosses, (n, n)."""
    triangles = _triangles(rough)
    first, second = np.unique(
        np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0
    ).T
    moved = loose - rough
    length = np.linalg.norm(rough[first] - rough[second], axis=1)
    change = np.linalg.norm(moved[first] - moved[second], axis=1)
    whole = (change <= _TORN * length) | (change <= _CLEARLY * accuracy)
    edges = first[whole], second[whole]
    lengths = csr_array((length[whole], edges), shape=(len(rough), len(rough)))
    return lengths + lengths.T


@dataclass(frozen=True)
class _Motion:
    """A turn and a shift, of complex numbers x + iy.

    `arm` says how well pairs pin the turn down: the squares of their distances to the
    middle, added up over as many of them as their weights amount to.
    """

    middle: complex
    to: complex
    angle: float
    arm: float

    @classmethod
    def between(
        cls, points: Points, images: Points, weight: NDArray[np.float64]
    ) -> _Motion:
        """Fit by least squares."""
        p, q = _complex(points), _complex(images)
        middle, to = (complex((weight * v).sum() / weight.sum()) for v in (p, q))
        product = complex((weight * (p - middle).conj() * (q - to)).sum())
        apart = float((weight * np.abs(p - middle) ** 2).sum())
        arm = apart * float(weight.sum() / (weight**2).sum())
        return cls(middle, to, cmath.phase(product) if product else 0.0, arm)

    def believed(self, least: float) -> _Motion:
        """Return the motion with as much of its turn as its arm is to be believed."""
        share = self.arm / (self.arm + least)
        return _Motion(self.middle, self.to, share * self.angle, self.arm)

    def __call__(self, points: Points) -> Points:
        moved = (_complex(points) - self.middle) * cmath.exp(1j * self.angle) + self.to
        return np.stack([moved.real, moved.imag], axis=-1)


def _complex(points: Points) -> NDArray[np.complex128]:
    return np.asarray(points[..., 0] + 1j * points[..., 1])


def _shares(
    points: Points, corners: Points
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return how much of each corner a point is, negative beyond the opposite edge.

    By components and one after the other, so that a point gives the same bits whichever
    others it comes with.
    """
    ax, ay = corners[..., 0, 0], corners[..., 0, 1]
    bx, by = corners[..., 1, 0] - ax, corners[..., 1, 1] - ay
    cx, cy = corners[..., 2, 0] - ax, corners[..., 2, 1] - ay
    x, y = points[..., 0] - ax, points[..., 1] - ay
    area = bx * cy - by * cx
    second = (x * cy - y * cx) / area
    third = (bx * y - by * x) / area
    return 1.0 - second - third, second, third


# -- the map --------------------------------------------------------------------------


def pull(points: Points, loose: Points, closed: Points) -> Points:
    """Say where the loose section has what the closed one shows.

    A point on an edge belongs to the first of its triangles, so that no result depends on
    which points come together. Beyond all triangles the anchors move points together.

    Parameters
    ----------
    points : float64 array, (x, y, 2)
        In the closed section.
    loose, closed : float64 array, (n, 2)
        Anchors without folds.

    Returns
    -------
    float64 array, (x, y, 2)
    """
    result = _Motion.between(closed, loose, np.ones(len(loose)))(points)
    left = np.ones(points.shape[:2], bool)
    for corners, block in _touched(points, closed, _triangles(closed)):
        inside = points[block]
        shares = _shares(inside, closed[corners])
        here = left[block] & (np.minimum(np.minimum(*shares[:2]), shares[2]) >= -_EDGE)
        for axis in range(2):
            a, b, c = loose[corners, axis]
            value = a * shares[0] + b * shares[1] + c * shares[2]
            result[block][here, axis] = value[here]
        left[block][here] = False
    return result


def _touched(
    points: Points, closed: Points, triangles: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], tuple[slice, slice]]]:
    """Yield triangles, and a block of the points that holds all that are in them."""
    x, y = points[..., 0], points[..., 1]
    ends = (x.min(axis=1), x.max(axis=1)), (y.min(axis=0), y.max(axis=0))
    room = _EDGE * float(np.ptp(closed, axis=0).max())
    for corners in triangles:
        block = []
        for axis, (least, most) in enumerate(ends):
            low, high = closed[corners, axis].min(), closed[corners, axis].max()
            near = np.flatnonzero((least <= high + room) & (most >= low - room))
            if not len(near):
                break
            block.append(slice(int(near[0]), int(near[-1]) + 1))
        else:
            yield corners, (block[0], block[1])
