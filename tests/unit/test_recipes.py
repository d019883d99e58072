"""The recipes that come with the project are recipes, and say what their heads promise."""

from pathlib import Path

import pytest

from pipeline.geometry import Bbox
from pipeline.recipe import Recipe
from pipeline.reconstruction import Block, block_recipe

RECIPES = sorted((Path(__file__).parents[2] / "dags" / "recipes").glob("*.toml"))


def test_there_are_recipes():
    assert [path.name for path in RECIPES].count("block.toml") == 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_under_the_name_of_its_file(path):
    assert Recipe.load(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_survives_json(path):
    recipe = Recipe.load(path)
    assert Recipe.parse(recipe.to_json()) == recipe


def test_the_block_recipe_is_what_em_reconstruct_runs():
    """All but the image, which em ingest writes."""
    written = Recipe.load(RECIPES[[p.stem for p in RECIPES].index("block")])
    made = Recipe.parse(
        block_recipe(
            "block",
            Block(
                source="block.h5:raw",
                bounds=Bbox.parse("0,0,0,512,512,100"),
                voxel_size_nm=(6.0, 6.0, 30.0),
            ),
        )
    )
    assert written.external == ["image"]
    expected = [s for s in made.stages if s.output not in ("image", "image/pyramid")]
    assert list(written.stages) == expected
