"""A root that holds another configuration is left alone, or rebuilt where told to."""

import json

import pytest

from pipeline.errors import DataError
from pipeline.runtime.run import Run

THRESHOLD = ("threshold = 0.4", "threshold = 0.9")
BEFORE_THRESHOLD = {
    "basins",
    "basin_graph",
    "supervoxel_table",
    "supervoxels",
    "region_graph",
    "image",
}


@pytest.fixture
def changed(finished, small_text, recipe, volumes):
    root, _ = finished
    return root, recipe(small_text, volumes, THRESHOLD)


@pytest.mark.parametrize("options", [[], ["--stage", "image"], ["--bbox", "0,0,0,1,1,1"]])
def test_another_threshold_is_refused(changed, em_here, everything, options):
    root, path = changed
    before = everything(root)
    result = em_here("run", path, "--root", root, *options)
    assert result.status == 2
    assert "agglomeration" in result.err
    assert "another configuration" in result.err
    assert "--replace" in result.err
    assert "basins" not in result.err
    assert everything(root) == before


def test_replace_rebuilds_what_depends_on_it(changed, em_here, objects, done):
    root, path = changed
    contents, before = objects(root), done(root)
    assert em_here("run", path, "--root", root, "--replace").status == 0
    after = done(root)
    assert after.keys() == before.keys()
    redone = {n.rpartition("/")[0] for n in after if after[n] != before[n]}
    kept = {n.rpartition("/")[0] for n in after if after[n] == before[n]}
    assert kept == BEFORE_THRESHOLD
    assert redone.isdisjoint(kept)
    assert em_here("verify", "--root", root).status == 0
    top = "agglomeration/1_0_0_0"
    assert objects(root)[top] != contents[top]


def test_what_failed_with_another_threshold_is_tried_again(
    finished, small_text, recipe, volumes, em_here
):
    root, path = finished
    run = Run.open(str(root), "small")
    stage = run.recipe.stage("agglomeration")
    keys = list(run.done_keys(stage))
    for key in keys:
        run.forget(stage, key)
        run.park(stage, key, DataError("the threshold is wrong"))
    assert em_here("run", path, "--root", root).status == 1
    assert run.parked_keys(stage) == {*keys}, "the same configuration fails the same way"
    changed = recipe(small_text, volumes, THRESHOLD)
    assert em_here("run", changed, "--root", root, "--replace").status == 0
    assert not run.parked_keys(stage)


def test_replaced_equals_afresh(changed, em_here, objects, tmp_path):
    root, path = changed
    assert em_here("run", path, "--root", root, "--replace").status == 0
    assert em_here("run", path, "--root", tmp_path / "afresh").status == 0
    assert objects(root) == objects(tmp_path / "afresh")


def test_another_run_with_other_layers_may_share_a_root(
    finished, copy_text, recipe, volumes, em_here, done
):
    root, _ = finished
    before = done(root)
    path = recipe(copy_text, volumes, ('output = "image"', 'output = "copy"'))
    assert em_here("run", path, "--root", root).status == 0
    assert before.items() <= done(root).items()
    verified = em_here("verify", "--root", root, "--json").json
    assert [r["run"] for r in verified["runs"]] == ["copy", "small"]
    assert verified["complete"]


def test_another_run_must_not_write_the_same_layer(
    finished, copy_text, recipe, volumes, em_here, everything
):
    root, _ = finished
    before = everything(root)
    other = ("voxel_size_nm = [12, 12, 30]", "voxel_size_nm = [12, 12, 40]")
    result = em_here("run", recipe(copy_text, volumes, other), "--root", root)
    assert result.status == 2
    assert "image" in result.err
    assert everything(root) == before


def test_a_longer_pyramid_replaces_the_old_one(
    finished, small_text, recipe, volumes, em_here
):
    root, _ = finished
    path = recipe(small_text, volumes, ("mips = 1", "mips = 2"))
    assert em_here("run", path, "--root", root).status == 2
    result = em_here("run", path, "--root", root, "--replace")
    assert result.status == 0, result.err
    info = json.loads((root / "segmentation" / "info").read_text())
    assert len(info["scales"]) == 3
    assert em_here("verify", "--root", root).status == 0
