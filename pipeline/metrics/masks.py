"""Scores of a mask against the truth: voxel by voxel, and by distance."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pipeline.specs import VoxelSize

CREMI_TOLERANCE_NM = 200.0
"""Distance at which CREMI holds a voxel for wrong [nm]."""


class VoxelScores(NamedTuple):
    """Voxels told right and wrong.

    Parameters
    ----------
    precision, recall, f1 : float
        0 where there is nothing to divide by.
    """

    precision: float
    recall: float
    f1: float


class CremiScores(NamedTuple):
    """The cleft scores of the CREMI challenge.

    Parameters
    ----------
    adgt_nm : float
        Mean distance of found voxels to the nearest true one [nm]: what is too much.
    adf_nm : float
        Mean distance of true voxels to the nearest found one [nm]: what is missing.
    mean_nm : float
        Of the two, which is the score of the challenge [nm].
    false_positives, false_negatives : int
        Found voxels, and true ones, farther than the tolerance from the other.
    """

    adgt_nm: float
    adf_nm: float
    mean_nm: float
    false_positives: int
    false_negatives: int


def voxel_scores(
    found: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    known: NDArray[np.bool_] | None = None,
) -> VoxelScores:
    """Compare a mask with the truth, voxel by voxel.

    Parameters
    ----------
    found, truth : bool array, (x, y, z)
        The masks.
    known : bool array, (x, y, z), optional
        Where the truth is known; everywhere if None.

    Returns
    -------
    VoxelScores

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _require_same_shape(found, truth)
    where = np.ones(found.shape, bool) if known is None else known
    hits = int(np.count_nonzero(found & truth & where))
    n_found, n_true = (int(np.count_nonzero(m & where)) for m in (found, truth))
    return VoxelScores(
        precision=hits / n_found if n_found else 0.0,
        recall=hits / n_true if n_true else 0.0,
        f1=2 * hits / (n_found + n_true) if n_found + n_true else 0.0,
    )


def cremi_scores(
    found: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    voxel_size_nm: VoxelSize,
    tolerance_nm: float = CREMI_TOLERANCE_NM,
) -> CremiScores:
    """Compare a mask with the truth by distances, as CREMI scores synaptic clefts.

    Parameters
    ----------
    found, truth : bool array, (x, y, z)
        The masks.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    tolerance_nm : float
        Distance from which on a voxel counts as wrong [nm].

    Returns
    -------
    CremiScores
        Distances are infinite where one mask is empty and the other is not, and 0 where
        both are.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _require_same_shape(found, truth)
    to_truth = _distances(found, truth, voxel_size_nm)
    to_found = _distances(truth, found, voxel_size_nm)
    adgt, adf = (float(d.mean()) if len(d) else 0.0 for d in (to_truth, to_found))
    return CremiScores(
        adgt_nm=adgt,
        adf_nm=adf,
        mean_nm=(adgt + adf) / 2,
        false_positives=int(np.count_nonzero(to_truth > tolerance_nm)),
        false_negatives=int(np.count_nonzero(to_found > tolerance_nm)),
    )


def _distances(
    of: NDArray[np.bool_], to: NDArray[np.bool_], voxel_size_nm: VoxelSize
) -> NDArray[np.float64]:
    """Return the distance of each voxel of one mask to the nearest of the other [nm]."""
    if not to.any():
        return np.full(int(np.count_nonzero(of)), math.inf)
    nearest: NDArray[np.float64] = distance_transform_edt(~to, sampling=voxel_size_nm)
    return nearest[of]


def _require_same_shape(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
    if found.shape != truth.shape:
        raise ValueError(
            f"the mask has shape {found.shape} and the truth {truth.shape}; give the same "
            "box of both"
        )
