"""Pieces of segments, packed by chunk and unpacked by shard."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.kernels.sharding import ids_by_shard
from pipeline.specs import Record, RecordsSpec, Sharding, VolumeSpec
from pipeline.stages.meshes import MeshFragments, SurfaceMeshes
from pipeline.stages.shards import pack, unpack

VOXEL = (8.0, 8.0, 40.0)
GRID = {"bounds": Bbox.of_shape((8, 8, 8)), "chunk": Vec3(4, 4, 4)}
SHARDING = Sharding(shard_bits=2, minishard_bits=1)

PIECES = st.dictionaries(
    st.integers(1, 2**63),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    max_size=6,
)


def piece(n, m):
    rng = np.random.default_rng(n * 7 + m)
    return {
        "vertices": rng.random((n, 3), np.float32),
        "faces": rng.integers(0, 9, (m, 3), dtype=np.uint32),
    }


@given(st.lists(PIECES, max_size=4))
def test_unpacking_gives_back_every_piece_of_every_segment(chunks):
    chunks = [{i: piece(*sizes) for i, sizes in chunk.items()} for chunk in chunks]
    found = dict(unpack([pack(chunk) for chunk in chunks]))
    assert list(found) == sorted({i for chunk in chunks for i in chunk})
    for segment, pieces in found.items():
        expected = [chunk[segment] for chunk in chunks if segment in chunk]
        assert len(pieces) == len(expected)
        for a, b in zip(pieces, expected, strict=True):
            assert a.keys() == b.keys()
            for column in b:
                assert a[column].dtype == b[column].dtype
                np.testing.assert_array_equal(a[column], b[column])


def test_a_part_that_was_not_written_holds_nothing():
    assert list(unpack([{}, pack({})])) == []


def test_every_segment_is_in_the_part_of_its_shard():
    stage = MeshFragments(
        segmentation="s", output="f", voxel_size_nm=VOXEL, sharding=SHARDING, **GRID
    )
    labels = np.arange(1, 126, dtype=np.uint64).reshape(5, 5, 5, order="F")
    found = stage.process(stage.task(ChunkKey(0, 0, 0, 0)), segmentation=labels)
    expected = ids_by_shard(
        np.arange(1, 126, dtype=np.uint64), shard_bits=2, minishard_bits=1
    )
    assert set(found.parts) == {str(n) for n in range(4)}
    for shard, ids in expected.items():
        assert found.parts[str(shard)]["id"].tolist() == sorted(ids.tolist())


def test_a_shard_reads_its_part_of_every_chunk():
    stage = SurfaceMeshes(
        fragments="f", output="m", voxel_size_nm=VOXEL, sharding=SHARDING, **GRID
    )
    reads = stage.reads(stage.task(ChunkKey(0, 3, 0, 0)))["fragments"]
    assert len(reads) == 8
    assert set(reads) == {Record("f", str(k), "3") for k in stage.grid}
    assert len(stage.plan()[0]) == 4


def fragments(**fields):
    return MeshFragments(
        **{"segmentation": "s", "output": "f", "voxel_size_nm": VOXEL, **GRID, **fields}
    )


def labels_spec(**fields):
    return VolumeSpec(
        **{
            "dtype": "uint64",
            "bounds": GRID["bounds"],
            "voxel_size_nm": VOXEL,
            "kind_of_values": "segmentation",
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("fields", "spec", "said"),
    [
        ({}, RecordsSpec(), "s holds records, and a volume is needed"),
        ({}, labels_spec(dtype="float32"), "s is float32"),
        ({"mip": 1}, labels_spec(), "s has mips 0 to 0, not 1; add a downsample stage"),
        ({"voxel_size_nm": (1.0, 1.0, 1.0)}, labels_spec(), "is (8.0, 8.0, 40.0) nm, not"),
        (
            {"bounds": Bbox.of_shape((9, 8, 8))},
            labels_spec(),
            "bounds 0,0,0,9,8,8 are not inside s",
        ),
    ],
)
def test_a_segmentation_that_does_not_fit_is_told(fields, spec, said):
    faults = fragments(**fields).check({"s": spec})
    assert sum(said in fault for fault in faults) == 1, faults


def test_a_segmentation_that_fits_has_no_faults():
    assert fragments().check({"s": labels_spec()}) == []


def test_a_box_of_the_finest_mip_finds_the_chunks_of_a_coarser_one():
    stage = fragments(mip=1, bounds=Bbox.of_shape((8, 8, 8)))
    touching = list(stage.plan()[0].keys(Bbox(Vec3(8, 0, 0), Vec3(9, 1, 1))))
    assert touching == [ChunkKey(0, 1, 0, 0)]


def test_shards_are_no_place_in_the_volume():
    stage = SurfaceMeshes(
        fragments="f", output="m", voxel_size_nm=VOXEL, sharding=SHARDING, **GRID
    )
    assert len(list(stage.plan()[0].keys(Bbox.of_shape((1, 1, 1))))) == 4
    assert stage.voxels(stage.task(ChunkKey(0, 0, 0, 0))) == 0
