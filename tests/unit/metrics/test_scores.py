import json

import numpy as np
import pytest

from pipeline.metrics import (
    Scores,
    Skeleton,
    contingency,
    expected_run_length,
    scores,
)


def ids(*values):
    return np.array(values, dtype=np.uint64)


@pytest.fixture
def table():
    """Object 7 halved, 8 and 9 in one segment, a voxel of 9 left out, one without truth."""
    return contingency(
        ids(1, 1, 2, 2, 3, 3, 3, 0, 4),
        ids(7, 7, 7, 7, 8, 8, 9, 9, 0),
    )


def test_summary_of_a_small_case(table):
    found = scores(table)
    assert found.voi_split == pytest.approx((4 * 1 + 2 * 1) / 8)
    assert found.voi_merge == pytest.approx((2 * np.log2(3 / 2) + np.log2(3)) / 8)
    assert found.voi_sum == found.voi_split + found.voi_merge
    assert (found.n_voxels, found.n_truth, found.n_segments) == (8, 3, 3)
    assert found.unsegmented == 1 / 8
    assert found.rand_precision == pytest.approx(14 / 18)
    assert found.rand_recall == pytest.approx(14 / 24)
    assert found.erl_nm is None


def test_the_worst_are_named_with_what_they_cost(table):
    found = scores(table)
    assert [(o.id, o.bits, o.parts, o.voxels) for o in found.worst_splits] == [
        (7, 0.5, 2, 4),
        (9, 0.25, 2, 2),
    ]
    assert [(o.id, o.parts, o.voxels) for o in found.worst_merges] == [(3, 2, 3)]
    assert sum(o.bits for o in found.worst_splits) == pytest.approx(found.voi_split)
    assert sum(o.bits for o in found.worst_merges) == pytest.approx(found.voi_merge)
    assert len(scores(table, n_worst=1).worst_splits) == 1


def test_a_perfect_segmentation_offends_nobody():
    found = scores(contingency(ids(4, 4, 5), ids(1, 1, 2)))
    assert (found.voi_sum, found.arand, found.unsegmented) == (0, 0, 0)
    assert found.worst_splits == found.worst_merges == ()


def test_json_holds_it_all(table):
    skeleton = Skeleton(
        np.array([[0, 0, 0], [0, 0, 8]], dtype=np.float32),
        np.array([[0, 1]], dtype=np.uint32),
    )
    found = scores(table, expected_run_length({7: skeleton}, {7: ids(1, 1)}))
    report = json.loads(found.model_dump_json())
    assert report["log_base"] == 2
    assert (report["erl_nm"], report["truth_erl_nm"], report["nerl"]) == (8, 8, 1)
    assert Scores.model_validate(report) == found
