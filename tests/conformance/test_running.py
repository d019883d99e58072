"""Every stage runs once, resumes wherever it was killed, and waits for what it reads."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MissingInputError
from pipeline.geometry import Vec3
from pipeline.layers.folder import LocalFolder
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.run import Run
from pipeline.specs import AnnotationsSpec, MeshesSpec, SkeletonsSpec, VolumeSpec

from . import alignment
from .examples import (
    EXAMPLES,
    PARTNERS_TOML,
    SECTIONS,
    SHAPE,
    World,
    finished,
    make_model,
)

CHUNK = Vec3(23, 19, 9)


def contents(root):
    """Return every file of a run, but for what says when and where it was made."""
    files = {
        p.relative_to(root).as_posix(): p for p in Path(root).rglob("*") if p.is_file()
    }
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if "/done/" not in name and not name.endswith("provenance")
    }


def records(run):
    """Return what the done records say was written."""
    return {
        (stage.output, done.key): (dict(done.objects), done.blank, done.lineage)
        for stage in run.recipe.stages
        for done in run.done_records(stage)
    }


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """Files and records of a run that nothing happened to, and how often it wrote."""
    found = {}

    def result(name):
        if name not in found:
            root = tmp_path_factory.mktemp("undisturbed")
            with pytest.MonkeyPatch.context() as patch:
                writes = Writes(patch)
                run = finished(EXAMPLES[name].recipe(CHUNK, world), root)
            found[name] = contents(root), records(run), writes.n
        return found[name]

    return result


class Writes:
    """Counts the objects that are put into a folder, and dies at one of them."""

    def __init__(self, patch, dies_at=None, after=False):
        self.n = 0
        put = LocalFolder.put

        def counted(folder, *args, **options):
            self.n += 1
            if self.n == dies_at and not after:
                raise KeyboardInterrupt
            put(folder, *args, **options)
            if self.n == dies_at:
                raise KeyboardInterrupt

        patch.setattr(LocalFolder, "put", counted)


@pytest.mark.parametrize("name", EXAMPLES)
def test_second_run_writes_nothing(name, world, tmp_path):
    recipe = EXAMPLES[name].recipe(CHUNK, world)
    finished(recipe, tmp_path)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    before = {p: p.stat().st_mtime_ns for p in files if p.parent.name != "runs"}
    frozen = (tmp_path / "runs" / "example.json").read_bytes()
    run = finished(recipe, tmp_path)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(files)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (tmp_path / "runs" / "example.json").read_bytes() == frozen
    for stage in run.recipe.stages:
        for wave in stage.plan():
            assert {run.execute(stage, key) for key in wave} == {"skipped"}


@pytest.mark.parametrize("part", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("name", EXAMPLES)
def test_killed_at_any_write_and_run_again(
    name, part, undisturbed, world, tmp_path, monkeypatch
):
    """Before the object is there or after it; the rerun gives the same, byte for byte."""
    files, done, n = undisturbed(name)
    at = max(1, round(part * n))
    recipe = EXAMPLES[name].recipe(CHUNK, world)
    with monkeypatch.context() as patch:
        writes = Writes(patch, dies_at=at, after=part > 0.5)
        with pytest.raises(KeyboardInterrupt):
            finished(recipe, tmp_path)
        assert writes.n >= at
    if part < 1:
        assert contents(tmp_path) != files
    run = finished(recipe, tmp_path)
    assert contents(tmp_path) == files
    assert records(run) == done


def test_resuming_does_only_what_was_left(world, tmp_path, monkeypatch):
    recipe = EXAMPLES["relabel"].recipe(CHUNK, world)
    with monkeypatch.context() as patch:
        Writes(patch, dies_at=40)
        with pytest.raises(KeyboardInterrupt):
            finished(recipe, tmp_path)
    done = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("done/*.json")}
    assert len(done) > 5
    finished(recipe, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in done} == done


CHAINS = [
    "basin_graph",
    "supervoxel_table",
    "relabel",
    "agglomeration",
    "segment_table",
    "relabel to segments",
    "downsample",
    "mesh_fragments of a mip",
    "meshes",
    "skeletons",
    "section_poses",
    "relaxation",
    "fields",
    "warp",
    "warp closed by hand",
    "segmentation_masks",
    "seam",
    "seam_fields",
    "joined",
    "component_graph",
    "component_table",
    "component_extents",
    "components",
    "contact_partners",
    "net_partners",
    "synapse_segments",
    "synapses",
    "connectome",
    "synapse_cells",
]


def test_chains_are_all_examples_that_read_what_another_stage_writes(world):
    upstream = {
        name
        for name, example in EXAMPLES.items()
        for recipe in [example.recipe(CHUNK, world)]
        if recipe.upstream(recipe.stages[-1])
    }
    alike = {
        "downsample ids",
        "meshes legacy",
        "affinities of a mip",
        "relabel masked",
        "components by faces",
        "fields of a second pass",
        "net_partners by contact",
        # Its first wave reads what the last one but one wrote.
        "annotations",
    }
    assert set(CHAINS) | alike == upstream


@pytest.mark.parametrize("name", CHAINS)
def test_nothing_is_read_before_it_was_written(name, world, tmp_path):
    """The first task fails before the stage upstream ran, and tells what to run."""
    run = Run.start(EXAMPLES[name].recipe(CHUNK, world), str(tmp_path))
    stage = run.recipe.stages[-1]
    key = next(iter(stage.plan()[0]))
    with pytest.raises(MissingInputError, match=r"never written.*run .*stage"):
        run.execute(stage, key)
    assert run.done_record(stage, key) is None
    assert not list(tmp_path.rglob("done"))


@pytest.mark.parametrize("name", CHAINS)
def test_one_task_upstream_that_is_missing_is_noticed(name, world, tmp_path):
    """All but one task of the stage upstream is not enough for every task."""
    run = Run.start(EXAMPLES[name].recipe(CHUNK, world), str(tmp_path))
    stages = run.recipe.stages
    stage = stages[-1]
    direct = run.recipe.upstream(stage)[-1]
    for earlier in stages[: stages.index(direct)]:
        run_to_end(run, serial, only=earlier.output, quiet=True)
    # Of a pyramid only the first mip is read.
    waves = direct.plan()[:1] if direct.name == "downsample" else direct.plan()
    keys = [key for wave in waves for key in wave]
    for key in keys[:-1]:
        run.execute(direct, key)
    refused = []
    for key in stage.plan()[0]:
        try:
            run.execute(stage, key)
        except MissingInputError:
            refused.append(key)
    assert refused
    run.execute(direct, keys[-1])
    for key in refused:
        assert run.execute(stage, key) in ("done", "blank")


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_volume_of_nothing_runs_to_the_end(name, tmp_path):
    blank = {
        layer: np.zeros(SHAPE.astuple(), dtype)
        for layer, dtype in [("raw", "uint16"), ("image", "uint8"), ("labels", "uint64")]
    }
    blank["parts"] = blank["labels"]
    for layer in ("classes", "mask", "jolted", "tears"):
        blank[layer] = blank["image"]
    blank["twofold"] = np.zeros((*SHAPE, 2), np.uint8)
    for layer in ("bent", "bent_again"):
        blank[layer] = np.zeros((*SHAPE, 3), np.float32)
    nowhere = alignment.laid(SECTIONS, 0.0)
    for layer in ("laid", "laid_again"):
        blank[layer] = {**nowhere, "placed": nowhere["placed"] * 0}
    blank["affinities"] = np.zeros((*SHAPE, 3), np.float32)
    blank["ties"] = np.zeros((*SHAPE, 3), np.uint8)
    models = make_model(tmp_path / "tiny"), make_model(tmp_path / "two", PARTNERS_TOML)
    world = World.of(blank, tmp_path / "world", *map(str, models))
    example = EXAMPLES[name]
    run = finished(example.recipe(CHUNK, world, joined=True), tmp_path / "root")
    for stage in run.recipe.stages:
        for done in run.done_records(stage):
            assert done.blank == isinstance(
                run.specs[stage.output],
                VolumeSpec | MeshesSpec | SkeletonsSpec | AnnotationsSpec,
            )


def test_a_node_waits_for_its_children(world, tmp_path):
    run = Run.start(EXAMPLES["overlaps"].recipe(CHUNK, world), str(tmp_path))
    stage = run.recipe.stages[-1]
    leaves, nodes, *_ = stage.plan()
    first, *others = leaves
    for key in others:
        run.execute(stage, key)
    with pytest.raises(MissingInputError, match=str(first)):
        run.execute(stage, next(iter(nodes)))


def test_a_node_waits_for_the_answers_of_its_parent(world, tmp_path):
    run = Run.start(EXAMPLES["segment_table"].recipe(CHUNK, world), str(tmp_path))
    *before, stage = run.recipe.stages
    for earlier in before:
        run_to_end(run, serial, only=earlier.output, quiet=True)
    top, children, *_ = stage.plan()
    (parent,) = top
    first = next(iter(children))
    with pytest.raises(MissingInputError, match=str(parent)):
        run.execute(stage, first)
    run.execute(stage, parent)
    assert run.execute(stage, first) == "done"
