"""Boxes, grids and octrees: their algebra."""

import itertools
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.errors import GeometryError
from pipeline.geometry import Bbox, ChunkKey, Grid, Halo, Vec3

INTS = st.integers(-40, 40)
VECTORS = st.builds(Vec3, INTS, INTS, INTS)
EXTENTS = st.builds(Vec3, *[st.integers(0, 30)] * 3)
POSITIVE = st.builds(Vec3, *[st.integers(1, 12)] * 3)
BOXES = st.builds(Bbox.of_shape, EXTENTS, VECTORS)
HALOS = st.builds(Halo, *[st.builds(Vec3, *[st.integers(0, 4)] * 3)] * 2)
GRIDS = st.builds(
    Grid,
    st.builds(Bbox.of_shape, st.builds(Vec3, *[st.integers(1, 20)] * 3), VECTORS),
    st.builds(Vec3, *[st.integers(2, 9)] * 3),
)


def voxels(box):
    """List what a box holds, by definition."""
    axes = (range(a, b) for a, b in zip(box.start, box.stop, strict=True))
    return set(itertools.product(*axes))


@given(VECTORS, VECTORS, POSITIVE)
def test_vectors_compute_by_axis(a, b, d):
    assert a + b - b == a
    assert a + 3 == Vec3(a.x + 3, a.y + 3, a.z + 3)
    assert a // d * d + a % d == a
    assert a.ceil_div(d) == Vec3(0, 0, 0) - (Vec3(0, 0, 0) - a) // d
    assert a.minimum(b) + a.maximum(b) == a + b
    assert [a[i] for i in range(3)] == list(a) == [a.x, a.y, a.z]
    assert (a * b).product == a.product * b.product


@given(BOXES, BOXES)
def test_intersection_holds_the_voxels_of_both(a, b):
    assume(max(a.volume, b.volume) < 3000)
    both = a.intersection(b)
    assert voxels(both) == voxels(a) & voxels(b)
    assert both.is_empty == (not voxels(a) & voxels(b))


@given(BOXES, BOXES, BOXES)
def test_intersection_is_a_lattice_with_hull(a, b, c):
    assert a.intersection(a) == a.hull(a) == a
    assert a.hull(b) == b.hull(a)
    assert a.hull(b).hull(c) == a.hull(b.hull(c))
    assert a.hull(b).contains(a)
    assert a.hull(b).contains(b)
    one, other = a.intersection(b), b.intersection(a)
    assert one.volume == other.volume
    assert one.is_empty or one == other
    assert one.is_empty or (a.contains(one) and b.contains(one))


@given(BOXES, HALOS)
def test_a_halo_grows_each_side_by_itself(box, halo):
    grown = box.grown(halo)
    assert grown.contains(box)
    assert box.start - grown.start == halo.before
    assert grown.stop - box.stop == halo.after


@given(BOXES, VECTORS)
def test_shifting_is_undone(box, by):
    assert box.shifted(by).shifted(Vec3(0, 0, 0) - by) == box
    assert box.shifted(by).shape == box.shape


@given(BOXES, POSITIVE)
def test_the_coarser_box_is_the_least_that_holds_all(box, factor):
    assume(not box.is_empty)
    coarse = box.coarser(factor)
    assert coarse.finer(factor).contains(box)
    for axis in range(3):
        step = Vec3.of([int(a == axis) for a in range(3)])
        lower, upper = Bbox(coarse.start, coarse.stop - step), None
        upper = Bbox(coarse.start + step, coarse.stop)
        assert not lower.finer(factor).contains(box)
        assert not upper.finer(factor).contains(box)


@given(BOXES, POSITIVE)
def test_coarser_undoes_finer(box, factor):
    assert box.finer(factor).coarser(factor) == box


@given(BOXES)
def test_text_and_json_there_and_back(box):
    adapter = TypeAdapter(Bbox)
    assert Bbox.parse(str(box)) == box
    document = json.loads(adapter.dump_json(box))
    assert adapter.validate_python(document) == box
    assert document == {"start": list(box.start), "stop": list(box.stop)}


@given(BOXES, VECTORS)
def test_slices_cut_the_box_out_of_an_array(box, origin):
    found = tuple(
        (s.start + o, s.stop + o) for s, o in zip(box.slices(origin), origin, strict=True)
    )
    assert found == tuple(zip(box.start, box.stop, strict=True))
    assert box.slices() == box.slices(Vec3(0, 0, 0))


@given(VECTORS, EXTENTS)
def test_swapped_corners_are_refused(start, extent):
    assume(max(extent) > 0)
    with pytest.raises(GeometryError, match="ends before it starts"):
        Bbox(start + extent, start)


# -- grids ----------------------------------------------------------------------------


@given(GRIDS)
def test_chunks_tile_the_bounds(grid):
    boxes = [grid.box(key) for key in grid.keys()]  # noqa: SIM118
    assert len(boxes) == grid.counts().product
    assert sum(box.volume for box in boxes) == grid.bounds.volume
    assert all(grid.bounds.contains(box) and not box.is_empty for box in boxes)
    assert all(a.intersection(b).is_empty for a, b in itertools.combinations(boxes, 2))


@given(GRIDS)
def test_children_tile_their_parent_up_to_one_top(grid):
    assert grid.counts(grid.height).product == 1
    assert grid.height == 0 or grid.counts(grid.height - 1).product > 1
    for level in range(1, grid.height + 1):
        children = [c for key in grid.keys(level) for c in key.children(grid)]
        assert sorted(children) == sorted(grid.keys(level - 1))
        assert len(children) == len(set(children))
        for key in grid.keys(level):
            boxes = [grid.box(c) for c in key.children(grid)]
            assert sum(box.volume for box in boxes) == grid.box(key).volume
            assert all(grid.box(key).contains(box) for box in boxes)
    assert ChunkKey(0, 0, 0, 0).children(grid) == []


@given(GRIDS)
def test_every_face_of_a_child_is_its_parents_or_between_siblings_or_of_the_bounds(grid):
    for level in range(1, grid.height + 1):
        for key in grid.keys(level):
            box = grid.box(key)
            for child in key.children(grid):
                assert child.parent == key
                inner = grid.box(child)
                for axis in range(3):
                    for face, mine, above, bounds in (
                        (axis, inner.start, box.start, grid.bounds.start),
                        (3 + axis, inner.stop, box.stop, grid.bounds.stop),
                    ):
                        if child.outward_faces >> face & 1:
                            assert mine[axis] == above[axis]
                        else:
                            assert mine[axis] != above[axis] or mine[axis] == bounds[axis]


@given(GRIDS, BOXES)
def test_chunks_touching_a_box_are_those_that_share_a_voxel(grid, box):
    expected = [
        key
        for key in grid.keys()  # noqa: SIM118
        if not grid.box(key).intersection(box).is_empty
    ]
    assert list(grid.touching(box)) == expected


@given(GRIDS, st.integers(0, 3))
def test_x_is_fastest(grid, level):
    keys = list(grid.keys(level))
    assert keys == sorted(keys, key=lambda k: (k.z, k.y, k.x))


@given(st.builds(ChunkKey, *[st.integers(0, 5000)] * 4))
def test_keys_are_read_as_they_are_written(key):
    assert ChunkKey.parse(str(key)) == key


@given(GRIDS, st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_a_key_outside_has_no_box(grid, level, axis, above):
    at = [0, 0, 0]
    at[axis] = grid.counts(level)[axis] if above else -1
    with pytest.raises(GeometryError, match="outside the grid"):
        grid.box(ChunkKey(level, *at))
