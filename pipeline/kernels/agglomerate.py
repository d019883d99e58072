"""Mean-affinity agglomeration of a region graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels import _cpp
from pipeline.kernels.placement import data_errors
from pipeline.kernels.region_graph import RegionGraph
from pipeline.kernels.relabel import RemapTable
from pipeline.kernels.tables import Columns, column

_THRESHOLD_STEPS = 1 << 32


@dataclass(frozen=True, eq=False)
class MergeHistory(Columns):
    """Merges in the order in which they were made.

    Parameters
    ----------
    loser, winner : uint64 array, (n,)
        Segments that were merged; the winner gives its name.
    affinity : uint64 array, (n,)
        Sum of the fixed-point affinities of their contact.
    area : uint64 array, (n,)
        Faces of their contact.
    scale : int
        Fixed-point number that stands for an affinity of 1.
    """

    loser: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    winner: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    affinity: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    area: NDArray[np.uint64] = field(metadata=column(np.uint64, "merge"))
    scale: int

    @property
    def score(self) -> NDArray[np.float64]:
        """Mean affinity at which each merge was made, (n,)."""
        return self.affinity / (self.area * float(self.scale))

    def at(self, threshold: float, ids: NDArray[np.uint64]) -> RemapTable:
        """Return the segments that the merges down to a threshold make.

        Mean affinity is reducible: no merge raises a mean above the greatest there is,
        so scores never rise along the history and every threshold is a prefix of it.

        Parameters
        ----------
        threshold : float
            Merges of this score or more count; rounded to 2**-32.
        ids : uint64 array, (n,)
            Supervoxels, ascending.

        Returns
        -------
        RemapTable
            Segment of each supervoxel, as `agglomerate` with this threshold gives it.
        """
        # Products of Python integers: exact, as the kernel's comparison is.
        limit = round(threshold * _THRESHOLD_STEPS) * self.scale
        made = np.fromiter(
            (
                int(a) * _THRESHOLD_STEPS >= limit * int(n)
                for a, n in zip(self.affinity, self.area, strict=True)
            ),
            dtype=bool,
            count=len(self.area),
        )
        parent = np.arange(len(ids))
        parent[np.searchsorted(ids, self.loser[made])] = np.searchsorted(
            ids, self.winner[made]
        )
        while (grand := parent[parent]).tobytes() != parent.tobytes():
            parent = grand
        return RemapTable(ids, ids[parent])


def agglomerate(graph: RegionGraph, *, threshold: float) -> tuple[MergeHistory, RemapTable]:
    """Merge segments by mean affinity, the greatest first, down to a threshold.

    The mean is the sum of the affinities over all faces of a contact, whatever their
    axis, divided by their number. Means are compared exactly; of equal means the contact
    whose first face comes first in the volume goes first. So the result does not
    depend on the order of the graph, nor, but for the names, on the chunking. A segment
    is called after the supervoxel in it whose first voxel comes first.

    Parameters
    ----------
    graph : RegionGraph
        Supervoxels and contacts of the whole volume.
    threshold : float
        Contacts of this mean affinity or more are merged; rounded to 2**-32.

    Returns
    -------
    history : MergeHistory
        Merges in order.
    remap : RemapTable
        Segment of each supervoxel.

    Raises
    ------
    ValueError
        If the threshold is outside [0, 1].
    DataError
        If a contact refers to a supervoxel that the graph does not list.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"agglomeration threshold {threshold} is outside [0, 1]")
    with data_errors():
        loser, winner, affinity, area, segments = _cpp.agglomerate(
            graph.ids,
            graph.anchor,
            graph.pairs,
            graph.affinity.sum(axis=1),
            graph.area.sum(axis=1),
            graph.key,
            round(threshold * _THRESHOLD_STEPS) * graph.scale,
            _THRESHOLD_STEPS,
        )
    return MergeHistory(loser, winner, affinity, area, graph.scale), RemapTable(
        graph.ids, segments
    )
