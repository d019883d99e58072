"""Scores from how many voxels each segment shares with each true object.

The table of these counts is small, exact, and the sum of the tables of chunks, so a
score of any volume needs no more than one pass over its chunks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import fastremap
import numpy as np
from numpy.typing import NDArray

_SLAB_VOXELS = 1 << 22


@dataclass(frozen=True)
class ContingencyTable:
    """How many voxels each pair of a segment and a true object shares.

    Parameters
    ----------
    segment, truth : uint64 arrays, (n,)
        The pairs, each once, in order of segment and then truth. Rows of 0 are kept:
        segment 0 is what was not segmented, truth 0 what has no truth.
    count : uint64 array, (n,)
        Voxels in the pair, at least 1.
    """

    segment: NDArray[np.uint64]
    truth: NDArray[np.uint64]
    count: NDArray[np.uint64]

    def foreground(self) -> "ContingencyTable":
        """Return the rows that count in scores: those where there is a truth."""
        has_truth = self.truth != 0
        return ContingencyTable(
            self.segment[has_truth], self.truth[has_truth], self.count[has_truth]
        )

    def renamed(self, segment: NDArray[np.uint64]) -> "ContingencyTable":
        """Return the table of a segmentation whose segments are merged or renamed.

        Parameters
        ----------
        segment : uint64 array, (n,)
            New segment of each row; rows that become equal are added up.
        """
        if not len(segment):
            return self
        return _summed(segment, self.truth, self.count)


class RandScore(NamedTuple):
    """Adapted Rand error, and the precision and recall it is made of, each in 0 .. 1."""

    error: float
    precision: float
    recall: float


def contingency(segmentation: NDArray[Any], truth: NDArray[Any]) -> ContingencyTable:
    """Count the voxels that segments share with true objects.

    Parameters
    ----------
    segmentation, truth : unsigned integer arrays of one shape
        Ids of each voxel; 0 is none.

    Returns
    -------
    ContingencyTable
        With every pair that occurs.

    Raises
    ------
    ValueError
        If the arrays disagree in shape, or hold no unsigned integers.
    """
    if segmentation.shape != truth.shape:
        raise ValueError(
            f"segmentation has shape {segmentation.shape} but truth {truth.shape}; "
            f"cut both to the same box"
        )
    for name, array in (("segmentation", segmentation), ("truth", truth)):
        if array.dtype.kind != "u":
            raise ValueError(
                f"{name} has dtype {array.dtype}; ids are unsigned integers, such as uint64"
            )
    return merge(_slab_tables(segmentation, truth))


def _slab_tables(
    segmentation: NDArray[Any], truth: NDArray[Any]
) -> Iterator[ContingencyTable]:
    # both in the order in which memory has the segmentation: pairs stay pairs
    order: Any = "F" if segmentation.flags.f_contiguous else "C"
    left, right = segmentation.ravel(order), truth.ravel(order)
    for begin in range(0, left.size, _SLAB_VOXELS):
        yield _table(
            left[begin : begin + _SLAB_VOXELS], right[begin : begin + _SLAB_VOXELS]
        )


def _table(segment: NDArray[Any], truth: NDArray[Any]) -> ContingencyTable:
    """Count the pairs of two flat arrays, by runs of equal pairs first."""
    changes = (segment[1:] != segment[:-1]) | (truth[1:] != truth[:-1])
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(np.append(starts, segment.size)).astype(np.uint64)
    return _summed(
        segment[starts].astype(np.uint64), truth[starts].astype(np.uint64), lengths
    )


def _summed(
    segment: NDArray[np.uint64], truth: NDArray[np.uint64], count: NDArray[np.uint64]
) -> ContingencyTable:
    """Sort pairs and add up the counts of equal ones."""
    segments, segment_row = _ranked(segment)
    truths, truth_row = _ranked(truth)
    n = len(truths)
    pair = segment_row * n + truth_row
    if len(segments) * n <= 4 * len(pair):
        # float64 holds counts of voxels below 2**53 exactly
        total = np.bincount(pair, count.astype(np.float64)).astype(np.uint64)
        pair = np.flatnonzero(total)
        total = total[pair]
    else:
        order = np.argsort(pair, kind="stable")
        pair = pair[order]
        first = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]]))
        total = np.add.reduceat(count[order], first)
        pair = pair[first]
    return ContingencyTable(segments[pair // n], truths[pair % n], total)


def _ranked(ids: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """List distinct ids, ascending, and the row of each id; by hashing, not sorting."""
    numbered, number_of = fastremap.renumber(ids, preserve_zero=False)
    unique = np.fromiter(number_of.keys(), dtype=np.uint64, count=len(number_of))
    number = np.fromiter(number_of.values(), dtype=np.int64, count=len(number_of))
    order = np.argsort(unique)
    row_of = np.zeros(int(number.max()) + 1, dtype=np.int64)
    row_of[number[order]] = np.arange(len(order))
    return unique[order], row_of[numbered]


def merge(tables: Iterable[ContingencyTable]) -> ContingencyTable:
    """Add up the tables of disjoint parts of a volume; exact, in whatever order.

    Parameters
    ----------
    tables : iterable of ContingencyTable
        None gives an empty table.

    Returns
    -------
    ContingencyTable
        That of the whole.
    """
    parts = [table for table in tables if table.count.size]
    if not parts:
        none = np.zeros(0, dtype=np.uint64)
        return ContingencyTable(none, none, none)
    if len(parts) == 1:
        return parts[0]
    return _summed(
        np.concatenate([part.segment for part in parts]),
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.count for part in parts]),
    )


def totals(
    ids: NDArray[np.uint64], count: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.intp]]:
    """Add up counts by id.

    Parameters
    ----------
    ids, count : uint64 arrays, (n,)
        One column of a table and its counts.

    Returns
    -------
    unique : uint64 array, (m,)
        The ids, ascending.
    total : float64 array, (m,)
        The sum of the counts of each; exact below 2**53.
    row : intp array, (n,)
        Row of each of `ids` in `unique`.
    """
    unique, row = np.unique(ids, return_inverse=True)
    row = row.reshape(-1)
    total = np.bincount(row, count.astype(np.float64), len(unique))
    return unique, total.astype(np.float64), row


def variation_of_information(table: ContingencyTable) -> tuple[float, float]:
    """Say how much information tells segmentation and truth apart, in bits (log2).

    Voxels without truth do not count. Segment 0 is one segment like any other, so what
    was not segmented adds to the split, and to the merge where it takes from several
    objects.

    Parameters
    ----------
    table : ContingencyTable
        Of the whole volume.

    Returns
    -------
    split : float
        H(segmentation | truth) [bit]: 0 where no object is divided.
    merge : float
        H(truth | segmentation) [bit]: 0 where no segment covers two objects.

    Raises
    ------
    ValueError
        If no voxel has a truth.
    """
    table = _with_truth(table)
    count = table.count.astype(np.float64)
    _, per_truth, truth_row = totals(table.truth, table.count)
    _, per_segment, segment_row = totals(table.segment, table.count)
    share = count / count.sum()
    split = float((share * np.log2(per_truth[truth_row] / count)).sum())
    merged = float((share * np.log2(per_segment[segment_row] / count)).sum())
    return split, merged


def adapted_rand_error(table: ContingencyTable) -> RandScore:
    """Return the adapted Rand error as SNEMI3D defines it: 1 - 2PR / (P + R).

    With the n_ij voxels that segment i shares with object j, over voxels with a truth:
    precision P = sum n_ij**2 / sum_i (sum_j n_ij)**2 falls with merges, recall
    R = sum n_ij**2 / sum_j (sum_i n_ij)**2 with splits. Each voxel of segment 0 counts
    as a segment of its own, as CREMI has it: to leave voxels out is to split them, never
    to merge them.

    Parameters
    ----------
    table : ContingencyTable
        Of the whole volume.

    Returns
    -------
    RandScore
        Error, precision and recall; an error of 0 is perfect.

    Raises
    ------
    ValueError
        If no voxel has a truth.
    """
    table = _with_truth(table)
    count = table.count.astype(np.float64)
    is_segmented = table.segment != 0
    alone = float(count[~is_segmented].sum())
    _, per_truth, _ = totals(table.truth, table.count)
    _, per_segment, _ = totals(table.segment[is_segmented], table.count[is_segmented])
    both = float((count[is_segmented] ** 2).sum()) + alone
    precision = both / (float((per_segment**2).sum()) + alone)
    recall = both / float((per_truth**2).sum())
    return RandScore(1 - 2 * precision * recall / (precision + recall), precision, recall)


def _with_truth(table: ContingencyTable) -> ContingencyTable:
    table = table.foreground()
    if not table.count.size:
        raise ValueError(
            "no voxel has a truth, all are 0; score a box that the truth covers"
        )
    return table
