"""Partners, duplicates and flags on cases that can be seen through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.partners import (
    AT_BOUNDS,
    AUTAPSE,
    GLIA,
    LONG,
    NO_POST,
    NO_PRE,
    VANISHED,
    VESSEL,
    Assignment,
    SynapseRows,
    by_contact,
    by_means,
    by_order,
    flags_of,
    merge_duplicates,
    sample_centres,
    site_of,
    surroundings,
    with_segments,
)

VOXEL = (8.0, 8.0, 40.0)
BOX = Bbox.of_shape((24, 20, 6))


def scene(cleft=(slice(8, 16), slice(9, 11), slice(2, 4)), shift=0):
    """Two cells above one another, a cleft between, background to the sides."""
    segments = np.zeros(BOX.shape.astuple(), np.uint64, order="F")
    segments[4:20, : 10 + shift] = 5
    segments[4:20, 10 + shift :] = 7
    clefts = np.zeros_like(segments)
    clefts[cleft] = 3
    return clefts, segments


def seen(clefts, segments, window=BOX, reach_nm=20.0):
    place = np.argwhere(clefts == 3)
    extent = Bbox(
        Vec3.of(place.min(axis=0).tolist()), Vec3.of((place.max(axis=0) + 1).tolist())
    )
    return surroundings(
        clefts,
        segments,
        3,
        window=window,
        origin=Vec3(0, 0, 0),
        extent=extent,
        reach_nm=reach_nm,
        voxel_size_nm=VOXEL,
    )


def test_the_neighbourhood_is_what_lies_within_reach():
    clefts, segments = scene()
    found = seen(clefts, segments)
    assert found.candidates.tolist() == [5, 7]
    whole = np.zeros(BOX.shape.astuple(), bool)
    whole[found.box.slices()] = found.near
    for voxel in np.ndindex(*BOX.shape.astuple()):
        away = (np.argwhere(clefts == 3) - np.array(voxel)) * np.array(VOXEL)
        assert whole[voxel] == (np.sqrt((away**2).sum(axis=1)).min() <= 20.0)


def test_a_cleft_that_touches_nothing_has_no_partner():
    clefts, segments = scene()
    found = seen(clefts, np.zeros_like(segments))
    assert not len(found.candidates)
    assert by_contact(found) == Assignment()
    assert by_means(found.candidates, []) == Assignment()
    assert flags_of(Assignment(), (0, 0), is_cut=False, at_bounds=False) == NO_PRE | NO_POST


def test_the_side_that_holds_the_cleft_is_behind():
    for shift, post in ((1, 5), (-1, 7)):
        assigned = by_contact(seen(*scene(shift=shift)))
        assert assigned.post == post
        assert {assigned.pre, assigned.post} == {5, 7}
        assert assigned.pre_score + assigned.post_score == pytest.approx(1)


def test_an_axon_is_before_whatever_the_cleft_says():
    clefts, segments = scene(shift=1)
    found = seen(clefts, segments)
    classes = np.where(segments == 5, 2, 3).astype(np.uint8)[found.box.slices()]
    assert by_contact(found, classes).pre == 5


def test_of_many_the_two_with_most_contact_are_partners():
    clefts, segments = scene()
    segments[13:15, 11:] = 9
    assigned = by_contact(seen(clefts, segments))
    assert {assigned.pre, assigned.post} == {5, 7}


def test_a_lone_neighbour_is_behind_and_nobody_is_before():
    clefts, segments = scene()
    segments[segments == 5] = 0
    assigned = by_contact(seen(clefts, segments))
    assert (assigned.pre, assigned.post) == (0, 7)
    assert flags_of(assigned, (0, 0), is_cut=False, at_bounds=False) == NO_PRE


def test_means_are_over_the_voxels_of_all_patches():
    segments = np.array([1, 1, 2, 2, 0, 3], np.uint64).reshape(6, 1, 1)
    said = np.zeros((6, 1, 1, 2), np.float32)
    said[:, 0, 0, 0] = [0.9, 0.1, 0.6, 0.6, 1.0, 1.0]
    said[:, 0, 0, 1] = [0.2, 0.4, 0.1, 0.1, 1.0, 1.0]
    candidates = np.array([1, 2], np.uint64)
    assigned = by_means(candidates, [(segments, said)])
    assert (assigned.pre, assigned.post) == (2, 1)
    assert assigned.pre_score == pytest.approx(0.6)
    assert assigned.post_score == pytest.approx(0.3)
    other = np.ones((2, 1, 1), np.uint64)
    more = np.ones((2, 1, 1, 2), np.float32)
    assigned = by_means(candidates, [(segments, said), (other, more)])
    assert (assigned.pre, assigned.post) == (1, 1)
    assert assigned.pre_score == pytest.approx((0.9 + 0.1 + 2) / 4)


def said_of(segments, **levels):
    """What a net says that is sure of pre and of post by the segment, `s5=(pre, post)`."""
    said = np.zeros((*segments.shape, 2), np.float32, order="F")
    for name, pair in levels.items():
        said[segments == int(name[1:])] = pair
    return [(segments, said)]


@pytest.mark.parametrize(("first", "second"), [(5, 7), (7, 5)])
def test_the_net_says_which_of_the_two_that_touch_is_before(first, second):
    clefts, segments = scene(shift=1)
    segments[13:15, 12:] = 9
    found = seen(clefts, segments)
    levels = {f"s{first}": (0.6, 0.3), f"s{second}": (0.5, 0.4), "s9": (0.9, 0.9)}
    patches = said_of(segments, **levels)
    assert by_means(found.candidates, patches).pre == 9
    assigned = by_order(found, patches)
    assert (assigned.pre, assigned.post) == (first, second)
    assert (assigned.pre_score, assigned.post_score) == pytest.approx((0.6, 0.4))


def test_two_that_touch_are_never_one():
    clefts, segments = scene()
    found = seen(clefts, segments)
    patches = said_of(segments, s5=(0.9, 0.8), s7=(0.3, 0.4))
    assert by_means(found.candidates, patches).post == 5
    assigned = by_order(found, patches)
    assert (assigned.pre, assigned.post) == (5, 7)


@pytest.mark.parametrize("is_pre", [True, False])
def test_a_lone_neighbour_is_where_the_net_says(is_pre):
    clefts, segments = scene()
    segments[segments == 5] = 0
    found = seen(clefts, segments)
    patches = said_of(segments, s7=(0.8, 0.1) if is_pre else (0.1, 0.8))
    assigned = by_order(found, patches)
    assert (assigned.pre, assigned.post) == ((7, 0) if is_pre else (0, 7))
    assert max(assigned.pre_score, assigned.post_score) == pytest.approx(0.8)
    nobody = seen(clefts, np.zeros_like(segments))
    assert by_order(nobody, patches) == Assignment()


def test_a_long_cleft_has_two_samples_and_a_short_one():
    clefts, segments = scene()
    found = seen(clefts, segments)
    (centre,) = sample_centres(found, Vec3(20, 20, 6))
    assert clefts[centre.astuple()] == 3
    low, high = sample_centres(found, Vec3(12, 12, 6))
    assert low.x < high.x
    assert clefts[low.astuple()] == clefts[high.astuple()] == 3


def test_a_site_is_the_nearest_voxel_of_the_segment():
    clefts, segments = scene(cleft=(slice(8, 16), slice(9, 11), slice(3, 4)))
    found = seen(clefts, segments)
    assert site_of(found, 7, Vec3(11, 9, 3), VOXEL) == Vec3(11, 10, 3)
    assert site_of(found, 0, Vec3(11, 9, 3), VOXEL) == Vec3(11, 9, 3)


def test_a_cleft_beyond_its_window_says_so():
    clefts, segments = scene()
    found = seen(clefts, segments, window=Bbox(Vec3(0, 0, 0), Vec3(12, 20, 6)))
    assert found.is_cut
    assert (
        flags_of(Assignment(5, 7), (4, 5), is_cut=True, at_bounds=True)
        == GLIA | VESSEL | LONG | AT_BOUNDS
    )
    assert seen(clefts, segments, window=Bbox(Vec3(0, 0, 0), Vec3(4, 20, 6))) is None


# -- duplicates -----------------------------------------------------------------------


def rows(places, pairs, sizes=None, flags=None):
    n = len(places)
    sizes = np.array(sizes or [100] * n, np.uint64)
    place = np.array(places, np.int64)
    pre, post = np.array(pairs, np.uint64).T
    return SynapseRows(
        ids=np.arange(10, 10 + n, dtype=np.uint64),
        sizes=sizes,
        sums=place * sizes.astype(np.int64)[:, None],
        clefts=np.ones(n, np.uint32),
        pre_site=place,
        post_site=place + 1,
        pre_supervoxel=pre,
        post_supervoxel=post,
        pre_segment=pre,
        post_segment=post,
        pre_score=np.linspace(0, 1, n, dtype=np.float32),
        post_score=np.linspace(1, 0, n, dtype=np.float32),
        pre_class=np.zeros(n, np.uint8),
        post_class=np.zeros(n, np.uint8),
        flags=np.array(flags or [0] * n, np.uint32),
    )


def test_clefts_of_a_pair_that_are_near_become_one():
    given = rows(
        [[0, 0, 0], [80, 0, 0], [160, 0, 0], [300, 0, 0], [10, 0, 0], [12, 0, 0]],
        [(1, 2), (1, 2), (1, 2), (1, 2), (2, 1), (1, 3)],
        sizes=[100, 300, 50, 20, 70, 60],
        flags=[GLIA, 0, LONG, 0, 0, 0],
    )
    merged = merge_duplicates(given, within_nm=700, voxel_size_nm=VOXEL)
    assert merged.ids.tolist() == [11, 13, 14, 15]
    assert merged.sizes.tolist() == [450, 20, 70, 60]
    assert merged.clefts.tolist() == [3, 1, 1, 1]
    assert merged.flags.tolist() == [GLIA | LONG, 0, 0, 0]
    assert merged.pre_site[0].tolist() == [80, 0, 0]
    np.testing.assert_array_equal(merged.sums.sum(axis=0), given.sums.sum(axis=0))


def test_synapses_without_a_partner_are_never_merged():
    given = rows([[0, 0, 0], [1, 0, 0]], [(0, 2), (0, 2)])
    assert len(merge_duplicates(given, within_nm=700, voxel_size_nm=VOXEL).ids) == 2


def test_equal_sizes_go_by_the_lesser_id():
    given = rows([[0, 0, 0], [1, 0, 0]], [(1, 2), (1, 2)])
    assert merge_duplicates(given, within_nm=700, voxel_size_nm=VOXEL).ids.tolist() == [10]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_merging_is_single_linkage_by_definition(seed):
    rng = np.random.default_rng(seed)
    n = 14
    given = rows(
        rng.integers(0, 300, (n, 3)).tolist(),
        rng.integers(0, 3, (n, 2)).tolist(),
        sizes=rng.integers(1, 5, n).tolist(),
    )
    group = np.arange(n)
    for _ in range(n):
        for a in range(n):
            for b in range(n):
                pair = [(given.pre_segment[i], given.post_segment[i]) for i in (a, b)]
                away = (given.pre_site[a] - given.pre_site[b]) * np.array(VOXEL)
                near = np.sqrt((away**2).sum()) <= 700
                if pair[0] == pair[1] and 0 not in pair[0] and near:
                    group[group == group[a]] = group[b]
    merged = merge_duplicates(given, within_nm=700, voxel_size_nm=VOXEL)
    sizes = sorted(given.sizes[group == g].sum() for g in np.unique(group))
    assert sorted(merged.sizes.tolist()) == sizes
    order = rng.permutation(n)
    shuffled = SynapseRows.from_table({k: v[order] for k, v in given.to_table().items()})
    again = merge_duplicates(shuffled, within_nm=700, voxel_size_nm=VOXEL)
    for name, values in merged.to_table().items():
        np.testing.assert_array_equal(values, again.to_table()[name])


def test_no_rows_stay_none():
    none = SynapseRows.of()
    assert len(merge_duplicates(none, within_nm=1, voxel_size_nm=VOXEL).ids) == 0


# -- another segmentation -------------------------------------------------------------


def test_segments_anew_set_and_clear_flags():
    given = rows(
        [[0, 0, 0]] * 4,
        [(1, 2), (1, 1), (0, 2), (3, 2)],
        flags=[0, AUTAPSE, NO_PRE, 0],
    )
    pre, post = np.array([[9, 4, 8, 0], [9, 5, 2, 2]], np.uint64)
    new = with_segments(given, pre, post)
    assert new.pre_segment.tolist() == [9, 4, 0, 0]
    assert new.post_segment.tolist() == [9, 5, 2, 2]
    assert new.flags.tolist() == [AUTAPSE, 0, NO_PRE, VANISHED]
    assert new.pre_supervoxel.tolist() == given.pre_supervoxel.tolist()
