"""Stages over the octree: what nodes read, decide and answer."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import ALL_FACES, Bbox, ChunkKey, Grid, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.agglomerate import Clusters
from pipeline.kernels.merge_basins import Outcomes
from pipeline.specs import Partitioned, Record, RecordsSpec, Region, VolumeSpec
from pipeline.stages.agglomeration import Agglomeration, SegmentTable
from pipeline.stages.octree import UpSweep
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
    children = overlaps.reads(node)["children"]
    assert list(children) == [Record("o", "0_2_0_0"), Record("o", "0_2_1_0")]
    assert len(children) == 2
    assert [len(wave) for wave in overlaps.plan()] == [6, 2, 1]
    assert overlaps.root == Record("o", "2_0_0_0")


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


def test_smaller_partitions_are_more_of_them_below_the_same_nodes():
    """The way down agrees, so that it asks as many as answered."""
    vast = {"bounds": Bbox.of_shape((25600, 25600, 5120)), "chunk": Vec3(256, 256, 512)}
    limits = {"node_limit_gb": 20, "rounds": 3}
    up = BasinGraphs(affinities="a", basins="b", output="g", **vast, **limits)
    alike = up.model_copy(update={"partition_limit_gb": 20})
    small = up.model_copy(update={"partition_limit_gb": 0.5})
    level = up.top + 1
    assert 0 < up.top == small.top < up.grid.height
    assert alike.n_partitions == up.n_partitions
    assert small.n_partitions == pytest.approx(40 * up.n_partitions, rel=0.05)
    assert small.memory({}, level) <= 0.5e9 < up.memory({}, level) <= 20e9
    assert small.memory({}, up.top) == up.memory({}, up.top)
    assert len(small.plan()[-1]) == small.n_partitions
    down = SupervoxelTable(decisions="g", output="t", **vast, **limits)
    assert down.model_copy(update={"partition_limit_gb": 0.5}).n_partitions == (
        small.n_partitions
    )
    assert "partition_limit_gb" in SupervoxelTable.agrees["decisions"]


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


def test_masks_are_read_with_the_affinities():
    stage = Basins(affinities="f", mask="m", myelin="y", output="o", **GRID)
    reads = stage.reads(stage.task(ChunkKey(0, 1, 0, 0)))
    assert {name: read.layer for name, read in reads.items()} == {
        "affinities": "f",
        "mask": "m",
        "myelin": "y",
    }
    # A voxel below, to know of its mask.
    assert {read.box for read in reads.values()} == {Bbox(Vec3(5, 0, 1), Vec3(11, 5, 7))}
    bare = Basins(affinities="f", output="o", **GRID)
    assert bare.task(ChunkKey(0, 1, 0, 0)).read_box == Bbox(Vec3(6, 0, 1), Vec3(11, 5, 7))
    graph = BasinGraphs(basins="b", affinities="f", myelin="y", output="o", **GRID)
    assert graph.task(ChunkKey(0, 1, 0, 0)).read_box == Bbox(Vec3(4, 0, 1), Vec3(11, 5, 7))
    specs = {"f": volume("uint8", 3), "m": volume("uint8"), "y": volume("uint8")}
    whole = stage.model_copy(update={"storage_chunk": Vec3(4, 4, 6)})
    assert whole.check(specs) == []
    faults = whole.check({**specs, "m": volume("float32"), "y": volume("uint16")})
    assert any("m is float32; it takes uint8" in fault for fault in faults)
    assert any("y is uint16; it takes uint8 or float32" in fault for fault in faults)


def test_voxels_count_where_the_mask_is_not_0_and_there_is_no_myelin():
    stage = Basins(affinities="f", output="o", myelin_threshold=0.5, **GRID)
    mask = np.array([0, 1, 255, 7], np.uint8).reshape(4, 1, 1)
    bytes_ = np.array([0, 127, 128, 255], np.uint8).reshape(4, 1, 1)
    floats = np.array([0, 0.5, 0.51, 1], np.float32).reshape(4, 1, 1)
    assert stage.kept(None, None) is None
    assert stage.kept(mask, None).ravel().tolist() == [0, 1, 1, 1]
    for myelin in (bytes_, floats):
        assert stage.kept(None, myelin).ravel().tolist() == [1, 1, 0, 0]
        assert stage.kept(mask, myelin).ravel().tolist() == [0, 1, 0, 0]


# -- up -------------------------------------------------------------------------------

UP = [
    Agglomeration(graph="g", output="u", **GRID),
    BasinGraphs(basins="b", affinities="f", output="u", **GRID),
]


@pytest.mark.parametrize("stage", UP, ids=lambda stage: stage.name)
def test_a_node_decides_from_the_states_of_its_children(stage):
    assert [wave.level for wave in stage.plan()] == [0, 1, 2]
    assert [len(wave) for wave in stage.plan()] == [6, 2, 1]
    node = stage.task(ChunkKey(1, 1, 0, 0))
    assert list(stage.reads(node)["children"]) == [
        Record("u", "0_2_0_0", "state"),
        Record("u", "0_2_1_0", "state"),
    ]
    assert stage.target(node) == Record("u", "1_1_0_0")
    assert stage.describe({}) == RecordsSpec()
    tasks = [stage.task(key) for wave in stage.plan() for key in wave]
    assert sum(map(stage.voxels, tasks)) == GRID["bounds"].volume


def test_a_chunk_decides_from_what_it_reads():
    agglomeration, basin_graph = UP
    leaf = agglomeration.task(ChunkKey(0, 2, 1, 0))
    assert agglomeration.reads(leaf) == {"graph": Record("g", "0_2_1_0")}
    assert basin_graph.reads(basin_graph.task(leaf.key)) == {
        "basins": Region("b", Bbox(Vec3(9, 3, 1), Vec3(12, 8, 7))),
        "affinities": Region("f", Bbox(Vec3(9, 3, 1), Vec3(12, 8, 7))),
    }


class Recorded(UpSweep):
    """An up-sweep that says what it was asked."""

    name = "recorded"

    def leaf_reads(self, task):
        return {}

    def leaf(self, task, **inputs):
        return {"leaf": np.array([task.key.x])}

    def decide(self, task, children, *, octants, outward):
        return [child["leaf"].item() for child in children], octants, outward

    def linkage(self, scale):
        raise NotImplementedError

    def unfinished(self, scale, state):
        raise NotImplementedError


def test_nodes_know_which_children_they_have_and_what_is_outside():
    """Of a grid of 3 x 2 chunks the last node has two children, side by side in y."""
    stage = Recorded(output="o", **GRID)
    assert stage.process(stage.task(ChunkKey(0, 2, 1, 0))) == ([2], [0], [ALL_FACES])
    node = stage.task(ChunkKey(1, 1, 0, 0))
    children = [{"leaf": np.array([n])} for n in (20, 21)]
    decided, octants, outward = stage.process(node, children=children)
    assert decided == [20, 21]
    assert octants == [0, 2]
    assert outward == [0b000111, 0b010101]


def test_an_agglomeration_keeps_history_and_refusals():
    """Two supervoxels of a chunk that is a face away from the next."""
    stage = Agglomeration(graph="g", output="u", threshold=0.5, floor=0.1, **GRID)
    node = Clusters(
        ids=np.array([3, 8], np.uint64),
        names=np.array([3, 8], np.uint64),
        size=np.array([10, 10], np.uint64),
        merged=np.zeros(2, np.uint64),
        classes=np.zeros((2, 5), np.uint64),
        faces=np.array([0, 1], np.uint8),
        pairs=np.array([[3, 8]], np.uint64),
        affinity=np.array([70], np.uint64),
        area=np.array([1], np.uint64),
        key=np.array([5], np.uint64),
        scale=100,
    )
    parts = {
        faces: stage.decide(
            stage.task(ChunkKey(0, 0, 0, 0)),
            [node.to_table()],
            octants=[0],
            outward=[faces],
        ).parts
        for faces in (ALL_FACES, 0)
    }
    assert set(parts[0]) == {"state", "outcomes", "merges", "refusals"}
    assert parts[ALL_FACES]["outcomes"]["targets"].tolist() == [8, 8]
    assert parts[ALL_FACES]["state"]["ids"].tolist() == [8]
    assert parts[0]["outcomes"]["targets"].tolist() == [3, 3]
    assert parts[0]["state"]["ids"].tolist() == []
    assert all(p["merges"]["affinity"].tolist() == [70] for p in parts.values())


# -- down -----------------------------------------------------------------------------

DOWN = [
    SegmentTable(decisions="u", output="d", **GRID),
    SupervoxelTable(decisions="u", output="d", **GRID),
]


def outcomes(*rows):
    """Outcomes of (id, child, target, settled)."""
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    dtypes = (np.uint64, np.uint8, np.uint64, np.uint8)
    return Outcomes(
        *(np.array(c, d) for c, d in zip(columns, dtypes, strict=True))
    ).to_table()


def answers(ids, targets):
    return {"ids": np.array(ids, np.uint64), "targets": np.array(targets, np.uint64)}


@pytest.mark.parametrize("stage", DOWN, ids=lambda stage: stage.name)
def test_answers_go_down_from_the_top(stage):
    assert [wave.level for wave in stage.plan()] == [2, 1, 0]
    assert [len(wave) for wave in stage.plan()] == [1, 2, 6]
    top = stage.task(ChunkKey(2, 0, 0, 0))
    assert stage.reads(top) == {"outcomes": Record("u", "2_0_0_0", "outcomes")}
    chunk = stage.task(ChunkKey(0, 2, 1, 0))
    assert stage.reads(chunk) == {
        "outcomes": Record("u", "0_2_1_0", "outcomes"),
        "above": [Record("d", "1_1_0_0", "0_2_1_0")],
    }
    assert stage.target(chunk) == Record("d", "0_2_1_0")
    assert stage.describe({}) == RecordsSpec()
    tasks = [stage.task(key) for wave in stage.plan() for key in wave]
    assert sum(map(stage.voxels, tasks)) == GRID["bounds"].volume


def test_a_node_settles_what_its_parent_decided_and_parts_it_by_child():
    stage = DOWN[0]
    node = stage.task(ChunkKey(1, 0, 0, 0))
    rows = outcomes((5, 0, 4, 1), (5, 1, 4, 1), (6, 0, 9, 0), (7, 2, 9, 0), (9, 2, 9, 0))
    found = stage.process(node, outcomes=rows, above=[answers([30, 9], [31, 2])])
    assert isinstance(found, Partitioned)
    assert {
        part: (table["ids"].tolist(), table["targets"].tolist())
        for part, table in found.parts.items()
    } == {
        "0_0_0_0": ([5, 6], [4, 2]),
        "0_1_0_0": ([5], [4]),
        "0_0_1_0": ([7, 9], [2, 2]),
    }


def test_a_chunk_has_a_plain_table():
    stage = DOWN[0]
    chunk = stage.task(ChunkKey(0, 0, 0, 0))
    rows = outcomes((5, 0, 4, 1), (6, 0, 9, 0), (8, 0, 0, 1))
    found = stage.process(chunk, outcomes=rows, above=[answers([9], [2])])
    assert found["ids"].tolist() == [5, 6, 8]
    assert found["targets"].tolist() == [4, 2, 0]


def test_the_top_has_nobody_to_ask():
    stage = DOWN[0]
    top = stage.task(ChunkKey(2, 0, 0, 0))
    found = stage.process(top, outcomes=outcomes((5, 1, 4, 1)))
    assert set(found.parts) == {"1_1_0_0"}
    assert stage.process(top, outcomes=outcomes()).parts == {}
    with pytest.raises(DataError, match="2_0_0_0 says nothing of id 4"):
        stage.process(top, outcomes=outcomes((5, 1, 4, 0)))


@pytest.mark.parametrize("above", [{}, answers([3, 9], [3, 9])])
def test_an_answer_that_is_missing_is_told(above):
    chunk = DOWN[0].task(ChunkKey(0, 0, 0, 0))
    with pytest.raises(DataError, match="d: the parent of 0_0_0_0 says nothing of id 4"):
        DOWN[0].process(chunk, outcomes=outcomes((5, 0, 4, 0)), above=[above])


def test_a_supervoxel_has_the_name_of_its_first_voxel_in_a_grid_of_its_own():
    """In chunks; nodes above them speak of basins."""
    stage = SupervoxelTable(decisions="u", output="d", id_chunk=Vec3(6, 8, 6), **GRID)
    layout = IdLayout.of_grid(stage.grid)
    # Its chunk is 2 voxels wide: the last of the row.
    basin = layout.base(Vec3(2, 1, 0)) + 1 + 3 + 2 * 4 * 5
    rows = outcomes((basin, 0, basin, 1), (basin + 1, 0, 0, 1))
    chunk = stage.task(ChunkKey(0, 2, 1, 0))
    found = stage.process(chunk, outcomes=rows, above=[{}])
    names = IdLayout.of_grid(Grid(stage.bounds, stage.id_chunk))
    place = (9 - 6) + 6 * (5 + 8 * 5)
    assert found["targets"].tolist() == [names.base(Vec3(1, 0, 0)) + 1 + place, 0]
    node = stage.task(ChunkKey(1, 1, 0, 0))
    found = stage.process(node, outcomes=outcomes((basin, 2, basin, 1)), above=[{}])
    assert found.parts["0_2_1_0"]["targets"].tolist() == [basin]


def test_names_that_ids_cannot_hold_are_refused_before_anything_runs():
    vast = {"bounds": Bbox.of_shape((2**22, 2**11, 2**11)), "chunk": Vec3(512, 512, 512)}
    stage = SupervoxelTable(
        decisions="u", output="d", id_chunk=Vec3(2048, 2048, 2048), **vast
    )
    (fault,) = stage.check({})
    assert "labels in a chunk do not fit into 23 bits" in fault
