"""Scores of synapses against cases that were worked out by hand."""

import numpy as np
import pytest

from pipeline.metrics.masks import cremi_scores
from pipeline.metrics.synapses import (
    DetectionScores,
    Sites,
    cleft_scores,
    known_at,
    neural_reconstruction_integrity,
    partner_scores,
    point_scores,
)


def line(**objects):
    """Make a volume of one row of voxels; objects by id and their places."""
    volume = np.zeros((20, 1, 1), np.uint64)
    for name, places in objects.items():
        volume[places] = int(name[1:])
    return volume


def test_clefts_are_right_where_they_overlap():
    truth = line(_1=slice(0, 4), _2=slice(8, 10), _3=slice(15, 18))
    found = line(_7=slice(3, 5), _8=slice(9, 10), _9=slice(12, 14))
    scores = cleft_scores(found, truth)
    assert scores == DetectionScores(2, 1, 2, 1, 0)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3)


def test_a_cleft_in_two_parts_counts_twice_as_found_and_once_as_truth():
    truth = line(_1=slice(0, 10))
    found = line(_7=slice(0, 3), _8=slice(6, 9))
    assert cleft_scores(found, truth) == DetectionScores(2, 0, 1, 0)


def test_overlap_may_have_to_be_larger():
    truth, found = line(_1=slice(0, 4)), line(_7=slice(3, 8))
    assert cleft_scores(found, truth, least_overlap=2) == DetectionScores(0, 1, 0, 1)


def test_what_lies_where_nothing_is_known_is_neither_right_nor_wrong():
    truth = line(_1=slice(0, 4), _2=slice(15, 18))
    found = line(_7=slice(1, 3), _8=slice(12, 14), _9=slice(7, 9))
    known = np.zeros((20, 1, 1), bool)
    known[:8] = True
    assert cleft_scores(found, truth, known) == DetectionScores(1, 1, 1, 0, 1)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="give the same box"):
        cleft_scores(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)))


def test_points_are_paired_one_to_one():
    """Two detections of one synapse are a hit and a false positive."""
    truth = [[0, 0, 0], [1000, 0, 0]]
    found = [[50, 0, 0], [60, 0, 0], [1000, 0, 450]]
    scores = point_scores(np.array(found), np.array(truth), tolerance_nm=300)
    assert scores == DetectionScores(1, 2, 1, 1)
    known = np.array([True, False, True])
    scores = point_scores(
        np.array(found), np.array(truth), tolerance_nm=300, found_known=known
    )
    assert scores == DetectionScores(1, 1, 1, 1, 1)


def test_the_most_pairs_come_before_the_shortest():
    """The nearest pair alone would leave the other two apart."""
    truth, found = [[0, 0, 0], [300, 0, 0]], [[200, 0, 0], [590, 0, 0]]
    scores = point_scores(np.array(found), np.array(truth), tolerance_nm=300)
    assert scores.hits == 2


def sites(pre, post, pre_cell, post_cell):
    return Sites(
        np.array(pre, float),
        np.array(post, float),
        np.array(pre_cell, np.uint64),
        np.array(post_cell, np.uint64),
    )


def test_partners_are_right_in_the_same_cells_and_near():
    truth = sites(
        [[0, 0, 0], [0, 900, 0], [0, 1800, 0]],
        [[100, 0, 0], [100, 900, 0], [100, 1800, 0]],
        [1, 2, 3],
        [4, 5, 6],
    )
    same = partner_scores(truth, truth)
    assert same == DetectionScores(3, 0, 3, 0)
    swapped = sites(truth.post_nm, truth.pre_nm, truth.post, truth.pre)
    assert partner_scores(swapped, truth).f1 == 0
    far = sites(truth.pre_nm + np.array([0, 0, 401]), truth.post_nm, truth.pre, truth.post)
    assert partner_scores(far, truth).hits == 0
    assert partner_scores(far, truth, tolerance_nm=402).hits == 3
    wrong = sites(truth.pre_nm, truth.post_nm, [1, 2, 9], truth.post)
    assert partner_scores(wrong, truth) == DetectionScores(2, 1, 2, 1)


def test_nothing_found_scores_zero():
    none = sites(np.zeros((0, 3)), np.zeros((0, 3)), [], [])
    one = sites([[0, 0, 0]], [[0, 0, 0]], [1], [2])
    assert partner_scores(none, one) == DetectionScores(0, 0, 0, 1)
    assert partner_scores(one, none).precision == 0


def test_nri_of_a_perfect_a_split_and_a_merged_neuron():
    """Four terminals of one neuron have six pairs."""
    neuron = np.array([1, 1, 1, 1])
    assert neural_reconstruction_integrity(neuron, neuron).nri == 1
    split = neural_reconstruction_integrity(neuron, np.array([5, 5, 6, 6]))
    assert (split.kept, split.lost, split.invented) == (2, 4, 0)
    assert split.nri == pytest.approx(4 / 8)
    merged = neural_reconstruction_integrity(np.array([1, 1, 2, 2]), np.array([5] * 4))
    assert (merged.kept, merged.lost, merged.invented) == (2, 0, 4)


def test_nri_counts_terminals_that_are_missed_and_invented():
    missed = neural_reconstruction_integrity(np.array([1, 1, 1]), np.array([5, 5, 0]))
    assert (missed.kept, missed.lost, missed.invented) == (1, 2, 0)
    extra = neural_reconstruction_integrity(np.array([1, 1, 0]), np.array([5, 5, 5]))
    assert (extra.kept, extra.lost, extra.invented) == (1, 0, 2)
    assert neural_reconstruction_integrity(np.array([1]), np.array([5])).nri == 0
    with pytest.raises(ValueError, match="0 where there is none"):
        neural_reconstruction_integrity(np.array([1]), np.array([5, 5]))


def test_places_outside_the_map_are_not_known():
    known = np.ones((2, 2, 2), bool)
    known[1, 0, 0] = False
    places = [[10, 10, 10], [150, 10, 10], [250, 10, 10], [-1, 10, 10]]
    assert known_at(known, np.array(places), (100, 100, 100)).tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_cremi_distances_by_hand():
    """Found 2 voxels beside a true one, and one true voxel far off that is missed."""
    truth, found = np.zeros((10, 1, 1), bool), np.zeros((10, 1, 1), bool)
    truth[[0, 9]] = True
    found[[0, 1]] = True
    scores = cremi_scores(found, truth, (40.0, 4.0, 4.0))
    assert scores.adgt_nm == pytest.approx((0 + 40) / 2)
    assert scores.adf_nm == pytest.approx((0 + 320) / 2)
    assert scores.mean_nm == pytest.approx(90)
    assert (scores.false_positives, scores.false_negatives) == (0, 1)
