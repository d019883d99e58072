"""Size-dependent single linkage against its definition, whole and up an octree."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.geometry import ALL_FACES
from pipeline.kernels.merge_basins import OpenBasins, Outcomes, merge_basins

from .octree import LOWER, UPPER, handed_down, open_faces, rows, swept_up

NEAR, FAR = 0b000010, 0b010000
"""Faces across the second axis."""


def make(sizes, edges=(), *, joins=(), cross=(), faces=None, anchors=None, scale=255):
    """A node with basins 1, 2, ...; edges (a, b, affinity, key).

    ``faces`` by basin; joins and cross edges have an end that the node lacks.
    """
    sizes = sizes if isinstance(sizes, dict) else dict(enumerate(sizes, 1))
    ids = sorted(sizes)
    faces = {i: f for i, f in sorted((faces or {}).items()) if f}
    anchors = anchors or {i: i for i in ids}

    def u64(values, width=0):
        return np.array(values, np.uint64).reshape((-1, width) if width else -1)

    def of(edges):
        return u64([sorted(e[:2]) for e in edges], 2), *(
            u64([e[n] for e in edges]) for n in (2, 3)
        )

    pairs, affinities, keys = of(edges)
    cross_pairs, cross_affinities, cross_keys = of(cross)
    return OpenBasins(
        ids=u64(ids),
        sizes=u64([sizes[i] for i in ids]),
        anchors=u64([anchors[i] for i in ids]),
        port_ids=u64(list(faces)),
        port_faces=np.array(list(faces.values()), np.uint8),
        port_clusters=u64(list(faces)),
        joins=u64(joins, 2),
        pairs=pairs,
        affinities=affinities,
        keys=keys,
        cross_pairs=cross_pairs,
        cross_affinities=cross_affinities,
        cross_keys=cross_keys,
        scale=scale,
    )


def targets_of(node, size_threshold, dust=0):
    """Decide a node that is the whole volume."""
    state, outcomes = merge_basins([node], size_threshold=size_threshold, dust=dust)
    assert_nothing_is_left(state)
    assert outcomes.settled.all()
    return outcomes.targets.tolist()


def assert_nothing_is_left(state):
    assert [c.size for c in state.to_table().values() if c.ndim] == [0] * 13


# -- the whole ------------------------------------------------------------------------


def single_linkage(sizes, anchors, joins, edges, size_threshold, dust):
    """By definition: every edge in descending order; a dictionary of groups."""
    group = {i: {i} for i in sizes}

    def merge(a, b):
        union = group[a] | group[b]
        for member in union:
            group[member] = union

    for a, b in joins:
        merge(a, b)
    for _, _, a, b in sorted(((f, k, a, b) for a, b, f, k in edges), reverse=True):
        totals = [sum(sizes[i] for i in group[end]) for end in (a, b)]
        if min(totals) < size_threshold:
            merge(a, b)
    return {
        i: min(members, key=anchors.__getitem__)
        if sum(sizes[j] for j in members) >= dust
        else 0
        for i, members in group.items()
    }


@st.composite
def volumes(draw):
    """Basins of a row of chunks, with edges and joins within and between chunks."""
    n_chunks = draw(st.sampled_from([1, 2, 4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 40))
    ids = 1 + rng.permutation(n)
    chunk = dict(zip(ids.tolist(), rng.integers(0, n_chunks, n).tolist(), strict=True))
    sizes = {i: int(rng.integers(1, 12)) for i in chunk}
    anchors = dict(zip(chunk, rng.permutation(10 * n)[:n].tolist(), strict=True))
    pairs = {tuple(sorted(p)) for p in rng.integers(1, n + 1, (3 * n, 2)).tolist()}
    near = [(a, b) for a, b in sorted(pairs) if a != b and abs(chunk[a] - chunk[b]) <= 1]
    keys = rng.permutation(len(near)).tolist()
    levels = draw(st.sampled_from([1, 3, 100]))
    joins = [p for p in near if chunk[p[0]] != chunk[p[1]] and rng.random() < 0.15]
    edges = [
        (a, b, int(rng.integers(1, 1 + levels)), key)
        for (a, b), key in zip(near, keys, strict=True)
    ]
    wide = {i for i in chunk if rng.random() < 0.2}  # reach a face, and touch nothing there
    return n_chunks, chunk, sizes, anchors, joins, edges, wide


def leaves_of(n_chunks, chunk, sizes, anchors, joins, edges, wide):
    """Give every chunk what it owns: what lies across a face is the upper side's."""
    reached = {i: {chunk[i] - 1, chunk[i] + 1} if i in wide else set() for i in chunk}
    for a, b, *_ in (*joins, *edges):
        reached[a].add(chunk[b])
        reached[b].add(chunk[a])
    for c in range(n_chunks):
        mine = {i for i in chunk if chunk[i] == c}
        owned = [e for e in (*edges, *joins) if max(chunk[e[0]], chunk[e[1]]) == c]
        inside = [e for e in owned if chunk[e[0]] == chunk[e[1]]]
        yield make(
            {i: sizes[i] for i in mine},
            [e for e in inside if len(e) == 4],
            joins=[e for e in owned if len(e) == 2],
            cross=[e for e in owned if len(e) == 4 and e not in inside],
            faces={i: open_faces(c, n_chunks, reached[i]) for i in mine},
            anchors={i: anchors[i] for i in mine},
        )


@settings(max_examples=300, deadline=None)
@given(volumes(), st.integers(0, 30), st.integers(0, 20))
def test_supervoxels_are_those_of_the_definition(volume, size_threshold, dust):
    """Whatever is decided in chunks, what nodes and what at the top."""
    limits = {"size_threshold": size_threshold, "dust": dust}
    expected = single_linkage(*volume[2:6], **limits)
    top, levels = swept_up(
        list(leaves_of(*volume)),
        lambda nodes, **where: merge_basins(nodes, **where, **limits),
    )
    assert_nothing_is_left(top)
    assert handed_down(levels) == expected


def test_much_is_decided_below_the_top():
    """Else the property above would hold of a node that puts everything off."""
    rng = np.random.default_rng(3)
    n, n_chunks = 400, 8
    chunk = {i: int(i * n_chunks / (n + 1)) for i in range(1, n + 1)}
    near = {(i, min(n, i + int(d))) for i in range(1, n) for d in rng.integers(1, 9, 3)}
    edges = [(a, b, int(rng.integers(1, 99)), k) for k, (a, b) in enumerate(sorted(near))]
    sizes = {i: 3 for i in chunk}
    anchors = {i: i for i in chunk}
    leaves = list(leaves_of(n_chunks, chunk, sizes, anchors, [], edges, set()))
    _, levels = swept_up(
        leaves, lambda nodes, **w: merge_basins(nodes, size_threshold=9, dust=4, **w)
    )
    settled = [sum(int(o.settled.sum()) for o in level.values()) for level in levels]
    passed_on = [sum(len(o.ids) for o in level.values()) for level in levels]
    assert passed_on[0] == n
    assert all(settled)
    assert all(2 * above < below for below, above in pairwise(passed_on))


def test_the_order_of_children_does_not_matter():
    a = make([4, 2], [(1, 2, 9, 5)], faces={2: UPPER})
    b = make({5: 3}, faces={5: LOWER}, cross=[(2, 5, 7, 8)])
    decided = [
        merge_basins(order, octants=octants, outward=outward, size_threshold=20, dust=0)
        for order, octants, outward in [
            ([a, b], [0, 1], [LOWER, UPPER]),
            ([b, a], [1, 0], [UPPER, LOWER]),
        ]
    ]
    for one, other in zip(*decided, strict=True):
        for name, column in one.to_table().items():
            np.testing.assert_array_equal(column, other.to_table()[name])


def test_two_large_basins_stay_apart():
    node = make([10, 10, 1], [(1, 2, 200, 0), (2, 3, 100, 1)])
    assert targets_of(node, size_threshold=10) == [1, 2, 2]
    assert targets_of(node, size_threshold=11) == [1, 1, 1]


def test_the_greater_edge_decides_whom_a_small_basin_joins():
    for weak, strong in [(1, 2), (2, 1)]:
        node = make([50, 50, 1], [(weak, 3, 100, 9), (strong, 3, 101, 0)])
        assert targets_of(node, size_threshold=10)[2] == strong


def test_the_key_decides_among_equal_edges():
    for weak, strong in [(1, 2), (2, 1)]:
        node = make([50, 50, 1], [(weak, 3, 100, 4), (strong, 3, 100, 5)])
        assert targets_of(node, size_threshold=10)[2] == strong


def test_dust_counts_the_whole_supervoxel():
    node = make([4, 4, 4], [(1, 2, 9, 0)])
    assert targets_of(node, size_threshold=5, dust=5) == [1, 1, 0]


def test_a_supervoxel_is_called_after_the_basin_that_begins_first():
    node = make([4, 4, 4], [(1, 2, 9, 0), (2, 3, 9, 1)], anchors={1: 7, 2: 9, 3: 2})
    assert targets_of(node, size_threshold=99) == [3, 3, 3]


# -- joins and ports ------------------------------------------------------------------


def across(lower, upper, **limits):
    """Decide two chunks, then the node over them; return the top."""
    decided = [merge_basins([leaf], **limits) for leaf in (lower, upper)]
    return decided, merge_basins(
        [state for state, _ in decided], octants=[0, 1], outward=[LOWER, UPPER], **limits
    )


def test_joins_ignore_size():
    lower = make({1: 100}, faces={1: UPPER})
    upper = make({2: 100}, faces={2: LOWER}, joins=[(1, 2)])
    _, (state, outcomes) = across(lower, upper, size_threshold=0, dust=0)
    assert_nothing_is_left(state)
    assert rows(outcomes) == [(1, 1, True), (2, 1, True)]
    assert outcomes.child.tolist() == [0, 1]


def test_a_name_from_outside_leads_to_the_cluster_behind_it():
    """2 is part of 1 by when the chunk that knows it as 2 joins them."""
    lower = make({1: 3}, faces={1: UPPER})
    upper = make({2: 3}, faces={2: LOWER | FAR}, joins=[(1, 2)])
    limits = {"size_threshold": 9, "dust": 0}
    inner, outcomes = merge_basins(
        [lower, upper], octants=[0, 1], outward=[LOWER | FAR, UPPER | FAR], **limits
    )
    assert rows(outcomes) == [(1, 1, False), (2, 1, False)]
    assert inner.port_ids.tolist() == [2]
    assert inner.port_faces.tolist() == [FAR]
    assert inner.port_clusters.tolist() == [1]
    beyond = make({7: 1}, faces={7: NEAR}, cross=[(2, 7, 9, 3)])
    state, outcomes = merge_basins(
        [inner, beyond], octants=[0, 2], outward=[LOWER | NEAR, LOWER | FAR], **limits
    )
    assert_nothing_is_left(state)
    assert rows(outcomes) == [(1, 1, True), (7, 1, True)]
    assert outcomes.child.tolist() == [0, 2]


def test_a_join_waits_until_both_labels_are_in_the_node():
    state, outcomes = merge_basins(
        [make({1: 1}, faces={1: LOWER}, joins=[(1, 9)])],
        size_threshold=5,
        dust=5,
    )
    assert state.joins.tolist() == [[1, 9]]
    assert rows(outcomes) == [(1, 1, False)]


def test_a_face_of_the_bounds_is_not_open():
    """A face that the child has outward and the node has not."""
    child = make({1: 3}, faces={1: UPPER})
    for octant, outward, settled in [(0, LOWER, True), (1, UPPER, False)]:
        _, outcomes = merge_basins(
            [child], octants=[octant], outward=[outward], size_threshold=9, dust=0
        )
        assert rows(outcomes) == [(1, 1, settled)]


# -- what may be decided early ---------------------------------------------------------


def early(sizes, edges, faces, size_threshold=10, dust=0):
    """Decide a chunk of a larger volume."""
    return merge_basins(
        [make(sizes, edges, faces=faces)], size_threshold=size_threshold, dust=dust
    )


def test_a_small_open_basin_is_not_judged():
    state, outcomes = early([20, 3], [(1, 2, 5, 0)], {2: UPPER})
    assert rows(outcomes) == [(1, 1, False), (2, 2, False)]
    assert state.pairs.tolist() == [[1, 2]]
    assert state.affinities.tolist() == [5]


def test_two_large_basins_are_refused_though_they_are_open():
    state, _ = early([20, 10], [(1, 2, 5, 0)], {1: UPPER, 2: UPPER})
    assert state.ids.tolist() == [1, 2]
    assert state.pairs.tolist() == []
    state, outcomes = early([20, 10], [(1, 2, 5, 0)], {1: UPPER})
    assert rows(outcomes) == [(1, 1, False), (2, 2, True)]


def test_a_small_basin_joins_a_large_one_that_is_open():
    state, outcomes = early([20, 3], [(1, 2, 5, 0)], {1: UPPER})
    assert rows(outcomes) == [(1, 1, False), (2, 1, False)]
    assert state.sizes.tolist() == [23]
    assert state.pairs.tolist() == []


def test_what_has_its_best_edge_to_a_blocked_basin_is_blocked():
    """3 would join 2 by 4, but 2 may join 1, which is open, by 5."""
    edges = [(1, 2, 5, 0), (2, 3, 4, 1)]
    state, outcomes = early([3, 3, 3], edges, {1: UPPER})
    assert rows(outcomes) == [(1, 1, False), (2, 2, False), (3, 3, False)]
    assert state.pairs.tolist() == [[1, 2], [2, 3]]
    # By 6 it is the best of both, whatever 1 becomes.
    state, outcomes = early([3, 3, 3], [edges[0], (2, 3, 6, 1)], {1: UPPER})
    assert rows(outcomes) == [(1, 1, False), (2, 2, False), (3, 2, False)]
    assert state.pairs.tolist() == [[1, 2]]


def test_of_the_edges_that_wait_a_spanning_forest_goes_up():
    edges = [(1, 2, 5, 0), (2, 3, 4, 1), (1, 3, 3, 2)]
    state, _ = early([3, 3, 3], edges, dict.fromkeys((1, 2, 3), UPPER))
    assert state.pairs.tolist() == [[1, 2], [2, 3]]


def test_dust_is_dropped_as_soon_as_nothing_can_be_added_to_it():
    state, outcomes = early([3, 3, 3], [(2, 3, 5, 0)], {3: UPPER}, dust=5)
    assert rows(outcomes) == [(1, 0, True), (2, 2, False), (3, 3, False)]
    assert state.ids.tolist() == [2, 3]


# -- what is refused ------------------------------------------------------------------


def test_rejects_an_edge_to_nowhere():
    with pytest.raises(DataError, match="77"):
        targets_of(make([1, 2], [(2, 77, 9, 0)]), size_threshold=5)


@pytest.mark.parametrize(("size_threshold", "dust"), [(-1, 0), (0, -1)])
def test_rejects_negative_sizes(size_threshold, dust):
    with pytest.raises(ValueError, match="-1"):
        merge_basins([make([1])], size_threshold=size_threshold, dust=dust)


def test_refuses_other_scales():
    children = [make({1: 1}), make({2: 1}, scale=1 << 20)]
    with pytest.raises(DataError, match=r"\[255, 1048576\]"):
        merge_basins(
            children, octants=[0, 1], outward=[ALL_FACES] * 2, size_threshold=1, dust=0
        )
    with pytest.raises(DataError, match="at least one"):
        merge_basins([], octants=[], outward=[], size_threshold=1, dust=0)


def test_a_table_of_outcomes_survives_the_round_trip():
    _, outcomes = merge_basins([make([3, 9])], size_threshold=5, dust=5)
    again = Outcomes.from_table(outcomes.to_table())
    assert rows(again) == rows(outcomes) == [(1, 0, True), (2, 2, True)]
