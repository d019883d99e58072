"""Fixed-point affinities, as a kernel's sums show them: each dtype, each memory order."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Bbox
from pipeline.kernels.placement import Placement, scale_of
from pipeline.kernels.region_graph import REGION_GRAPH_HALO, region_graph


def fixed_points(values):
    """What the kernels take each affinity for: the sums of contacts of one face."""
    shape = (len(values), 1, 2)
    affinities = np.zeros((*shape, 3), values.dtype, order="F")
    affinities[:, 0, 1, 2] = values
    labels = np.arange(1, 2 * len(values) + 1, dtype=np.uint64)
    box = Bbox.of_shape(shape)
    graph = region_graph(
        labels.reshape(shape, order="F"), affinities, box=box, read_box=box, bounds=box
    )
    is_across = graph.area[:, 2] == 1
    return graph.affinity[is_across, 2]


def rounded(values):
    return np.floor(np.clip(values.astype(np.float64), 0, 1) * 2**20 + 0.5)


def test_float32_is_rounded_half_up():
    rng = np.random.default_rng(0)
    steps = np.arange(0, 2**20, 997)
    halves = ((steps + 0.5) / 2**20).astype(np.float32)
    values = np.concatenate(
        [
            rng.random(20000, dtype=np.float32),
            halves,
            np.nextafter(halves, np.float32(0)),
            np.nextafter(halves, np.float32(1)),
            np.ldexp(np.float32(1), -np.arange(150)),
            np.array([0, -0.0, 1, -1e-3, -1e-40, 1e-45, 1 + 1e-3, 1 - 2**-24], np.float32),
        ]
    )
    assert values.dtype == np.float32
    np.testing.assert_array_equal(fixed_points(values), rounded(values))


def test_every_float16():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    wide = every.astype(np.float32)
    good = every[(wide >= -1e-3) & (wide <= 1 + 1e-3)]
    assert len(good) > 15000
    np.testing.assert_array_equal(fixed_points(good), rounded(good))


def test_every_uint8():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(fixed_points(every), every)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -2e-3, 1.002, 255.0, -np.nan])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rejects_what_is_no_affinity(dtype, bad, order):
    affinities = np.zeros((5, 4, 3, 3), dtype, order=order)
    affinities[3, 2, 1, 1] = bad
    box = Bbox.of_shape((5, 4, 3))
    labels = np.ones((5, 4, 3), np.uint64)
    with pytest.raises(DataError, match=rf"{dtype} affinities lie in \[0, 1\]"):
        region_graph(labels, affinities, box=box, read_box=box, bounds=box)


@pytest.mark.parametrize("shape", [(70, 5, 40), (33, 40, 3), (1, 1, 20), (5, 1, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_no_memory_order_matters(make_affinities, shape, dtype):
    affinities = make_affinities(shape, dtype, seed=1)
    labels = np.random.default_rng(2).integers(0, 6, shape).astype(np.uint64)
    spread = np.zeros([3 * n for n in affinities.shape], dtype)
    spread[::3, 1::3, 2::3, ::3] = affinities
    box = Bbox.of_shape(shape)
    boxes = {"box": box, "read_box": box, "bounds": box}
    expected = region_graph(labels, affinities, **boxes).to_table()
    for same in (
        np.ascontiguousarray(affinities),
        spread[::3, 1::3, 2::3, ::3],
        np.asfortranarray(affinities[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
        np.ascontiguousarray(np.moveaxis(affinities, 3, 0)).transpose(1, 2, 3, 0),
    ):
        found = region_graph(labels, same, **boxes).to_table()
        for name, column in expected.items():
            np.testing.assert_array_equal(found[name], column, name)


def test_one_value_for_all_voxels():
    """An array of stride 0."""
    box = Bbox.of_shape((20, 3, 2))
    labels = np.arange(1, 121, dtype=np.uint64).reshape(20, 3, 2)
    flat = np.broadcast_to(np.float32(0.25), (20, 3, 2, 3))
    graph = region_graph(labels, flat, box=box, read_box=box, bounds=box)
    np.testing.assert_array_equal(graph.affinity, graph.area * np.uint64(1 << 18))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_affinities_are_not_copied(dtype, order):
    affinities = np.zeros((4, 3, 2, 3), dtype, order=order)
    box = Bbox.of_shape((4, 3, 2))
    placement = Placement(box, box, box, REGION_GRAPH_HALO)
    assert np.shares_memory(placement.affinities(affinities), affinities)
    assert scale_of(affinities) == (255 if dtype == "uint8" else 1 << 20)


def test_masks_are_of_voxels_and_small_numbers():
    box = Bbox.of_shape((4, 3, 2))
    placement = Placement(box, box, box, REGION_GRAPH_HALO)
    mask = np.zeros((4, 3, 2), bool, order="F")
    assert placement.mask(mask).dtype == np.uint8
    assert np.shares_memory(placement.mask(mask), mask)
    with pytest.raises(DataError, match="float32"):
        placement.mask(mask.astype(np.float32))
    with pytest.raises(DataError, match=r"\(4, 3, 3\)"):
        placement.mask(np.zeros((4, 3, 3), bool))
