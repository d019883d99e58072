"""The algebra of fields: where each point of one space lies in another.

A field is a displacement for every node of a square grid. It *pulls*: the point q of the
result shows the point ``q + field(q)`` of what is drawn from. Displacements have the unit
of the grid's coordinates; a grid is given by its spacing, and node i lies at
``(i + 1/2) spacing`` along its axis, the centre of its cell, so that grids of other
spacings over one box describe the same space. Beyond the outermost nodes a field goes on as
it ends.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Field: TypeAlias = NDArray[np.float64]
"""float64, (x, y, 2): displacement along x and y."""
Points: TypeAlias = NDArray[np.float64]
"""float64, (..., 2): coordinates."""

_ROUNDS = 60


def nodes(start: tuple[int, int], shape: tuple[int, int], spacing: float) -> Points:
    """Return where the nodes of a box of a grid lie.

    Parameters
    ----------
    start, shape : (int, int)
        First node and extent of the box [node].
    spacing : float
        Of the grid.

    Returns
    -------
    float64 array, (x, y, 2)
    """
    x, y = (
        (np.arange(s, s + n, dtype=np.float64) + 0.5) * spacing
        for s, n in zip(start, shape, strict=True)
    )
    return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)


def sample(
    values: NDArray[np.floating],
    points: Points,
    spacing: float,
    start: tuple[int, int] = (0, 0),
    *,
    tear: float = np.inf,
) -> NDArray[np.float64]:
    """Look values up between nodes, linearly.

    Parameters
    ----------
    values : array, (x, y, c)
        At the nodes of a box of a grid.
    points : float64 array, (..., 2)
        Where to look.
    spacing : float
        Of the grid.
    start : (int, int)
        First node of the box.
    tear : float
        Where the values around a point differ by more than this, the nearest node is
        taken: the two sides of a crack have nothing between them.

    Returns
    -------
    float64 array, (..., c)
    """
    at = points / spacing - 0.5 - np.asarray(start, np.float64)
    # The node below is found from the grid and not from the box: a box must not matter.
    last = np.array(values.shape[:2], np.int64) - 1
    low = np.floor(at)
    part = at - low
    first = np.clip(low.astype(np.int64), 0, last)
    second = np.clip(low.astype(np.int64) + 1, 0, last)
    (x0, y0), (x1, y1) = (np.moveaxis(i, -1, 0) for i in (first, second))
    corners = np.stack(
        [values[x0, y0], values[x1, y0], values[x0, y1], values[x1, y1]]
    ).astype(np.float64)
    u, v = part[..., 0], part[..., 1]
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v])
    result = np.einsum("k...,k...c->...c", weights, corners)
    if np.isfinite(tear):
        torn = np.ptp(corners, axis=0).max(axis=-1) > tear
        if torn.any():
            nearest = weights[:, torn].argmax(axis=0)
            result[torn] = corners[:, torn][nearest, np.arange(len(nearest))]
    return np.asarray(result)


def compose(outer: Field, inner: Field, spacing: float, *, tear: float = np.inf) -> Field:
    """Return the field that first pulls by one field and then by another.

    The result q shows ``p + inner(p)`` with ``p = q + outer(q)``.

    Parameters
    ----------
    outer, inner : float64 array, (x, y, 2)
        On one grid.
    spacing : float
        Of the grid, in the unit of the fields.
    tear : float
        See `sample`.
    """
    here = nodes((0, 0), (outer.shape[0], outer.shape[1]), spacing)
    return outer + sample(inner, here + outer, spacing, tear=tear)


def invert(field: Field, spacing: float) -> Field:
    """Return the field that undoes a smooth one.

    By iteration, which converges where neighbouring nodes move apart by less than their
    spacing.

    Parameters
    ----------
    field : float64 array, (x, y, 2)
    spacing : float
        Of the grid, in the unit of the field.
    """
    here = nodes((0, 0), (field.shape[0], field.shape[1]), spacing)
    found = -field
    for _ in range(_ROUNDS):
        nearer = -sample(field, here + found, spacing)
        moved = float(np.abs(nearer - found).max(initial=0))
        found = nearer
        if moved < 1e-6 * spacing:
            break
    return found


def resample(
    field: NDArray[np.floating], spacing: float, shape: tuple[int, int], new_spacing: float
) -> Field:
    """Return a field on a grid of another spacing over the same space."""
    return sample(field, nodes((0, 0), shape, new_spacing), spacing)


def scattered_inverse(
    moved: NDArray[np.floating],
    known: NDArray[np.bool_],
    spacing: float,
    *,
    fill: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0),
) -> tuple[Field, NDArray[np.bool_]]:
    """Return the field that undoes one that may be torn.

    Every known node is carried to where it goes, and spread over the four nodes around;
    where nothing arrives, a fold has opened, and the field is filled from around.

    Parameters
    ----------
    moved : float array, (x, y, 2)
        Where nodes go, as displacements.
    known : bool array, (x, y)
        Nodes that go anywhere; those in a crack or on a fold do not.
    spacing : float
        Of the grid, in the unit of the displacements.
    fill : tuple of float
        Standard deviations of the Gaussians that fill, one after the other [node].

    Returns
    -------
    field : float64 array, (x, y, 2)
    reached : bool array, (x, y)
        Where something arrived.
    """
    shape = known.shape
    by = moved[known].astype(np.float64) / spacing
    whole = np.floor(by)
    part = by - whole
    at = np.argwhere(known) + whole.astype(np.int64)
    total = np.zeros((3, shape[0] * shape[1]))
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.abs(1 - x - part[:, 0]) * np.abs(1 - y - part[:, 1])
        to = at + np.array([x, y])
        inside = ((to >= 0) & (to < shape)).all(axis=1)
        index = to[inside, 0] * shape[1] + to[inside, 1]
        for row, value in enumerate((np.ones(len(by)), -by[:, 0], -by[:, 1])):
            total[row] += np.bincount(
                index, (weight * value)[inside], minlength=total.shape[1]
            )
    weight, x, y = total.reshape(3, *shape)
    reached = weight > 0.3
    safe = np.where(reached, weight, 1.0)
    field = np.stack([np.where(reached, v / safe, 0.0) for v in (x, y)], axis=-1)
    have = reached.astype(np.float64)
    for sigma in fill:
        if have.all():
            break
        around = gaussian_filter(have, sigma, mode="constant", truncate=3.0)
        can = (have == 0) & (around > 1e-3)
        for axis in range(2):
            spread = gaussian_filter(
                field[..., axis] * have, sigma, mode="constant", truncate=3.0
            )
            field[..., axis] = np.where(
                can, spread / np.where(can, around, 1.0), field[..., axis]
            )
        have[can] = 1.0
    return field * spacing, reached
