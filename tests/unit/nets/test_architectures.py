"""What holds for every net, whatever its configuration."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pipeline.errors import DataError
from pipeline.geometry import Vec3
from pipeline.nets.architectures import Architecture
from pipeline.nets.config import ModelConfig
from pipeline.nets.inference import Runner
from pipeline.nets.model import Model, build_net, normalised
from pipeline.nets.turn import to_torch

MASKS = {"name": "masks", "kind": "masks", "channels": ["a", "b"]}
DISTANCE = {"name": "distance", "kind": "distance", "channels": ["c"]}

ARCHITECTURES = {
    "rsunet": {"widths": [4, 6], "fold": [2, 2, 1]},
    "rsunet of 2017": {
        "widths": [4, 6],
        "upsampling": "bilinear",
        "activation": "elu",
        "convolutions": 3,
        "top_kernel": [3, 3, 1],
    },
    "rsunet with options": {"widths": [4, 6], "pointwise_head": True, "norm": "batch"},
    "unet2d": {"name": "unet2d", "widths": [4, 6, 8]},
    "cleftnet": {"name": "cleftnet", "widths": [4, 6], "pool": [[2, 2, 2]]},
    "cleftnet w SelfAttn": {
        "name": "cleftnet",
        "widths": [4, 6],
        "pool": [[2, 2, 2]],
        "query": "input",
        "attention_width": 3,
    },
    "cleftnet w/o FA": {
        "name": "cleftnet",
        "widths": [4, 6],
        "pool": [[2, 2, 1]],
        "query": "none",
        "norm": "instance",
    },
    "resnet_unet": {
        "name": "resnet_unet",
        "encoder": 18,
        "decoder_widths": [8, 8, 8, 8, 8],
        "attention": "frequency",
    },
    "linknet": {"name": "linknet"},
    "casenet": {"name": "casenet", "encoder": 18},
}


def config_of(name, *, precision="float32"):
    """Make a small model whose patches are wider than high."""
    architecture = TypeAdapter(Architecture).validate_python(ARCHITECTURES[name])
    granule = architecture.granule
    patch = Vec3(16, 8, 2).maximum(granule * Vec3(2, 1, 1))
    return ModelConfig.model_validate(
        {
            "name": name,
            "inputs": ["image", "cleft"],
            "head": [MASKS, DISTANCE],
            "voxel_size_nm": [6.0, 6.0, 30.0],
            "architecture": architecture,
            "normalisation": {"mean": 128.0, "std": 50.0},
            "inference": {"patch": patch, "overlap": [0, 0, 0], "precision": precision},
        }
    )


@cache
def built(name):
    torch.manual_seed(5)
    return build_net(config_of(name))


def net_of(name):
    """Return a net of its own; drawing weights takes longer than copying them."""
    return copy.deepcopy(built(name))


def tensor(name, n=1, seed=0):
    patch = config_of(name).inference.patch
    torch.manual_seed(seed)
    return torch.randn(n, 2, patch.z, patch.y, patch.x)


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


def test_extent_is_kept_and_every_weight_learns(name):
    net, image = net_of(name).train(), tensor(name, 2)
    logits = net(image)
    assert logits.shape == (2, 3, *image.shape[2:])
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    for parameter, value in net.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().sum() > 0, parameter


def test_one_seed_makes_one_net(name):
    torch.manual_seed(5)
    again, before = build_net(config_of(name)).state_dict(), built(name).state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[k], before[k]) for k in again)


def test_a_patch_says_the_same_alone_and_in_a_batch(name):
    net, batch = net_of(name).eval(), tensor(name, 3)
    with torch.inference_mode():
        together = net(batch)
        alone = torch.cat([net(patch) for patch in torch.split(batch, 1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_norm_of_patches_is_so_in_training_too(name):
    net, batch = net_of(name).train(), tensor(name, 2)
    with torch.no_grad():
        together = net(batch)[:1]
        alone = net(batch[:1])
    alike = torch.allclose(together, alone, rtol=1e-3, atol=1e-4)
    assert alike == (config_of(name).architecture.norm == "instance")


def test_sections_are_alone_where_the_net_is_planar(name):
    net, image = net_of(name).eval(), tensor(name)
    other = image.clone()
    other[:, :, 1:] = tensor(name, seed=1)[:, :, 1:]
    with torch.inference_mode():
        before, after = net(image)[:, :, :1], net(other)[:, :, :1]
    assert torch.equal(before, after) == config_of(name).architecture.planar


def test_bfloat16_is_close_to_float32(name):
    inputs = tensor(name)[0].numpy().T * 50
    inputs[..., 1] = inputs[..., 1] > 0
    said = []
    for precision in ("float32", "bfloat16"):
        model = Model(config_of(name, precision=precision), net_of(name).eval())
        said.append(model.probabilities(inputs))
    assert said[0].shape == (*config_of(name).inference.patch, 3)
    assert 0 < np.abs(said[1] - said[0]).mean() < 0.03


def test_openvino_says_what_torch_says(name):
    """Nets that were not trained say 0 or 1 almost everywhere, so rounding shows."""
    inputs = (tensor(name)[0].numpy() * 50 + 128).clip(0, 255).astype(np.uint8)
    model, said = Model(config_of(name), net_of(name).eval()), []
    for backend in ("torch", "openvino"):
        said += [patch.copy() for patch in Runner(model, backend)([inputs])]
    assert said[0].std() > 1e-3
    np.testing.assert_allclose(said[1], said[0], atol=1e-3)


def test_a_patch_that_is_not_for_the_net_is_refused(name):
    model = Model(config_of(name), net_of(name))
    patch = model.config.inference.patch
    with pytest.raises(DataError, match="takes image, cleft, and 1 inputs are given"):
        model.logits(np.zeros(patch.astuple(), np.float32))
    with pytest.raises(DataError, match="does not divide by"):
        model.logits(np.zeros((patch.x + 1, patch.y, patch.z, 2), np.float32))
    larger = np.zeros((patch.x * 2, patch.y, patch.z, 2), np.float32)
    if model.config.architecture.fixed_patch:
        with pytest.raises(DataError, match="is made for patches of"):
            model.logits(larger)
    else:
        assert model.logits(larger).shape[-1] == 2 * patch.x


def test_weights_of_another_net_do_not_fit(name):
    other = build_net(config_of("rsunet" if name != "rsunet" else "unet2d"))
    with pytest.raises(RuntimeError, match="Error"):
        other.load_state_dict(built(name).state_dict())


def test_the_estimate_of_the_largest_tensor_holds(name):
    """No layer gives more values than the configuration says."""
    net, image = net_of(name).eval(), tensor(name)
    largest = 0

    def watch(module, inputs, output):
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel(), *(i.numel() for i in inputs))

    for module in net.modules():
        module.register_forward_hook(watch)
    with torch.inference_mode():
        net(image)
    estimate = config_of(name).architecture.values_per_voxel * image[0, 0].numel()
    ends = 3 * image[0, 0].numel()
    assert largest <= max(estimate, ends)


def test_only_the_image_is_normalised():
    inputs = np.random.default_rng(0).uniform(0, 255, (8, 4, 2, 2)).astype(np.float32)
    seen = normalised(to_torch(inputs), config_of("rsunet").normalisation)[0]
    np.testing.assert_allclose(seen[0].numpy().T, (inputs[..., 0] - 128) / 50, rtol=1e-5)
    np.testing.assert_array_equal(seen[1].numpy().T, inputs[..., 1])
