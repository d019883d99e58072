import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pipeline.geometry import Vec3
from pipeline.nets.config import Head
from pipeline.training.targets import (
    affinities,
    known_affinities,
    tanh_distance,
    target_of,
)

SHAPE = (5, 6, 4)
OFFSETS = [Vec3(1, 0, 0), Vec3(0, 3, 0), Vec3(0, 0, 2), Vec3(-1, 2, 1), Vec3(9, 0, 0)]
AFFINITIES = Head(name="a", kind="affinities", offsets=tuple(OFFSETS))
MASKS = Head(name="m", kind="masks", channels=("cleft", "fold"))
DEPTH = Head(name="d", kind="distance", channels=("cleft",))
CLASSES = Head(name="c", kind="classes", channels=("axon", "glia"))


@pytest.fixture
def labels():
    return np.asfortranarray(np.random.default_rng(0).integers(0, 3, SHAPE, np.uint16))


@pytest.fixture
def known():
    return np.random.default_rng(1).random(SHAPE) < 0.7


def test_affinities_are_the_definition(labels, known):
    found = affinities(labels, OFFSETS)
    valid = known_affinities(SHAPE, OFFSETS, known)
    everywhere = known_affinities(SHAPE, OFFSETS)
    assert found.flags.f_contiguous
    for at in np.ndindex(SHAPE):
        for channel, offset in enumerate(OFFSETS):
            other = tuple(a - o for a, o in zip(at, offset, strict=True))
            inside = all(0 <= o < n for o, n in zip(other, SHAPE, strict=True))
            here = labels[at]
            same = inside and here != 0 and here == labels[other]
            assert found[(*at, channel)] == same
            assert everywhere[(*at, channel)] == inside
            seen = inside and known[at] and known[other]
            assert valid[(*at, channel)] == seen


def test_tanh_distance_is_the_definition():
    mask = np.random.default_rng(2).random(SHAPE) < 0.8
    found = tanh_distance(mask)
    places = np.argwhere(np.ones(SHAPE, bool))
    ways = cdist(places, np.argwhere(~mask)).min(axis=1).reshape(SHAPE)
    np.testing.assert_allclose(found, np.where(mask, np.tanh(ways), 0), atol=1e-6)
    assert not tanh_distance(np.zeros(SHAPE, bool)).any()
    assert tanh_distance(np.ones(SHAPE, bool)).all()


def test_heads_lie_one_behind_the_other(labels, known):
    masks = {"cleft": (labels == 1).astype(np.uint8), "fold": np.full(SHAPE, 2, np.uint8)}
    heads = [MASKS, AFFINITIES, DEPTH]
    value, valid = target_of(heads, {"cells": labels, **masks}, known, SHAPE)
    assert value.shape == valid.shape == (*SHAPE, 8)
    np.testing.assert_array_equal(value[..., 0], labels == 1)
    assert valid[..., 0].all()
    assert not valid[..., 1].any()
    np.testing.assert_array_equal(value[..., 2:7], affinities(labels, OFFSETS))
    np.testing.assert_array_equal(valid[..., 2:7], known_affinities(SHAPE, OFFSETS, known))
    np.testing.assert_array_equal(value[..., 7], tanh_distance(labels == 1))
    assert valid[..., 7].all()


def test_what_a_volume_does_not_say_is_not_known(labels):
    value, valid = target_of([MASKS, AFFINITIES], {"cells": labels}, None, SHAPE)
    assert not valid[..., :2].any()
    assert not value[..., :2].any()
    _, valid = target_of([AFFINITIES], {}, None, SHAPE)
    assert not valid.any()


def test_classes_are_known_where_one_is_true(labels):
    masks = {
        name: (labels == i).astype(np.uint8) for i, name in enumerate(("axon", "glia"))
    }
    masks["axon"][0, 0, 0] = 2
    value, valid = target_of([CLASSES], masks, None, SHAPE)
    expected = labels < 2
    expected[0, 0, 0] = False
    for channel in range(2):
        np.testing.assert_array_equal(valid[..., channel], expected)
    assert (value.sum(axis=-1)[expected] == 1).all()
