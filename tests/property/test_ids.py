"""Ids: packing and unpacking are inverse, and nothing overflows unseen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import GeometryError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.ids import IdLayout

LAYOUTS = st.builds(IdLayout, st.integers(1, 18))


@st.composite
def parts(draw):
    """A layout with chunk positions and local labels that it can hold."""
    layout = draw(LAYOUTS)
    n = draw(st.integers(1, 20))
    axis = st.integers(0, 2**layout.bits - 1)
    positions = draw(st.lists(st.tuples(axis, axis, axis), min_size=n, max_size=n))
    local = draw(st.lists(st.integers(1, layout.max_local), min_size=n, max_size=n))
    return layout, np.array(positions), np.array(local, np.uint64)


@given(parts())
def test_unpack_inverts_pack(case):
    layout, positions, local = case
    ids = layout.pack(positions, local)
    assert ids.dtype == np.uint64
    again, local_again = layout.unpack(ids)
    np.testing.assert_array_equal(again, positions)
    np.testing.assert_array_equal(local_again, local)


@given(parts())
def test_ids_are_numbers_above_the_base_of_their_chunk(case):
    layout, positions, local = case
    for at, label, packed in zip(
        positions, local, layout.pack(positions, local), strict=True
    ):
        assert layout.base(Vec3.of(at)) + int(label) == int(packed)


@given(parts())
def test_distinct_parts_have_distinct_ids_in_the_order_of_x_y_z(case):
    layout, positions, local = case
    rows = [(*map(int, p), int(k)) for p, k in zip(positions, local, strict=True)]
    ids = layout.pack(positions, local).tolist()
    assert sorted(range(len(ids)), key=ids.__getitem__) == sorted(
        range(len(rows)), key=rows.__getitem__
    )


def test_layout_is_that_of_pychunkedgraph():
    """8 bits of layer, 10 bits an axis, 26 bits of label."""
    layout = IdLayout(10)
    assert layout.local_bits == 26
    expected = (1 << 56) | (3 << 46) | (1023 << 36) | (7 << 26) | 42
    assert layout.pack([3, 1023, 7], 42) == expected


@pytest.mark.parametrize(
    ("longest", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (1024, 10), (1025, 11)]
)
def test_a_grid_gets_just_enough_bits(longest, bits):
    grid = Grid(Bbox.of_shape((10, longest * 10 - 9, 10)), Vec3(10, 10, 10))
    layout = IdLayout.of_grid(grid)
    assert layout.bits == bits
    for key in grid.keys():  # noqa: SIM118
        layout.base(key.position)


@given(LAYOUTS)
def test_one_label_too_many_is_refused(layout):
    layout.require_capacity(layout.max_local)
    with pytest.raises(GeometryError, match=str(layout.max_local + 1)):
        layout.require_capacity(layout.max_local + 1)
    with pytest.raises(GeometryError, match=str(layout.max_local + 1)):
        layout.pack([0, 0, 0], layout.max_local + 1)
    with pytest.raises(GeometryError, match="from 0"):
        layout.pack([0, 0, 0], 0)


@given(LAYOUTS, st.integers(0, 2), st.sampled_from([-1, "limit"]))
def test_a_position_outside_is_refused(layout, axis, value):
    at = [0, 0, 0]
    at[axis] = 2**layout.bits if value == "limit" else value
    with pytest.raises(GeometryError, match="does not fit"):
        layout.pack(at, 1)
    with pytest.raises(GeometryError, match="does not fit"):
        layout.base(Vec3.of(at))


@pytest.mark.parametrize("bits", [0, -1, 19])
def test_impossible_layouts_are_refused(bits):
    with pytest.raises(GeometryError, match=f"{bits} bits"):
        IdLayout(bits)


@pytest.mark.parametrize("wrong", [0, 1 << 56, (2 << 56) | 1])
def test_what_is_no_supervoxel_is_not_unpacked(wrong):
    with pytest.raises(GeometryError, match=str(wrong)):
        IdLayout(10).unpack(np.array([wrong], np.uint64))
