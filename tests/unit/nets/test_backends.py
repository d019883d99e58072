"""What computes, and that it computes the same."""

import builtins
import logging

import numpy as np
import pytest
import torch

from pipeline.errors import BackendError, MemoryLimitError, ModelError
from pipeline.geometry import Bbox, Vec3
from pipeline.nets import backends
from pipeline.nets.backends import choose, has_cuda
from pipeline.nets.inference import Runner, predict
from pipeline.nets.model import load_model

BOUNDS = Bbox.of_shape((37, 25, 11), Vec3(-5, 100, 3))
EVERY = ["torch", "openvino", pytest.param("compiled", marks=pytest.mark.slow)]


@pytest.fixture
def image():
    rng = np.random.default_rng(3)
    return np.asfortranarray(rng.integers(1, 256, BOUNDS.shape.astuple(), dtype=np.uint8))


def whole(runner, image):
    return predict(runner, image, read=BOUNDS, core=BOUNDS, bounds=BOUNDS)


def in_bfloat16(directory):
    path = directory / "model.toml"
    path.write_text(path.read_text().replace("float32", "bfloat16"))
    return load_model(directory)


@pytest.mark.parametrize("backend", EVERY)
def test_every_backend_says_what_torch_says_in_float32(model, image, backend):
    np.testing.assert_allclose(
        whole(Runner(model, backend), image), whole(model, image), atol=1e-5
    )


@pytest.mark.parametrize("backend", EVERY)
def test_bfloat16_is_near_and_is_not_float32(model, directory, image, backend):
    exact = whole(model, image)
    low = whole(Runner(in_bfloat16(directory), backend), image)
    assert low.dtype == np.float32
    assert np.abs(low - exact).mean() < 0.01
    if backend != "openvino" or "BF16" in capabilities():
        assert np.abs(low - exact).max() > 1e-4


def capabilities():
    import openvino

    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("settings", [{"batch": 3}, {"lanes": 2}, {"batch": 2, "lanes": 2}])
def test_bits_depend_on_neither_batches_nor_lanes(model, image, backend, settings):
    alone = Runner(model, backend, batch=settings.get("batch", 1))
    np.testing.assert_array_equal(
        whole(Runner(model, backend, **settings), image), whole(alone, image)
    )


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_patch_is_the_same_in_any_company(model, backend):
    """Alone in its batch, first or last."""
    rng = np.random.default_rng(1)
    patches = [rng.integers(0, 256, (1, 6, 12, 16), dtype=np.uint8) for _ in range(5)]
    runner = Runner(model, backend, batch=3)
    together = [said.copy() for said in runner(patches)]
    assert len(together) == 5
    for patch, said in zip(patches, together, strict=True):
        (alone,) = (s.copy() for s in runner([patch]))
        np.testing.assert_array_equal(alone, said)


def test_only_one_head_is_computed(directory, image):
    path = directory / "model.toml"
    text = path.read_text()
    more = '[[head]]\nname = "kind"\nkind = "classes"\nchannels = ["a", "b"]\n'
    from pipeline.nets.config import ModelConfig
    from pipeline.nets.model import Model, build_net

    path.write_text(text + more)
    config = ModelConfig.load(directory)
    torch.manual_seed(3)
    model = Model(config, build_net(config).eval())
    every = whole(model, image)
    assert every.shape[3] == 5
    np.testing.assert_allclose(every[..., 3:].sum(axis=3), 1, atol=1e-5)
    np.testing.assert_array_equal(whole(Runner(model, head="kind"), image), every[..., 3:])
    with pytest.raises(ModelError, match="has no head colour"):
        Runner(model, head="colour")


class Cramped(torch.nn.Module):
    """A net for which the memory of a device does not suffice."""

    def __init__(self, net, room):
        super().__init__()
        self.net, self.room, self.seen = net, room, []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return self.net(x)


def test_a_batch_that_finds_no_room_is_halved_for_good(model, image, caplog):
    expected = whole(model, image)
    cramped = Cramped(model.net, room=2)
    runner = Runner(type(model)(model.config, cramped), batch=8)
    with caplog.at_level(logging.WARNING, "em.nets"):
        said = whole(runner, image)
    np.testing.assert_allclose(said, expected, atol=1e-5)
    assert [r.getMessage() for r in caplog.records] == [
        f"model tiny has no room on the device for {n} patches at once; going on with {m}"
        for n, m in ((8, 4), (4, 2))
    ]
    assert cramped.seen[:3] == [8, 4, 2]
    assert set(cramped.seen[3:]) == {2}, "what was learnt is kept"


def test_one_patch_that_finds_no_room_is_an_error(model, image):
    runner = Runner(type(model)(model.config, Cramped(model.net, room=0)), batch=2)
    with pytest.raises(MemoryLimitError, match=r"one patch of \(16, 12, 6\).*2.00 GiB"):
        whole(runner, image)


# -- the choice -------------------------------------------------------------------------


def test_what_is_fastest_is_preferred(monkeypatch):
    assert choose(device="cpu") == ("openvino", "cpu")
    assert choose("torch", "cpu") == ("torch", "cpu")
    assert choose("compiled", "cuda") == ("compiled", "cuda")
    assert choose(device="cuda") == ("torch", "cuda")
    monkeypatch.setattr(backends, "has_cuda", lambda: True)
    assert choose() == ("torch", "cuda")
    assert choose("openvino") == ("openvino", "cpu")


def test_without_openvino_torch_is_taken_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setattr(backends, "has_openvino", lambda: False)
    with caplog.at_level(logging.WARNING, "em.nets"):
        assert choose(device="cpu") == ("torch", "cpu")
    assert "openvino is not installed" in caplog.text


def test_openvino_does_not_run_on_a_gpu():
    with pytest.raises(BackendError, match="does not run on cuda"):
        choose("openvino", "cuda")


def test_a_worker_that_lacks_openvino_says_so(model, monkeypatch):
    real = builtins.__import__

    def lacking(name, *args, **kwargs):
        if name.startswith("openvino"):
            raise ImportError("No module named 'openvino'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(BackendError, match=r"this machine lacks openvino.*backend = "):
        Runner(model, "openvino")


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda(), reason="there is no GPU")
@pytest.mark.parametrize("backend", ["torch", "compiled"])
def test_a_gpu_says_what_the_processor_says(directory, image, backend):
    exact = whole(load_model(directory), image)
    said = whole(Runner(load_model(directory, "cuda"), backend, batch=4, lanes=2), image)
    np.testing.assert_allclose(said, exact, atol=1e-3)
    again = whole(Runner(load_model(directory, "cuda"), backend, batch=4), image)
    np.testing.assert_array_equal(again, said)
