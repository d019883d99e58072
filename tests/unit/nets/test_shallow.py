"""Patches of few sections are learnt from turned: the function stays the same."""

import pytest
import torch

import pipeline.nets.blocks as blocks
from pipeline.geometry import Vec3
from pipeline.nets.architectures import CleftNetArchitecture, RSUNetArchitecture
from pipeline.nets.cleftnet import CleftNet
from pipeline.nets.rsunet import RSUNet

NETS = {
    "rsunet, bilinear": lambda: RSUNet(
        RSUNetArchitecture(name="rsunet", widths=(4, 6, 8), upsampling="bilinear"), 1, 2
    ),
    "rsunet, nearest": lambda: RSUNet(
        RSUNetArchitecture(name="rsunet", widths=(4, 6), upsampling="nearest"), 1, 2
    ),
    "cleftnet": lambda: CleftNet(
        CleftNetArchitecture(
            name="cleftnet", widths=(4, 6, 8), pool=(Vec3(2, 2, 1), Vec3(2, 2, 2))
        ),
        Vec3(16, 16, 4),
        1,
        2,
    ),
}


def learnt(net, image):
    net.zero_grad()
    logits = net(image)
    logits.square().mean().backward()
    return logits.detach(), [weight.grad.clone() for weight in net.parameters()]


@pytest.mark.parametrize("name", NETS)
def test_turned_patches_give_the_same_logits_and_gradients(name, monkeypatch):
    torch.manual_seed(0)
    net, image = NETS[name](), torch.randn(1, 1, 4, 16, 16)
    assert blocks.is_turned(image)
    turned, turned_gradients = learnt(net, image)
    monkeypatch.setattr(blocks, "is_turned", lambda _: False)
    plain, plain_gradients = learnt(net, image)
    torch.testing.assert_close(turned, plain, rtol=1e-4, atol=1e-5)
    for a, b in zip(turned_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_nothing_is_turned_where_nothing_is_learnt():
    shallow = torch.zeros(1, 1, 4, 8, 8)
    assert blocks.is_turned(shallow)
    assert not blocks.is_turned(torch.zeros(1, 1, 16, 8, 8))
    with torch.no_grad():
        assert not blocks.is_turned(shallow)


def test_gradients_of_few_sections_in_bfloat16_are_those_of_float32():
    """Where AMX computes them unturned, they differ altogether, if the process lives."""
    torch.manual_seed(0)
    layer = blocks.convolution(96, 160, (3, 3, 3))
    image = torch.randn(1, 96, 4, 40, 40).bfloat16().float()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(image)
    out.backward(torch.ones_like(out))
    found = layer.weight.grad.clone()
    layer.weight.grad = None
    layer(image).sum().backward()
    error = (found - layer.weight.grad).abs().max() / layer.weight.grad.abs().max()
    assert error < 0.02
