"""Stages over the octree, and the one-task stages at its top."""

import numpy as np
import pytest

from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.basin_graph import BasinGraph
from pipeline.specs import Record, RecordsSpec, Region, VolumeSpec
from pipeline.stages.agglomeration import Agglomeration
from pipeline.stages.base import OctreeStage, root_record
from pipeline.stages.overlaps import Overlaps
from pipeline.stages.supervoxels import BasinGraphs, Basins, SupervoxelTable

GRID = {"bounds": Bbox.of_shape((10, 8, 6), Vec3(2, 0, 1)), "chunk": Vec3(4, 4, 6)}


def volume(dtype="uint64", channels=1, voxel=(8.0, 8.0, 40.0)):
    return VolumeSpec(
        dtype=dtype,
        channels=channels,
        bounds=GRID["bounds"],
        voxel_size_nm=voxel,
        kind_of_values="segmentation" if dtype == "uint64" else "image",
    )


@pytest.fixture
def overlaps():
    return Overlaps(segmentation="a", truth="b", output="o", **GRID)


def test_leaves_read_voxels_and_nodes_their_children(overlaps):
    leaf = overlaps.task(ChunkKey(0, 2, 1, 0))
    assert overlaps.reads(leaf)["truth"] == Region(
        "b", Bbox(Vec3(10, 4, 1), Vec3(12, 8, 7))
    )
    node = overlaps.task(ChunkKey(1, 1, 0, 0))
    assert overlaps.reads(node) == {
        "children": [Record("o", "0_2_0_0"), Record("o", "0_2_1_0")]
    }
    assert [len(wave) for wave in overlaps.plan()] == [6, 2, 1]
    assert overlaps.root == root_record("o", overlaps.grid) == Record("o", "2_0_0_0")


def test_only_leaves_count_voxels(overlaps):
    counted = [
        overlaps.voxels(overlaps.task(key)) for wave in overlaps.plan() for key in wave
    ]
    assert sum(counted) == GRID["bounds"].volume


def test_overlaps_count_pairs():
    stage = Overlaps(segmentation="a", truth="b", output="o", **GRID)
    a = np.array([1, 1, 2, 0], np.uint64).reshape(4, 1, 1)
    b = np.array([7, 7, 7, 8], np.uint64).reshape(4, 1, 1)
    table = stage.leaf(stage.task(ChunkKey(0, 0, 0, 0)), segmentation=a, truth=b)
    rows = set(
        zip(*(table[c].tolist() for c in ("segment", "truth", "count")), strict=True)
    )
    assert {(1, 7, 2), (2, 7, 1)} <= rows
    twice = stage.merge([table, table])
    assert twice["count"].sum() == 2 * table["count"].sum()
    assert twice["segment"].tolist() == table["segment"].tolist()


def test_overlaps_want_truth_of_the_same_voxels(overlaps):
    assert overlaps.check({"a": volume(), "b": volume()}) == []
    other = volume(voxel=(4.0, 4.0, 40.0))
    assert "give truth of the same voxels" in overlaps.check({"a": volume(), "b": other})[0]
    assert "b is uint8" not in str(overlaps.check({"a": volume(), "b": volume("uint8")}))
    assert "b is float32" in overlaps.check({"a": volume(), "b": volume("float32")})[0]


def test_the_memory_of_a_node_over_all_is_counted():
    leaf_only = Overlaps(
        segmentation="a",
        truth="b",
        output="o",
        bounds=GRID["bounds"],
        chunk=Vec3(64, 64, 64),
    )
    assert leaf_only.grid.height == 0
    large = leaf_only.model_copy(update={"bounds": Bbox.of_shape((6400, 6400, 640))})
    specs = {"a": volume(), "b": volume()}
    assert large.memory(specs) > 100 * leaf_only.memory(specs)


@pytest.mark.parametrize("kind", [Basins, BasinGraphs])
def test_affinities_of_another_kind_are_refused(kind):
    named = {} if kind is Basins else {"basins": "b"}
    stage = kind(affinities="f", output="o", **named, **GRID)
    chunked = {"storage_chunk": Vec3(4, 4, 6)} if kind is Basins else {}
    stage = stage.model_copy(update=chunked)
    assert stage.check({"f": volume("uint8", 3), "b": volume()}) == []
    for wrong, said in [
        (volume("uint8", 1), "f has 1 channels; it takes 3"),
        (volume("uint16", 3), "f is uint16; it takes uint8 or float32"),
        (RecordsSpec(), "f holds records, and a volume is needed"),
    ]:
        assert any(said in fault for fault in stage.check({"f": wrong, "b": volume()}))


def test_thresholds_in_the_wrong_order_are_refused():
    stage = Basins(affinities="f", output="o", low=0.5, high=0.4, **GRID)
    assert "low 0.5 is not below high 0.4" in stage.check({"f": volume("uint8", 3)})[0]


@pytest.mark.parametrize("kind", [SupervoxelTable, Agglomeration])
def test_the_top_is_decided_in_one_task(kind):
    stage = kind(graph="g", output="t", **GRID)
    (key,) = stage.plan()[0]
    assert stage.task(key).box == GRID["bounds"]
    assert stage.reads(stage.task(key)) == {"graph": Record("g", "2_0_0_0")}
    assert stage.target(stage.task(key)) == Record("t", "0_0_0_0")
    assert stage.describe({}) == RecordsSpec()
    assert not issubclass(kind, OctreeStage)


def test_the_supervoxel_table_is_parted_by_chunk():
    stage = SupervoxelTable(graph="g", output="t", size_threshold=0, dust=10, **GRID)
    layout = IdLayout.of_grid(stage.grid)
    places = [Vec3(0, 0, 0), Vec3(0, 0, 0), Vec3(2, 1, 0)]
    ids = np.array(
        [layout.base(p) + n for p, n in zip(places, (1, 2, 1), strict=True)], np.uint64
    )
    graph = BasinGraph(
        ids=ids,
        sizes=np.array([30, 5, 40], np.uint64),
        faces=np.zeros(3, np.uint8),
        joins=np.array([[ids[0], ids[2]]], np.uint64),
        pairs=np.zeros((0, 2), np.uint64),
        affinities=np.zeros(0, np.uint64),
        keys=np.zeros(0, np.uint64),
        scale=255,
    )
    (key,) = stage.plan()[0]
    parts = stage.process(stage.task(key), graph=graph.to_table()).parts
    assert set(parts) == {"0_0_0_0", "0_2_1_0"}
    assert parts["0_0_0_0"]["ids"].tolist() == ids[:2].tolist()
    target, dust = parts["0_0_0_0"]["targets"].tolist()
    assert dust == 0
    assert target in ids[[0, 2]]
    assert parts["0_2_1_0"]["targets"].tolist() == [target]


def test_the_table_of_a_volume_of_background_has_no_parts():
    stage = SupervoxelTable(graph="g", output="t", **GRID)
    graph = BasinGraph(
        *(np.zeros(0, t) for t in (np.uint64, np.uint64, np.uint8)),
        *(np.zeros(s, np.uint64) for s in ((0, 2), (0, 2), 0, 0)),
        scale=255,
    )
    (key,) = stage.plan()[0]
    assert stage.process(stage.task(key), graph=graph.to_table()).parts == {}
