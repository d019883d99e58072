import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.geometry import Vec3
from pipeline.nets.config import Head
from pipeline.nets.model import activate, load_model


def test_loads_the_weights_that_were_saved(model, directory):
    assert model.digest == load_model(str(directory)).digest
    torch.manual_seed(7)
    image = np.full((16, 12, 6), 100, np.float32, order="F")
    image[3:9, 4:8] = 200
    said = model.probabilities(image)
    assert said.shape == (16, 12, 6, 3)
    assert said.flags.f_contiguous
    assert 0 < said.min() < said.max() < 1
    np.testing.assert_array_equal(said, load_model(directory).probabilities(image))


def test_the_image_is_normalised(model):
    image = np.random.default_rng(0).uniform(0, 255, (16, 12, 6)).astype(np.float32)
    seen = []
    model.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.probabilities(image)
    np.testing.assert_allclose(seen[0][0, 0].numpy().T, (image - 128) / 50, rtol=1e-5)


def test_missing_weights(directory):
    (directory / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights.safetensors does not exist; fetch"):
        load_model(directory)


def test_damaged_weights(directory):
    path = directory / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256"):
        load_model(directory)


def test_weights_of_another_net(directory):
    path = directory / "model.toml"
    path.write_text(path.read_text().replace("[4, 6]", "[4, 8]"))
    with pytest.raises(ModelError, match="does not hold weights of the net"):
        load_model(directory)


def test_bfloat16_is_close_to_float32(directory):
    exact = load_model(directory)
    path = directory / "model.toml"
    path.write_text(path.read_text().replace("float32", "bfloat16"))
    image = np.random.default_rng(0).uniform(0, 255, (16, 12, 6)).astype(np.float32)
    low = load_model(directory).probabilities(image)
    assert low.dtype == np.float32
    difference = np.abs(low - exact.probabilities(image)).max()
    assert 0 < difference < 0.1


def test_heads_say_what_their_kinds_mean():
    heads = [
        Head(name="a", kind="affinities", offsets=(Vec3(1, 0, 0),)),
        Head(name="c", kind="classes", channels=("x", "y", "z")),
        Head(name="m", kind="masks", channels=("m",)),
        Head(name="d", kind="distance", channels=("d",)),
    ]
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 3, 4, 5)
    said = activate(heads, logits)
    assert said.shape == logits.shape
    for channel in (0, 4):
        torch.testing.assert_close(said[:, channel], logits[:, channel].sigmoid())
    torch.testing.assert_close(said[:, 1:4], logits[:, 1:4].softmax(dim=1))
    torch.testing.assert_close(said[:, 5], logits[:, 5].tanh().clamp(min=0))
    assert (said[:, 5] == 0).any()
