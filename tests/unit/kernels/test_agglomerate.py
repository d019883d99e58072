"""Mean-affinity agglomeration against its definition, in rational numbers.

The definition is the sequential procedure over the whole volume: take the contact of the
greatest mean, of equal ones that whose first face comes first; merge, or refuse and delete
the contact for good. Nodes of an octree have to come to the same.
"""

from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import DataError
from pipeline.kernels.agglomerate import (
    REASONS,
    Clusters,
    Constraints,
    Merges,
    agglomerate,
    merge_history,
)
from pipeline.kernels.region_graph import CLASSES

from .octree import LOWER, UPPER, handed_down, open_faces, rows, swept_up

SCALE = 255
NEVER = Constraints(activation=0)


def make(sizes, contacts=(), *, faces=None, classes=None, merged=None, names=None):
    """A node with clusters by id; contacts (a, b, sum, area, key)."""
    sizes = sizes if isinstance(sizes, dict) else dict(enumerate(sizes, 1))
    ids = sorted(sizes)
    contacts = sorted((*sorted(c[:2]), *c[2:]) for c in contacts)

    def column(values, fallback):
        return np.array([(values or {}).get(i, fallback) for i in ids], np.uint64)

    def of(n):
        return np.array([c[n] for c in contacts], np.uint64)

    return Clusters(
        ids=np.array(ids, np.uint64),
        names=np.array([(names or {}).get(i, i) for i in ids], np.uint64),
        size=np.array([sizes[i] for i in ids], np.uint64),
        merged=column(merged, 0),
        classes=column(classes, [0] * len(CLASSES)).reshape(-1, len(CLASSES)),
        faces=column(faces, 0).astype(np.uint8),
        pairs=np.array([c[:2] for c in contacts], np.uint64).reshape(-1, 2),
        affinity=of(2),
        area=of(3),
        key=of(4),
        scale=SCALE,
    )


def chain(*contacts):
    """Clusters 1, 2, ... in a row; contacts (sum, area) of each to the next."""
    n = len(contacts) + 1
    return make([1] * n, [(i, i + 1, *c, 3 * i) for i, c in enumerate(contacts, 1)])


def targets_of(node, threshold, **options):
    """Decide a node that is the whole volume; return the segments."""
    done = agglomerate([node], threshold=threshold, **options)
    assert_nothing_is_left(done.state)
    assert done.outcomes.settled.all()
    return done.outcomes.targets.tolist()


def assert_nothing_is_left(state):
    assert [c.size for c in state.to_table().values() if c.ndim] == [0] * 10


def history_rows(history):
    columns = (history.loser, history.winner, history.affinity, history.area)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def refusal_rows(parts):
    """List refusals of several nodes, in the order in which the whole meets them."""
    found = []
    for part in parts:
        table = part.to_table()
        del table["scale"]
        columns = [column.tolist() for column in table.values()]
        found += [dict(zip(table, r, strict=True)) for r in zip(*columns, strict=True)]
    return sorted(found, key=lambda r: (-Fraction(r["affinity"], r["area"]), r["key"]))


# -- the definition -------------------------------------------------------------------


def fraction(number):
    """Return the number that a parameter was written as."""
    return Fraction(str(number))


def predominant(size, classes, rules):
    if size < rules.labelled_size:
        return None
    shares = [Fraction(n, size) for n in classes]
    greatest = max(range(len(CLASSES)), key=shares.__getitem__)
    reaches = shares[greatest] >= fraction(rules.labelled_share)
    return CLASSES[greatest] if reaches and shares[greatest] > 0 else None


def refused(a, b, mean, rules):
    """Say why two clusters stay apart, or nothing."""
    if mean >= fraction(rules.activation):
        return ""
    kinds = [predominant(c.size, c.classes, rules) for c in (a, b)]
    if any(set(kinds) == set(clash) for clash in rules.clashes):
        return "semantic"
    many = sorted(len(c.members) for c in (a, b))
    return "size" if many[0] > rules.both_members and many[1] > rules.one_member else ""


def sequential(sizes, classes, contacts, floor, rules):
    """One contact after the other, each time looked for among all."""
    clusters = {
        i: SimpleNamespace(size=sizes[i], classes=classes[i], members={i}) for i in sizes
    }
    left = {frozenset(c[:2]): c[2:] for c in contacts}
    merges, refusals = [], []
    while left:
        pair = max(left, key=lambda p: (Fraction(left[p][0], left[p][1]), -left[p][2]))
        total, area, key = left.pop(pair)
        mean = Fraction(total, area * SCALE)
        if mean < fraction(floor):
            break
        winner, loser = sorted(pair)
        a, b = clusters[winner], clusters[loser]
        reason = refused(a, b, mean, rules)
        if reason:
            kinds = [predominant(c.size, c.classes, rules) for c in (a, b)]
            refusals.append(
                {
                    "names": [winner, loser],
                    "affinity": total,
                    "area": area,
                    "key": key,
                    "sizes": [a.size, b.size],
                    "members": [len(a.members), len(b.members)],
                    "classes": [255 if k is None else CLASSES.index(k) for k in kinds],
                    "reason": REASONS.index(reason),
                }
            )
            continue
        merges.append((loser, winner, total, area))
        del clusters[loser]
        a.size += b.size
        a.classes = [p + q for p, q in zip(a.classes, b.classes, strict=True)]
        a.members |= b.members
        for other in [p for p in left if loser in p]:
            total, area, key = left.pop(other)
            (neighbour,) = other - {loser}
            moved = frozenset((winner, neighbour))
            before = left.get(moved, (0, 0, key))
            left[moved] = (before[0] + total, before[1] + area, min(before[2], key))
    return merges, refusals


def segments(sizes, merges, threshold):
    """Apply the merges down to a threshold."""
    name = {i: i for i in sizes}
    for loser, winner, total, area in merges:
        if Fraction(total, area * SCALE) >= fraction(threshold):
            name = {i: winner if n == loser else n for i, n in name.items()}
    return name


# -- random volumes -------------------------------------------------------------------


@st.composite
def volumes(draw):
    """Supervoxels that lie in one chunk of a row or in several, and their contacts."""
    n_chunks = draw(st.sampled_from([1, 2, 4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 30))
    levels = draw(st.sampled_from([2, 4, SCALE]))
    ids = sorted(rng.choice(200, n, replace=False).tolist())
    ids = [i + 1 for i in ids]
    parts = {}  # voxels of each class, and all, by supervoxel and chunk
    for i in ids:
        low = int(rng.integers(n_chunks))
        for c in range(low, min(n_chunks, low + 1 + int(rng.random() < 0.3))):
            classes = rng.integers(0, 4, len(CLASSES)) * (rng.random(len(CLASSES)) < 0.4)
            parts[i, c] = (int(classes.sum() + rng.integers(1, 4)), classes.tolist())
    faces = []  # between a in chunk c and b in chunk d; the upper chunk owns it
    places = list(parts)
    for _ in range(draw(st.integers(0, 4)) * n):
        (a, c), (b, d) = (places[k] for k in rng.integers(len(places), size=2))
        if a != b and abs(c - d) <= 1:
            area = int(rng.integers(1, 4))
            total = int(rng.integers(0, levels, area).sum()) * (SCALE // (levels - 1))
            faces.append((a, c, b, d, total, area))
    keys = rng.permutation(len(faces)).tolist()
    return n_chunks, parts, [(*f, k) for f, k in zip(faces, keys, strict=True)]


def whole_of(parts, faces):
    """Return sizes, classes and contacts of a volume."""
    sizes, classes, contacts = {}, {}, {}
    for (i, _), (size, counts) in parts.items():
        sizes[i] = sizes.get(i, 0) + size
        before = classes.get(i, [0] * len(CLASSES))
        classes[i] = [p + q for p, q in zip(before, counts, strict=True)]
    for a, _, b, _, total, area, key in faces:
        pair = tuple(sorted((a, b)))
        before = contacts.get(pair, (0, 0, key))
        contacts[pair] = (before[0] + total, before[1] + area, min(before[2], key))
    return sizes, classes, [(*pair, *c) for pair, c in contacts.items()]


def leaves_of(n_chunks, parts, faces):
    """Give every chunk what it sees."""
    reaches = {(i, c): {d for d in range(n_chunks) if (i, d) in parts} for i, c in parts}
    for a, c, b, d, *_ in faces:
        reaches[a, c].add(d)
        reaches[b, d].add(c)
    for chunk in range(n_chunks):
        mine = {i: p for (i, c), p in parts.items() if c == chunk}
        owned = [f for f in faces if max(f[1], f[3]) == chunk]
        _, _, contacts = whole_of({}, owned)
        yield make(
            {i: size for i, (size, _) in mine.items()},
            contacts,
            classes={i: counts for i, (_, counts) in mine.items()},
            faces={i: open_faces(chunk, n_chunks, reaches[i, chunk]) for i in mine},
        )


LIMITS = st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.8, 1.0])
RULES = st.builds(
    Constraints,
    activation=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    labelled_size=st.sampled_from([0, 6, 15]),
    labelled_share=st.sampled_from([0.51, 0.6, 1.0]),
    both_members=st.sampled_from([0, 1, 3]),
    one_member=st.sampled_from([0, 2, 4]),
)


@settings(max_examples=400, deadline=None)
@given(volumes(), LIMITS, LIMITS, RULES, st.booleans())
def test_merges_and_refusals_are_those_of_the_definition(
    volume, threshold, floor, rules, absorb
):
    """Whatever is decided in chunks, what in nodes and what at the top."""
    n_chunks, parts, faces = volume
    sizes, classes, contacts = whole_of(parts, faces)
    merges, refusals = sequential(sizes, classes, contacts, min(floor, threshold), rules)
    nodes = []

    def decide(children, **where):
        node = agglomerate(
            children,
            threshold=threshold,
            floor=floor,
            constraints=rules,
            absorb=absorb,
            **where,
        )
        nodes.append(node)
        return node.state, node.outcomes

    top, levels = swept_up(list(leaves_of(n_chunks, parts, faces)), decide)
    assert_nothing_is_left(top)
    assert handed_down(levels) == segments(sizes, merges, threshold)
    history = merge_history([node.merges for node in nodes])
    assert history_rows(history) == merges
    assert refusal_rows([node.refusals for node in nodes]) == refusals
    ids = np.array(sorted(sizes), np.uint64)
    for limit in (threshold, 0.5, 0.9):
        remap = history.at(limit, ids)
        found = dict(zip(remap.ids.tolist(), remap.targets.tolist(), strict=True))
        assert limit < min(floor, threshold) or found == segments(sizes, merges, limit)


@pytest.mark.parametrize("constrained", [False, True])
def test_the_property_is_not_vacuous(constrained):
    """Supervoxels over several chunks, merges and refusals, early and late."""
    rng = np.random.default_rng(1)
    parts = {
        (i, c): (4, [0, i % 2 * 4, 0, (1 - i % 2) * 4, 0])
        for i in range(1, 80)
        for c in range(i // 20, min(4, i // 20 + 1 + i % 10 // 9))
    }
    places = list(parts)
    faces = []
    for key in range(400):
        (a, c), (b, d) = (places[k] for k in rng.integers(len(places), size=2))
        if a != b and (c == d or (abs(c - d) == 1 and key % 20 == 0)):
            faces.append((a, c, b, d, int(rng.integers(SCALE)), 1, key))
    rules = Constraints(activation=1, labelled_size=0) if constrained else None
    made, refusals = [], []

    def decide(children, **where):
        node = agglomerate(children, threshold=0.5, floor=0.1, constraints=rules, **where)
        made.append(len(node.merges.area))
        refusals.append(len(node.refusals.area))
        return node.state, node.outcomes

    swept_up(list(leaves_of(4, parts, faces)), decide)
    # Four chunks, two nodes, the top.
    assert min(sum(made[:4]), sum(made[4:6]), made[6]) > 0
    assert (sum(refusals) > 10) == constrained


def test_with_absorption_less_goes_up_and_nothing_else_changes():
    """2 and 3 are closed, each other's best are 1 and 2, and 1 is open."""
    node = make([1, 1, 1], [(1, 2, 200, 1, 0), (2, 3, 150, 1, 3)], faces={1: UPPER})
    with_, without = (
        agglomerate([node], threshold=0.3, absorb=absorb) for absorb in (True, False)
    )
    assert rows(with_.outcomes) == [(1, 1, False), (2, 1, False), (3, 1, False)]
    assert with_.state.merged.tolist() == [2]
    assert with_.state.size.tolist() == [3]
    assert with_.state.pairs.tolist() == []
    assert rows(without.outcomes) == [(1, 1, False), (2, 2, False), (3, 3, False)]
    assert without.state.pairs.tolist() == [[1, 2], [2, 3]]
    for done in (with_, without):
        above = agglomerate([done.state], threshold=0.3)
        history = merge_history([done.merges, above.merges])
        assert history_rows(history) == [(2, 1, 200, 1), (3, 1, 150, 1)]


@pytest.mark.parametrize(
    ("options", "absorbed"),
    [
        ({"threshold": 0.78}, True),
        ({"threshold": 0.79}, False),
        ({"threshold": 0.3, "constraints": Constraints(activation=0.78)}, True),
        ({"threshold": 0.3, "constraints": Constraints(activation=0.79)}, False),
    ],
)
def test_absorption_keeps_to_what_nobody_can_see_too_early(options, absorbed):
    """The mean is 200 / 255 = 0.784; below either limit the order would show."""
    node = make([1, 1], [(1, 2, 200, 1, 0)], faces={1: UPPER})
    done = agglomerate([node], floor=0.1, **options)
    assert len(done.state.ids) == (1 if absorbed else 2)


def test_what_touches_something_else_that_is_blocked_is_not_absorbed():
    """1 and 3 are open and may be one, whose mean with 2 is less than that of 4."""
    contacts = [(1, 2, 200, 1, 0), (2, 3, 0, 9, 3), (2, 4, 150, 1, 6)]
    node = make([1] * 4, contacts, faces={1: UPPER, 3: UPPER})
    done = agglomerate([node], threshold=0.1)
    assert done.state.ids.tolist() == [1, 2, 3]
    assert done.merges.pairs.tolist() == [[2, 4]]
    # Were 3 not open, nothing could come between 2 and 1.
    node = make([1] * 4, contacts, faces={1: UPPER})
    done = agglomerate([node], threshold=0.1)
    assert done.state.ids.tolist() == [1]
    assert done.state.merged.tolist() == [2]


# -- order ----------------------------------------------------------------------------


def test_order_of_rows_and_children_does_not_matter():
    contacts = [(1, 2, 90, 1, 0), (2, 3, 90, 1, 3), (1, 3, 200, 4, 6), (3, 4, 7, 1, 9)]
    node = make([1] * 4, contacts, faces={4: UPPER})
    table = node.to_table()
    for name in ("pairs", "affinity", "area", "key"):
        table[name] = table[name][::-1]
    one, other = (
        agglomerate([n], threshold=0.1) for n in (node, Clusters.from_table(table))
    )
    for part in ("state", "outcomes", "merges"):
        for name, column in getattr(one, part).to_table().items():
            np.testing.assert_array_equal(column, getattr(other, part).to_table()[name])

    lower = make([1, 1], [(1, 2, 90, 1, 0)], faces={2: UPPER})
    upper = make({2: 5, 3: 1}, [(2, 3, 70, 1, 3)], faces={2: LOWER})
    decided = [
        agglomerate(n, threshold=0.1, octants=o, outward=w)
        for n, o, w in [
            ([lower, upper], [0, 1], [LOWER, UPPER]),
            ([upper, lower], [1, 0], [UPPER, LOWER]),
        ]
    ]
    assert rows(decided[0].outcomes) == rows(decided[1].outcomes)
    assert rows(decided[0].outcomes) == [
        (1, 1, True),
        (2, 1, True),
        (2, 1, True),
        (3, 1, True),
    ]
    assert decided[0].outcomes.child.tolist() == [0, 0, 1, 1]


def test_a_mean_equal_to_the_threshold_merges():
    assert targets_of(chain((255, 2)), threshold=0.5) == [1, 1]
    assert targets_of(chain((254, 2)), threshold=0.5) == [1, 2]


def test_of_equal_means_the_first_face_decides():
    """2 is between 1 and 3, and can be merged with one of them: 0.8, then 0.2."""
    for first, second in [(0, 3), (3, 0)]:
        node = make(
            [1, 1, 1], [(1, 2, 204, 1, first), (2, 3, 408, 2, second), (1, 3, 0, 20, 9)]
        )
        found = targets_of(node, threshold=0.5)
        assert found == ([1, 1, 3] if first < second else [1, 2, 2])


def test_means_that_floats_cannot_tell_apart():
    """The means differ by less than one part in 2**53."""
    n = 2**50
    more, less = (n * 200 + 1, n), (n * 200, n)
    for contacts, loser in [((more, less), 2), ((less, more), 3)]:
        done = agglomerate([chain(*contacts, (0, 1))], threshold=0.5)
        assert merge_history([done.merges]).loser[0] == loser


def test_the_floor_is_that_of_the_history_and_the_threshold_that_of_segments():
    node = chain((200, 1), (100, 1), (10, 1))
    done = agglomerate([node], threshold=0.5, floor=0.2)
    assert done.outcomes.targets.tolist() == [1, 1, 3, 4]
    assert merge_history([done.merges]).affinity.tolist() == [200, 100]
    done = agglomerate([node], threshold=0.2, floor=0.5)  # the lower of the two
    assert done.outcomes.targets.tolist() == [1, 1, 1, 4]


def test_a_segment_is_called_after_its_least_supervoxel():
    """Of names, not of the ids that clusters are known by."""
    node = make({5: 1, 9: 1}, [(5, 9, 200, 1, 0)], names={5: 4, 9: 2})
    assert targets_of(node, threshold=0.5) == [2, 2]


# -- nodes ----------------------------------------------------------------------------


def test_a_supervoxel_that_children_share_is_one():
    lower = make({1: 4}, [], faces={1: UPPER}, classes={1: [1, 0, 0, 0, 0]})
    upper = make({1: 3, 2: 1}, [(1, 2, 100, 1, 3)], faces={1: LOWER})
    above = agglomerate(
        [lower, upper],
        threshold=0.9,
        octants=[0, 1],
        outward=[LOWER, UPPER | LOWER],  # the face between them is still open
    )
    assert rows(above.outcomes) == [(1, 1, False), (1, 1, False), (2, 2, True)]
    assert above.state.ids.tolist() == [1]
    assert above.state.size.tolist() == [7]
    assert above.state.merged.tolist() == [0]
    assert above.state.classes[0].tolist() == [1, 0, 0, 0, 0]


def test_a_contact_that_children_share_is_added_up():
    contact = (1, 2, 100, 1, 12), (1, 2, 50, 4, 3)
    children = [make([1, 1], [c], faces=dict.fromkeys((1, 2), UPPER)) for c in contact]
    state = agglomerate(
        children, threshold=0.5, octants=[0, 1], outward=[UPPER, UPPER]
    ).state
    assert state.affinity.tolist() == [150]
    assert state.area.tolist() == [5]
    assert state.key.tolist() == [3]


def test_a_contact_with_what_is_outside_waits():
    node = make([1], [(1, 77, 200, 1, 0)], faces={1: LOWER})
    state = agglomerate([node], threshold=0.1).state
    assert state.pairs.tolist() == [[1, 77]]
    assert state.affinity.tolist() == [200]


def test_what_is_open_is_not_judged_and_what_depends_on_it_waits():
    contacts = [(1, 2, 200, 1, 0), (2, 3, 100, 1, 3), (4, 5, 90, 1, 6), (3, 4, 80, 1, 9)]
    node = make([1] * 5, contacts, faces={1: UPPER})
    done = agglomerate([node], threshold=0.1, absorb=False)
    # 4 and 5 are each other's best; then they are best with 3, which waits.
    assert rows(done.outcomes) == [
        (1, 1, False),
        (2, 2, False),
        (3, 3, False),
        (4, 4, False),
        (5, 4, False),
    ]
    assert done.state.merged.tolist() == [0, 0, 0, 1]


def test_a_graph_without_contacts():
    assert targets_of(chain(), threshold=0.5) == [1]
    assert targets_of(make([]), threshold=0.5) == []


# -- constraints ----------------------------------------------------------------------


def pair_of(a, b, mean=(127, 1), **rules):
    """Try to merge two clusters, each (size, classes, supervoxels); return the reason."""
    node = make(
        [a[0], b[0]],
        [(1, 2, *mean, 0)],
        classes={1: counts(a[1]), 2: counts(b[1])},
        merged={1: a[2] - 1, 2: b[2] - 1},
    )
    done = agglomerate([node], threshold=0.1, constraints=Constraints(**rules))
    reasons = done.refusals.reason.tolist()
    assert len(reasons) + len(done.merges.area) == 1
    return REASONS[reasons[0]] if reasons else None


def counts(classes):
    return [classes.get(name, 0) for name in CLASSES]


def neurite(kind, size=170_000, share=0.6, members=1):
    return size, {kind: round(size * share)}, members


@pytest.mark.parametrize("a", CLASSES)
@pytest.mark.parametrize("b", CLASSES)
def test_the_classes_that_clash_are_those_of_the_paper(a, b):
    neuron = {"soma", "axon", "dendrite"}
    clash = (
        (a in neuron and b == "glia")
        or (a == "glia" and b in neuron)
        or {a, b} in ({"axon", "dendrite"}, {"axon", "soma"})
    )
    assert pair_of(neurite(a), neurite(b)) == ("semantic" if clash else None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "semantic"),
        ({"size": 169_999, "share": 0.9}, None),
        ({"size": 200_000, "share": 0.6}, "semantic"),
        ({"size": 200_000, "share": 0.599_995}, None),  # 119,999 of 200,000 voxels
        ({"share": 0.0}, None),
    ],
)
def test_a_class_counts_from_170000_voxels_and_60_percent_on(changes, reason):
    changed = neurite("dendrite", **changes)
    for pair in [(neurite("axon"), changed), (changed, neurite("axon"))]:
        assert pair_of(*pair) == reason


@pytest.mark.parametrize(
    ("mean", "reason"), [((255, 2), None), ((254, 2), "semantic"), ((127, 1), "semantic")]
)
def test_constraints_hold_below_a_mean_of_one_half(mean, reason):
    assert pair_of(neurite("axon"), neurite("glia"), mean) == reason
    sized = pair_of((1, {}, 20_000), (1, {}, 20_000), mean)
    assert sized == ("size" if reason else None)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (1_000, 20_000, None),
        (1_001, 10_000, None),
        (1_001, 10_001, "size"),
        (10_001, 1_001, "size"),
        (10_000, 10_000, None),
    ],
)
def test_two_clusters_of_many_supervoxels_stay_apart(a, b, reason):
    assert pair_of((9, {}, a), (9, {}, b)) == reason


def test_the_class_is_told_before_the_size():
    many = neurite("axon", members=20_000), neurite("glia", members=20_000)
    assert pair_of(*many) == "semantic"
    assert pair_of(*many, clashes=()) == "size"
    assert pair_of(*many, activation=0) is None


def test_a_refusal_says_who_where_and_why():
    node = make(
        {3: 200_000, 8: 10},
        [(3, 8, 100, 1, 12)],
        classes={3: [0, 200_000, 0, 0, 0]},
        merged={3: 10_001, 8: 1_001},
        names={3: 2, 8: 1},
    )
    done = agglomerate([node], threshold=0.1, constraints=Constraints())
    assert refusal_rows([done.refusals]) == [
        {
            "names": [1, 2],
            "affinity": 100,
            "area": 1,
            "key": 12,
            "sizes": [10, 200_000],
            "members": [1_002, 10_002],
            "classes": [255, 1],
            "reason": 2,
        }
    ]


def test_a_refused_contact_is_deleted_for_good():
    """1-3 is refused at 0.4; what 2 brings to it later is 0.2 and starts anew."""
    rules = Constraints(both_members=1, one_member=2)
    node = make(
        [1, 1, 1],
        [(1, 3, 102, 1, 0), (1, 2, 76, 1, 3), (2, 3, 51, 1, 6)],
        merged={1: 1, 2: 1, 3: 2},
    )
    done = agglomerate([node], threshold=0.1, constraints=rules)
    assert done.refusals.names.tolist() == [[1, 3], [1, 3]]
    assert done.refusals.affinity.tolist() == [102, 51]
    assert done.refusals.area.tolist() == [1, 1]
    assert done.refusals.key.tolist() == [0, 6]
    single = make([1, 1, 1], [(1, 3, 102, 1, 0), (1, 2, 76, 1, 3)], merged={1: 1, 3: 2})
    done = agglomerate([single], threshold=0.1, constraints=rules)
    assert done.outcomes.targets.tolist() == [1, 1, 3]


def test_other_constraints_may_be_given():
    rules = {"labelled_size": 10, "labelled_share": 0.9, "clashes": [["glia", "vessel"]]}
    assert pair_of((10, {"glia": 9}, 1), (10, {"vessel": 9}, 1), **rules) == "semantic"
    assert pair_of((10, {"glia": 8}, 1), (10, {"vessel": 9}, 1), **rules) is None
    assert pair_of((10, {"glia": 9}, 1), (10, {"axon": 9}, 1), **rules) is None


def test_rejects_classes_and_shares_that_cannot_be():
    with pytest.raises(
        ValidationError, match="no semantic class 'neuron'; the classes are"
    ):
        Constraints(clashes=[("neuron", "glia")])
    for wrong in ({"labelled_share": 0.5}, {"activation": 1.1}, {"both_members": -1}):
        with pytest.raises(ValidationError):
            Constraints(**wrong)


# -- the history ----------------------------------------------------------------------


def merges(*rows):
    """Merges (a, b, sum, area, key) of a node."""
    columns = [np.array([r[n] for r in rows], np.uint64) for n in range(2, 5)]
    pairs = np.array([r[:2] for r in rows], np.uint64).reshape(-1, 2)
    return Merges(pairs, *columns, SCALE)


def test_merges_of_all_nodes_make_one_history():
    """Pairs are known by any of their supervoxels; the history names segments."""
    parts = [merges((4, 7, 90, 1, 2), (1, 7, 50, 1, 4)), merges((9, 8, 90, 1, 1)), merges()]
    expected = [(9, 8, 90, 1), (7, 4, 90, 1), (4, 1, 50, 1)]
    for order in (parts, parts[::-1]):
        assert history_rows(merge_history(order)) == expected


def test_scores_never_rise():
    rng = np.random.default_rng(2)
    node = chain(*((int(rng.integers(SCALE * 3)), 3) for _ in range(60)))
    history = merge_history([agglomerate([node], threshold=0).merges])
    assert len(history.score) == 60
    assert all(above >= below for above, below in pairwise(history.score.tolist()))
    assert 0.5 < history.score[0] <= 1


def test_a_history_given_twice_is_refused():
    part = merges((4, 7, 90, 1, 2))
    with pytest.raises(DataError, match="merges 4 and 7 twice"):
        merge_history([part, part])
    with pytest.raises(DataError, match="at least one"):
        merge_history([])


# -- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "area", "said"),
    [
        ([[1, 2], [2, 1]], 1, "contact of 2 and 1 is listed twice"),
        ([[1, 1]], 1, "contact of 1 and 1 is listed twice or with itself"),
        ([[1, 2]], 0, "contact of 1 and 2 has no area"),
    ],
)
def test_rejects_contacts_that_cannot_be(pairs, area, said):
    columns = {
        "pairs": np.array(pairs, np.uint64),
        "affinity": np.full(len(pairs), 9, np.uint64),
        "area": np.full(len(pairs), area, np.uint64),
        "key": np.arange(len(pairs), dtype=np.uint64),
    }
    node = Clusters.from_table(make([1, 1]).to_table() | columns)
    with pytest.raises(DataError, match=said):
        agglomerate([node], threshold=0.5)


def test_refuses_other_scales():
    other = Clusters.from_table(make({2: 1}).to_table() | {"scale": np.asarray(1 << 20)})
    with pytest.raises(DataError, match=r"\[255, 1048576\]"):
        agglomerate([make([1]), other], threshold=0.5, octants=[0, 1], outward=[0, 0])


@pytest.mark.parametrize("limit", [-0.1, 1.1, np.nan])
def test_rejects_thresholds_outside_the_range(limit):
    with pytest.raises(ValueError, match="outside"):
        agglomerate([chain((9, 1))], threshold=limit)
    with pytest.raises(ValueError, match="outside"):
        agglomerate([chain((9, 1))], threshold=0.5, floor=-0.1)
