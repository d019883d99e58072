"""A task is begun as soon as what it reads is there, and never before, for every stage."""

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, TaskError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.runtime.dependencies import Dependencies
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.frontier import Frontier
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec
from pipeline.stages import STAGES
from pipeline.stages.base import ChunkStage, Layer

from .examples import EXAMPLES, VOXEL, parse, segments, supervoxels
from .test_running import contents, records

CHUNK = Vec3(23, 19, 9)


def in_partitions(chunk, world, rounds=2):
    """The way to segments, with rounds of merging in partitions above the chunks."""
    entries = [
        *supervoxels(chunk, "affinities"),
        *segments(chunk, "supervoxels", "affinities"),
    ]
    bounded = {"node_limit_gb": 3e-4, "rounds": rounds}
    return parse(
        [
            {**e, **bounded} if "node_limit_gb" in STAGES[e["use"]].model_fields else e
            for e in entries
        ],
        chunk,
        world,
    )


RECIPES = {
    **{name: example.recipe for name, example in EXAMPLES.items()},
    "in partitions": in_partitions,
}


def key_at(known, wave, place):
    return ChunkKey(known.waves[wave].level, *place)


def everyone(known, wave):
    return Bbox.of_shape(known.extents[wave]).positions()


def needs(known, wave, place):
    """The tasks that one needs, one by one."""
    return {
        (writer, at)
        for writer, box in known.needs(wave, key_at(known, wave, place))
        for at in box.positions()
    }


@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=4, deadline=None)
@given(
    chunk=st.builds(Vec3, st.integers(4, 30), st.integers(4, 30), st.integers(3, 17)),
    data=st.data(),
)
def test_who_waits_for_a_task_are_those_that_need_it(name, world, chunk, data):
    known = Dependencies(RECIPES[name](chunk, world).stages)
    waits = defaultdict(set)
    for wave in range(len(known.waves)):
        assert known.is_regular(wave)
        for place in everyone(known, wave):
            for needed in needs(known, wave, place):
                waits[needed].add((wave, place))
    for wave in range(len(known.waves)):
        extent = known.extents[wave]
        corner = [data.draw(st.integers(0, n - 1)) for n in extent]
        far = [
            data.draw(st.integers(c + 1, n)) for c, n in zip(corner, extent, strict=True)
        ]
        boxes = [Bbox(at, at + 1) for at in everyone(known, wave)]
        for box in [*boxes, Bbox(Vec3(*corner), Vec3(*far))]:
            found = {
                (reader, at)
                for reader, readers in known.dependants(wave, box)
                for at in readers.positions()
            }
            expected = set().union(*(waits[wave, at] for at in box.positions()))
            assert found == expected


@pytest.mark.parametrize("name", RECIPES)
def test_ready_is_what_needs_nothing_that_is_not_done(name, world, tmp_path):
    """Whatever the order in which tasks end; nothing is computed."""
    run = Run.start(RECIPES[name](CHUNK, world), str(tmp_path))
    frontier, rng = Frontier(run, run.recipe.stages), random.Random(name)
    known, under_way, done = frontier.dependencies, [], set()
    total = sum(extent.product for extent in known.extents)
    while len(done) < total:
        while (job := frontier.take()) is not None:
            assert needs(known, job.wave, job.key.position) <= done
            under_way.append(job)
        assert under_way, f"{len(done)} of {total} are done and none is ready"
        taken = {(job.wave, job.key.position) for job in under_way} | done
        for wave in range(len(known.waves)):
            for place in everyone(known, wave):
                if (wave, place) not in taken:
                    assert not needs(known, wave, place) <= done
        # Some at a time, as a driver hears of them.
        rng.shuffle(under_way)
        by_wave = defaultdict(list)
        for _ in range(rng.randrange(1, len(under_way) + 1)):
            job = under_way.pop()
            by_wave[job.wave].append(job.key)
            done.add((job.wave, job.key.position))
        for wave, keys in by_wave.items():
            assert frontier.saw(wave, keys, "done") == len(keys)
            assert frontier.saw(wave, keys, "done") == 0, "a second time is no news"
    assert frontier.is_over()
    assert not frontier.held()


class AnyOrder:
    """Does what is ready in an order drawn by chance, and notes it."""

    def __init__(self, seed, stop_after=None):
        self.order = []
        self._rng = random.Random(seed)
        self._stop_after = stop_after

    def __call__(self, run, frontier):
        ready = []
        while True:
            while (job := frontier.take()) is not None:
                ready.append(job)
            if not ready:
                assert frontier.is_over()
                return
            job = ready.pop(self._rng.randrange(len(ready)))
            if len(self.order) == self._stop_after:
                raise KeyboardInterrupt
            self.order.append(f"{job.stage.output}/{job.key}")
            frontier.ended(job, run.attempt(job.stage, job.key, counted=False))


CHAINS = ["segment_table", "downsample", "meshes", "in partitions", "relabel masked"]


@pytest.mark.parametrize("name", CHAINS)
def test_bytes_are_those_of_a_run_with_barriers(name, world, tmp_path):
    recipe = RECIPES[name](CHUNK, world)
    if name == "in partitions":
        recipe = in_partitions(CHUNK, world, rounds=12)
    barriers = Run.start(recipe, str(tmp_path / "barriers"))
    for stage in recipe.stages:
        for wave in stage.plan():
            for key in wave:
                barriers.execute(barriers.recipe.stage(stage.output), key)
    orders = []
    for seed in range(2):
        root = tmp_path / str(seed)
        run, does = Run.start(recipe, str(root)), AnyOrder(seed)
        run_to_end(run, does, quiet=True)
        assert contents(root) == contents(tmp_path / "barriers")
        assert records(run) == records(barriers)
        orders.append(does.order)
    assert orders[0] != orders[1]
    # A stage begins before the one that it reads from has ended; but a shard reads all.
    layers = [name.rpartition("/")[0] for name in orders[0]]
    overlaps = [
        layers.index(stage.output) < len(layers) - 1 - layers[::-1].index(source.output)
        for stage in recipe.stages
        for source in recipe.upstream(stage)
    ]
    assert any(overlaps) == (name != "meshes")


def test_a_run_that_was_killed_goes_on_from_its_records(world, tmp_path):
    recipe = RECIPES["relabel to segments"](CHUNK, world)
    whole = Run.start(recipe, str(tmp_path / "whole"))
    run_to_end(whole, serial, quiet=True)
    run, order = Run.start(recipe, str(tmp_path / "root")), []
    for seed in range(3):
        does = AnyOrder(seed, stop_after=9)
        with pytest.raises(KeyboardInterrupt):
            run_to_end(run, does, quiet=True)
        order += does.order
    does = AnyOrder(9)
    run_to_end(run, does, quiet=True)
    assert len({*order, *does.order}) == len([*order, *does.order]), "none was done twice"
    assert contents(tmp_path / "root") == contents(tmp_path / "whole")


def test_no_task_is_lost_where_its_turn_was_missed(world, tmp_path, monkeypatch):
    """The sweep finds what nobody was told of."""
    monkeypatch.setattr(Frontier, "_look_behind", lambda *_: None)
    recipe = RECIPES["meshes"](CHUNK, world)
    rows = run_to_end(Run.start(recipe, str(tmp_path)), serial, quiet=True)
    assert [r.tasks for r in rows] == [sum(map(len, s.plan())) for s in recipe.stages]


class Across(ChunkStage):
    """Reads the chunk at the other end of the diagonal: no box that goes with its own."""

    name = "across"
    image: Layer

    def reads(self, task):
        far = self.grid.counts() - 1 - task.key.position
        return {"image": Region(self.image, self.task(ChunkKey(0, *far)).box)}

    def process(self, task, image):
        return np.zeros(task.box.shape.astuple(), np.uint8, order="F")

    def describe(self, specs):
        return VolumeSpec(
            dtype="uint8",
            bounds=self.bounds,
            voxel_size_nm=VOXEL,
            kind_of_values="image",
            storage_chunk=self.chunk,
        )


def test_tables_that_do_not_hold_are_not_used(world, tmp_path, monkeypatch):
    monkeypatch.setitem(STAGES, "across", Across)
    entries = EXAMPLES["ingest"].entries(CHUNK, world)
    recipe = parse(
        [*entries, {"use": "across", "image": "copy", "output": "far"}], CHUNK, world
    )
    known = Dependencies(recipe.stages)
    assert not known.is_regular(known.wave("far", 0))
    does = AnyOrder(1)
    run_to_end(Run.start(recipe, str(tmp_path)), does, quiet=True)
    last = known.extents[0] - 1
    for place in Bbox.of_shape(known.extents[0]).positions():
        mine, read = (f"0_{p.x}_{p.y}_{p.z}" for p in (place, last - place))
        assert does.order.index(f"copy/{read}") < does.order.index(f"far/{mine}")


def test_a_task_that_fails_holds_back_its_cone_and_no_more(world, tmp_path, monkeypatch):
    recipe = RECIPES["relabel to segments"](CHUNK, world)
    run = Run.start(recipe, str(tmp_path))
    known, poison = Dependencies(run.recipe.stages), ChunkKey(0, 1, 0, 1)
    process = STAGES["region_graph"].process

    def fails(stage, task, **inputs):
        if task.key == poison:
            raise DataError("a vessel where none should be")
        return process(stage, task, **inputs)

    monkeypatch.setattr(STAGES["region_graph"], "process", fails)
    with pytest.raises(TaskError) as raised:
        run_to_end(run, serial, quiet=True)
    cone = {(known.wave("region_graph", 0), poison.position)}
    every = [(w, at) for w in range(len(known.waves)) for at in everyone(known, w)]
    for task in every:
        if needs(known, *task) & cone:
            cone.add(task)
    done = {
        (known.wave(s.output, k.level), k.position)
        for s in run.recipe.stages
        for k in run.done_keys(s)
    }
    assert done == {*every} - cone
    said = str(raised.value)
    assert f"1 of 8 tasks of region_graph failed, first {poison}: a vessel" in said
    assert (
        "held back: 1 of agglomeration 0 (first 0_1_0_1, by region_graph/0_1_0_1)" in said
    )
    assert "1 of agglomeration 1 (first 1_0_0_0, by region_graph/0_1_0_1)" in said
    assert "8 of segments (first 0_0_0_0, by region_graph/0_1_0_1)" in said

    monkeypatch.setattr(STAGES["region_graph"], "process", process)
    run.retry()
    run_to_end(run, serial, quiet=True)
    assert len(run.done_keys(run.recipe.stage("segments"))) == 8
