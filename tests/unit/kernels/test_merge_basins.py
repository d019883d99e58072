"""Size-dependent single linkage against its definition."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.kernels.basin_graph import BasinGraph
from pipeline.kernels.merge_basins import merge_basins


def make_graph(sizes, edges, joins=()):
    """Basins 1, 2, ... of given sizes; edges (a, b, affinity) keyed by their order."""
    return BasinGraph(
        ids=np.arange(1, len(sizes) + 1, dtype=np.uint64),
        sizes=np.array(sizes, np.uint64),
        faces=np.zeros(len(sizes), np.uint8),
        joins=np.array(joins, np.uint64).reshape(-1, 2),
        pairs=np.array([e[:2] for e in edges], np.uint64).reshape(-1, 2),
        affinities=np.array([e[2] for e in edges], np.uint64),
        keys=np.arange(len(edges), dtype=np.uint64),
        scale=255,
    )


def oracle(graph, size_threshold, dust):
    groups = [{int(i)} for i in graph.ids]
    size = dict(zip(graph.ids.tolist(), graph.sizes.tolist(), strict=True))

    def group_of(i):
        return next(g for g in groups if i in g)

    def merge(a, b):
        groups.remove(a)
        groups.remove(b)
        groups.append(a | b)

    for a, b in graph.joins.tolist():
        if group_of(a) is not group_of(b):
            merge(group_of(a), group_of(b))
    rows = zip(
        graph.affinities.tolist(), graph.keys.tolist(), graph.pairs.tolist(), strict=True
    )
    for _, _, (a, b) in sorted(rows, reverse=True):
        one, other = group_of(a), group_of(b)
        totals = [sum(size[i] for i in g) for g in (one, other)]
        if one is not other and min(totals) < size_threshold:
            merge(one, other)
    totals = {i: sum(size[j] for j in g) for g in groups for i in g}
    return [min(group_of(i)) if totals[i] >= dust else 0 for i in graph.ids.tolist()]


@pytest.mark.parametrize("seed", range(20))
def test_supervoxels_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    n = 30
    sizes = rng.integers(1, 40, n)
    pairs = np.unique(np.sort(rng.integers(1, n + 1, (60, 2)), axis=1), axis=0)
    pairs = rng.permutation(pairs[pairs[:, 0] != pairs[:, 1]])
    edges = [(a, b, rng.integers(1, 5)) for a, b in pairs[6:]]
    graph = make_graph(sizes, edges, pairs[:6])
    remap = merge_basins(graph, size_threshold=45, dust=30)
    assert remap.targets.tolist() == oracle(graph, 45, 30)
    assert remap.ids is graph.ids
    assert 3 < len(set(remap.targets.tolist())) < n


def test_two_large_basins_stay_apart():
    graph = make_graph([10, 10, 1], [(1, 2, 200), (2, 3, 100)])
    assert merge_basins(graph, size_threshold=10, dust=0).targets.tolist() == [1, 2, 2]
    assert merge_basins(graph, size_threshold=11, dust=0).targets.tolist() == [1, 1, 1]


def test_the_greater_edge_decides_whom_a_small_basin_joins():
    for weak, strong in [(1, 2), (2, 1)]:
        graph = make_graph([50, 50, 1], [(weak, 3, 100), (strong, 3, 101)])
        assert merge_basins(graph, size_threshold=10, dust=0).targets[2] == strong


def test_dust_counts_the_whole_supervoxel():
    graph = make_graph([4, 4, 4], [(1, 2, 9)])
    assert merge_basins(graph, size_threshold=5, dust=5).targets.tolist() == [1, 1, 0]


def test_joins_ignore_size():
    graph = make_graph([100, 100], [], [(1, 2)])
    assert merge_basins(graph, size_threshold=0, dust=0).targets.tolist() == [1, 1]


def test_rejects_an_edge_to_nowhere():
    graph = make_graph([1, 2], [(2, 77, 9)])
    with pytest.raises(DataError, match="77"):
        merge_basins(graph, size_threshold=5, dust=0)


def test_rejects_negative_sizes():
    with pytest.raises(ValueError, match="-1"):
        merge_basins(make_graph([1], []), size_threshold=-1, dust=0)
