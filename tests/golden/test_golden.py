"""What must change only on purpose has not changed; README.md says how to change it."""

import json

import pytest

from pipeline.recipe import Recipe

from .golden import GOLDEN, HERE, text


@pytest.mark.parametrize("name", GOLDEN)
def test_nothing_changed_unmeant(name):
    golden, found = json.loads((HERE / name).read_text()), json.loads(text(GOLDEN[name]()))
    assert found == golden, "if this is meant, run: python -m tests.golden.golden"


def test_every_golden_file_has_a_maker():
    assert {p.name for p in HERE.glob("*.json")} == set(GOLDEN)


def test_the_golden_recipe_is_one():
    recipe = Recipe.parse(json.loads((HERE / "block_recipe.json").read_text()))
    assert recipe.external == ["source", "truth_source"]
    assert recipe.stages[0].output == "image"
