"""Masks against the truth: counts and distances that can be worked out by hand."""

import math

import numpy as np
import pytest

from pipeline.metrics.masks import cremi_scores, voxel_scores

NM = (4.0, 4.0, 40.0)


def mask(*voxels, shape=(40, 8, 4)):
    found = np.zeros(shape, bool)
    for voxel in voxels:
        found[voxel] = True
    return found


def test_counts_by_hand():
    found, truth = mask((0, 0, 0), (1, 0, 0), (2, 0, 0)), mask((1, 0, 0), (9, 0, 0))
    scores = voxel_scores(found, truth)
    assert scores == pytest.approx((1 / 3, 1 / 2, 2 / 5))


def test_what_is_not_known_counts_nothing():
    found, truth = mask((0, 0, 0), (1, 0, 0)), mask((1, 0, 0), (9, 0, 0))
    known = ~mask((0, 0, 0), (9, 0, 0))
    assert voxel_scores(found, truth, known) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("found", "truth"),
    [(mask(), mask()), (mask((0, 0, 0)), mask()), (mask(), mask((0, 0, 0)))],
)
def test_without_any_hit_all_is_zero(found, truth):
    assert voxel_scores(found, truth).f1 == 0.0


def test_distances_by_hand():
    """Found: on the truth, and 3 voxels beside it in x. True: one more a section off."""
    found = mask((5, 5, 1), (8, 5, 1))
    truth = mask((5, 5, 1), (5, 5, 2))
    scores = cremi_scores(found, truth, NM)
    assert scores.adgt_nm == pytest.approx((0 + 12) / 2)
    assert scores.adf_nm == pytest.approx((0 + 40) / 2)
    assert scores.mean_nm == pytest.approx((6 + 20) / 2)
    assert (scores.false_positives, scores.false_negatives) == (0, 0)


def test_what_is_far_is_wrong():
    found, truth = mask((0, 0, 0), (39, 0, 0)), mask((0, 0, 0))
    scores = cremi_scores(found, truth, NM, tolerance_nm=150.0)
    assert (scores.false_positives, scores.false_negatives) == (1, 0)
    assert cremi_scores(truth, found, NM, tolerance_nm=150.0).false_negatives == 1


def test_the_same_mask_is_at_no_distance():
    found = np.random.default_rng(0).random((12, 9, 5)) > 0.8
    assert cremi_scores(found, found, NM) == (0.0, 0.0, 0.0, 0, 0)


def test_an_empty_mask_is_infinitely_far():
    scores = cremi_scores(mask(), mask((0, 0, 0)), NM)
    assert (scores.adgt_nm, scores.adf_nm) == (0.0, math.inf)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(40, 8, 4\) and the truth \(3, 3, 3\)"):
        voxel_scores(mask(), mask(shape=(3, 3, 3)))
