import numpy as np
import pytest

from pipeline.metrics import Skeleton, expected_run_length


def line(*x):
    """Nodes along x [nm], each linked to the next."""
    nodes = np.zeros((len(x), 3), dtype=np.float32)
    nodes[:, 0] = x
    n = np.arange(len(x) - 1, dtype=np.uint32)
    return Skeleton(nodes, np.stack([n, n + 1], axis=1))


def ids(*values):
    return np.array(values, dtype=np.uint64)


def test_the_truth_itself_is_followed_to_its_ends():
    """Lengths 10 and 30: (10**2 + 30**2) / 40."""
    skeletons = {1: line(0, 4, 10), 2: line(0, 30)}
    found = expected_run_length(skeletons, {1: ids(5, 5, 5), 2: ids(6, 6)})
    assert found[:3] == (25.0, 25.0, 1.0)
    assert found.merged.size == 0


def test_a_split_loses_its_edge_and_divides_the_run():
    """30 of 4 + 6 + 20 with the 6 lost: (4**2 + 20**2) / 30."""
    found = expected_run_length({1: line(0, 4, 10, 30)}, {1: ids(5, 5, 6, 6)})
    assert found.erl_nm == pytest.approx(416 / 30)
    assert found.nerl == pytest.approx(416 / 900)


def test_a_segment_that_comes_back_counts_as_one_run():
    """What segment 5 keeps, 4 + 20, counts together; both edges at 6 are lost."""
    found = expected_run_length({1: line(0, 4, 10, 12, 32)}, {1: ids(5, 5, 6, 5, 5)})
    assert found.erl_nm == pytest.approx(24**2 / 32)


def test_a_branching_skeleton_is_one_length():
    nodes = np.array([[0, 0, 0], [3, 4, 0], [0, 0, 12], [0, 5, 0]], dtype=np.float32)
    star = Skeleton(nodes, np.array([[0, 1], [0, 2], [3, 0]], dtype=np.uint32))
    assert expected_run_length({1: star}, {1: ids(5, 5, 5, 5)}).erl_nm == 22


def test_what_was_not_segmented_is_lost():
    found = expected_run_length({1: line(0, 4, 10)}, {1: ids(0, 0, 0)})
    assert (found.erl_nm, found.nerl) == (0, 0)


@pytest.mark.parametrize(
    ("threshold", "merged", "erl"),
    [(0, [5], 20**2 / 40), (1, [5], 20**2 / 40), (2, [], (20**2 + 10**2 + 5**2) / 40)],
)
def test_a_merger_loses_all_its_edges(threshold, merged, erl):
    """Segment 5 covers three nodes of one skeleton and two of the other."""
    skeletons = {1: line(0, 4, 10), 2: line(0, 5, 10, 30)}
    nodes = {1: ids(5, 5, 5), 2: ids(5, 5, 6, 6)}
    found = expected_run_length(skeletons, nodes, merge_threshold=threshold)
    assert found.merged.tolist() == merged
    assert found.erl_nm == pytest.approx(erl)


def test_the_threshold_must_be_passed_in_each_of_two_skeletons():
    skeletons = {1: line(0, 1, 2, 3), 2: line(0, 1)}
    nodes = {1: ids(5, 5, 5, 5), 2: ids(5, 6)}
    assert expected_run_length(skeletons, nodes, merge_threshold=0).merged.tolist() == [5]
    assert expected_run_length(skeletons, nodes, merge_threshold=1).merged.tolist() == []


def test_isolated_and_coincident_nodes_count_nothing():
    nothing = np.zeros((0, 2), dtype=np.uint32)
    alone = Skeleton(np.zeros((1, 3), dtype=np.float32), nothing)
    empty = Skeleton(np.zeros((0, 3), dtype=np.float32), nothing)
    skeletons = {1: line(0, 8), 2: alone, 3: line(4, 4), 4: empty}
    nodes = {1: ids(5, 5), 2: ids(6), 3: ids(7, 7), 4: ids()}
    assert expected_run_length(skeletons, nodes)[:3] == (8, 8, 1)
    with pytest.raises(ValueError, match="the 2 skeletons together have no length"):
        expected_run_length({2: alone, 3: line(4, 4)}, nodes)


@pytest.mark.parametrize(
    ("skeleton", "nodes", "threshold", "message"),
    [
        (line(0, 1), {1: ids(5)}, 0, r"2 nodes but node segments of shape \(1,\)"),
        (line(0, 1), {}, 0, "skeleton 1 has no node segments"),
        (
            Skeleton(line(0, 1)[0], np.array([[0, 2]], np.uint32)),
            {1: ids(5, 5)},
            0,
            "node 2",
        ),
        (line(0, 1), {1: ids(5, 5)}, -1, "merge_threshold is -1"),
    ],
)
def test_what_does_not_match_is_refused(skeleton, nodes, threshold, message):
    with pytest.raises(ValueError, match=message):
        expected_run_length({1: skeleton}, nodes, merge_threshold=threshold)
