"""Where the tissue of many sections belongs, from the shifts of patches between them.

One least-squares problem over a block of sections. Unknown are, at every node of a grid,
the *displacement* that puts a section in its place, and the *drift* of the tissue itself
from one section to the next: neurites run obliquely, and a method that takes all of what
it sees for distortion pulls them upright. What tells the two apart is that a section is
distorted independently of the next, while a neurite goes on as it went. So displacements
are smooth within a section (but not across its tears) and small, and the drift is smooth
and goes on from section to section.

Shifts that contradict the others lose their weight step by step (Geman and McClure), which
is a vote among the neighbours of a section.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import cg

Shifts: TypeAlias = Mapping[tuple[int, int], tuple[NDArray[Any], NDArray[Any]]]
"""By section and other section: shift (x, y, 2) and trust (x, y) of every node."""

_ROUNDS = 5
_ITERATIONS = 150
_TOLERANCE = 1e-4
_FULL_TRUST = 0.3
_LEAST_TRUST = 0.02


@dataclass(frozen=True)
class Stiffness:
    """What weighs how much, against the trust of a shift to the next section as 1.

    Parameters
    ----------
    shifts : float
        All shifts.
    distance : float
        How fast shifts to further sections lose weight: by ``1 + distance (k² - 1)``.
    smooth : float
        Differences of displacements between neighbouring nodes.
    small : float
        Displacements themselves: what keeps a stack from drifting.
    drift_smooth, drift_steady, drift_small : float
        The drift of the tissue: its differences within a section, from section to section,
        and itself.
    outlier : float
        Misfit from which on a shift loses its weight [unit of the shifts].
    """

    shifts: float = 4.0
    distance: float = 0.3
    smooth: float = 8.0
    small: float = 0.01
    drift_smooth: float = 1.0
    drift_steady: float = 30.0
    drift_small: float = 0.05
    outlier: float = 4.0


def relax(
    shifts: Shifts,
    joined: NDArray[np.bool_],
    *,
    spacing: float,
    stiffness: Stiffness,
) -> NDArray[np.float64]:
    """Find the displacement of every node of a block of sections.

    Parameters
    ----------
    shifts : mapping
        The node p of section a shows what ``p + shift`` of section b shows. Sections are
        counted from 0.
    joined : bool array, (x, y, section, 2)
        Whether no tear lies between a node and the next along x, and along y.
    spacing : float
        Distance of nodes [unit of the shifts].
    stiffness : Stiffness

    Returns
    -------
    float64 array, (x, y, section, 2)
        The node p of a section belongs at ``p + displacement``.
    """
    nx, ny, nz = joined.shape[:3]
    index = np.arange(nx * ny * nz).reshape(nz, nx, ny)
    gaps = index[: max(nz - 1, 0)] + nx * ny * nz
    unknowns = index.size + gaps.size
    system = _observations(shifts, index, gaps, unknowns, spacing, stiffness)
    prior = _prior(index, gaps, unknowns, joined, stiffness)
    found = np.zeros((unknowns, 2))
    if system is not None:
        rows, wanted, weight = system
        left = weight
        for _ in range(_ROUNDS):
            matrix = csr_array(rows.T @ (diags_array(left) @ rows) + prior)
            right = rows.T @ (wanted * left[:, None])
            scale = diags_array(1 / matrix.diagonal())
            for axis in range(2):
                found[:, axis], _ = cg(
                    matrix,
                    right[:, axis],
                    x0=found[:, axis],
                    rtol=_TOLERANCE,
                    maxiter=_ITERATIONS,
                    M=scale,
                )
            misfit = np.linalg.norm(rows @ found - wanted, axis=1)
            left = weight / (1 + (misfit / stiffness.outlier) ** 2)
    return np.ascontiguousarray(
        found[: index.size].reshape(nz, nx, ny, 2).transpose(1, 2, 0, 3)
    )


def _observations(
    shifts: Shifts,
    index: NDArray[np.int64],
    gaps: NDArray[np.int64],
    unknowns: int,
    spacing: float,
    stiffness: Stiffness,
) -> tuple[csr_array, NDArray[np.float64], NDArray[np.float64]] | None:
    """Return one row for each shift that is trusted, what it says, and its weight."""
    _, nx, ny = index.shape
    gx, gy = np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij")
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float64]] = []
    wanted: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    count = 0
    for (a, b), (shift, trust) in sorted(shifts.items()):
        use = trust > _LEAST_TRUST
        n = int(use.sum())
        if n == 0:
            continue
        row = np.arange(count, count + n)
        count += n
        here = (gx[use], gy[use])
        rows.append(row)
        columns.append(index[a][here])
        values.append(np.ones(n))
        # Where it arrives on the other section lies between four nodes.
        to = [
            np.clip(g + shift[..., axis][use] / spacing, 0, extent - 1)
            for axis, (g, extent) in enumerate(zip(here, (nx, ny), strict=True))
        ]
        low = [
            np.minimum(t.astype(np.int64), max(extent - 2, 0))
            for t, extent in zip(to, (nx, ny), strict=True)
        ]
        part = [t - first for t, first in zip(to, low, strict=True)]
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            if dx >= nx or dy >= ny:
                continue
            rows.append(row)
            columns.append(index[b][low[0] + dx, low[1] + dy])
            values.append(-np.abs(1 - dx - part[0]) * np.abs(1 - dy - part[1]))
        for gap in range(min(a, b), max(a, b)):
            rows.append(row)
            columns.append(gaps[gap][here])
            values.append(np.full(n, 1.0 if a > b else -1.0))
        k = abs(a - b)
        wanted.append(shift[use].astype(np.float64))
        weights.append(
            np.minimum(trust[use] / _FULL_TRUST, 1.0)
            * (stiffness.shifts / (1 + stiffness.distance * (k * k - 1)))
        )
    if not count:
        return None
    matrix = csr_array(
        coo_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
            shape=(count, unknowns),
        )
    )
    return matrix, np.concatenate(wanted), np.concatenate(weights)


def _prior(
    index: NDArray[np.int64],
    gaps: NDArray[np.int64],
    unknowns: int,
    joined: NDArray[np.bool_],
    stiffness: Stiffness,
) -> csr_array:
    """Return what is known beforehand, as a quadratic form."""
    tied = joined.transpose(2, 0, 1, 3).astype(np.float64) * stiffness.smooth
    small = np.full(unknowns, stiffness.drift_small)
    small[: index.size] = stiffness.small
    whole = np.ones(gaps.shape) * stiffness.drift_smooth
    steady = np.ones(gaps.shape) * stiffness.drift_steady
    form = diags_array(small).tocsr()
    for first, second, weight in (
        (index[:, :-1], index[:, 1:], tied[:, :-1, :, 0]),
        (index[:, :, :-1], index[:, :, 1:], tied[:, :, :-1, 1]),
        (gaps[:, :-1], gaps[:, 1:], whole[:, 1:]),
        (gaps[:, :, :-1], gaps[:, :, 1:], whole[:, :, 1:]),
        (gaps[:-1], gaps[1:], steady[1:]),
    ):
        form = form + _differences(first.ravel(), second.ravel(), weight.ravel(), unknowns)
    return csr_array(form)


def _differences(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    weight: NDArray[np.float64],
    unknowns: int,
) -> csr_array:
    """Return the quadratic form of weighted differences between unknowns."""
    n = len(first)
    each = np.arange(n)
    matrix = csr_array(
        coo_array(
            (
                np.concatenate([np.ones(n), -np.ones(n)]),
                (np.concatenate([each, each]), np.concatenate([first, second])),
            ),
            shape=(n, unknowns),
        )
    )
    return csr_array(matrix.T @ (diags_array(weight) @ matrix))


def spread(
    displacement: NDArray[np.floating],
    torn: NDArray[np.bool_],
    at: NDArray[np.int64],
    smooth: NDArray[np.floating],
    *,
    rounds: int,
) -> NDArray[np.float64]:
    """Carry the displacement of nodes to pixels, without crossing a tear.

    Around tears every pixel takes, in rounds, the mean of the neighbours that have one
    already, starting from the nodes; so each side of a tear follows its own nodes.

    Parameters
    ----------
    displacement : float array, (n, 2)
        Of the nodes.
    torn : bool array, (x, y)
        Tears of a section.
    at : int64 array, (n, 2)
        Pixels of the nodes.
    smooth : float array, (x, y, 2)
        The displacement of pixels far from tears, as it lies between nodes.
    rounds : int
        How often; as many as pixels lie between nodes, and some more to smooth.

    Returns
    -------
    float64 array, (x, y, 2)
        Without meaning where it is torn.
    """
    free = ~torn
    near = free & _grown(torn, rounds // 2)
    nodes = free[at[:, 0], at[:, 1]]
    seeds = np.zeros(torn.shape, bool)
    seeds[at[nodes, 0], at[nodes, 1]] = True
    values = np.where((free & ~near)[..., None], smooth, 0.0).astype(np.float64)
    values[at[nodes, 0], at[nodes, 1]] = displacement[nodes]
    have = ((free & ~near) | seeds).astype(np.float64)
    change = near & ~seeds
    for _ in range(rounds):
        count = _sum_of_nine(have)
        total = np.stack([_sum_of_nine(values[..., i]) for i in (0, 1)], axis=-1)
        can = change & (count > 0)
        values[can] = total[can] / count[can][:, None]
        have[can] = 1.0
    return np.where(near[..., None] & (have > 0)[..., None], values, smooth)


def _sum_of_nine(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add up the 3 x 3 around each pixel, in one order whatever the box."""
    padded = np.pad(values, 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray(rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:])


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    return np.asarray(maximum_filter(mask, size=2 * by + 1, mode="constant"))
