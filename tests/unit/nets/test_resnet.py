"""Residual encoders, what they carry, and attention by frequency."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import nn

from pipeline.nets.architectures import CASENetArchitecture, LinkNetArchitecture
from pipeline.nets.frequency import FREQUENCIES, FrequencyAttention, cosine_component
from pipeline.nets.membrane import CASENet, LinkNet
from pipeline.nets.resnet import ResidualBlock, ResNet


def test_features_halve_at_every_depth():
    with torch.device("meta"):
        features = ResNet(50, 1)(torch.zeros(1, 1, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 32, 48),
        (256, 16, 24),
        (512, 8, 12),
        (1024, 4, 6),
        (2048, 2, 3),
    ]


def test_casenet_keeps_an_eighth_and_sees_as_far():
    """Strides that are taken out spread the filters behind them."""
    with torch.device("meta"):
        net = CASENet(CASENetArchitecture(name="casenet", encoder=50), 1, 2)
        features = net.encoder(torch.zeros(1, 1, 64, 96))
        sides = net.sides(torch.zeros(1, 1, 64, 96))
    assert [tuple(f.shape[2:]) for f in features] == [
        (64, 96),
        (32, 48),
        (16, 24),
        (8, 12),
        (8, 12),
    ]
    assert [tuple(s.shape) for s in sides] == [(1, 2, 64, 96)] * 5
    layers = [
        net.encoder.layer1,
        net.encoder.layer2,
        net.encoder.layer3,
        net.encoder.layer4,
    ]
    assert [layer[-1].conv2.dilation for layer in layers] == [(2, 2)] * 3 + [(4, 4)]


def test_casenet_fuses_each_channel_by_itself():
    torch.manual_seed(0)
    net = CASENet(CASENetArchitecture(name="casenet", encoder=18), 1, 3).eval()
    image = torch.randn(1, 1, 16, 24)
    with torch.no_grad():
        sides = torch.stack(net.sides(image))
        torch.testing.assert_close(net(image), sides.mean(0), rtol=1e-4, atol=1e-5)
        net.fuse.weight[1] *= 2
        expected = sides.mean(0) * torch.tensor([1, 2, 1])[None, :, None, None]
        torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-5)


def test_linknet_adds_what_the_encoder_saw():
    torch.manual_seed(0)
    net = LinkNet(LinkNetArchitecture(name="linknet"), 1, 1).eval()
    image = torch.randn(1, 1, 32, 64)
    with torch.no_grad():
        _, one, two, three, four = net.encoder(image)
        x = net.up[3](four) + three
        x = net.up[2](x) + two
        x = net.up[1](x) + one
        torch.testing.assert_close(net(image), net.head(net.up[0](x)))


def test_a_block_is_an_identity_and_a_residue():
    torch.manual_seed(0)
    block = ResidualBlock(
        8, 8, None, stride=1, dilation=1, norm="batch", attention=False
    ).eval()
    x = torch.rand(1, 8, 6, 6)
    with torch.no_grad():
        block.bn2.weight.zero_()
        torch.testing.assert_close(block(x), x)
    wider = ResidualBlock(8, 16, 4, stride=2, dilation=1, norm="batch", attention=False)
    assert wider(x).shape == (1, 16, 3, 3)
    assert isinstance(wider.downsample, nn.Sequential)


def test_weights_go_by_their_usual_names():
    with torch.device("meta"):
        names = ResNet(50, 3).state_dict()
    for name in (
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv3.weight",
        "layer1.0.downsample.0.weight",
        "layer4.2.bn2.bias",
    ):
        assert name in names


@pytest.mark.parametrize("shape", [(14, 21), (7, 9), (3, 2)])
def test_components_are_those_of_the_cosine_transform(shape):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(1, 32, *shape)).astype(np.float32)
    found = FrequencyAttention(32).components(torch.from_numpy(maps))[0]
    height, width = shape
    for channel in range(32):
        y, x = FREQUENCIES[channel // 2]
        at = (
            min(y * max(1, height // 7), height - 1),
            min(x * max(1, width // 7), width - 1),
        )
        expected = dctn(maps[0, channel], norm="ortho")[at]
        assert found[channel] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_components_are_orthonormal():
    basis = torch.stack([cosine_component(6, 5, y, x) for y in range(6) for x in range(5)])
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(30), atol=1e-5, rtol=0)


def test_the_lowest_component_is_the_mean():
    """Squeeze and excitation is the special case of one frequency."""
    x = torch.rand(2, 16, 8, 10)
    found = FrequencyAttention(16).components(x)[:, 0]
    torch.testing.assert_close(found, x[:, 0].mean(dim=(1, 2)) * 80**0.5)


def test_attention_weighs_channels():
    torch.manual_seed(0)
    attention, x = FrequencyAttention(32), torch.randn(2, 32, 7, 7)
    ratio = attention(x) / x
    assert ratio.std(dim=(2, 3)).max() < 1e-4
    assert ratio.mean(dim=(2, 3)).std() > 1e-3
    assert 0 < ratio.min() < ratio.max() < 1
    assert sum(p.numel() for p in attention.parameters()) == 32 * 2 * 2
    with pytest.raises(ValueError, match="24 channels do not fall into 16"):
        FrequencyAttention(24)
