"""Sources become images and ids: what is kept, scaled and refused."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.specs import Region, VolumeSpec
from pipeline.stages.ingest import Ingest

BOUNDS = Bbox.of_shape((4, 3, 2), Vec3(10, 20, 30))
FIRST = ChunkKey(0, 0, 0, 0)


def ingest(**fields):
    return Ingest(
        **{
            "source": "s",
            "output": "o",
            "bounds": BOUNDS,
            "chunk": Vec3(4, 3, 2),
            "voxel_size_nm": (8.0, 8.0, 40.0),
            **fields,
        }
    )


def values(stage, array):
    return stage.process(stage.task(FIRST), source=np.asfortranarray(array))


def spec(dtype="uint8", channels=1, bounds=BOUNDS):
    return VolumeSpec(
        dtype=dtype,
        channels=channels,
        bounds=bounds,
        voxel_size_nm=(8.0, 8.0, 40.0),
        kind_of_values="image",
    )


def box_of(value):
    return np.full(BOUNDS.shape.astuple(), value)


def test_uint8_is_kept():
    image = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    found = values(ingest(), image)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, image)
    assert found.flags.f_contiguous


@pytest.mark.parametrize(
    ("value", "grey"), [(100, 0), (99, 0), (355, 255), (400, 255), (101, 1), (227.4, 127)]
)
def test_the_range_becomes_0_to_255_and_the_rest_is_clipped(value, grey):
    stage = ingest(intensity_range=(100.0, 355.0))
    found = values(stage, box_of(np.float32(value)))
    assert found.dtype == np.uint8
    assert (found == grey).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "uint64"])
def test_ids_become_uint64(dtype):
    found = values(ingest(kind_of_values="segmentation"), box_of(np.array(7, dtype)))
    assert found.dtype == np.uint64
    assert (found == 7).all()


def test_the_largest_id_survives():
    largest = np.uint64(2**64 - 1)
    found = values(ingest(kind_of_values="segmentation"), box_of(largest))
    assert (found == largest).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_told_with_its_voxel(wrong):
    image = box_of(np.float32(1))
    image[1, 2, 1] = wrong
    with pytest.raises(DataError, match=rf"{wrong} at voxel \(11, 22, 31\)"):
        values(ingest(intensity_range=(0.0, 1.0)), image)


def test_a_negative_id_is_refused():
    with pytest.raises(DataError, match="the id -3"):
        values(ingest(kind_of_values="segmentation"), box_of(np.int32(-3)))


def test_the_source_is_read_where_the_shift_says():
    stage = ingest(shift=Vec3(10, 20, 29))
    read = stage.reads(stage.task(FIRST))["source"]
    assert read == Region("s", Bbox(Vec3(0, 0, 1), Vec3(4, 3, 3)))


@pytest.mark.parametrize(
    ("fields", "source", "said"),
    [
        ({"shift": Vec3(1, 0, 0)}, spec(), "is outside the source s, which holds 11,20,30"),
        ({}, spec(channels=3), "s has 3 channels, not one"),
        ({}, spec("uint16"), "s is uint16 and images are uint8"),
        ({"kind_of_values": "segmentation"}, spec("float32"), "float32, not integers"),
        ({"intensity_range": (5.0, 5.0)}, spec(), "(5.0, 5.0) is empty"),
        (
            {"voxel_size_nm": (8.0, 0.0, 40.0)},
            spec(),
            "(8.0, 0.0, 40.0) nm is not positive",
        ),
        ({"voxel_size_nm": (8.0, np.inf, 4.0)}, spec(), "inf, 4.0) nm is not positive"),
        (
            {"encoding": "jpeg", "kind_of_values": "segmentation"},
            spec(),
            "jpeg cannot hold",
        ),
    ],
)
def test_what_cannot_be_ingested_is_told_before_it_runs(fields, source, said):
    faults = ingest(**fields).check({"s": source})
    assert sum(said in fault for fault in faults) == 1, faults


def test_a_right_configuration_has_no_faults():
    assert ingest().check({"s": spec()}) == []
    moved = ingest(shift=Vec3(10, 20, 30), intensity_range=(0.0, 9.0))
    assert moved.check({"s": spec("uint16", bounds=Bbox.of_shape((4, 3, 2)))}) == []
