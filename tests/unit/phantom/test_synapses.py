"""Synapses of the phantom lie between the cells that they say, wherever one looks from."""

import numpy as np
import pytest

from pipeline.layers.sources import open_source
from pipeline.phantom import Phantom

PHANTOM = Phantom(seed=3, synapses=0.9, voxel_size_nm=(16.0, 16.0, 40.0))
START, STOP = (0, 0, 0), (120, 120, 40)


@pytest.fixture(scope="module")
def block():
    return (
        PHANTOM.image(START, STOP),
        PHANTOM.labels(START, STOP),
        PHANTOM.clefts(START, STOP),
    )


def inside():
    """List the synapses whose box lies within the block."""
    return [
        s
        for s in PHANTOM.synapses_in(START, STOP)
        if (s.start >= 0).all() and (s.start + s.cleft.shape <= STOP).all()
    ]


def test_a_box_is_the_crop_of_a_larger_one(block):
    image, _, clefts = block
    low, high = (31, 17, 5), (95, 88, 22)
    crop = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    np.testing.assert_array_equal(PHANTOM.image(low, high), image[crop])
    np.testing.assert_array_equal(PHANTOM.clefts(low, high), clefts[crop])
    assert clefts[crop].any()


def test_clefts_touch_their_two_cells_and_no_synapse_is_an_autapse(block):
    _, labels, clefts = block
    found = inside()
    assert len(found) >= 3
    for one in found:
        box = tuple(
            slice(a, a + n) for a, n in zip(one.start, one.cleft.shape, strict=True)
        )
        assert one.pre != one.post
        assert np.array_equal(clefts[box] == one.id, one.cleft)
        assert one.density.any()
        assert one.vesicles.any()
        assert set(np.unique(labels[box][one.density])) == {one.post}
        assert set(np.unique(labels[box][one.vesicles])) == {one.pre}
        centre = np.array(one.centre)
        assert (centre >= one.start).all()
        assert (centre < one.start + one.cleft.shape).all()


def test_ids_are_their_own():
    ids = [s.id for s in PHANTOM.synapses_in(START, STOP)]
    assert len(set(ids)) == len(ids)
    assert max(ids) < 2**53


def test_they_are_dark_behind_and_nothing_else_changes(block):
    image, _, _ = block
    without = PHANTOM.model_copy(update={"synapses": 0.0}).image(START, STOP)
    changed = np.zeros(image.shape, bool)
    for one in PHANTOM.synapses_in(START, STOP):
        drawn = np.argwhere(one.density | one.vesicles | one.cleft) + one.start
        for step in np.ndindex(3, 3, 1):  # the blur of the microscope
            at = drawn + np.array(step) - [1, 1, 0]
            at = at[((at >= 0) & (at < STOP)).all(axis=1)]
            changed[tuple(at.T)] = True
    assert (image != without)[~changed].sum() == 0
    for one in inside():
        dark = np.argwhere(one.density) + one.start
        assert image[tuple(dark.T)].mean() < without[tuple(dark.T)].mean() - 15


def test_tissue_without_synapses_has_no_clefts():
    assert not Phantom(seed=3).clefts((0, 0, 0), (50, 50, 10)).any()


def test_clefts_are_a_source():
    source = open_source("phantom://60,60,20/clefts?seed=3&synapses=0.9")
    phantom = Phantom(seed=3, synapses=0.9)
    assert source.dtype == "uint64"
    np.testing.assert_array_equal(
        source.read(source.bounds), phantom.clefts((0, 0, 0), (60, 60, 20))
    )
