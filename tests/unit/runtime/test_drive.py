"""Which tasks a box of voxels asks for."""

import pytest

from pipeline.geometry import Bbox, Vec3
from pipeline.layers.store import Store
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec

RECIPE = {
    "name": "two-scales",
    "layers": {"affinities": "AFFINITIES", "raw": "RAW"},
    "stage": [
        {
            "use": "ingest",
            "source": "raw",
            "output": "image",
            "bounds": {"start": [0, 0, 0], "stop": [64, 64, 8]},
            "chunk": [32, 32, 8],
            "storage_chunk": [32, 32, 8],
            "voxel_size_nm": [6, 6, 30],
        },
        {
            "use": "basins",
            "affinities": "affinities",
            "output": "basins",
            "bounds": {"start": [0, 0, 0], "stop": [32, 32, 8]},
            "chunk": [16, 16, 8],
            "storage_chunk": [16, 16, 8],
        },
        {
            "use": "basin_graph",
            "basins": "basins",
            "affinities": "affinities",
            "output": "basin_graph",
            "bounds": {"start": [0, 0, 0], "stop": [32, 32, 8]},
            "chunk": [16, 16, 8],
        },
        {
            "use": "supervoxel_table",
            "decisions": "basin_graph",
            "output": "table",
            "bounds": {"start": [0, 0, 0], "stop": [32, 32, 8]},
            "chunk": [16, 16, 8],
        },
    ],
}


@pytest.fixture
def run(tmp_path):
    def given(name, channels, size, voxel_nm):
        spec = VolumeSpec(
            dtype="uint8",
            channels=channels,
            bounds=Bbox.of_shape(Vec3(size, size, 8)),
            voxel_size_nm=voxel_nm,
            kind_of_values="image",
        )
        Store(str(tmp_path / "given")).create(name, spec)
        return str(tmp_path / "given" / name)

    layers = {
        "raw": given("raw", 1, 64, (6.0, 6.0, 30.0)),
        "affinities": given("affinities", 3, 32, (12.0, 12.0, 30.0)),
    }
    return Run.start(Recipe.parse({**RECIPE, "layers": layers}), str(tmp_path / "root"))


def test_a_box_counts_in_the_smallest_voxels(run):
    box = Bbox(Vec3(40, 40, 0), Vec3(50, 50, 8))
    does = Noted()
    run_to_end(run, does, only="image", within=box, quiet=True)
    run_to_end(run, does, only="basins", within=box, quiet=True)
    assert does.asked == ["image/0_1_1_0", "basins/0_1_1_0"]


def test_a_table_counts_as_the_volumes_that_it_is_made_from(run):
    run_to_end(run, serial, quiet=True)
    does = Noted()
    # Beyond (32, 32): outside the bounds of the tables, if taken in their voxels.
    run_to_end(run, does, within=Bbox(Vec3(60, 60, 0), Vec3(64, 64, 1)), quiet=True)
    # Whom most wait for goes first.
    assert does.asked == [
        "basins/0_1_1_0",
        "basin_graph/0_1_1_0",
        "basin_graph/1_0_0_0",
        "table/1_0_0_0",
        "image/0_1_1_0",
        "table/0_1_1_0",
    ]
    assert run.store.read(Region("basins", Bbox.of_shape(Vec3(32, 32, 8)))).sum() == 0


class Noted:
    """Does tasks one after another, and notes which."""

    def __init__(self):
        self.asked = []

    def __call__(self, run, frontier):
        while (job := frontier.take()) is not None:
            self.asked.append(f"{job.stage.output}/{job.key}")
            frontier.ended(job, run.execute(job.stage, job.key))


def test_stages_overlap_and_the_summary_says_how_long_each_took(run):
    rows = {row.output: row for row in run_to_end(run, serial, quiet=True)}
    assert {name: row.tasks for name, row in rows.items()} == {
        "image": 4,
        "basins": 4,
        "basin_graph": 5,
        "table": 5,
    }
    assert all(row.wall_s > 0 for row in rows.values())
    again = run_to_end(run, serial, quiet=True)
    assert {row.wall_s for row in again} == {0.0}, "nothing was left to do"
