"""Scores of synapses: clefts found, partners assigned, and the neurons' wiring.

Where the truth is not known, outside what annotators looked at, a detection is neither
right nor wrong: it is left out, and counted as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.specs import VoxelSize

PARTNER_TOLERANCE_NM = 400.0
"""Farthest that a site may lie from that of the truth, as CREMI has it [nm]."""


@dataclass(frozen=True)
class DetectionScores:
    """Objects found and missed.

    Parameters
    ----------
    hits : int
        Found objects that are in the truth.
    false_positives : int
        Found objects that are not.
    found_truths : int
        Objects of the truth that were found.
    false_negatives : int
        Those that were not.
    ignored : int
        Found objects where the truth is not known.
    """

    hits: int
    false_positives: int
    found_truths: int
    false_negatives: int
    ignored: int = 0

    @property
    def precision(self) -> float:
        """Share of found objects that are right; 0 if there are none."""
        return _share(self.hits, self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the truth that was found; 0 if there is none."""
        return _share(self.found_truths, self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def cleft_scores(
    found: NDArray[Any],
    truth: NDArray[Any],
    known: NDArray[np.bool_] | None = None,
    *,
    least_overlap: int = 1,
) -> DetectionScores:
    """Compare clefts by overlap: each is right, or found, if it meets one of the other.

    Parameters
    ----------
    found, truth : integer array, (x, y, z)
        Ids of clefts; 0 is none.
    known : bool array, (x, y, z), or None
        Where the truth is known; everywhere if None. An object counts if at least half of
        its voxels lie there.
    least_overlap : int
        Voxels that two have to share.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if found.shape != truth.shape or (known is not None and known.shape != truth.shape):
        raise ValueError(
            f"clefts have shape {found.shape} and the truth {truth.shape}; give the same "
            "box of both, and of where it is known"
        )
    both = (found != 0) & (truth != 0)
    pairs = np.stack([found[both], truth[both]], axis=1)
    each, counts = np.unique(pairs, axis=0, return_counts=True)
    met = each[counts >= least_overlap]
    of_found, ignored = _counted(found, known)
    of_truth, _ = _counted(truth, known)
    hits = np.isin(of_found, met[:, 0])
    seen = np.isin(of_truth, met[:, 1])
    return DetectionScores(
        hits=int(hits.sum()),
        false_positives=int((~hits).sum()),
        found_truths=int(seen.sum()),
        false_negatives=int((~seen).sum()),
        ignored=ignored,
    )


def point_scores(
    found_nm: NDArray[Any],
    truth_nm: NDArray[Any],
    *,
    tolerance_nm: float,
    found_known: NDArray[np.bool_] | None = None,
) -> DetectionScores:
    """Compare places of synapses, one to one, by the least sum of distances.

    Parameters
    ----------
    found_nm, truth_nm : array, (n, 3) and (m, 3)
        Places [nm].
    tolerance_nm : float
        Farthest that two of a pair may be from one another [nm].
    found_known : bool array, (n,), or None
        Whether the truth is known where each was found. One that has no partner in the
        truth and lies where nothing is known is left out.
    """
    rows, _ = paired_points(found_nm, truth_nm, tolerance_nm=tolerance_nm)
    lone = np.ones(len(found_nm), bool)
    lone[rows] = False
    ignored = 0 if found_known is None else int((lone & ~found_known).sum())
    return DetectionScores(
        hits=len(rows),
        false_positives=int(lone.sum()) - ignored,
        found_truths=len(rows),
        false_negatives=len(truth_nm) - len(rows),
        ignored=ignored,
    )


def paired_points(
    found_nm: NDArray[Any], truth_nm: NDArray[Any], *, tolerance_nm: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pair places one to one: most pairs first, then the least sum of distances.

    Parameters
    ----------
    found_nm, truth_nm : array, (n, 3) and (m, 3)
        Places [nm].
    tolerance_nm : float
        Farthest that two of a pair may be from one another [nm].

    Returns
    -------
    found, truth : int array, (k,)
        Rows of each, pair by pair.
    """
    found_nm = np.asarray(found_nm, float).reshape(-1, 3)
    truth_nm = np.asarray(truth_nm, float).reshape(-1, 3)
    away = np.linalg.norm(found_nm[:, None] - truth_nm[None], axis=2)
    return _matched(away, away <= tolerance_nm)


@dataclass(frozen=True)
class Sites:
    """Places and cells of the two sides of synapses.

    Parameters
    ----------
    pre_nm, post_nm : float64 array, (n, 3)
        Places [nm].
    pre, post : uint64 array, (n,)
        Cells of the truth at these places.
    """

    pre_nm: NDArray[np.float64]
    post_nm: NDArray[np.float64]
    pre: NDArray[np.uint64]
    post: NDArray[np.uint64]


def partner_scores(
    found: Sites,
    truth: Sites,
    *,
    tolerance_nm: float = PARTNER_TOLERANCE_NM,
    found_known: NDArray[np.bool_] | None = None,
) -> DetectionScores:
    """Compare synapses with their partners, as CREMI does.

    A found synapse and one of the truth may be a pair if both sides lie in the same cells
    of the truth and no farther than the tolerance from one another. Of all such ways to
    pair them, one to one, the one of most pairs and then of the least mean distance
    counts.

    Parameters
    ----------
    found, truth : Sites
        Synapses; the cells of both are those of the truth.
    tolerance_nm : float
        Farthest that a side may be [nm].
    found_known : bool array, (n,), or None
        As for `point_scores`.
    """
    sides = [
        np.linalg.norm(a[:, None] - b[None], axis=2)
        for a, b in ((found.pre_nm, truth.pre_nm), (found.post_nm, truth.post_nm))
    ]
    allowed = (
        (sides[0] <= tolerance_nm)
        & (sides[1] <= tolerance_nm)
        & (found.pre[:, None] == truth.pre[None])
        & (found.post[:, None] == truth.post[None])
    )
    rows, _ = _matched((sides[0] + sides[1]) / 2, allowed)
    lone = np.ones(len(found.pre), bool)
    lone[rows] = False
    ignored = 0 if found_known is None else int((lone & ~found_known).sum())
    return DetectionScores(
        hits=len(rows),
        false_positives=int(lone.sum()) - ignored,
        found_truths=len(rows),
        false_negatives=len(truth.pre) - len(rows),
        ignored=ignored,
    )


@dataclass(frozen=True)
class NeuralReconstructionIntegrity:
    """How far pairs of terminals of one neuron are of one neuron in a reconstruction.

    Parameters
    ----------
    kept : int
        Pairs of terminals of one neuron of the truth that are of one segment.
    lost : int
        Pairs of the truth that are split, or of which a terminal was not found.
    invented : int
        Pairs of one segment that are of two neurons, or of which a terminal is not in the
        truth.
    """

    kept: int
    lost: int
    invented: int

    @property
    def nri(self) -> float:
        """F1 of the pairs; 0 where there is none."""
        total = 2 * self.kept + self.lost + self.invented
        return 2 * self.kept / total if total else 0.0


def neural_reconstruction_integrity(
    truth: NDArray[Any], segments: NDArray[Any]
) -> NeuralReconstructionIntegrity:
    """Score a wiring diagram by pairs of synaptic terminals (Reilly et al. 2018).

    Each synapse has two terminals, one in its pre and one in its post.

    Parameters
    ----------
    truth : integer array, (n,)
        Neuron of the truth of each terminal; 0 for one that was found and is not there.
    segments : integer array, (n,)
        Segment of each in the reconstruction; 0 for one that was not found.

    Raises
    ------
    ValueError
        If they differ in length.
    """
    if len(truth) != len(segments):
        raise ValueError(
            f"there are {len(truth)} terminals of the truth and {len(segments)} of the "
            "reconstruction; give both for each terminal, 0 where there is none"
        )
    both = (truth != 0) & (segments != 0)
    kept = _pairs(np.stack([truth[both], segments[both]], axis=1))
    return NeuralReconstructionIntegrity(
        kept=kept,
        lost=_pairs(truth[truth != 0][:, None]) - kept,
        invented=_pairs(segments[segments != 0][:, None]) - kept,
    )


def known_at(
    known: NDArray[np.bool_], places_nm: NDArray[Any], cell_nm: VoxelSize
) -> NDArray[np.bool_]:
    """Say whether places lie where the truth is known.

    Parameters
    ----------
    known : bool array, (x, y, z)
        Coarse map from the place 0 on.
    places_nm : array, (n, 3)
        Places [nm]; outside the map nothing is known.
    cell_nm : (x, y, z)
        Extent of a cell of the map [nm].
    """
    cell = np.floor(np.asarray(places_nm, float) / np.array(cell_nm)).astype(np.int64)
    within = ((cell >= 0) & (cell < known.shape)).all(axis=1)
    result = np.zeros(len(cell), bool)
    result[within] = known[tuple(cell[within].T)]
    return result


def _counted(
    labels: NDArray[Any], known: NDArray[np.bool_] | None
) -> tuple[NDArray[Any], int]:
    """Return the objects of which half or more lie where the truth is known.

    And how many others there are.
    """
    here = labels != 0
    ids, of, sizes = np.unique(labels[here], return_inverse=True, return_counts=True)
    if known is None:
        return ids, 0
    inside = np.bincount(of.reshape(-1), known[here], minlength=len(ids))
    counts = 2 * inside >= sizes
    return ids[counts], int((~counts).sum())


def _matched(
    cost: NDArray[np.float64], allowed: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pair rows and columns one to one, most pairs first, then the least sum."""
    from scipy.optimize import linear_sum_assignment

    if not allowed.any():
        none = np.zeros(0, np.intp)
        return none, none
    # More than all that the others can differ by.
    forbidden = 1 + float(cost[allowed].max()) * (min(cost.shape) + 1)
    rows, columns = linear_sum_assignment(np.where(allowed, cost, forbidden))
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def _pairs(keys: NDArray[Any]) -> int:
    """Count the pairs of equal keys."""
    _, n = np.unique(keys, axis=0, return_counts=True)
    counts = n.astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else 0.0
