"""How far one can follow a neurite before an error ends the run."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Skeleton(NamedTuple):
    """The centre lines of one true object.

    Parameters
    ----------
    vertices_nm : float32 array, (n, 3)
        Nodes, x, y, z [nm].
    edges : uint32 array, (m, 2)
        Pairs of rows of `vertices_nm`.
    """

    vertices_nm: NDArray[np.float32]
    edges: NDArray[np.uint32]


class RunLength(NamedTuple):
    """Expected run length.

    Parameters
    ----------
    erl_nm : float
        Of the segmentation [nm].
    truth_erl_nm : float
        Of the truth itself, which is the most there is [nm].
    nerl : float
        The ratio of the two, in 0 .. 1.
    merged : uint64 array
        Segments that were held for mergers, ascending.
    """

    erl_nm: float
    truth_erl_nm: float
    nerl: float
    merged: NDArray[np.uint64]


def expected_run_length(
    skeletons: Mapping[int, Skeleton],
    node_segments: Mapping[int, NDArray[np.uint64]],
    *,
    merge_threshold: int = 0,
) -> RunLength:
    """Return the length one may expect to follow from a random point of the truth.

    An edge is lost if its two nodes lie in different segments, in segment 0, or in a
    merged segment: one that covers more than `merge_threshold` nodes of each of two or
    more skeletons. With the length L_s of the edges that segment s keeps of a skeleton
    of length L, a point of the skeleton can be followed for sum L_s**2 / L; skeletons
    are averaged by length, those of length 0 count nothing (Januszewski et al. 2018).

    Parameters
    ----------
    skeletons : mapping of truth id to Skeleton
        Of the truth; one per object, or else an object cannot be told from a merger.
    node_segments : mapping of truth id to uint64 array, (n,)
        Segment at each node of each skeleton; 0 is none.
    merge_threshold : int
        Nodes that a segment may cover of further skeletons without being a merger.

    Returns
    -------
    RunLength
        ERL, that of the truth itself, their ratio, and the merged segments.

    Raises
    ------
    ValueError
        If nodes and segments do not match, an edge names no node, the threshold is
        negative, or all skeletons together have no length.
    """
    if merge_threshold < 0:
        raise ValueError(f"merge_threshold is {merge_threshold}; it is to be 0 or more")
    for truth, skeleton in skeletons.items():
        _check(truth, skeleton, node_segments)
    merged = _merged_segments([node_segments[t] for t in skeletons], merge_threshold)

    followed = followed_truth = whole = 0.0
    for truth, skeleton in skeletons.items():
        lengths = _edge_lengths(skeleton)
        total = float(lengths.sum())
        if total == 0:
            continue
        ends = node_segments[truth][skeleton.edges]
        is_kept = (ends[:, 0] == ends[:, 1]) & (ends[:, 0] != 0)
        is_kept &= ~np.isin(ends[:, 0], merged)
        _, segment = np.unique(ends[is_kept, 0], return_inverse=True)
        runs = np.bincount(segment.reshape(-1), lengths[is_kept])
        # weighting sum(runs**2) / total by total leaves the sum itself
        followed += float((runs**2).sum())
        followed_truth += total**2
        whole += total
    if whole == 0:
        raise ValueError(
            f"the {len(skeletons)} skeletons together have no length; "
            f"give at least one with an edge"
        )
    return RunLength(
        followed / whole, followed_truth / whole, followed / followed_truth, merged
    )


def _check(
    truth: int, skeleton: Skeleton, node_segments: Mapping[int, NDArray[np.uint64]]
) -> None:
    n = len(skeleton.vertices_nm)
    if truth not in node_segments:
        raise ValueError(f"skeleton {truth} has no node segments; give one per node")
    if node_segments[truth].shape != (n,):
        raise ValueError(
            f"skeleton {truth} has {n} nodes but node segments of shape "
            f"{node_segments[truth].shape}; give one per node"
        )
    if skeleton.edges.size and int(skeleton.edges.max()) >= n:
        raise ValueError(
            f"skeleton {truth} has {n} nodes but an edge to node "
            f"{int(skeleton.edges.max())}; edges count nodes from 0"
        )


def _edge_lengths(skeleton: Skeleton) -> NDArray[np.float64]:
    points = skeleton.vertices_nm.astype(np.float64)
    edges = skeleton.edges.reshape(-1, 2)
    return np.asarray(np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1))


def _merged_segments(
    node_segments: list[NDArray[np.uint64]], threshold: int
) -> NDArray[np.uint64]:
    """Return the segments that cover more than `threshold` nodes of two skeletons."""
    covering = []
    for segments in node_segments:
        ids, nodes = np.unique(segments[segments != 0], return_counts=True)
        covering.append(ids[nodes > threshold])
    if not covering:
        return np.zeros(0, dtype=np.uint64)
    ids, skeletons = np.unique(np.concatenate(covering), return_counts=True)
    return np.asarray(ids[skeletons > 1])
