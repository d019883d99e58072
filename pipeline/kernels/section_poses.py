"""Where every section of a stack lies, from how pairs of them lie on one another.

Turns are solved for first, then shifts, each as a sparse least-squares problem over the
whole stack; pairs that contradict the others lose their weight step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

_ROUNDS = 20
_TURN_SCALE = np.deg2rad(0.4)
_GAUGE = 1e-6
_MOST_TRUSTED = 10.0


@dataclass(frozen=True)
class Pair:
    """How a section lies on another, see `SectionMatch`; shifts in nm.

    Parameters
    ----------
    section, other : int
        Their numbers.
    angle : float
        [radian]
    shift : (float, float)
        [nm]
    significance : float
        0 or less counts for nothing.
    """

    section: int
    other: int
    angle: float
    shift: tuple[float, float]
    significance: float


@dataclass(frozen=True)
class SectionPoses:
    """Turn and shift of every section, and how well they fit.

    The point p of section i lies at ``turn(angle[i]) (p - c) + c + shift[i]``.

    Parameters
    ----------
    angle : float64 array, (section,)
        [radian]
    shift : float64 array, (section, 2)
        [nm]
    group : int64 array, (section,)
        Which sections are tied to one another by pairs: 0 is the greatest group. Mean turn
        and shift of each group are 0. -1 where nothing ties a section to any other.
    weight : float64 array, (pair,)
        What is left of the weight of each pair, 0 to 1; near 0 is an outlier.
    misfit_nm : float64 array, (pair,)
        How far the middle of a section lies from where the pair would have it [nm].
    """

    angle: NDArray[np.float64]
    shift: NDArray[np.float64]
    group: NDArray[np.int64]
    weight: NDArray[np.float64]
    misfit_nm: NDArray[np.float64]

    @property
    def placed(self) -> NDArray[np.bool_]:
        """Whether a section is tied to any other; the rest keep 0."""
        return np.asarray(self.group >= 0)


def solve_poses(sections: int, pairs: Sequence[Pair], *, scale_nm: float) -> SectionPoses:
    """Place sections so that pairs are contradicted as little as possible.

    Parameters
    ----------
    sections : int
        How many, numbered from 0.
    pairs : sequence of Pair
        Further apart in the stack counts for less, by the square of the distance.
    scale_nm : float
        Misfit at which a pair begins to lose its weight [nm].

    Returns
    -------
    SectionPoses
        Groups that nothing ties to one another lie about one middle.
    """
    good = [p for p in pairs if p.significance > 0]
    used = np.array([p.significance > 0 for p in pairs], bool)
    ends = np.array([(p.section, p.other) for p in good], np.int64).reshape(-1, 2)
    group = _groups(sections, ends)
    inside = group[ends[:, 0]] >= 0 if len(ends) else np.zeros(0, bool)
    trust = np.array(
        [
            (min(p.significance, _MOST_TRUSTED) / _MOST_TRUSTED) ** 2
            / (p.section - p.other) ** 2
            for p in good
        ]
    )
    trust = np.where(inside, trust, 0.0)
    graph = _Graph(sections, ends, group)

    turns = np.array([[p.angle] for p in good]).reshape(-1, 1)
    left, weight = trust, np.ones(len(good))
    angle = np.zeros((sections, 1))
    for _ in range(_ROUNDS):
        angle = graph.solve(turns, left)
        off = np.abs(graph.differences(angle) - turns)[:, 0]
        weight = 1 / (1 + (off / _TURN_SCALE) ** 2) ** 2
        left = trust * weight
    angle = angle[:, 0]
    shifts = np.array([p.shift for p in good]).reshape(-1, 2)
    if len(good):
        cos, sin = np.cos(angle[ends[:, 1]]), np.sin(angle[ends[:, 1]])
        x, y = shifts.T.copy()
        shifts = np.column_stack([cos * x - sin * y, sin * x + cos * y])
    shift, misfit, kept = np.zeros((sections, 2)), np.zeros(len(good)), weight
    for _ in range(_ROUNDS):
        shift = graph.solve(shifts, left)
        misfit = np.linalg.norm(graph.differences(shift) - shifts, axis=1)
        kept = weight / (1 + (misfit / scale_nm) ** 2) ** 2
        left = trust * kept
    all_weights, all_misfits = np.zeros(len(pairs)), np.full(len(pairs), np.nan)
    all_weights[used], all_misfits[used] = np.where(inside, kept, 0.0), misfit
    return SectionPoses(angle, shift, group, all_weights, all_misfits)


class _Graph:
    """Sections as nodes, pairs as edges from the section to the other."""

    def __init__(
        self, sections: int, ends: NDArray[np.int64], group: NDArray[np.int64]
    ) -> None:
        n = len(ends)
        rows = np.repeat(np.arange(n), 2)
        values = np.tile([1.0, -1.0], n)
        self._edges = csc_array(
            coo_array((values, (rows, ends.ravel())), shape=(n, sections))
        )
        self._group = group

    def differences(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self._edges @ values)

    def solve(
        self, wanted: NDArray[np.float64], weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the values of nodes whose differences are as wanted; means are 0."""
        sections = self._edges.shape[1]
        weighted = diags_array(weight) @ self._edges
        matrix = csc_array(
            self._edges.T @ weighted + diags_array(np.full(sections, _GAUGE))
        )
        found = np.asarray(spsolve(matrix, weighted.T @ wanted)).reshape(sections, -1)
        for group in range(self._group.max() + 1):
            mine = self._group == group
            found[mine] = found[mine] - found[mine].mean(axis=0)
        return np.where(self._group[:, None] >= 0, found, 0.0)


def _groups(sections: int, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of the group of each section, see `SectionPoses.group`."""
    ones = np.ones(len(ends))
    graph = coo_array((ones, (ends[:, 0], ends[:, 1])), shape=(sections, sections))
    _, found = connected_components(graph, directed=False)
    sizes = np.bincount(found)
    order = np.argsort(-sizes, kind="stable")
    # One section alone is not placed by anything, but for a stack of one.
    number = np.where(sizes[order] > (sections > 1), np.arange(len(order)), -1)
    result = np.empty(len(order), np.int64)
    result[order] = number
    return np.asarray(result[found])
