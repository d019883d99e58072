import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, MissingInputError
from pipeline.geometry import Vec3
from pipeline.nets.config import ModelConfig
from pipeline.training.config import TrainConfig, VolumeConfig
from pipeline.training.volumes import UNKNOWN, Volume, load_volume, load_volumes

from .conftest import AFFINITIES, CLEFT, DEPTH, TRAINING, with_heads

SIZE = [6.0, 6.0, 30.0]


@pytest.fixture
def folder(tmp_path):
    numbers = np.arange(5 * 4 * 6).reshape(5, 4, 6)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["raw"] = numbers.astype(np.uint8)
        file["labels"] = numbers.astype(np.uint16)
        file["small"] = numbers[:, :2].astype(np.uint16)
        file["deep"] = numbers.astype(np.uint16)
        file["float"] = numbers.astype(np.float32)
        file["sized"] = numbers.astype(np.uint16)
        file["sized"].attrs["resolution"] = [40.0, 4.0, 4.0]
    for name in ("image", "label"):
        (tmp_path / name).mkdir()
        for z in range(3):
            held = np.full((6, 8), z + 1, np.uint8)
            held[0] = 0
            Image.fromarray(held).save(tmp_path / name / f"{z:02}.png")
    return tmp_path


def volume(**changes):
    return VolumeConfig.model_validate(
        {
            "name": "v",
            "inputs": {"image": "t.h5:raw"},
            "truth": {"cells": "t.h5:labels"},
            "voxel_size_nm": SIZE,
            "train": [0, 3],
            "validation": [3, 5],
        }
        | changes
    )


def test_files_are_z_y_x_and_volumes_x_y_z(folder, model):
    found = load_volume(folder, volume(), model, "validation")
    assert found.shape == Vec3(6, 4, 2)
    assert found.inputs["image"][5, 2, 1] == (4 * 4 + 2) * 6 + 5
    assert found.truth["cells"][5, 2, 1] == (4 * 4 + 2) * 6 + 5
    assert found.start == Vec3(0, 0, 3)
    assert found.ratio == (1, 1, 1)
    assert found.known is None


def test_a_box_is_a_box(folder, model):
    found = load_volume(folder, volume(train=[1, 1, 0, 4, 3, 2]), model, "train")
    assert found.shape == Vec3(3, 2, 2)
    assert found.inputs["image"][0, 0, 0] == 6 + 1
    assert load_volume(folder, volume(validation=[]), model, "validation") is None


def test_sections_in_folders(folder, model):
    masks = with_heads(model, {**CLEFT, "channels": ["inside", "membrane"]})
    told = volume(
        inputs={"image": "image"},
        truth={"inside": "label", "membrane": {"source": "label", "values": [0]}},
        voxel_size_nm=[4.0, 4.0, 50.0],
        validation=[],
    )
    with pytest.raises(DataError, match="sections cannot be made up"):
        load_volume(folder, told, masks, "train")
    flat = masks.model_dump(mode="json")
    flat["architecture"] = {"name": "unet2d", "widths": [4, 8]}
    flat["inference"] = {"patch": [24, 24, 1], "overlap": [0, 0, 0]}
    planar = load_volume(folder, told, ModelConfig.model_validate(flat), "train")
    assert planar.ratio == (1.5, 1.5, 1.0)
    masks = masks.model_copy(update={"voxel_size_nm": (4.0, 4.0, 50.0)})
    found = load_volume(folder, told, masks, "train")
    assert found.shape == Vec3(8, 6, 3)
    np.testing.assert_array_equal(found.truth["membrane"] == 1, found.inputs["image"] == 0)
    np.testing.assert_array_equal(found.truth["inside"] == 1, found.inputs["image"] > 0)


def test_what_is_not_labelled_is_unknown(folder, model):
    both = with_heads(model, AFFINITIES, CLEFT, DEPTH)
    told = volume(
        truth={
            "cells": {"source": "t.h5:labels", "ignore": [7]},
            "cleft": {"source": "t.h5:labels", "values": [3, 4], "ignore": [5]},
        },
        labelled="t.h5:raw",
    )
    found = load_volume(folder, told, both, "train")
    labels = found.truth["cells"]
    np.testing.assert_array_equal(found.known, (labels != 0) & (labels != 7))
    cleft = found.truth["cleft"]
    np.testing.assert_array_equal(cleft == UNKNOWN, (labels == 0) | (labels == 5))
    np.testing.assert_array_equal(cleft == 1, (labels == 3) | (labels == 4))


def test_other_inputs_are_masks(folder, model):
    two = with_heads(model, AFFINITIES, inputs=("image", "cleft"))
    with pytest.raises(MissingInputError, match="volume v has no cleft"):
        load_volume(folder, volume(), two, "train")
    told = volume(inputs={"image": "t.h5:raw", "cleft": "t.h5:labels"})
    found = load_volume(folder, told, two, "train")
    np.testing.assert_array_equal(found.inputs["cleft"], found.truth["cells"] != 0)


def test_finer_volumes_are_averaged_to_the_net(folder, model):
    fine = volume(voxel_size_nm=[3.0, 2.0, 30.0])
    found = load_volume(folder, fine, model, "train")
    assert found.shape == Vec3(3, 1, 3)
    assert found.ratio == (1.0, 1.0, 1.0)
    whole = load_volume(folder, volume(), model, "train").inputs["image"].astype(float)
    expected = whole[:, :3].reshape(3, 2, 1, 3, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(found.inputs["image"], np.rint(expected))
    near = load_volume(folder, volume(voxel_size_nm=[4.0, 4.0, 30.0]), model, "train")
    assert near.ratio == (1.5, 1.5, 1.0)
    assert near.shape == Vec3(6, 4, 3)


def test_what_is_not_there_is_named(folder, model):
    with pytest.raises(MissingInputError, match="set EM_DATA"):
        load_volume(folder / "elsewhere", volume(), model, "train")
    with pytest.raises(DataError, match=r"covers 0,0,0,6,4,5 and not 0,0,3,6,4,9"):
        load_volume(folder, volume(train=[3, 9]), model, "train")


def test_what_does_not_belong_together_is_refused(folder, model):
    with pytest.raises(DataError, match=r"covers 0,0,0,6,2,5"):
        load_volume(folder, volume(truth={"cells": "t.h5:small"}), model, "train")
    with pytest.raises(DataError, match=r"4 x 4 x 40 nm and the volume of 6 x 6 x 30"):
        load_volume(folder, volume(truth={"cells": "t.h5:sized"}), model, "train")
    with pytest.raises(DataError, match="float32; give whole numbers"):
        load_volume(folder, volume(truth={"cells": "t.h5:float"}), model, "train")
    with pytest.raises(DataError, match="give uint8"):
        load_volume(folder, volume(inputs={"image": "t.h5:labels"}), model, "train")
    with pytest.raises(DataError, match="write voxel_size_nm"):
        load_volume(folder, volume(voxel_size_nm=None), model, "train")
    one = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(DataError, match="give one shape"):
        Volume("v", {"image": one}, {"cells": one[:1]})


def config_of(*volumes):
    told = dict(TRAINING)
    told["volume"] = [v.model_dump() for v in volumes]
    return TrainConfig.model_validate(told)


def test_a_class_that_never_occurs_is_refused(folder, model):
    both = with_heads(model, AFFINITIES, CLEFT)
    with pytest.raises(MissingInputError, match="no volume says what cleft is"):
        load_volumes(folder, config_of(volume()), both, "train")
    never = volume(
        truth={
            "cells": "t.h5:labels",
            "cleft": {"source": "t.h5:labels", "values": [9999]},
        }
    )
    with pytest.raises(DataError, match="cleft never occurs"):
        load_volumes(folder, config_of(never), both, "train")
    assert len(load_volumes(folder, config_of(never), both, "validation")) == 1
    held = volume(name="w", truth={"cleft": "t.h5:labels"})
    assert len(load_volumes(folder, config_of(never, held), both, "train")) == 2


def test_boxes_and_names_are_checked():
    with pytest.raises(ValueError, match="with first < stop"):
        volume(train=[3, 3])
    with pytest.raises(ValueError, match="with first < stop"):
        volume(train=[0, 0, 3])
    with pytest.raises(ValueError, match="no input image"):
        volume(inputs={"cleft": "a"})
    with pytest.raises(ValueError, match="a name of its own"):
        config_of(volume(), volume())
    with pytest.raises(ValueError, match="no volume has a train box"):
        config_of(volume(train=[]))
