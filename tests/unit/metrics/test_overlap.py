import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import adapted_rand_error as skimage_rand
from skimage.metrics import variation_of_information as skimage_voi

from pipeline.metrics import (
    adapted_rand_error,
    contingency,
    merge,
    variation_of_information,
)


def ids(*values):
    return np.array(values, dtype=np.uint64)


def pairs(table):
    return list(
        zip(table.segment.tolist(), table.truth.tolist(), table.count.tolist(), strict=True)
    )


volumes = hnp.arrays(np.uint64, (7, 5, 4), elements=st.integers(0, 4))


def test_contingency_counts_and_sorts_pairs():
    huge = 2**64 - 1
    table = contingency(ids(5, huge, 5, 0, 5, 0), ids(1, 9, 1, 9, 0, 9))
    assert pairs(table) == [(0, 9, 2), (5, 0, 1), (5, 1, 2), (huge, 9, 1)]
    assert table.count.dtype == table.segment.dtype == table.truth.dtype == np.uint64


@settings(deadline=None)
@given(segmentation=volumes, truth=volumes)
def test_contingency_against_its_definition(segmentation, truth):
    expected = {}
    for s, t in zip(segmentation.ravel().tolist(), truth.ravel().tolist(), strict=True):
        expected[s, t] = expected.get((s, t), 0) + 1
    found = pairs(contingency(segmentation, truth))
    assert found == [(*pair, n) for pair, n in sorted(expected.items())]
    turned = contingency(np.asfortranarray(segmentation), truth.astype(np.uint16))
    assert pairs(turned) == found


@settings(deadline=None)
@given(segmentation=volumes, truth=volumes, order=st.permutations(range(4)))
def test_tables_of_chunks_add_up_in_any_order(segmentation, truth, order):
    chunks = [np.s_[:3, :2], np.s_[:3, 2:], np.s_[3:, :2], np.s_[3:, 2:]]
    tables = [contingency(segmentation[chunks[i]], truth[chunks[i]]) for i in order]
    assert pairs(merge(tables)) == pairs(contingency(segmentation, truth))
    nested = merge([merge(tables[:2]), merge([]), merge(tables[2:])])
    assert pairs(nested) == pairs(merge(tables))


def test_voi_of_a_halved_object_is_one_bit_of_split():
    table = contingency(ids(1, 1, 2, 2), ids(7, 7, 7, 7))
    assert variation_of_information(table) == (1.0, 0.0)


def test_voi_of_two_objects_in_one_segment_is_one_bit_of_merge():
    table = contingency(ids(3, 3, 3, 3), ids(7, 7, 8, 8))
    assert variation_of_information(table) == (0.0, 1.0)


def test_voi_of_an_uneven_split():
    """1 of 4 voxels apart: 1/4 log2 4 + 3/4 log2 4/3."""
    split, merged = variation_of_information(contingency(ids(1, 1, 1, 2), ids(7, 7, 7, 7)))
    assert split == pytest.approx(0.8112781244591328)
    assert merged == 0


def test_rand_of_hand_counted_pairs():
    """n = (2, 1; 0, 3): P = 14 / (9 + 9), R = 14 / (4 + 16)."""
    table = contingency(ids(1, 1, 1, 2, 2, 2), ids(5, 5, 6, 6, 6, 6))
    score = adapted_rand_error(table)
    assert score.precision == pytest.approx(14 / 18)
    assert score.recall == pytest.approx(14 / 20)
    assert score.error == pytest.approx(1 - 2 * (14 / 18) * 0.7 / (14 / 18 + 0.7))


def test_rand_counts_what_was_not_segmented_as_singletons():
    truth = ids(5, 5, 5, 5)
    left_out = adapted_rand_error(contingency(ids(0, 0, 1, 1), truth))
    alone = adapted_rand_error(contingency(ids(8, 9, 1, 1), truth))
    assert left_out == alone
    assert left_out.precision == 1
    assert left_out.recall == pytest.approx(6 / 16)


def test_voxels_without_truth_do_not_count():
    table = contingency(ids(1, 1, 2, 2, 2, 9), ids(7, 7, 8, 8, 0, 0))
    assert variation_of_information(table) == (0.0, 0.0)
    assert adapted_rand_error(table) == (0.0, 1.0, 1.0)


segmented = hnp.arrays(np.uint64, (6, 5, 4), elements=st.integers(1, 4))


@settings(deadline=None)
@given(segmentation=segmented, truth=volumes.map(lambda v: v[:6]))
def test_voi_agrees_with_scikit_image(segmentation, truth):
    """It leaves truth 0 out only where it is told to, by cutting it out."""
    inside = truth > 0
    assume(inside.any())
    theirs = skimage_voi(truth[inside].astype(int), segmentation[inside].astype(int))
    ours = variation_of_information(contingency(segmentation, truth))
    assert ours == pytest.approx(tuple(theirs), abs=1e-9)


@settings(deadline=None)
@given(segmentation=segmented, truth=volumes.map(lambda v: v[:6]))
def test_rand_agrees_with_scikit_image(segmentation, truth):
    """It leaves out the pair of a voxel with itself, and calls recall precision."""
    inside = truth > 0
    assume(np.count_nonzero(inside) > 20)
    table = contingency(segmentation, truth)
    n = float(table.foreground().count.sum())
    both = float((table.foreground().count.astype(float) ** 2).sum())
    ours = adapted_rand_error(table)
    error, recall, precision = skimage_rand(
        truth[inside].astype(int), segmentation[inside].astype(int), ignore_labels=()
    )
    same_segment, same_object = both / ours.precision - n, both / ours.recall - n
    assert precision == pytest.approx((both - n) / same_segment)
    assert recall == pytest.approx((both - n) / same_object)
    assert error == pytest.approx(1 - 2 * (both - n) / (same_segment + same_object))


@pytest.mark.parametrize("score", [variation_of_information, adapted_rand_error])
def test_no_truth_at_all_is_refused(score):
    with pytest.raises(ValueError, match="no voxel has a truth"):
        score(contingency(ids(1, 2), ids(0, 0)))


def test_arrays_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) but truth \(3,\)"):
        contingency(ids(1, 2), ids(1, 2, 3))
    with pytest.raises(ValueError, match="truth has dtype float32"):
        contingency(ids(1), np.ones(1, dtype=np.float32))
