"""One chunk, 512 chunks from a queue, and partitions with a low limit: the same bytes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.agglomerate import Refusals
from pipeline.layers.store import Store
from pipeline.phantom import Phantom
from pipeline.recipe import Recipe
from pipeline.runtime.run import Run
from pipeline.runtime.sweep import history_of
from pipeline.specs import Record, Region, VolumeSpec
from pipeline.stages.agglomeration import REFUSALS
from pipeline.stages.octree import STATE

SHAPE = Vec3(128, 128, 64)
VOXEL_NM = (24.0, 24.0, 40.0)
TIMEOUT_S = 900

RECIPE = """
name = "{name}"

[grid]
bounds = {{ start = [0, 0, 0], stop = [128, 128, 64] }}
chunk = {chunk}
{limit}

[layers]
affinities = "{affinities}"

[[stage]]
use = "basins"
affinities = "affinities"
output = "basins"
size_threshold = 60
dust = 20
storage_chunk = {storage}

[[stage]]
use = "basin_graph"
basins = "basins"
affinities = "affinities"
output = "basin_graph"
size_threshold = 60
dust = 20
{basin_limit}

[[stage]]
use = "supervoxel_table"
decisions = "basin_graph"
output = "supervoxel_table"
{basin_limit}

[[stage]]
use = "relabel"
labels = "basins"
table = "supervoxel_table"
output = "supervoxels"
storage_chunk = {storage}

[[stage]]
use = "region_graph"
supervoxels = "supervoxels"
affinities = "affinities"
output = "region_graph"

[[stage]]
use = "agglomeration"
graph = "region_graph"
output = "agglomeration"
constraints = {{ both_members = 4, one_member = 8 }}

[[stage]]
use = "segment_table"
decisions = "agglomeration"
output = "segment_table"

[[stage]]
use = "relabel"
labels = "supervoxels"
table = "segment_table"
output = "segmentation"
storage_chunk = {storage}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Affinities of the phantom."""
    folder = tmp_path_factory.mktemp("many")
    box = Bbox.of_shape(SHAPE)
    phantom = Phantom(seed=11, voxel_size_nm=VOXEL_NM)
    array = phantom.affinities(
        box.start.astuple(), box.stop.astuple(), blur=0.8, noise=0.3, dtype="uint8"
    )
    store = Store(str(folder / "volumes"))
    spec = VolumeSpec(
        dtype="uint8",
        channels=3,
        bounds=box,
        voxel_size_nm=VOXEL_NM,
        kind_of_values="image",
        storage_chunk=Vec3(16, 16, 8),
    )
    store.create("affinities", spec)
    store.write(Region("affinities", box), spec, np.asfortranarray(array))
    return folder


def recipe(folder: Path, name: str, chunk: list[int], limit: str = "") -> Path:
    path = folder / f"{name}.toml"
    text = RECIPE.format(
        name=name,
        chunk=chunk,
        storage=[16, 16, 8],
        limit=limit,
        # Basins leave more than segments do; this keeps partitions few.
        basin_limit="node_limit_gb = 0.01" if limit else "",
        affinities=folder / "volumes" / "affinities",
    )
    path.write_text(text)
    return path


def em(*arguments) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("em")), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def succeed(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output


def alone(folder: Path, name: str, chunk: list[int], limit: str = "") -> Path:
    root = folder / name
    succeed(em("run", recipe(folder, name, chunk, limit), "--root", root, "--quiet"))
    return root


@pytest.fixture(scope="module")
def whole(folder):
    """The run of a single chunk."""
    return alone(folder, "whole", [128, 128, 64])


def result(root: Path) -> dict[str, np.ndarray]:
    """Return what no chunking may change."""
    run = Run.open(str(root), root.name)
    stage = run.recipe.stage("agglomeration")
    history = history_of(run, stage)
    tables = [
        run.store.read(Record(stage.output, str(key), REFUSALS))
        for wave in stage.plan()
        for key in wave
    ]
    refused = [Refusals.from_table(t) for t in tables if t]
    rows = np.concatenate([np.c_[r.names, r.affinity, r.area, r.key] for r in refused])
    box = Bbox.of_shape(SHAPE)
    return {
        "supervoxels": run.store.read(Region("supervoxels", box)),
        "segmentation": run.store.read(Region("segmentation", box)),
        "refusals": rows[np.lexsort(rows.T)],
        **{c: getattr(history, c) for c in ("loser", "winner", "affinity", "area")},
    }


def assert_same(ours: Path, theirs: Path) -> None:
    a, b = result(ours), result(theirs)
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


def test_the_phantom_has_something_to_decide(whole):
    found = result(whole)
    assert len(np.unique(found["supervoxels"])) > 80
    assert len(np.unique(found["segmentation"])) > 10
    assert len(found["loser"]) > 60
    assert len(found["refusals"]) > 0


def test_partitions_give_the_same_bytes_below_their_limit(folder, whole):
    limit = "node_limit_gb = 0.002\nrounds = 16"
    root = alone(folder, "bounded", [32, 32, 16], limit)
    run = Run.open(str(root), "bounded")
    for output in ("basin_graph", "agglomeration"):
        stage = run.recipe.stage(output)
        assert stage.n_partitions > 1
        assert stage.top < stage.grid.height
    assert_same(root, whole)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_512_chunks_of_a_queue_give_the_same_bytes(folder, whole):
    path = recipe(folder, "queued", [16, 16, 8])
    assert Recipe.load(str(path)).stages[0].grid.counts().product == 512
    queue, root = f"fq://{folder}/queue", folder / "queued"
    # Workers tell of every task; a pipe that nobody reads would fill, and block them.
    with (folder / "workers.log").open("w") as log:
        command = [str(Path(sys.executable).with_name("em")), "work", "--queue", queue]
        workers = [subprocess.Popen(command, stdout=log, stderr=log) for _ in range(2)]
        try:
            succeed(em("run", path, "--root", root, "--queue", queue, "--quiet"))
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(timeout=60)
    assert_same(root, whole)


def test_what_waits_is_less_than_what_there_is(folder, whole):
    root = alone(folder, "chunked", [32, 32, 16])
    run = Run.open(str(root), "chunked")
    stage = run.recipe.stage("agglomeration")
    leaves = [
        run.store.read(Record("agglomeration", str(key), STATE)) for key in stage.grid
    ]
    graphs = [run.store.read(Record("region_graph", str(key))) for key in stage.grid]
    assert sum(len(t["pairs"]) for t in leaves) < sum(len(t["pairs"]) for t in graphs)
    assert_same(root, whole)
