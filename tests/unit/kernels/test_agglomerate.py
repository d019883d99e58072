"""Mean-affinity agglomeration against its definition, in rational numbers."""

from fractions import Fraction

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Bbox
from pipeline.kernels.agglomerate import agglomerate
from pipeline.kernels.region_graph import RegionGraph, region_graph

SHAPE = (7, 6, 5)


def random_graph(make_affinities, dtype, seed, levels=256):
    affinities = make_affinities(SHAPE, dtype, seed, levels)
    labels = np.random.default_rng(seed).integers(0, 40, SHAPE).astype(np.uint64)
    box = Bbox.of_shape(SHAPE)
    return region_graph(labels, affinities, box=box, read_box=box, bounds=box)


def chain(*contacts):
    """Supervoxels 1, 2, ... in a row; contacts (sum, area) of each to the next."""
    n = len(contacts) + 1
    ids = np.arange(1, n + 1, dtype=np.uint64)
    return RegionGraph(
        ids=ids,
        size=ids,
        anchor=ids - np.uint64(1),
        coordinate_sum=np.zeros((n, 3), np.int64),
        start=np.zeros((n, 3), np.int64),
        stop=np.ones((n, 3), np.int64),
        pairs=np.stack([ids[:-1], ids[1:]], axis=1),
        affinity=np.array([[c[0], 0, 0] for c in contacts], np.uint64).reshape(-1, 3),
        area=np.array([[c[1], 0, 0] for c in contacts], np.uint64).reshape(-1, 3),
        key=3 * ids[1:],
        scale=255,
    )


def oracle(graph, threshold):
    """Recompute every contact before every merge."""
    member = {int(i): {int(i)} for i in graph.ids}
    anchor = dict(zip(graph.ids.tolist(), graph.anchor.tolist(), strict=True))
    merges = []
    while True:
        cluster_of = {i: name for name, ids in member.items() for i in ids}
        contacts = {}
        for row, (a, b) in enumerate(graph.pairs.tolist()):
            pair = frozenset((cluster_of[a], cluster_of[b]))
            total = contacts.setdefault(pair, [0, 0, 2**64])
            total[0] += int(graph.affinity[row].sum())
            total[1] += int(graph.area[row].sum())
            total[2] = min(total[2], int(graph.key[row]))
        contacts = {p: c for p, c in contacts.items() if len(p) == 2}
        best = max(
            contacts,
            key=lambda p: (Fraction(contacts[p][0], contacts[p][1]), -contacts[p][2]),
            default=None,
        )
        if best is None:
            break
        total, area, _ = contacts[best]
        if Fraction(total, area * graph.scale) < Fraction(threshold):
            break
        winner, loser = sorted(best, key=anchor.__getitem__)
        member[winner] |= member.pop(loser)
        merges.append((loser, winner, total, area))
    return merges, [cluster_of[i] for i in graph.ids.tolist()]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("levels", [2, 3, 6, 256])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.625])
def test_merges_are_those_of_the_definition(make_affinities, dtype, levels, threshold):
    graph = random_graph(make_affinities, dtype, levels, levels)
    history, remap = agglomerate(graph, threshold=threshold)
    merges, segments = oracle(graph, threshold)
    columns = (history.loser, history.winner, history.affinity, history.area)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == merges
    assert remap.ids.tolist() == graph.ids.tolist()
    assert remap.targets.tolist() == segments
    assert len(merges) > 0


def test_order_of_rows_does_not_matter(make_affinities):
    graph = random_graph(make_affinities, "uint8", 5, levels=3)
    rows = np.random.default_rng(0).permutation(len(graph.pairs))
    table = graph.to_table()
    for name in ("pairs", "affinity", "area", "key"):
        table[name] = table[name][rows]
    history, remap = agglomerate(graph, threshold=0.4)
    again, remap_again = agglomerate(RegionGraph.from_table(table), threshold=0.4)
    for name, c in history.to_table().items():
        np.testing.assert_array_equal(c, again.to_table()[name])
    np.testing.assert_array_equal(remap.targets, remap_again.targets)


def test_a_mean_equal_to_the_threshold_merges():
    assert agglomerate(chain((255, 2)), threshold=0.5)[1].targets.tolist() == [1, 1]
    assert agglomerate(chain((254, 2)), threshold=0.5)[1].targets.tolist() == [1, 2]


def test_scores_never_rise(make_affinities):
    history, _ = agglomerate(random_graph(make_affinities, "float32", 9), threshold=0.1)
    assert (np.diff(history.score) <= 0).all()
    assert history.score[0] <= 1


def test_means_that_floats_cannot_tell_apart():
    """The means differ by less than one part in 2**53."""
    n = 2**50
    greater = chain((n * 200 + 1, n), (n * 200, n), (0, 1))
    lesser = chain((n * 200, n), (n * 200 + 1, n), (0, 1))
    assert agglomerate(greater, threshold=0.5)[0].loser[0] == 2
    assert agglomerate(lesser, threshold=0.5)[0].loser[0] == 3


def test_a_graph_without_contacts():
    history, remap = agglomerate(chain(), threshold=0.5)
    assert len(history.loser) == 0
    assert remap.targets.tolist() == [1]


def test_rejects_a_contact_with_nothing():
    table = chain((9, 1)).to_table()
    with pytest.raises(DataError, match="77"):
        agglomerate(
            RegionGraph.from_table(table | {"pairs": np.array([[1, 77]], np.uint64)}),
            threshold=0.5,
        )


def test_rejects_a_contact_listed_twice():
    table = chain((9, 1), (9, 1)).to_table()
    pairs = np.array([[1, 2], [1, 2]], np.uint64)
    with pytest.raises(DataError, match="1 and 2 is listed twice"):
        agglomerate(RegionGraph.from_table(table | {"pairs": pairs}), threshold=0.5)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, np.nan])
def test_rejects_thresholds_outside_the_range(threshold):
    with pytest.raises(ValueError, match="outside"):
        agglomerate(chain((9, 1)), threshold=threshold)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("levels", [2, 3, 256])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1 / 3, 0.9])
def test_every_threshold_is_a_prefix_of_the_history(
    make_affinities, dtype, levels, threshold
):
    graph = random_graph(make_affinities, dtype, 11 + levels, levels)
    history, _ = agglomerate(graph, threshold=0.0)
    assert (np.diff(history.score) <= 0).all()
    _, remap = agglomerate(graph, threshold=threshold)
    np.testing.assert_array_equal(history.at(threshold, graph.ids).targets, remap.targets)
