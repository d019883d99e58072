"""How far off an alignment is, by what each pixel of it truly shows.

The place of the tissue that an aligned pixel shows should be the same in every section.
Tissue runs obliquely, and nobody can tell a slant of all of it from the way it was cut: an
affine map that changes linearly from section to section, the same for the whole stack, is
taken away first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

OFF = 3.0
"""What counts as off [pixel]."""


@dataclass(frozen=True)
class Residuals:
    """How far sections lie from one another, over all pixels of all pairs [pixel].

    Parameters
    ----------
    neighbours, p95, p99 : float
        Median and percentiles between sections that follow one another, missing ones
        passed over.
    five_apart : float
        Median between sections five apart; NaN if there are none.
    near_defects, elsewhere : float
        Share of the pixels between neighbours that are off by more than 3 pixels, within
        reach of a defect of either and beyond; NaN if there are none.
    drift : float
        Median between the first section and the last.
    coverage : float
        Share of the tissue that is shown.
    """

    neighbours: float
    p95: float
    p99: float
    five_apart: float
    near_defects: float
    elsewhere: float
    drift: float
    coverage: float


@dataclass(frozen=True)
class AlignedSection:
    """What is true of an aligned section.

    Parameters
    ----------
    tissue : float array, (x, y, 2)
        Which place of the tissue a pixel shows [pixel].
    shown : bool array, (x, y)
        Whether it shows any.
    near_defect : bool array, (x, y)
        Whether it lies near a defect.
    available : float
        Share of the pixels of the tissue that the loose section has.
    """

    tissue: NDArray[np.floating]
    shown: NDArray[np.bool_]
    near_defect: NDArray[np.bool_]
    available: float


def residuals(sections: Mapping[int, AlignedSection]) -> Residuals:
    """Measure an alignment.

    Parameters
    ----------
    sections : mapping of int to AlignedSection
        By number; without those that are missing.
    """
    numbers = sorted(sections)
    off = _without_trend(sections)

    def apart(a: int, b: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        both = sections[a].shown & sections[b].shown
        near = sections[a].near_defect | sections[b].near_defect
        between = off[a][both].astype(np.float64) - off[b][both]
        return np.linalg.norm(between, axis=-1), near[both]

    pairs = [apart(a, b) for a, b in pairwise(numbers)]
    between = np.concatenate([d for d, _ in pairs])
    near = np.concatenate([n for _, n in pairs])
    five = [apart(z, z + 5)[0] for z in numbers if z + 5 in sections]
    shown = float(np.mean([s.shown.mean() for s in sections.values()]))
    available = float(np.mean([s.available for s in sections.values()]))

    def share(values: NDArray[np.float64]) -> float:
        return float((values > OFF).mean()) if values.size else float("nan")

    return Residuals(
        neighbours=float(np.median(between)),
        p95=float(np.percentile(between, 95)),
        p99=float(np.percentile(between, 99)),
        five_apart=float(np.median(np.concatenate(five))) if five else float("nan"),
        near_defects=share(between[near]),
        elsewhere=share(between[~near]),
        drift=float(np.median(apart(numbers[0], numbers[-1])[0])),
        coverage=shown / available,
    )


def _without_trend(
    sections: Mapping[int, AlignedSection],
) -> dict[int, NDArray[np.float64]]:
    """Take away the affine map of the stack that changes linearly with the section."""
    numbers = sorted(sections)
    middle, scale = np.mean(numbers), max(1.0, len(numbers) / 2)
    shape = sections[numbers[0]].shown.shape
    x, y = ((np.arange(n) - (n - 1) / 2) / (max(n - 1, 1) / 2) for n in shape)
    plane = np.stack(np.broadcast_arrays(1.0, x[:, None], y[None, :]), axis=-1)

    def basis(z: int) -> NDArray[np.float64]:
        return np.concatenate([plane, plane * ((z - middle) / scale)], axis=-1)

    square, right = np.zeros((6, 6)), np.zeros((6, 2))
    for z in numbers:
        section = sections[z]
        rows = basis(z)[section.shown]
        square += rows.T @ rows
        right += rows.T @ section.tissue[section.shown]
    fit = np.linalg.lstsq(square, right, rcond=None)[0]
    return {z: np.asarray(sections[z].tissue - basis(z) @ fit) for z in numbers}
