"""Pairs that close cracks are read from a table or Neuroglancer, or plainly refused."""

import json
import os
import sys

import neuroglancer
import numpy as np
import pytest
import tifffile

from pipeline.alignment import LooseStack, alignment_recipe
from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.geometry import Bbox, Vec3
from pipeline.point_pairs import read_point_pairs
from pipeline.recipe import Recipe
from pipeline.stages.closures import PointPair

VOXEL = (8.0, 8.0, 40.0)
SOURCE = Bbox.of_shape((400, 300, 6))
NOWHERE = Vec3(0, 0, 0)
HEADER = "section,x,y,to_x,to_y"
ROWS = [
    "2,100,50,140,50",
    "2,100,250.5,140,251",
    "2,260,50,160,50",
    "2,260,250,160,250",
]


@pytest.fixture
def given(tmp_path):
    """Write a file of pairs."""

    def write(content, name="pairs.csv"):
        path = tmp_path / name
        text = content if isinstance(content, str) else "\n".join(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def read(path, source=SOURCE, shift=NOWHERE, bounds=None):
    return read_point_pairs(
        path,
        source=source,
        bounds=bounds or source.shifted(shift),
        shift=shift,
        voxel_size_nm=VOXEL,
    )


def drawn(rows=ROWS, units="nm", scales=VOXEL, by=1.0, name="cracks"):
    """Draw the rows as lines in Neuroglancer, and return its state."""
    state = neuroglancer.ViewerState()
    space = neuroglancer.CoordinateSpace(names="xyz", units=units, scales=scales)
    state.dimensions = space
    lines = []
    for number, row in enumerate(rows):
        section, x, y, to_x, to_y = map(float, row.split(","))
        ends = [[v * by for v in p] + [section + 0.5] for p in ((x, y), (to_x, to_y))]
        lines.append(
            neuroglancer.LineAnnotation(id=f"n{number}", pointA=ends[0], pointB=ends[1])
        )
    state.layers[name] = neuroglancer.LocalAnnotationLayer(
        dimensions=space, annotations=lines
    )
    return state.to_json()


# -- what is read ---------------------------------------------------------------------


def test_a_table_is_read_in_voxels(given):
    pairs = read(given([HEADER, *ROWS[:2], "", *ROWS[2:]]))
    assert len(pairs) == 4
    assert pairs[1] == PointPair(section=2, x=800, y=2004, to_x=1120, to_y=2008)


def test_columns_may_come_in_any_order_and_after_a_mark(given):
    moved = [",".join(np.roll(row.split(","), 2)) for row in (HEADER, *ROWS)]
    assert read(given("\ufeff" + "\n".join(moved))) == read(given([HEADER, *ROWS]))


def test_an_offset_moves_pairs_with_the_stack(given):
    shift = Vec3(1000, 0, 30)
    pairs = read(given([HEADER, *ROWS]), shift=shift)
    assert pairs[0] == PointPair(section=32, x=8800, y=400, to_x=9120, to_y=400)


def test_sections_that_are_not_aligned_have_no_say(given):
    path = given([HEADER, *ROWS])
    assert read(path, bounds=Bbox.parse("0,0,3,400,300,6")) == ()
    assert len(read(path, bounds=Bbox.parse("0,0,0,50,50,6"))) == 4


def test_lines_of_a_state_and_of_its_layer_are_the_table(given):
    table, state = read(given([HEADER, *ROWS])), drawn()
    assert read(given(json.dumps(state), "state.json")) == table
    assert read(given(json.dumps(state["layers"][0]), "layer.json")) == table


def test_lines_are_in_the_unit_of_their_layer(given):
    """Drawn over an image of half the resolution."""
    state = drawn(scales=(16.0, 16.0, 40.0), by=0.5)
    assert read(given(json.dumps(state))) == read(given([HEADER, *ROWS]))


def test_the_layer_of_that_name_is_taken(given):
    state = drawn()
    state["layers"] = [drawn(ROWS[:1], name="notes")["layers"][0], *state["layers"]]
    assert len(read(given(json.dumps(state)))) == 4


# -- what is refused ------------------------------------------------------------------


def refused(path, *words):
    with pytest.raises(RecipeError) as error:
        read(path)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["6,1,1,2,2"], ["row 2", "section 6", "0 to 5", "remove"]),
        (["-1,1,1,2,2"], ["row 2", "section -1"]),
        (["2.5,1,1,2,2"], ["row 2", "'2.5'", "whole number"]),
        (["2,800,1,2,2"], ["row 2", "800, 1", "400, 300", "full resolution"]),
        (["2,nan,1,2,2"], ["row 2", "x 'nan'", "not finite"]),
        (["2,1,1,2,inf"], ["row 2", "to_y 'inf'", "not finite"]),
        (["2,1,one,2,2"], ["row 2", "y 'one'", "not a number"]),
        (["2,1,1,2"], ["row 2", "4 values", "2,1,1,2", HEADER]),
        (ROWS[:2], ["row 2 and row 3", "fewer than 3", "both sides"]),
        (
            ["2,10,10,1,1", "2,20,20,2,9", "2,30,30,30,3"],
            ["row 2, row 3 and row 4", "lie on one line"],
        ),
        ([*ROWS, "2,100,50,9,9"], ["row 2 and row 6", "lie at one point", "remove one"]),
        ([*ROWS, "2,10,5,160,250"], ["row 5 and row 6", "belong at one point"]),
        (
            ["2,260,50,140,50", *ROWS[1:2], "2,100,50,160,50", *ROWS[3:]],
            ["row 2", "row 4", "folds over", "swapped"],
        ),
        ([], ["no pairs", "at least three"]),
    ],
)
def test_rows_that_cannot_be_are_named(given, rows, words):
    refused(given([HEADER, *rows]), *words)


def test_every_fault_is_told_at_once(given):
    refused(given([HEADER, "9,1,1,2,2", "2,x,1,2,2"]), "row 2", "row 3")


def test_another_header_is_refused(given):
    refused(given(["z,x,y,to_x,to_y", *ROWS]), "row 1", "z,x,y,to_x,to_y", HEADER)
    refused(given(""), "row 1", HEADER)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "none.csv", "cannot be read")
    (tmp_path / "image.csv").write_bytes(b"\xff\xfe\x00\x80")
    refused(tmp_path / "image.csv", "not text")


def altered(change):
    state = drawn()
    layer = state["layers"][0]
    change(state, layer, layer["annotations"])
    return json.dumps(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state, layer, lines: lines[1]["pointB"].__setitem__(2, 4.5),
            ["annotation 2 (n1)", "section 2 to 4", "within the one"],
        ),
        (
            lambda state, layer, lines: lines[1].update(type="point"),
            ["annotation 2 (n1)", "'point'"],
        ),
        (
            lambda state, layer, lines: lines[0].update(pointA=[1, 2]),
            ["annotation 1", "[1, 2]"],
        ),
        (
            lambda state, layer, lines: lines[0]["pointA"].__setitem__(0, None),
            ["pointA.x None"],
        ),
        (
            lambda state, layer, lines: lines[0]["pointA"].__setitem__(0, float("nan")),
            ["not finite"],
        ),
        (
            lambda state, layer, lines: lines.append(
                {**lines[0], "pointA": [9, 9, 9.5], "pointB": [9, 9, 9]}
            ),
            ["section 9", "0 to 5"],
        ),
        (lambda state, layer, lines: state.update(layers=[]), ["no layer", "draw a line"]),
        (
            lambda state, layer, lines: state.update(
                layers=[{**layer, "name": n} for n in ("one", "two")]
            ),
            ["'one', 'two'", "'cracks'"],
        ),
        (
            lambda state, layer, lines: layer["source"][0]["transform"].update(
                matrix=[[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
            ),
            ["transform", "without one"],
        ),
        (
            lambda state, layer, lines: layer["source"][0]["transform"].update(
                outputDimensions={"x": [1, "m"], "y": [1, "m"], "t": [1, "s"]}
            ),
            ["x, y, t", "x, y, z"],
        ),
        (
            lambda state, layer, lines: layer["source"][0]["transform"].update(
                outputDimensions={"x": [1, "inch"], "y": [1, "m"], "z": [1, "m"]}
            ),
            ["inch", "nm"],
        ),
    ],
)
def test_lines_that_cannot_be_are_named(given, change, words):
    refused(given(altered(change)), *words)


def test_what_is_no_state_is_refused(given):
    refused(given("{ not JSON"), "not JSON")
    refused(given("[1, 2]"), "list")


# -- the recipe -----------------------------------------------------------------------


def stack(**fields):
    bounds = Bbox.of_shape((1000, 800, 6))
    return LooseStack("loose.h5:image", bounds, VOXEL, defect_model="", **fields)


def test_without_pairs_nothing_of_them_is_in_a_recipe():
    recipe = Recipe.parse(alignment_recipe("a", stack()))
    text = json.dumps([s.to_json() for s in recipe.stages])
    assert "clos" not in text


def test_everything_that_is_drawn_of_loose_sections_is_drawn_closed(given):
    pairs = read(given([HEADER, *ROWS]))
    recipe = Recipe.parse(alignment_recipe("a", stack(pairs=pairs)))
    assert recipe.stage("closures").pairs == pairs
    drawn = [s for s in recipe.stages if s.name == "warp"]
    assert {s.closures for s in drawn} == {"closures"}
    assert recipe.stage("section_matches").image == "closed"
    assert [s.output for s in recipe.stages if "loose" in s.inputs.values()] == [
        *("loose/pyramid", "closed", "rough", "near", "image")
    ]


def test_a_recipe_by_hand_is_checked_too(given):
    pairs = read(given([HEADER, *ROWS]))
    mirrored = tuple(p.model_copy(update={"x": 3000 - p.x}) for p in pairs)
    for wrong, word in ((pairs[:2], "fewer than 3"), (mirrored, "folds over")):
        document = alignment_recipe("a", stack(pairs=wrong))
        faults = Recipe.parse(document).stage("closures").check({})
        assert word in faults[0]
        assert "pair 1" in faults[0]


def test_pairs_of_sections_beyond_a_part_of_the_stack_have_no_say(given):
    """As `em calibrate` runs it."""
    stage = Recipe.parse(
        alignment_recipe("a", stack(pairs=read(given([HEADER, *ROWS]))))
    ).stage("closures")
    part = stage.model_copy(
        update={"bounds": Bbox(Vec3(0, 0, 3), stage.bounds.stop), "pairs": stage.pairs[:1]}
    )
    assert part.check({}) == []
    keys = list(part.plan()[0])
    assert [len(part.process(part.task(key))["loose"]) for key in keys] == [0, 0, 0]


def test_the_command_refuses_before_it_writes(given, tmp_path, monkeypatch, capsys):
    tifffile.imwrite(tmp_path / "stack.tif", np.full((6, 300, 400), 9, np.uint8))
    pairs = given([HEADER, *ROWS[:2]])
    command = ["em", "align", tmp_path / "stack.tif", "--voxel-size", "8,8,40"]
    command += ["--root", tmp_path / "root", "--cracks", pairs]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "row 2 and row 3: pairs of section 2 are fewer than 3" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "root")
