import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import DataError, MissingInputError
from pipeline.geometry import Vec3
from pipeline.training.config import Augmentation, Data, TrainConfig
from pipeline.training.sampler import (
    Block,
    load_block,
    training_example,
    validation_examples,
)
from pipeline.training.targets import affinities

PLAIN = Augmentation()
DATA = Data(file="t.h5", image="raw", labels="labels", train=(0, 3), validation=(3, 5))


@pytest.fixture
def folder(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["raw"] = np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6)
        file["labels"] = np.arange(5 * 4 * 6, dtype=np.uint16).reshape(5, 4, 6)
    return tmp_path


def test_files_are_z_y_x_and_blocks_x_y_z(folder):
    block = load_block(folder, DATA, DATA.validation)
    assert block.image.shape == (6, 4, 2)
    assert block.image[5, 2, 1] == (4 * 4 + 2) * 6 + 5
    assert block.labels[5, 2, 1] == (4 * 4 + 2) * 6 + 5


def test_what_is_not_there_is_named(folder):
    with pytest.raises(MissingInputError, match="set EM_DATA"):
        load_block(folder / "elsewhere", DATA, DATA.train)
    with pytest.raises(MissingInputError, match="holds labels, raw and no truth"):
        load_block(folder, DATA.model_copy(update={"labels": "truth"}), DATA.train)
    with pytest.raises(DataError, match="sections 0 to 5, not 3 to 9"):
        load_block(folder, DATA, (3, 9))


def test_blocks_must_fit(block):
    with pytest.raises(DataError, match="one shape"):
        Block(block.image, block.labels[:-1])
    with pytest.raises(DataError, match="uint8 image"):
        Block(block.image.astype(np.uint16), block.labels)


def test_an_example_depends_on_seed_and_step_alone(block):
    patch = Vec3(16, 16, 5)
    busy = Augmentation(grey=1, misalign=1, max_shift=3, missing=1, blur=1)
    one = training_example(block, patch, busy, seed=1, step=7)
    training_example(block, patch, busy, seed=1, step=8)
    two = training_example(block, patch, busy, seed=1, step=7)
    other = training_example(block, patch, busy, seed=2, step=7)
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.target, two.target)
    assert not np.array_equal(one.image, other.image)


def test_targets_fit_the_image_after_turning(block):
    """Cells of one grey each, no two neighbours alike: the image tells the affinities."""
    labels = np.arange(block.image.size, dtype=np.int64).reshape(block.image.shape) // 3 + 1
    grey = Block((labels % 251).astype(np.uint8), labels)
    for step in range(12):
        example = training_example(grey, Vec3(16, 16, 5), PLAIN, seed=0, step=step)
        assert example.image.shape == (16, 16, 5)
        for axis in range(3):
            same = np.diff(example.image, axis=axis) == 0
            target = np.moveaxis(example.target[..., axis], axis, 0)[1:]
            np.testing.assert_array_equal(np.moveaxis(same, axis, 0), target)
        assert example.target[..., 2].any()
        assert not example.target[..., 2].all()


def test_first_planes_have_their_predecessors():
    labels = np.ones((9, 9, 5), np.uint16)
    block = Block(np.zeros(labels.shape, np.uint8), labels)
    assert training_example(block, Vec3(8, 8, 4), PLAIN, seed=0, step=0).target.all()


def test_too_small_a_block_is_refused(block):
    with pytest.raises(DataError, match="cannot give patches"):
        training_example(block, Vec3(40, 40, 5), PLAIN, seed=0, step=0)
    with pytest.raises(DataError, match="smaller than a patch"):
        validation_examples(block, Vec3(48, 48, 5), 1)


def test_validation_is_unaltered_and_spread(block):
    examples = validation_examples(block, Vec3(16, 16, 5), 6)
    again = validation_examples(block, Vec3(16, 16, 5), 6)
    grey = block.image.astype(np.float32) / np.float32(255)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (16, 16, 5))
    places = set()
    for example, twin in zip(examples, again, strict=True):
        np.testing.assert_array_equal(example.image, twin.image)
        (at,) = np.argwhere((windows == example.image).all(axis=(3, 4, 5)))
        box = tuple(slice(a, a + n) for a, n in zip(at, (16, 16, 5), strict=True))
        np.testing.assert_array_equal(example.target, affinities(block.labels[box]))
        places.add(tuple(at))
    assert len(places) == 6


def test_the_cortex_training_reads_its_data():
    folder = Path(os.environ.get("EM_DATA", "../shared/data"))
    if not (folder / "ac4.h5").is_file():
        pytest.skip(f"no ac4.h5 in {folder}; set EM_DATA")
    config = TrainConfig.load(Path("models/cortex-rsunet/train.toml"))
    block = load_block(folder, config.data, (0, 22))
    example = training_example(
        block, config.patch, config.augmentation, seed=config.seed, step=0
    )
    assert example.image.shape == config.patch.astuple()
    joined = [example.image[example.target[..., a]].mean() for a in range(3)]
    parted = [example.image[~example.target[..., a]].mean() for a in range(3)]
    assert all(j > p for j, p in zip(joined, parted, strict=True))
