"""The region graph against its definition."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.region_graph import RegionGraph, merge_region_graphs, region_graph

SHAPE = (5, 6, 4)
START = Vec3(10, -20, 30)


def whole(labels, affinities):
    box = Bbox.of_shape(labels.shape, START)
    return region_graph(labels, affinities, box=box, read_box=box, bounds=box)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("seed", range(3))
def test_graph_is_that_of_the_definition(make_affinities, dtype, seed):
    affinities = make_affinities(SHAPE, dtype, seed)
    ids = np.array([0, 3, 8, 2**64 - 1, 2**40, 2], np.uint64)
    labels = np.random.default_rng(seed).choice(ids, SHAPE)
    graph = whole(labels, affinities)

    codes = affinities.astype(np.float64) * (1 if dtype == "uint8" else graph.scale)
    contacts = {}
    for v in np.ndindex(SHAPE):
        for axis in range(3):
            if v[axis] == 0:
                continue
            pair = (labels[v], labels[tuple(c - (a == axis) for a, c in enumerate(v))])
            if 0 in pair or pair[0] == pair[1]:
                continue
            affinity, area, keys = contacts.setdefault(
                tuple(sorted(map(int, pair))), ([0, 0, 0], [0, 0, 0], [])
            )
            affinity[axis] += int(np.floor(codes[(*v, axis)] + 0.5))
            area[axis] += 1
            keys.append(3 * int(np.ravel_multi_index(v, SHAPE, order="F")) + axis)
    assert graph.pairs.tolist() == [list(p) for p in sorted(contacts)]
    for row, pair in enumerate(sorted(contacts)):
        affinity, area, keys = contacts[pair]
        assert graph.affinity[row].tolist() == affinity
        assert graph.area[row].tolist() == area
        assert graph.key[row] == min(keys)
        assert graph.mean_affinity[row] == pytest.approx(
            sum(affinity) / sum(area) / graph.scale
        )

    assert graph.ids.tolist() == sorted(ids[1:].tolist())
    for row, label in enumerate(graph.ids):
        where = np.argwhere(labels == label)
        at = where + np.array(START.astuple())
        assert graph.size[row] == len(where)
        assert graph.anchor[row] == np.flatnonzero(labels.ravel("F") == label)[0]
        assert graph.coordinate_sum[row].tolist() == at.sum(axis=0).tolist()
        assert graph.start[row].tolist() == at.min(axis=0).tolist()
        assert graph.stop[row].tolist() == (at.max(axis=0) + 1).tolist()
        np.testing.assert_allclose(graph.centroid[row], at.mean(axis=0))


def test_contact_across_the_lower_halo_is_owned_but_not_its_lower_voxel():
    labels = np.array([4, 9], np.uint64).reshape(1, 1, 2)
    affinities = np.full((1, 1, 2, 3), 50, np.uint8)
    bounds = Bbox.of_shape((1, 1, 2))
    upper = Bbox(Vec3(0, 0, 1), Vec3(1, 1, 2))
    graph = region_graph(labels, affinities, box=upper, read_box=bounds, bounds=bounds)
    assert graph.pairs.tolist() == [[4, 9]]
    assert graph.area.tolist() == [[0, 0, 1]]
    assert graph.affinity.tolist() == [[0, 0, 50]]
    assert graph.ids.tolist() == [9]


def test_float_affinities_are_rounded_once_and_then_exact():
    labels = np.arange(1, 3, dtype=np.uint64).reshape(2, 1, 1)
    affinities = np.zeros((2, 1, 1, 3), np.float32)
    affinities[1, 0, 0, 0] = 0.3
    graph = whole(labels, affinities)
    assert graph.affinity.tolist() == [[round(0.3 * 2**20), 0, 0]]
    affinities[1, 0, 0, 0] = 1.0005  # overshoot of a lossy codec
    assert whole(labels, affinities).affinity.tolist() == [[2**20, 0, 0]]


def test_narrower_labels_are_widened(make_affinities):
    affinities = make_affinities(SHAPE, "uint8", 1)
    labels = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint16)
    a, b = whole(labels, affinities), whole(labels.astype(np.uint64), affinities)
    assert all(np.array_equal(a.to_table()[k], b.to_table()[k]) for k in a.to_table())


def test_a_table_survives_the_round_trip(make_affinities):
    labels = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint64)
    graph = whole(labels, make_affinities(SHAPE, "uint8", 1))
    table = graph.to_table()
    again = RegionGraph.from_table(table).to_table()
    assert again.keys() == table.keys()
    assert all(np.array_equal(again[k], table[k]) for k in table)
    assert all(again[k].dtype == table[k].dtype for k in table)


def test_rejects_other_columns(make_affinities):
    labels = np.ones(SHAPE, np.uint64)
    table = whole(labels, make_affinities(SHAPE, "uint8", 1)).to_table()
    with pytest.raises(DataError, match="RegionGraph"):
        RegionGraph.from_table({k: v for k, v in table.items() if k != "area"})
    with pytest.raises(DataError, match="size is float64"):
        RegionGraph.from_table(table | {"size": table["size"] / 1})
    with pytest.raises(DataError, match="anchor has 2 rows"):
        RegionGraph.from_table(table | {"anchor": np.repeat(table["anchor"], 2)})


def test_rejects_signed_labels(make_affinities):
    with pytest.raises(DataError, match="int64"):
        whole(np.ones(SHAPE, np.int64), make_affinities(SHAPE, "uint8", 1))


def test_refuses_to_merge_nothing():
    with pytest.raises(DataError, match="at least one"):
        merge_region_graphs([])
