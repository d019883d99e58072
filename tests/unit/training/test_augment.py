import numpy as np
import pytest

from pipeline.training.augment import (
    augment,
    blur_sections,
    flip_and_transpose,
    lose_sections,
    misalignment,
    shift_sections,
    vary_grey,
)
from pipeline.training.config import Augmentation

SEEDS = range(20)


def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def image():
    return np.asfortranarray(rng(9).uniform(0.2, 0.8, (12, 12, 8)).astype(np.float32))


@pytest.fixture
def labels():
    """Every voxel its own id: where each went can be told."""
    return np.arange(1, 12 * 12 * 8 + 1).reshape((12, 12, 8), order="F")


def marked(labels):
    return labels.astype(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_turns_take_labels_along(labels, seed):
    image, turned = flip_and_transpose(rng(seed), marked(labels), labels)
    np.testing.assert_array_equal(image, turned)
    assert sorted(turned.ravel()) == sorted(labels.ravel())
    sections = {frozenset(labels[..., z].ravel()) for z in range(8)}
    assert {frozenset(turned[..., z].ravel()) for z in range(8)} == sections


def test_turns_are_the_sixteen(labels):
    ways = {
        flip_and_transpose(rng(seed), marked(labels), labels)[1].tobytes()
        for seed in range(300)
    }
    assert len(ways) == 16


@pytest.mark.parametrize("slip", [0.0, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_moves_all_that_follow_and_a_slip_one(seed, slip):
    shifts = misalignment(rng(seed), 9, 5, slip)
    assert np.abs(shifts).max() <= 5
    moved = np.flatnonzero(shifts.any(axis=1))
    assert shifts[0].tolist() == [0, 0]
    if slip:
        assert len(moved) <= 1
    elif len(moved):
        assert moved.tolist() == list(range(moved[0], 9))
        assert len(np.unique(shifts[moved], axis=0)) == 1


def test_sections_come_from_where_the_shift_says(labels):
    shifts = np.zeros((8, 2), int)
    shifts[3] = 2, -1
    out = shift_sections(labels, shifts, 2)
    assert out.shape == (8, 8, 8)
    np.testing.assert_array_equal(out[:, :, 0], labels[2:10, 2:10, 0])
    np.testing.assert_array_equal(out[:, :, 3], labels[4:12, 1:9, 3])


def test_grey_keeps_order_and_range(image):
    changed = [vary_grey(rng(seed), image, 0.3) for seed in SEEDS]
    assert any(not np.allclose(c, image) for c in changed)
    for c in changed:
        assert c.dtype == np.float32
        assert c.min() >= 0
        assert c.max() <= 1
        for z in range(8):
            order = np.argsort(image[:, :, z].ravel())
            assert (np.diff(c[:, :, z].ravel()[order]) >= 0).all()


def test_grey_is_of_all_sections_alike_or_of_each_its_own(image):
    image[:] = image[:, :, :1]
    alike = [
        np.ptp(vary_grey(rng(seed), image, 0.3), axis=2).max() < 1e-6 for seed in SEEDS
    ]
    assert 0 < sum(alike) < len(alike)


@pytest.mark.parametrize("seed", SEEDS)
def test_blur_smooths_some_sections_and_leaves_the_others(image, seed):
    out = blur_sections(rng(seed), image, 2.0)
    changed = [z for z in range(8) if not np.array_equal(out[:, :, z], image[:, :, z])]
    assert 1 <= len(changed) < 8
    assert all(out[:, :, z].std() < image[:, :, z].std() for z in changed)


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_sections_are_flat_where_they_are_lost(image, seed):
    out = lose_sections(rng(seed), image, 3)
    lost = out != image
    changed = np.flatnonzero(lost.any(axis=(0, 1)))
    assert len(changed) <= 3
    for z in changed:
        assert len(np.unique(out[:, :, z][lost[:, :, z]])) == 1


def test_sections_are_lost_whole_and_in_part(image):
    shares = [
        (lose_sections(rng(seed), image, 1) != image).mean() * image.shape[2]
        for seed in SEEDS
    ]
    assert any(s == 1 for s in shares)
    assert any(0 < s < 1 for s in shares)


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_follow_everything(labels, seed):
    moving = Augmentation(misalign=1.0, max_shift=2, slip=0.5)
    image, moved = augment(rng(seed), marked(labels), labels, moving)
    assert image.shape == moved.shape == (8, 8, 8)
    np.testing.assert_array_equal(image, moved)


def test_inputs_stay_as_they_were(image, labels):
    before = image.copy()
    image.flags.writeable = labels.flags.writeable = False
    everything = Augmentation(grey=1, misalign=1, max_shift=2, missing=1, blur=1)
    for seed in SEEDS:
        augment(rng(seed), image, labels, everything)
    np.testing.assert_array_equal(image, before)


def test_the_same_generator_gives_the_same(image, labels):
    everything = Augmentation(grey=1, misalign=1, max_shift=2, missing=1, blur=1)
    one, two = (augment(rng(5), image, labels, everything) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
