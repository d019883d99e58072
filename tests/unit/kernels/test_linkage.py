"""Basins merged by size within a chunk, against the definition and against the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry import Bbox, Halo, Vec3
from pipeline.kernels.watershed import (
    MASKED_WATERSHED_HALO,
    WATERSHED_HALO,
    watershed,
)

from .watershed_oracle import watershed_oracle

START = Vec3(5, -7, 3)
KINDS = ["continuous", "levels", "constant", "one-hot"]


def made(kind, shape, dtype, seed):
    """Affinities that put the order of edges to the test."""
    rng = np.random.default_rng(seed)
    if kind == "continuous":
        values = rng.random((*shape, 3))
    elif kind == "levels":
        values = rng.integers(0, 3, (*shape, 3)) / 2
    elif kind == "constant":
        values = np.full((*shape, 3), 0.6)
    else:
        values = np.zeros((*shape, 3))
        values[tuple(rng.integers(0, n) for n in values.shape)] = 1
    if dtype == "uint8":
        return np.asfortranarray(np.rint(255 * values), np.uint8)
    return np.asfortranarray(values, dtype)


def in_order(array, order):
    """The same values otherwise in memory."""
    if order == "strided":
        spread = np.zeros([2 * n for n in array.shape], array.dtype)
        spread[1::2, ::2, 1::2, ::2] = array
        return spread[1::2, ::2, 1::2, ::2]
    if order == "reversed":
        return np.asfortranarray(array[::-1, :, ::-1])[::-1, :, ::-1]
    return np.asarray(array, order=order)


@st.composite
def chunks(draw, halo=WATERSHED_HALO):
    """A chunk within bounds, and what is read for it."""
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    bounds = Bbox.of_shape(shape, START)
    corners = [sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
    corners = [
        (a, b) if a < b else (0, n) for (a, b), n in zip(corners, shape, strict=True)
    ]
    box = Bbox(Vec3.of([a for a, _ in corners]), Vec3.of([b for _, b in corners]))
    box = box.shifted(START)
    more = Halo.of(before=draw(st.integers(0, 1)), after=draw(st.integers(0, 1)))
    read_box = bounds.intersection(box.grown(halo).grown(more))
    return {"box": box, "read_box": read_box, "bounds": bounds}


LIMITS = st.sampled_from([(0.0, 2.0), (0.3, 0.97), (0.6, 0.7)])


@settings(max_examples=300, deadline=None)
@given(
    where=chunks(),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["uint8", "float16", "float32"]),
    order=st.sampled_from(["C", "F", "strided", "reversed"]),
    seed=st.integers(0, 2**32),
    limits=LIMITS,
    size_threshold=st.integers(0, 40),
    dust=st.integers(0, 30),
    threads=st.integers(1, 4),
)
def test_labels_are_those_of_the_definition(
    where, kind, dtype, order, seed, limits, threads, **rules
):
    affinities = made(kind, where["read_box"].shape.astuple(), dtype, seed)
    rules |= {"low": limits[0], "high": limits[1], "base": 1 << 50}
    labels = watershed(in_order(affinities, order), threads=threads, **where, **rules)
    np.testing.assert_array_equal(labels, watershed_oracle(affinities, **where, **rules))
    assert labels.flags.f_contiguous


@settings(max_examples=150, deadline=None)
@given(
    where=chunks(MASKED_WATERSHED_HALO),
    dtype=st.sampled_from(["uint8", "float32"]),
    seed=st.integers(0, 2**32),
    masked=st.sampled_from([0.05, 0.3, 1.0]),
    mask_dtype=st.sampled_from([np.uint8, bool]),
    limits=LIMITS,
    size_threshold=st.integers(0, 40),
    dust=st.integers(0, 30),
    threads=st.integers(1, 4),
)
def test_masked_voxels_have_no_edges(
    where, dtype, seed, masked, mask_dtype, limits, threads, **rules
):
    shape = where["read_box"].shape.astuple()
    affinities = made("continuous", shape, dtype, seed)
    mask = np.random.default_rng(seed).random(shape) >= masked
    rules |= {"low": limits[0], "high": limits[1]}
    expected = watershed_oracle(affinities, mask=mask, **where, **rules)
    labels = watershed(
        affinities, mask=mask.astype(mask_dtype), threads=threads, **where, **rules
    )
    np.testing.assert_array_equal(labels, expected)
    within = where["box"].slices(where["read_box"].start)
    assert not labels[~mask[within]].any()


@pytest.mark.parametrize("kind", ["continuous", "levels"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_many_basins(kind, dtype):
    """So many that components of them are contracted in the volume first."""
    bounds = Bbox.of_shape((26, 25, 24))
    where = {"read_box": bounds, "box": bounds, "bounds": Bbox.of_shape((26, 25, 25))}
    where["box"] = Bbox(Vec3(0, 0, 0), Vec3(26, 25, 23))
    affinities = made(kind, (26, 25, 24), dtype, 1)
    rules = {"low": 0.01, "high": 2.0}
    assert len(np.unique(watershed(affinities, **where, **rules))) > 2000
    for size_threshold, dust in [(20, 15), (200, 50), (20000, 0)]:
        rules |= {"size_threshold": size_threshold, "dust": dust}
        expected = watershed_oracle(affinities, **where, **rules)
        for threads in (1, 3):
            labels = watershed(affinities, threads=threads, **where, **rules)
            np.testing.assert_array_equal(labels, expected)


@settings(max_examples=200, deadline=None)
@given(
    where=chunks(),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["uint8", "float32"]),
    seed=st.integers(0, 2**32),
    limits=LIMITS,
    size_threshold=st.integers(0, 40),
    dust=st.integers(0, 30),
)
def test_a_chunk_merges_and_drops_only_what_the_whole_does(
    where, kind, dtype, seed, limits, **rules
):
    bounds = where["bounds"]
    rules |= {"low": limits[0], "high": limits[1]}
    affinities = made(kind, bounds.shape.astuple(), dtype, seed)
    whole = watershed(affinities, box=bounds, read_box=bounds, bounds=bounds, **rules)
    read = affinities[where["read_box"].slices(START)]
    part = watershed(read, **where, **rules)
    whole = whole[where["box"].slices(START)]
    assert not whole[part == 0].any()
    for label in np.unique(part[part > 0]):
        assert len(np.unique(whole[part == label])) == 1


def test_the_property_is_not_vacuous():
    """Chunks merge nearly all that the whole merges, and no more."""
    bounds = Bbox.of_shape((30, 30, 30))
    box = Bbox(Vec3(0, 0, 0), Vec3(30, 30, 20))
    affinities = made("continuous", (30, 30, 30), "float32", 0)
    rules = {"low": 0.3, "high": 0.97}
    where = {"box": box, "read_box": box.grown(WATERSHED_HALO).intersection(bounds)}
    read = affinities[where["read_box"].slices()]
    basins = watershed(read, bounds=bounds, **where, **rules)
    merged = watershed(read, bounds=bounds, size_threshold=30, **where, **rules)
    assert len(np.unique(merged)) < len(np.unique(basins)) / 5


def test_two_large_basins_stay_apart():
    affinities = np.zeros((6, 1, 1, 3), np.uint8)
    affinities[1:, 0, 0, 0] = [200, 100, 50, 100, 200]
    box = Bbox.of_shape((6, 1, 1))
    where = {"box": box, "read_box": box, "bounds": box, "low": 0.01, "high": 0.99}
    assert watershed(affinities, size_threshold=4, **where).max() == 1
    assert watershed(affinities, size_threshold=3, **where).max() == 4


def test_a_cluster_that_waits_is_not_dust():
    affinities = np.zeros((6, 1, 1, 3), np.uint8)
    affinities[1:, 0, 0, 0] = [200, 0, 200, 50, 200]
    box = Bbox.of_shape((6, 1, 1))
    where = {"box": box, "read_box": box, "low": 0.01, "high": 0.99, "dust": 3}
    whole = watershed(affinities, bounds=box, **where)
    assert not whole.any()
    beyond = Bbox(Vec3(0, 0, 0), Vec3(6, 1, 2))
    affinities = np.concatenate([affinities, np.zeros_like(affinities)], axis=2)
    where["read_box"] = beyond
    assert watershed(affinities, bounds=beyond, **where).ravel().tolist() == [
        1, 1, 3, 3, 5, 5,
    ]  # fmt: skip
