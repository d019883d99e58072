"""The region graph of each chunk, as a stage."""

import numpy as np
import pytest

from pipeline.geometry import Bbox, ChunkKey, Halo, Vec3
from pipeline.kernels.region_graph import RegionGraph, merge_region_graphs, region_graph
from pipeline.specs import Record, RecordsSpec, Region, VolumeSpec
from pipeline.stages.base import ChunkStage
from pipeline.stages.region_graph import RegionGraphs

BOUNDS = Bbox.of_shape((10, 8, 6), Vec3(2, 0, 1))
LAYERS = {"supervoxels": "s", "affinities": "f", "output": "g"}


def graphs(**fields):
    return RegionGraphs(**LAYERS, bounds=BOUNDS, chunk=Vec3(4, 4, 6), **fields)


def volume(dtype="uint64", channels=1, bounds=BOUNDS):
    return VolumeSpec(
        dtype=dtype,
        channels=channels,
        bounds=bounds,
        voxel_size_nm=(8.0, 8.0, 40.0),
        kind_of_values="segmentation" if dtype == "uint64" else "image",
    )


SPECS = {"s": volume(), "f": volume("float32", 3), "m": volume("uint8")}


def test_a_chunk_writes_its_own_record_in_one_wave():
    stage = graphs()
    assert isinstance(stage, ChunkStage)
    (wave,) = stage.plan()
    assert len(wave) == 6
    assert stage.target(stage.task(ChunkKey(0, 2, 1, 0))) == Record("g", "0_2_1_0")
    assert stage.describe(SPECS) == RecordsSpec()


def test_a_chunk_owns_the_faces_below_it():
    assert RegionGraphs.halo == Halo.of(before=1)
    task = graphs().task(ChunkKey(0, 1, 0, 0))
    box = Bbox(Vec3(5, 0, 1), Vec3(10, 4, 7))
    both = {"supervoxels": Region("s", box), "affinities": Region("f", box)}
    assert graphs().reads(task) == both
    assert graphs(semantics="m").reads(task) == both | {"semantics": Region("m", box)}


def test_semantics_are_an_input_only_if_named():
    assert set(graphs().inputs) == {"supervoxels", "affinities"}
    assert graphs(semantics="m").inputs["semantics"] == "m"


@pytest.mark.parametrize("semantics", ["", "m"])
def test_chunks_add_up_to_the_graph_of_the_whole(semantics):
    rng = np.random.default_rng(2)
    shape = BOUNDS.shape.astuple()
    arrays = {
        "s": rng.integers(0, 5, shape).astype(np.uint64),
        "f": rng.random((*shape, 3), np.float32),
        "m": rng.integers(0, 6, shape).astype(np.uint8),
    }
    stage = graphs(semantics=semantics)
    parts = []
    for key in stage.plan()[0]:
        task = stage.task(key)
        inputs = {
            name: arrays[read.layer][read.box.slices(BOUNDS.start)]
            for name, read in stage.reads(task).items()
        }
        parts.append(RegionGraph.from_table(stage.process(task, **inputs)))
    merged = merge_region_graphs(parts).to_table()
    whole = region_graph(
        arrays["s"],
        arrays["f"],
        box=BOUNDS,
        read_box=BOUNDS,
        bounds=BOUNDS,
        semantics=arrays["m"] if semantics else None,
    ).to_table()
    # The first chunk has no open face below, the last none above.
    assert [int(np.bitwise_or.reduce(p.faces)) for p in (parts[0], parts[-1])] == [24, 3]
    for name in merged.keys() - {"faces"}:
        np.testing.assert_array_equal(merged[name], whole[name], name)
    assert whole["classes"].any() == bool(semantics)


def test_volumes_that_fit_are_taken():
    assert graphs().check(SPECS) == []
    assert graphs(semantics="m").check(SPECS) == []


@pytest.mark.parametrize(
    ("layer", "spec", "fault"),
    [
        ("s", volume("float32"), "s is float32"),
        ("f", volume("float32"), "f has 1 channels; it takes 3"),
        ("m", volume("uint64"), "m is uint64; it takes uint8"),
        ("m", volume("uint8", 3), "m has 3 channels; it takes 1"),
        ("m", RecordsSpec(), "m holds records, and a volume is needed"),
        ("m", volume("uint8", bounds=Bbox.of_shape((10, 8, 6))), "not inside m"),
        ("s", volume(bounds=Bbox.of_shape((10, 8, 6))), "not inside s"),
    ],
)
def test_volumes_of_another_kind_are_refused(layer, spec, fault):
    (said,) = graphs(semantics="m").check(SPECS | {layer: spec})
    assert fault in said
