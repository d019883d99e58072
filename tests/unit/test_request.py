"""What may be asked for in a form, and what is refused, with all its faults."""

from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.geometry import Bbox
from pipeline.orchestration.request import read_recipe

RECIPES = Path(__file__).parents[2] / "dags" / "recipes"
TEXT = (RECIPES / "block.toml").read_text()


def test_a_recipe_is_named_or_written():
    assert read_recipe("block", RECIPES) == read_recipe(TEXT, RECIPES)


def test_a_run_may_have_another_name():
    assert read_recipe("block", RECIPES, name="mouse-2").name == "mouse-2"


def test_an_override_sets_a_field():
    recipe = read_recipe(
        "block",
        RECIPES,
        overrides={"agglomeration.threshold": 0.55, "layers.image": "gs://lab/image"},
    )
    assert recipe.stage("agglomeration").threshold == 0.55
    assert recipe.layers["image"] == "gs://lab/image"


def test_a_box_moves_the_stages_of_coarser_voxels_too():
    recipe = read_recipe("block", RECIPES, bbox="256,0,10,512,128,60")
    assert recipe.stage("affinities").bounds == Bbox.parse("256,0,10,512,128,60")
    assert recipe.stage("segmentation/meshes").bounds == Bbox.parse("64,0,10,128,32,60")


@pytest.mark.parametrize(
    ("text", "asked", "says"),
    [
        ("nothing", {}, "there is no recipe 'nothing'; give its TOML, or one of block"),
        ("../recipes/block", {}, "there is no recipe"),
        ("name = ", {}, "the recipe is not TOML"),
        ("block", {"bbox": "1,2,3"}, "is not a box"),
        ("block", {"bbox": "5,5,5,5,9,9"}, "is empty"),
        ("block", {"bbox": "0,0,0,10,10,10", "overrides": {"x": 1}}, "names no field"),
        ("block", {"overrides": {"nothing.threshold": 1}}, "names no field"),
        ("block", {"overrides": {"agglomeration.treshold": 1}}, "did you mean"),
        ("block", {"overrides": {"agglomeration.threshold": "x"}}, "threshold"),
        (TEXT.replace("[grid]", "[other]"), {"bbox": "0,0,0,9,9,9"}, "no bounds in"),
    ],
)
def test_what_cannot_be_is_refused(text, asked, says):
    with pytest.raises(RecipeError) as caught:
        read_recipe(text, RECIPES, **asked)
    assert says in str(caught.value)


def test_a_stage_with_bounds_of_its_own_is_not_guessed_at():
    odd = TEXT.replace("stop = [128, 128, 100]", "stop = [100, 128, 100]")
    with pytest.raises(RecipeError, match=r"do not follow.*override"):
        read_recipe(odd, RECIPES, bbox="0,0,0,256,256,50")
