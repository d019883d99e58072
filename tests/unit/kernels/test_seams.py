"""Where two alignments are joined: what is carried on, what fades, what is not known."""

import numpy as np
import pytest

from pipeline.kernels import fields, seams

SPACING = 24.0
FADING = seams.Fading(first=4, last=9, decay=5.0, smooth=2.0)


@pytest.fixture
def wavy():
    at = fields.nodes((0, 0), (50, 40), SPACING)
    x, y = np.moveaxis(at, -1, 0)
    return np.stack([60 * np.sin(x / 200), 50 * np.cos(y / 250)], axis=-1)


def test_a_pose_and_its_inverse_undo_one_another():
    points = np.random.default_rng(0).uniform(0, 900, (5, 6, 2))
    pose = (0.03, np.array([40.0, -7.0]), np.array([450.0, 400.0]))
    moved = seams.from_loose(points, *pose)
    assert np.abs(moved - points).min() > 1e-3
    np.testing.assert_allclose(seams.to_loose(moved, *pose), points, atol=1e-9)


def test_a_place_is_found_again(wavy):
    places = fields.nodes((6, 6), (30, 25), SPACING) + 5.0
    shown = places + fields.sample(wavy, places, SPACING)
    found, known = seams.found_again(shown, wavy, SPACING, (0, 0), reach=100.0)
    assert known.all()
    np.testing.assert_allclose(found, places, atol=2e-3)


def test_a_place_does_not_depend_on_what_else_is_looked_for(wavy):
    places = fields.nodes((10, 10), (20, 15), SPACING) + 5.0
    shown = places + fields.sample(wavy, places, SPACING)
    whole, _ = seams.found_again(shown, wavy, SPACING, (0, 0), reach=96.0)
    near = wavy[4:36, 4:31]
    part, _ = seams.found_again(shown[:, 3:7], near, SPACING, (4, 4), reach=96.0)
    np.testing.assert_array_equal(whole[:, 3:7], part)


def test_what_lies_beyond_reach_is_not_known(wavy):
    places = fields.nodes((10, 10), (20, 15), SPACING)
    shown = places + fields.sample(wavy, places, SPACING)
    _, known = seams.found_again(shown, wavy, SPACING, (0, 0), reach=20.0)
    assert not known.all()


def test_an_affine_map_is_found_among_outliers():
    rng = np.random.default_rng(1)
    at = rng.uniform(0, 5000, (400, 2))
    true = np.array([[0.01, -0.02, 130.0], [0.018, 0.003, -70.0]])
    by = seams.affine_shift(true, at)
    by[:90] += rng.uniform(200, 900, (90, 2))
    found, change = seams.fit_affine(at, by, np.ones(400))
    assert not change.any()
    assert np.abs(seams.affine_shift(found, at) - seams.affine_shift(true, at)).max() < 0.5


def test_a_change_by_step_is_told_from_the_map():
    rng = np.random.default_rng(2)
    at, steps = rng.uniform(0, 5000, (300, 2)), rng.integers(-2, 3, 300)
    true = np.array([[0.01, -0.02, 130.0], [0.018, 0.003, -70.0]])
    turn = np.array([[0.0, -0.004, 9.0], [0.004, 0.0, -9.0]])
    by = seams.affine_shift(true, at) + steps[:, None] * seams.affine_shift(turn, at)
    by[:40] += 500
    found, change = seams.fit_affine(at, by, np.ones(300), steps)
    for one, other in ((found, true), (change, turn)):
        off = seams.affine_shift(one, at) - seams.affine_shift(other, at)
        assert np.abs(off).max() < 0.5


def test_the_change_goes_on_over_the_overlap_and_ends_beyond():
    steps = [FADING.steps(z) for z in range(4, 60)]
    np.testing.assert_allclose(steps[:5], [-2, -1, 0, 1, 2])
    assert 0.5 < steps[5] - steps[4] < 1
    assert steps[-1] == pytest.approx(2 + FADING.decay, abs=0.01)


def test_few_places_give_a_shift_and_none_gives_nothing():
    by = np.array([[3.0, 5.0], [1.0, 1.0]])
    one, _ = seams.fit_affine(np.array([[7.0, 8.0], [1.0, 1.0]]), by, np.array([1.0, 0.0]))
    np.testing.assert_allclose(one, [[0, 0, 3], [0, 0, 5]])
    assert not np.any(seams.fit_affine(np.zeros((2, 2)), by, np.zeros(2)))


def test_over_the_overlap_the_second_counts_for_more_and_more():
    weights = [FADING.weight(z) for z in range(2, 12)]
    assert weights[0] == weights[1] == 0
    assert weights[-1] == weights[-3] == 1
    np.testing.assert_allclose(np.diff(weights[1:8]), 1 / 6)


def test_a_shift_that_all_agree_on_is_carried_and_fades():
    rest = np.zeros((20, 18, 5, 2))
    rest[..., 0] = 30.0
    known = np.ones(rest.shape[:3], bool)
    inner = (slice(7, -7), slice(7, -7))
    for z in range(4, 10):
        np.testing.assert_allclose(
            seams.carried(rest, known, FADING, z)[inner][..., 0],
            30 * FADING.strength(z),
        )
    far = np.abs(seams.carried(rest, known, FADING, 9 + 25)).max()
    assert 0 < far < 0.3


def test_at_its_start_the_overlap_follows_what_its_section_says():
    rest = np.zeros((20, 18, 5, 2))
    rest[:, :, 0, 1] = 12.0
    known = np.ones(rest.shape[:3], bool)
    at = (10, 9, 1)
    assert seams.carried(rest, known, FADING, 4)[at] == pytest.approx(12 * 5 / 6)
    # The outermost section of five does not move the median.
    assert seams.carried(rest, known, FADING, 5)[at] == 0
    assert seams.carried(rest, known, FADING, 9)[at] == 0


def test_what_is_not_known_is_filled_from_around_and_nothing_is_made_of_nothing():
    rest = np.full((20, 18, 5, 2), 10.0)
    known = np.ones(rest.shape[:3], bool)
    known[9:11, 9:11] = False
    rest[~known] = 1e6
    assert seams.carried(rest, known, FADING, 8)[10, 10] == pytest.approx([10, 10])
    known[:] = False
    assert not seams.carried(rest, known, FADING, 6).any()


def test_disagreement_counts_what_is_known():
    rest = np.zeros((4, 5, 2))
    rest[0, :, 0] = 8.0
    rest[1, :, 0] = 1000.0
    weight = np.ones((4, 5))
    weight[1] = 0
    found = seams.disagreement(rest, weight)
    assert found.known == pytest.approx(0.75)
    assert found.median == 0
    assert found.p95 == 8
    assert np.isnan(seams.disagreement(rest, weight * 0).median)
