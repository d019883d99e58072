"""The recipe of an alignment, and what its options add to it."""

import dataclasses

import pytest

from pipeline.alignment import LooseStack, alignment_recipe
from pipeline.errors import RecipeError
from pipeline.geometry import Bbox
from pipeline.recipe import Recipe
from pipeline.runtime.run import Run

PLAIN = LooseStack(
    source="phantom://1024,768,12/image",
    bounds=Bbox.parse("0,0,0,1024,768,12"),
    voxel_size_nm=(4.0, 4.0, 40.0),
)


def stages(stack):
    return {s["output"]: s for s in alignment_recipe("align", stack)["stage"]}


def planned(stack, tmp_path):
    """Check a recipe as a run would; nothing is written."""
    return Run.plan(Recipe.parse(alignment_recipe("align", stack)), str(tmp_path))


@pytest.mark.parametrize("in_image", [False, True])
def test_bands_are_damped_in_what_is_matched(in_image, tmp_path):
    stack = dataclasses.replace(
        PLAIN, chatter=(87.0, 100.0, 500.0), chatter_in_image=in_image
    )
    planned(stack, tmp_path)
    plain, found = stages(PLAIN), stages(stack)
    assert set(found) - set(plain) == {"damped", "damped/pyramid"}
    for name in ("section_matches", "rough", "near"):
        assert found[name]["image"] == "damped"
        size = plain[name]["voxel_size_nm"]
        assert found[name]["voxel_size_nm"] == size
    changed = {name for name in plain if found[name] != plain[name]}
    expected = {"section_matches", "rough", "near"}
    assert changed == (expected | {"image"} if in_image else expected)
    assert found["image"]["image"] == ("damped" if in_image else "loose")
    assert found["loose_defects"]["image"] == "loose"


def test_sections_that_are_left_out_are_masked(tmp_path):
    for model in ("defects-cortex", ""):
        plain = dataclasses.replace(PLAIN, defect_model=model)
        stack = dataclasses.replace(plain, left_out=(3, 4))
        planned(stack, tmp_path)
        before, found = stages(plain), stages(stack)
        assert set(found) - set(before) == {"left_out"}
        changed = {name for name in before if found[name] != before[name]}
        assert changed == {"input_mask", "output_mask"}


@pytest.mark.parametrize(
    ("bands", "said"),
    [
        ((0.0, 20.0, 500.0), "give 32.0 nm or more"),
        ((0.0, 500.0, 100.0), "the shortest first"),
        ((0.0, 100.0, 9000.0), "read a coarser mip"),
    ],
)
def test_bands_that_no_pixel_shows(bands, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        planned(dataclasses.replace(PLAIN, chatter=bands), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chatter": (87.0, 100.0, 500.0)},
        {"chatter": (87.0, 100.0, 500.0), "chatter_in_image": True},
        {"left_out": (3,)},
        {"defect_source": "phantom://1000,700,12/labels", "defect_model": ""},
        {"defect_model": ""},
    ],
)
def test_sections_of_any_extent_are_aligned_in_whole_patches(options, tmp_path):
    odd = dataclasses.replace(
        PLAIN,
        source="phantom://1000,700,12/image",
        bounds=Bbox.parse("0,0,0,1000,700,12"),
        **options,
    )
    run = planned(odd, tmp_path)
    assert run.specs["loose"].bounds == odd.bounds
    for name in ("image", "input_mask", "output_mask"):
        assert run.specs[name].bounds == PLAIN.bounds, name
    assert stages(odd)["image"]["image_bounds"] == {
        "start": [0, 0, 0],
        "stop": [1000, 700, 12],
    }
    assert not any("image_bounds" in stage for stage in stages(PLAIN).values())
