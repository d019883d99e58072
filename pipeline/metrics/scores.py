"""All scores of a segmentation in one table that JSON can hold."""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.metrics.overlap import (
    ContingencyTable,
    adapted_rand_error,
    totals,
    variation_of_information,
)
from pipeline.metrics.run_length import RunLength

Positive = Annotated[float, Field(ge=0)]


class Offender(BaseModel):
    """A true object or a segment that costs much, and by how much.

    Parameters
    ----------
    id : int
        The truth id of a split object, or the id of a merged segment.
    bits : float
        Its part of `voi_split` or `voi_merge` [bit].
    parts : int
        Segments that the object is divided into, or objects that the segment covers.
    voxels : int
        Its size, where there is a truth.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    bits: Positive
    parts: int
    voxels: int


class Scores(BaseModel):
    """How well a segmentation agrees with the truth.

    Parameters
    ----------
    voi_split, voi_merge, voi_sum : float
        Variation of information, in the unit of `log_base`.
    log_base : 2
        Of the logarithm in the variation of information: it is in bits.
    arand, rand_precision, rand_recall : float
        Adapted Rand error (SNEMI3D) and what it is made of.
    erl_nm, truth_erl_nm, nerl : float or None
        Expected run length, that of the truth, their ratio; None without skeletons.
    n_voxels, n_truth, n_segments : int
        Voxels that have a truth, objects among them, segments other than 0 there.
    unsegmented : float
        Share of these voxels that lie in segment 0.
    worst_splits, worst_merges : tuple of Offender
        Objects and segments that cost most bits, the worst first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    voi_split: Positive
    voi_merge: Positive
    voi_sum: Positive
    log_base: Literal[2] = 2
    arand: float
    rand_precision: float
    rand_recall: float
    erl_nm: Positive | None = None
    truth_erl_nm: Positive | None = None
    nerl: Positive | None = None
    n_voxels: int
    n_truth: int
    n_segments: int
    unsegmented: float
    worst_splits: tuple[Offender, ...] = ()
    worst_merges: tuple[Offender, ...] = ()


def scores(
    table: ContingencyTable, run_length: RunLength | None = None, *, n_worst: int = 5
) -> Scores:
    """Summarise how a segmentation compares with the truth.

    Parameters
    ----------
    table : ContingencyTable
        Of the whole volume.
    run_length : RunLength, optional
        Against skeletons of the truth, where there are any.
    n_worst : int
        Objects and segments to name; those without fault are not named.

    Returns
    -------
    Scores
        Its `model_dump_json` is what reports hold.

    Raises
    ------
    ValueError
        If no voxel has a truth.
    """
    split, merged = variation_of_information(table)
    rand = adapted_rand_error(table)
    table = table.foreground()
    is_segmented = table.segment != 0
    n_voxels = int(table.count.sum())
    # segment 0 is no segment that a proofreader could cut
    segmented = ContingencyTable(
        table.segment[is_segmented], table.truth[is_segmented], table.count[is_segmented]
    )
    return Scores(
        voi_split=split,
        voi_merge=merged,
        voi_sum=split + merged,
        arand=rand.error,
        rand_precision=rand.precision,
        rand_recall=rand.recall,
        erl_nm=run_length.erl_nm if run_length else None,
        truth_erl_nm=run_length.truth_erl_nm if run_length else None,
        nerl=run_length.nerl if run_length else None,
        n_voxels=n_voxels,
        n_truth=len(np.unique(table.truth)),
        n_segments=len(np.unique(segmented.segment)),
        unsegmented=float(table.count[~is_segmented].sum()) / n_voxels,
        worst_splits=_worst(table, "truth", n_voxels, n_worst),
        worst_merges=_worst(segmented, "segment", n_voxels, n_worst),
    )


def _worst(
    table: ContingencyTable, column: Literal["truth", "segment"], n_voxels: int, n: int
) -> tuple[Offender, ...]:
    """Name the ids of a column whose voxels are most divided by the other."""
    ids, voxels, row = totals(getattr(table, column), table.count)
    count = table.count.astype(np.float64)
    bits = np.bincount(row, count / n_voxels * np.log2(voxels[row] / count), len(ids))
    parts = np.bincount(row, minlength=len(ids))
    order = np.argsort(-bits, kind="stable")[:n]
    return tuple(
        Offender(
            id=int(ids[i]), bits=float(bits[i]), parts=int(parts[i]), voxels=int(voxels[i])
        )
        for i in order
        if parts[i] > 1
    )
