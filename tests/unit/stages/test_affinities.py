"""Where models are found, and what affinities say at the bounds."""

import hashlib

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.nets import ModelConfig
from pipeline.nets.model import build_net, pack_weights
from pipeline.specs import VolumeSpec
from pipeline.stages.affinities import Affinities
from pipeline.stages.prediction import model_folder

TOML = """
name = "tiny"
head = [{{ name = "{head}", {says} }}]
voxel_size_nm = [8.0, 8.0, 40.0]
sha256 = "{sha256}"
architecture = {{ widths = [2], fold = [2, 2, 1] }}
normalisation = {{ mean = 128.0, std = 50.0 }}
inference = {{ patch = [12, 12, 6], overlap = [4, 4, 2] }}
"""


NEAREST = 'kind = "affinities", offsets = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]'


def make_model(folder, head="affinities", says=NEAREST, seed=1):
    folder.mkdir(parents=True)
    text = TOML.replace("{head}", head).replace("{says}", says)
    (folder / "model.toml").write_text(text.format(sha256=""))
    torch.manual_seed(seed)
    content = pack_weights(build_net(ModelConfig.load(folder)).state_dict())
    (folder / "weights.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "model.toml").write_text(text.format(sha256=sha256))
    return folder


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "models" / "tiny")


BOUNDS = Bbox.of_shape((24, 20, 10), Vec3(3, 4, 5))


def affinities(model, **fields):
    return Affinities(
        **{
            "image": "i",
            "model": str(model),
            "output": "a",
            "bounds": BOUNDS,
            "chunk": Vec3(12, 20, 10),
            "storage_chunk": Vec3(12, 20, 10),
            **fields,
        }
    )


def predicted(stage, key, image):
    task = stage.task(key)
    box = stage.reads(task)["image"].box
    return stage.process(task, image=image[box.slices(BOUNDS.start)])


@pytest.fixture
def image():
    rng = np.random.default_rng(3)
    return np.asfortranarray(rng.integers(1, 255, BOUNDS.shape.astuple(), np.uint8))


def test_there_is_no_predecessor_below_the_bounds(model, image):
    stage = affinities(model, dtype="float32")
    first, second = (predicted(stage, ChunkKey(0, x, 0, 0), image) for x in (0, 1))
    assert first.shape == second.shape == (12, 20, 10, 3)
    for axis in range(3):
        lowest = np.moveaxis(first[..., axis], axis, 0)
        assert (lowest[0] == 0).all()
        assert (lowest[1:] > 0).all()
    # The second chunk has neighbours below it along x.
    assert (second[0, 1:, 1:, 0] > 0).all()


def test_uint8_is_the_rounded_probability(model, image):
    exact = predicted(affinities(model, dtype="float32"), ChunkKey(0, 1, 0, 0), image)
    rounded = predicted(affinities(model), ChunkKey(0, 1, 0, 0), image)
    assert rounded.dtype == np.uint8
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(rounded, np.rint(exact * np.float32(255)))


def test_a_model_is_found_by_path_and_by_name(model, monkeypatch, tmp_path):
    assert model_folder(str(model)) == model
    monkeypatch.setenv("EM_MODELS", str(model.parent))
    assert model_folder("tiny") == model
    monkeypatch.setenv("EM_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match=f"there is no model tiny .*{tmp_path}/tiny"):
        model_folder("tiny")


def test_the_project_has_a_model():
    assert (model_folder("cortex-rsunet") / "CARD.md").is_file()


def test_pinning_fixes_the_weights(model, tmp_path):
    pinned = affinities(model).pinned()
    assert pinned.weights == ModelConfig.load(model).digest
    assert pinned.pinned() == pinned
    other = make_model(tmp_path / "other", seed=2)
    assert affinities(other).pinned().digest != pinned.digest
    with pytest.raises(ModelError, match=f"not {pinned.weights}; restore it"):
        affinities(other, weights=pinned.weights).pinned()


def test_a_model_that_was_exchanged_under_a_run_is_refused(model, image, tmp_path):
    stage = affinities(model, weights="f" * 64)
    with pytest.raises(ModelError, match=f"the run was started with {'f' * 64}"):
        predicted(stage, ChunkKey(0, 0, 0, 0), image)


def test_a_model_without_weights_is_refused(model):
    (model / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights at"):
        affinities(model).pinned()


def spec(**fields):
    return VolumeSpec(
        **{
            "dtype": "uint8",
            "bounds": BOUNDS,
            "voxel_size_nm": (8.0, 8.0, 40.0),
            "kind_of_values": "image",
            **fields,
        }
    )


def test_what_is_wrong_is_told_before_it_runs(model, tmp_path):
    assert affinities(model).check({"i": spec()}) == []
    assert "i is uint16" in affinities(model).check({"i": spec(dtype="uint16")})[0]
    clefts = make_model(
        tmp_path / "clefts", "cleft", 'kind = "masks", channels = ["cleft"]'
    )
    assert (
        "gives cleft and no head affinities" in affinities(clefts).check({"i": spec()})[0]
    )
    (fault,) = affinities(tmp_path / "none").check({"i": spec()})
    assert fault.startswith(f"affinities: there is no model {tmp_path / 'none'}")


def test_memory_grows_with_the_chunk(model):
    small = affinities(model).memory({"i": spec()})
    wide = affinities(
        model, bounds=Bbox.of_shape((240, 200, 100)), chunk=Vec3(240, 200, 100)
    )
    assert wide.memory({"i": spec()}) > small > 0
