"""What a stage says of itself is true, for every stage in the table."""

import itertools
import json
from collections import Counter
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import DataError, TaskError
from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.agglomerate import Constraints
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.run import Run, cut_halo
from pipeline.specs import (
    Meshes,
    MeshesSpec,
    Partitioned,
    Record,
    Records,
    RecordsSpec,
    Region,
    Sharding,
    Skeletons,
    SkeletonsSpec,
    VolumeSpec,
)
from pipeline.stages import STAGES
from pipeline.stages.base import OctreeStage
from pipeline.stages.closures import PointPair
from pipeline.stages.octree import DownSweep, UpSweep
from pipeline.stages.shards import ShardStage

from .examples import BOUNDS, EXAMPLES, finished
from .same import assert_same

CHUNK = Vec3(19, 14, 9)
OWN_SCALE = {
    *("affinities", "flows", "relaxation", "fields", "warp"),
    *("misalignments", "segmentation_masks"),
    *("seam_shifts", "seam", "seam_fields", "joined"),
}
"""Stages whose examples have a finest mip, or bounds, of their own."""


@pytest.fixture(params=EXAMPLES)
def example(request):
    return EXAMPLES[request.param]


@pytest.fixture
def stage(example, world):
    return example.stage(CHUNK, world)


@pytest.fixture
def planned(example, world, tmp_path):
    """A run that was not started."""
    return Run.plan(example.recipe(CHUNK, world), str(tmp_path))


@pytest.fixture(scope="session")
def finished_runs(world, tmp_path_factory):
    """A finished run of every example, made when first asked for."""
    runs: dict[str, Run] = {}

    def run(name: str) -> Run:
        if name not in runs:
            root = tmp_path_factory.mktemp("finished")
            runs[name] = finished(EXAMPLES[name].recipe(CHUNK, world), root)
        return runs[name]

    return run


def tasks(stage):
    """List every task of every wave."""
    return [stage.task(key) for wave in stage.plan() for key in wave]


# -- the table ------------------------------------------------------------------------


def test_every_stage_has_an_example(world):
    assert {e.stage(CHUNK, world).name for e in EXAMPLES.values()} == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_the_table_knows_stages_by_their_name(name):
    assert STAGES[name].name == name


# -- configuration --------------------------------------------------------------------


def test_json_there_and_back(stage):
    document = json.loads(json.dumps(stage.to_json()))
    again = STAGES[document.pop("use")].model_validate(document)
    assert again == stage
    assert again.digest == stage.digest
    assert again.to_json() == stage.to_json()


def test_digest_is_that_of_every_field(stage):
    """Alone where something is does not count."""
    for name, info in type(stage).model_fields.items():
        other = changed(stage, name, info.annotation)
        if name in stage.places:
            assert other.digest == stage.digest, name
        else:
            assert other.digest != stage.digest, name


def changed(stage, name, annotation):
    """Return the stage with another value in one field, unchecked."""
    value = other_value(getattr(stage, name), annotation)
    fields = {k: getattr(stage, k) for k in type(stage).model_fields}
    return type(stage).model_construct(**{**fields, name: value})


def choices(annotation: Any) -> list[Any]:
    """List the words that a field may say, of all its literals."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in choices(part)]


def other_value(value: Any, annotation: Any) -> Any:
    """Return a value of the same kind that is another."""
    words = choices(annotation)
    if words:
        return next(word for word in words if word != value)
    match value:
        case bool():
            return not value
        case int() | float() | Vec3():
            return value + 1
        case str():
            return f"{value}x"
        case tuple() if isinstance(value[0], PointPair):
            return value[1:]
        case tuple():
            return (value[0] + 1, *value[1:])
        case Constraints():
            return Constraints(activation=value.activation / 2)
        case Bbox():
            return value.shifted(Vec3(0, 0, 1))
        case Sharding():
            return Sharding(shard_bits=value.shard_bits + 1)
        case None if Bbox in get_args(annotation):
            return Bbox.of_shape((1, 1, 1))
        case None:
            return 1.0 if float in get_args(annotation) else (1.0, 2.0)
    raise NotImplementedError(f"{value!r} is of a new kind; say here what differs from it")


def test_digest_survives_pinning(stage):
    """Whoever asked for the digest before the weights were fixed gets none of it after."""
    before = stage.digest
    pinned = stage.pinned()
    again = type(stage).model_validate(pinned.model_dump())
    assert pinned.digest == again.digest
    assert (pinned.digest == before) == (pinned == stage)


def test_unknown_field_is_refused(stage):
    fields = {k: v for k, v in stage.to_json().items() if k != "use"}
    with pytest.raises(ValidationError, match="treshold"):
        type(stage).model_validate({**fields, "treshold": 1})


def test_stage_is_frozen(stage):
    with pytest.raises(ValidationError):
        stage.output = "elsewhere"


def test_inputs_are_the_layers_that_are_read(stage):
    read = set()
    for task in tasks(stage):
        for item in stage.reads(task).values():
            read |= {
                r.layer for r in (item if isinstance(item, list | Records) else [item])
            }
    # A node of an octree reads its children.
    assert read - {stage.output} == set(stage.inputs.values())


# -- the plan -------------------------------------------------------------------------


def test_keys_are_planned_once(stage):
    for wave in stage.plan():
        keys = list(wave)
        assert len(wave) == len(keys) == len(set(keys))
        assert {key.level for key in keys} == {wave.level}
    targets = Counter(str(stage.target(task)) for task in tasks(stage))
    assert set(targets.values()) == {1}


def test_plan_covers_the_bounds_once(planned):
    stage = planned.recipe.stages[-1]
    if isinstance(stage, OctreeStage | UpSweep | DownSweep):
        (chunks,) = [wave for wave in stage.plan() if wave.level == 0]
        covers_once([stage.task(key).box for key in chunks], stage.bounds)
        assert_octree_is_whole(stage)
    elif isinstance(stage, ShardStage):
        assert_every_piece_is_read_once(stage, planned)
    else:
        for wave in stage.plan():
            some = stage.task(next(iter(wave)))
            target = stage.target(some)
            bounds = stage.grid_at(wave.level).bounds
            if isinstance(target, Region):
                assert bounds == planned.specs[target.layer].bounds_at(target.mip)
            covers_once([stage.task(key).box for key in wave], bounds)


def test_pyramid_covers_every_coarser_mip(planned):
    for stage in planned.recipe.stages:
        if stage.name == "downsample":
            mips = {stage.target(task).mip for task in tasks(stage)}
            assert mips == set(range(1, len(planned.specs[stage.layer].factors)))


def covers_once(boxes, bounds):
    """Disjoint boxes within the bounds, of the same volume altogether."""
    assert all(bounds.contains(box) and not box.is_empty for box in boxes)
    assert sum(box.volume for box in boxes) == bounds.volume
    for a, b in itertools.combinations(boxes, 2):
        assert a.intersection(b).is_empty, f"{a} and {b} overlap"


def assert_octree_is_whole(stage):
    """Children tile their parent, every node has one, and there is one at the top."""
    waves = sorted(stage.plan(), key=lambda wave: wave.level)
    assert stage.plan() in (waves, waves[::-1])
    assert len(waves[-1]) == 1
    for below, wave in itertools.pairwise(waves):
        children = [c for key in wave for c in key.children(stage.grid)]
        assert sorted(children) == sorted(below)
        for key in wave:
            boxes = [stage.task(c).box for c in key.children(stage.grid)]
            covers_once(boxes, stage.task(key).box)


def assert_every_piece_is_read_once(stage, run):
    """Every shard of every chunk of the stage before it."""
    read = Counter(
        (record.key, record.part)
        for task in tasks(stage)
        for record in stage.reads(task)["fragments"]
    )
    fragments = run.recipe.stage(stage.fragments)
    shards = [str(n) for n in range(2**fragments.sharding.shard_bits)]
    keys = [str(key) for key in fragments.plan()[0]]
    assert read == Counter(itertools.product(keys, shards))


def test_tasks_within_a_box_are_those_that_touch_it(stage):
    bounds = stage.bounds if stage.name in OWN_SCALE else BOUNDS
    one = Bbox(bounds.stop - 1, bounds.stop)
    for wave in stage.plan():
        every, touching = list(wave), list(wave.keys(within=one))
        assert list(wave.keys(within=bounds)) == every
        assert every[-1] in touching
        assert len(touching) == 1 or stage.grid_at(wave.level) != stage.grid


def test_reads_stay_in_bounds(planned):
    stage = planned.recipe.stages[-1]
    for task in tasks(stage):
        for read in stage.reads(task).values():
            for item in read if isinstance(read, list | Records) else [read]:
                assert_is_there(item, planned)


def assert_is_there(read, run):
    if isinstance(read, Region):
        spec = run.specs[read.layer]
        assert 0 <= read.mip < len(spec.factors)
        assert spec.bounds_at(read.mip).contains(read.box), read
    elif read.layer in run.recipe.external:
        assert run.store.read(read)
    else:
        writer = run.recipe.stage(read.layer)
        records = {writer.target(task).key for task in tasks(writer)}
        assert read.key in records


# -- the function ---------------------------------------------------------------------


def inputs_of(run, stage, task):
    """Read what a task reads, every array read-only."""
    inputs = {name: run.store.read(read) for name, read in stage.reads(task).items()}
    for array in arrays(inputs):
        array.setflags(write=False)
    return inputs


def arrays(value):
    """List the arrays within what a task reads or returns."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, Partitioned):
        value = value.parts
    values = value.values() if isinstance(value, dict) else value
    return [a for v in values if not np.isscalar(v) for a in arrays(v)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_inputs_are_untouched_and_the_same_inputs_give_the_same(name, finished_runs):
    run = finished_runs(name)
    stage = run.recipe.stages[-1]
    for task in tasks(stage):
        inputs = inputs_of(run, stage, task)
        before = [array.copy() for array in arrays(inputs)]
        first = stage.process(task, **inputs)
        assert_same(before, arrays(inputs))
        if task.key == tasks(stage)[0].key:
            assert_same(plain(first), plain(stage.process(task, **inputs)))


def plain(value):
    """Return a value as mappings, lists and arrays."""
    match value:
        case Partitioned():
            return dict(value.parts)
        case Meshes():
            return {
                segment: [(m.vertices, m.faces) for m in levels]
                for segment, levels in value.by_id.items()
            }
        case Skeletons():
            return {
                segment: (s.vertices, s.edges, s.radius)
                for segment, s in value.by_id.items()
            }
    return value


def test_regions_arrive_read_only(finished_runs):
    run = finished_runs("region_graph")
    stage = run.recipe.stages[-1]
    task = tasks(stage)[0]
    for read in stage.reads(task).values():
        assert not run.store.read(read).flags.writeable


@pytest.mark.parametrize("name", EXAMPLES)
def test_output_is_as_declared(name, finished_runs):
    run = finished_runs(name)
    stage = run.recipe.stages[-1]
    for task in tasks(stage):
        value = stage.process(task, **inputs_of(run, stage, task))
        target = stage.target(task)
        spec = run.specs[target.layer]
        value = cut_halo(stage, task, target, spec, value)
        match spec:
            case VolumeSpec():
                channels = (spec.channels,) if spec.channels > 1 else ()
                assert value.dtype == np.dtype(spec.dtype)
                assert value.shape == (*task.box.shape, *channels)
            case RecordsSpec():
                assert isinstance(value, dict | Partitioned)
            case MeshesSpec():
                assert isinstance(value, Meshes)
            case SkeletonsSpec():
                assert isinstance(value, Skeletons)
        assert isinstance(target, Region if isinstance(spec, VolumeSpec) else Record)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_not_vacuous(name, finished_runs):
    """Every example has several chunks, and something in them."""
    run = finished_runs(name)
    stage = run.recipe.stages[-1]
    # Sections are placed over the whole stack, and stacks joined, as one task.
    at_once = {"section_poses", "joined_poses", "seam"}
    assert len(list(stage.grid)) > 4 or stage.name in at_once
    assert any(not done.blank and done.objects for done in run.done_records(stage))


# -- what a stage returns is checked --------------------------------------------------


def with_process(stage, wrong):
    """Return the stage, with a function that spoils what it returns."""

    class Spoilt(type(stage)):
        def process(self, task, *args, **inputs):
            return wrong(super().process(task, *args, **inputs))

    return Spoilt.model_validate(stage.model_dump())


def spoilt_run(example, world, root, wrong):
    recipe = example.recipe(CHUNK, world)
    *before, stage = recipe.stages
    spoilt = with_process(stage, wrong)
    run = Run.start(Recipe("example", (*before, spoilt), recipe.layers), str(root))
    for upstream in before:
        run_to_end(run, serial, only=upstream.output, quiet=True)
    return run, run.recipe.stages[-1]


def one_more(value):
    return np.pad(value, [(0, 1)] + [(0, 0)] * (value.ndim - 1))


def as_float64(value):
    return value.astype(np.float64)


VOLUMES = ["ingest", "affinities", "basins", "relabel to segments", "downsample"]


@pytest.mark.parametrize("wrong", [one_more, as_float64])
@pytest.mark.parametrize("name", VOLUMES)
def test_another_shape_or_dtype_is_refused(name, wrong, world, tmp_path):
    run, stage = spoilt_run(EXAMPLES[name], world, tmp_path, wrong)
    key = next(iter(stage.plan()[0]))
    with pytest.raises(DataError, match=f"{stage.name}: {key} is .* takes"):
        run.execute(stage, key)
    assert run.done_record(stage, key) is None
    with pytest.raises(TaskError, match=str(len(stage.plan()[0]))):
        run_to_end(run, serial, only=stage.output, quiet=True)


OTHERS = [
    "basins",
    "basin_graph",
    "supervoxel_table",
    "agglomeration",
    "mesh_fragments",
    "meshes",
    "skeletons",
]


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_value_is_refused(name, world, tmp_path):
    other = {"a": np.zeros(3)} if name == "basins" else np.zeros((2, 2, 2), np.uint8)
    run, stage = spoilt_run(EXAMPLES[name], world, tmp_path, lambda value: other)
    key = next(iter(stage.plan()[0]))
    with pytest.raises(DataError, match=type(other).__name__):
        run.execute(stage, key)
    assert run.done_record(stage, key) is None
