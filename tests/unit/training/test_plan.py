import numpy as np
import pytest

from pipeline.training.augmentation.plan import (
    Plan,
    choose,
    lost,
    lost_missing,
    misalign,
    misalign_missing,
    missing,
)
from pipeline.training.config import Augmentation

SEEDS = range(40)
N = 12


def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def plan():
    return Plan.untouched(N)


def steps_of(shifts):
    """Sections at which the shift differs from that before."""
    return np.flatnonzero(np.diff(shifts, axis=0).any(axis=1)) + 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_moves_image_and_truth_of_all_that_follow(plan, seed):
    found = misalign(rng(seed), plan, Augmentation(max_shift=(5,), slip=0))
    np.testing.assert_array_equal(found.image_shift, found.truth_shift)
    assert found.furthest <= 5
    assert found.image_shift[0].tolist() == [0, 0]
    assert len(steps_of(found.image_shift)) <= 1
    assert not found.missing.any()


@pytest.mark.parametrize("interpolate", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_slip_moves_the_image_of_one_section(plan, seed, interpolate):
    config = Augmentation(max_shift=(5,), slip=1, interpolate=interpolate)
    found = misalign(rng(seed), plan, config)
    assert np.count_nonzero(found.image_shift.any(axis=1)) <= 1
    if interpolate:
        assert not found.truth_shift.any()
    else:
        np.testing.assert_array_equal(found.image_shift, found.truth_shift)


def test_severities_are_drawn_alike(plan):
    config = Augmentation(max_shift=(1, 100), slip=0)
    furthest = [misalign(rng(seed), plan, config).furthest for seed in range(200)]
    assert 60 < sum(f > 1 for f in furthest) < 140
    assert max(furthest) <= 100


def test_two_in_a_row_are_missing_or_single_ones_or_both(plan):
    config = Augmentation(max_missing=3)
    counts = []
    for seed in range(200):
        found = missing(rng(seed), plan, config)
        np.testing.assert_array_equal(found.source, plan.source)
        assert not found.furthest
        counts.append(int(found.missing.sum()))
    assert set(counts) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_missing_hides_the_step(plan, seed):
    found = misalign_missing(rng(seed), plan, Augmentation(max_shift=(8,), slip=0))
    hidden = np.flatnonzero(found.missing)
    assert 1 <= len(hidden) <= 2
    assert np.diff(hidden).tolist() == [1] * (len(hidden) - 1)
    before, after = found.truth_shift[hidden[0] - 1], found.truth_shift[-1]
    assert not before.any()
    if hidden[-1] < N - 1:
        half = found.truth_shift[hidden]
        np.testing.assert_array_equal(half, np.tile(np.rint(after / 2), (len(half), 1)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hidden_slip_leaves_the_truth(plan, seed):
    found = misalign_missing(rng(seed), plan, Augmentation(max_shift=(8,), slip=1))
    assert not found.truth_shift.any()
    assert found.missing.sum() == 1
    assert not found.image_shift[~found.missing].any()


def test_one_or_two_sections_or_both_are_lost(plan):
    spans, gaps = set(), set()
    for seed in range(200):
        found = lost(rng(seed), plan, Augmentation())
        steps = np.diff(found.source)
        assert steps.min() == 1
        gaps |= set(steps.tolist())
        spans.add(found.span - N)
    assert spans == {1, 2, 3}
    assert gaps == {1, 2, 3, 4}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_section_stands_for_three(plan, seed):
    found = lost_missing(rng(seed), plan, Augmentation())
    (at,) = np.flatnonzero(found.missing)
    assert found.source[at - 1 : at + 2].tolist() == [at - 1, at + 1, at + 3]
    assert found.span == N + 2


def test_at_most_one_happens_and_each_as_often_as_asked():
    config = Augmentation(
        misalign=0.2, missing=0.2, misalign_missing=0.2, lost=0.2, lost_missing=0.1
    )
    counts = dict.fromkeys(["none", "moved", "gone", "both", "cut", "cut and gone"], 0)
    for seed in range(2000):
        found = choose(rng(seed), N, config)
        moved, gone, cut = (
            found.furthest > 0,
            bool(found.missing.any()),
            bool(found.span > N),
        )
        assert not (moved and cut)
        name = {
            (False, False, False): "none",
            (True, False, False): "moved",
            (False, True, False): "gone",
            (True, True, False): "both",
            (False, False, True): "cut",
            (False, True, True): "cut and gone",
        }[moved, gone, cut]
        counts[name] += 1
    for name in ("moved", "gone", "both", "cut"):
        assert 320 < counts[name] < 480, counts
    assert 140 < counts["cut and gone"] < 260
    assert 140 < counts["none"] < 300


def test_few_sections_are_left_alone():
    always = Augmentation(missing=1)
    for n in (1, 2, 3):
        assert not choose(rng(0), n, always).missing.any()


def test_chances_above_one_are_refused():
    with pytest.raises(ValueError, match=r"1\.1 together"):
        Augmentation(misalign=0.6, lost=0.5)
