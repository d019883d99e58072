"""The pyramid: cells are counted from voxel 0, wherever bounds and chunks begin."""

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.specs import RecordsSpec, Region, VolumeSpec
from pipeline.stages.downsample import Downsample

BOUNDS = Bbox(Vec3(3, 2, 5), Vec3(12, 9, 8))


def downsample(**fields):
    return Downsample(
        **{
            "layer": "image",
            "output": "image/pyramid",
            "bounds": BOUNDS,
            "chunk": Vec3(4, 4, 2),
            "mips": 2,
            "storage_chunk": Vec3(4, 4, 2),
            **fields,
        }
    )


def image_spec(**fields):
    return VolumeSpec(
        **{
            "dtype": "uint8",
            "bounds": BOUNDS,
            "voxel_size_nm": (6.0, 6.0, 30.0),
            "kind_of_values": "image",
            "storage_chunk": Vec3(4, 4, 2),
            **fields,
        }
    )


def test_a_cell_that_the_bounds_cut_is_read_as_far_as_it_goes():
    """Mip 1 begins with the cell of voxels 2 and 3, of which the layer has only 3."""
    stage = downsample()
    task = stage.task(ChunkKey(1, 0, 0, 0))
    assert task.box == Bbox(Vec3(1, 1, 5), Vec3(5, 5, 7))
    read = stage.reads(task)["voxels"]
    assert read == Region("image", Bbox(Vec3(3, 2, 5), Vec3(10, 9, 7)), 0)
    assert stage.target(task) == Region("image", task.box, 1)


def test_intensities_are_averaged_over_what_is_there_of_a_cell():
    stage = downsample()
    task = stage.task(ChunkKey(1, 0, 0, 0))
    x = np.arange(3, 10)[:, None, None]
    voxels = np.asfortranarray(np.broadcast_to(10 * x, (7, 7, 2)), dtype=np.uint8)
    found = stage.process(task, voxels=voxels)
    assert found.shape == (4, 4, 2)
    # Voxel 3 alone, then 4 and 5, and so on.
    np.testing.assert_array_equal(found[:, 1, 0], [30, 45, 65, 85])


def test_ids_are_the_most_frequent_of_their_cell():
    stage = downsample(bounds=Bbox.of_shape((2, 2, 1)), mips=1)
    voxels = np.array([5, 5, 9, 9, 9, 4, 5, 5], np.uint64).reshape(2, 2, 2, order="F")
    ids = np.stack([voxels[..., 0]], axis=2)
    ids[1, 0] = 9
    found = stage.process(stage.task(ChunkKey(1, 0, 0, 0)), voxels=np.asfortranarray(ids))
    assert found.tolist() == [[[9]]]
    assert found.dtype == np.uint64


def test_the_mip_above_reads_the_mip_below():
    stage = downsample()
    task = stage.task(ChunkKey(2, 0, 0, 0))
    assert stage.reads(task)["voxels"].mip == 1
    assert stage.target(task).mip == 2
    assert [wave.level for wave in stage.plan()] == [1, 2]


def test_the_spec_has_the_mips():
    spec = downsample().describe({"image": image_spec()})
    assert spec.factors == (Vec3(1, 1, 1), Vec3(2, 2, 1), Vec3(4, 4, 1))
    assert spec.bounds_at(2) == Bbox(Vec3(0, 0, 5), Vec3(3, 3, 8))


def test_tasks_are_found_by_a_box_of_the_finest_mip():
    stage = downsample()
    corner = Bbox(BOUNDS.stop - 1, BOUNDS.stop)
    for wave in stage.plan():
        assert list(wave.keys(corner)) == [list(wave)[-1]]


def test_an_output_that_is_not_the_pyramid_of_its_layer_is_refused():
    with pytest.raises(ValidationError, match="'pyramid' is not 'image/pyramid'"):
        downsample(output="pyramid")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (RecordsSpec(), "image holds records"),
        (image_spec(bounds=Bbox.of_shape((9, 9, 9))), "are not those of image"),
        (image_spec(storage_chunk=Vec3(8, 8, 2)), "is not that of image, (8, 8, 2)"),
        (image_spec(shard=Vec3(8, 8, 2)), "is not the shard of image, (8, 8, 2)"),
    ],
)
def test_a_layer_that_it_does_not_fit_is_told(spec, said):
    faults = downsample().check({"image": spec})
    assert sum(said in fault for fault in faults) == 1, faults


def test_a_layer_that_fits_has_no_faults():
    assert downsample().check({"image": image_spec()}) == []
