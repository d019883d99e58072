"""Boxes and grids: what they refuse, and examples to read."""

import itertools
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from pipeline.errors import GeometryError
from pipeline.geometry import ALL_FACES, Bbox, ChunkKey, Grid, Halo, Vec3


class Document(BaseModel):
    box: Bbox
    size: Vec3


def test_a_vector_of_one_number_or_three():
    assert Vec3.of(4) == Vec3(4, 4, 4)
    assert Vec3.of(np.array([1, 2, 3])) == Vec3(1, 2, 3)
    assert type(Vec3.of(np.array([1, 2, 3])).x) is int
    same = Vec3(1, 2, 3)
    assert Vec3.of(same) is same
    assert str(same) == "(1, 2, 3)"
    assert same.astuple() == (1, 2, 3)


@pytest.mark.parametrize("wrong", [(1, 2), (1, 2, 3, 4), (1.5, 2, 3), "123", None, 2.0])
def test_what_is_no_vector_is_refused(wrong):
    with pytest.raises(GeometryError, match="not three integers"):
        Vec3.of(wrong)


def test_vectors_and_boxes_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Vec3(1, 2, 3).x = 4
    with pytest.raises(FrozenInstanceError):
        Bbox.of_shape((1, 1, 1)).start = Vec3(0, 0, 0)


def test_division_rounds_down_and_up_below_zero_too():
    assert Vec3(-5, 5, 4) // 2 == Vec3(-3, 2, 2)
    assert Vec3(-5, 5, 4).ceil_div(2) == Vec3(-2, 3, 2)


@pytest.mark.parametrize("text", ["0,0,0,4,5,6", "0 0 0 4 5 6", " 0, 0,0 ,4 5,6 "])
def test_a_box_is_read_with_commas_or_blanks(text):
    assert Bbox.parse(text) == Bbox.of_shape((4, 5, 6))


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "0,0,0,4,5,6,7", "0,0,0,4,5,z", "0,0,0,4,5,6.5"]
)
def test_what_is_no_box_is_refused(text):
    with pytest.raises(GeometryError, match="not a box; give x0,y0,z0,x1,y1,z1"):
        Bbox.parse(text)


def test_a_swapped_box_is_refused_with_its_corners():
    with pytest.raises(GeometryError, match=r"from \(0, 9, 0\) to \(4, 5, 6\)"):
        Bbox.parse("0,9,0,4,5,6")


def test_geometry_errors_are_value_errors():
    with pytest.raises(ValueError, match="ends before"):
        Bbox(Vec3(1, 0, 0), Vec3(0, 1, 1))


def test_boxes_that_only_touch_share_nothing():
    a, b = Bbox.of_shape((4, 4, 4)), Bbox.of_shape((4, 4, 4), Vec3(4, 0, 0))
    assert a.intersection(b).is_empty
    assert not a.contains(b)
    assert a.hull(b) == Bbox.of_shape((8, 4, 4))


def test_halo_of_integers():
    assert Halo.of(before=1) == Halo(Vec3(1, 1, 1), Vec3(0, 0, 0))
    assert Halo.of(after=(0, 0, 2)) == Halo(Vec3(0, 0, 0), Vec3(0, 0, 2))
    box = Bbox.of_shape((2, 2, 2), Vec3(5, 5, 5)).grown(Halo.of(1, (0, 0, 2)))
    assert box == Bbox(Vec3(4, 4, 4), Vec3(7, 7, 9))


def test_json_is_lists():
    document = Document(box=Bbox.of_shape((1, 2, 3)), size=Vec3(4, 5, 6))
    assert document.model_dump(mode="json") == {
        "box": {"start": [0, 0, 0], "stop": [1, 2, 3]},
        "size": [4, 5, 6],
    }
    assert Document.model_validate_json(document.model_dump_json()) == document


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 3},
        {"size": [1, 2]},
        {"size": [1, 2, 3.0]},
        {"size": [True, 1, 1]},
        {"box": [0, 0, 0, 1, 1, 1]},
        {"box": {"start": [0, 0, 0]}},
        {"box": {"start": [0, 0, 0], "stop": [1, 1, 1], "step": 1}},
        {"box": {"start": [2, 0, 0], "stop": [1, 1, 1]}},
    ],
)
def test_json_of_another_form_is_refused_as_one_of_the_faults(wrong):
    right = {"box": {"start": [0, 0, 0], "stop": [1, 1, 1]}, "size": [1, 1, 1]}
    Document.model_validate(right)
    with pytest.raises(ValidationError, match=r"not|ends before"):
        Document.model_validate({**right, **wrong})


def test_an_empty_grid_is_refused():
    with pytest.raises(GeometryError, match="hold no voxel"):
        Grid(Bbox.of_shape((4, 0, 4)), Vec3(2, 2, 2))


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(GeometryError, match=r"\(2, 0, 2\) is not positive"):
        Grid(Bbox.of_shape((4, 4, 4)), Vec3(2, 0, 2))


def test_a_grid_counts_from_its_bounds():
    grid = Grid(Bbox.of_shape((10, 4, 3), Vec3(7, -2, 1)), Vec3(4, 4, 2))
    assert grid.counts() == Vec3(3, 1, 2)
    assert grid.counts(1) == Vec3(2, 1, 1)
    assert grid.height == 2
    assert grid.box(ChunkKey(0, 2, 0, 1)) == Bbox(Vec3(15, -2, 3), Vec3(17, 2, 4))
    assert grid.box(ChunkKey(1, 1, 0, 0)) == Bbox(Vec3(15, -2, 1), Vec3(17, 2, 4))
    assert [str(k) for k in ChunkKey(1, 1, 0, 0).children(grid)] == ["0_2_0_0", "0_2_0_1"]


def test_a_grid_of_one_chunk_has_height_zero():
    grid = Grid(Bbox.of_shape((4, 4, 4)), Vec3(9, 9, 9))
    assert grid.height == 0
    assert list(grid.keys()) == [ChunkKey(0, 0, 0, 0)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 1000, 2**20, 2**20 + 1])
def test_height_is_that_of_the_longest_axis(n):
    grid = Grid(Bbox.of_shape((n, 1, 1)), Vec3(1, 1, 1))
    assert grid.height == (n - 1).bit_length()
    assert grid.counts(grid.height) == Vec3(1, 1, 1)


def test_ten_million_keys_cost_nothing_until_they_are_asked_for():
    grid = Grid(Bbox.of_shape((2**20, 2**20, 2**20)), Vec3(64, 64, 64))
    assert next(itertools.islice(grid.keys(), 5, None)) == ChunkKey(0, 5, 0, 0)


def test_a_node_knows_its_parent_and_which_child_it_is():
    key = ChunkKey(2, 5, 0, 7)
    assert key.parent == ChunkKey(3, 2, 0, 3)
    assert key.octant == 0b101
    assert ChunkKey(0, 4, 3, 2).octant == 0b010
    eight = ChunkKey(1, 0, 0, 0).children(Grid(Bbox.of_shape((8, 8, 8)), Vec3(4, 4, 4)))
    assert [child.octant for child in eight] == list(range(8))


@pytest.mark.parametrize(
    ("key", "faces"),
    [
        (ChunkKey(0, 0, 0, 0), 0b000111),
        (ChunkKey(0, 1, 0, 0), 0b001110),
        (ChunkKey(3, 4, 7, 1), 0b110001),
        (ChunkKey(0, 1, 1, 1), 0b111000),
    ],
)
def test_outward_faces_are_those_away_from_the_siblings(key, faces):
    """Bit a is the lower face of axis a, bit 3 + a the upper."""
    assert key.outward_faces == faces
    assert faces & ~ALL_FACES == 0


@pytest.mark.parametrize(
    "text", ["", "0_1_2", "0_1_2_3_4", "0_1_2_x", "0_-1_0_0", "0_1_2_3 "]
)
def test_what_is_no_key_is_refused(text):
    with pytest.raises(GeometryError, match="not the key of a chunk"):
        ChunkKey.parse(text)
