import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.geometry import Vec3
from pipeline.nets.architectures import RSUNetArchitecture
from pipeline.nets.blocks import InstanceNorm
from pipeline.nets.rsunet import RSUNet, fold_pixels, unfold_pixels
from pipeline.nets.turn import from_torch, to_torch


def test_the_turn_moves_nothing_and_comes_back():
    array = np.asfortranarray(np.random.default_rng(0).random((3, 4, 5, 2), np.float32))
    tensor = to_torch(array)
    assert tensor.shape == (1, 2, 5, 4, 3)
    assert tensor[0, 1, 4, 2, 0] == array[0, 2, 4, 1]
    assert tensor.data_ptr() == array.ctypes.data
    back = from_torch(tensor)
    assert back.flags.f_contiguous
    assert back.ctypes.data == array.ctypes.data
    np.testing.assert_array_equal(back, array)


def test_an_image_gains_its_channel():
    image = np.zeros((3, 4, 5), np.float32, order="F")
    assert to_torch(image).shape == (1, 1, 5, 4, 3)


@pytest.mark.parametrize("fold", [(2, 2, 1), (1, 3, 2)])
def test_unfold_undoes_fold(fold):
    image = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    folded = fold_pixels(image, fold)
    fx, fy, fz = fold
    assert folded.shape == (2, 3 * fx * fy * fz, 4 // fz, 6 // fy, 8 // fx)
    assert torch.equal(unfold_pixels(folded, fold), image)


def test_fold_is_the_pixel_unshuffle_of_torch():
    image = torch.rand(1, 2, 1, 6, 8)
    expected = functional.pixel_unshuffle(image[:, :, 0], 2)
    assert torch.equal(fold_pixels(image, (2, 2, 1))[:, :, 0], expected)


def test_instance_norm_is_that_of_torch():
    torch.manual_seed(0)
    norm = InstanceNorm(3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.rand(2, 3, 4, 5, 6)
    expected = functional.instance_norm(x, weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(norm(x), expected)


def test_extent_is_kept_and_every_weight_learns():
    torch.manual_seed(0)
    net = RSUNet(RSUNetArchitecture(widths=(4, 6, 8), fold=Vec3(2, 2, 1)), 1, 3)
    out = net(torch.rand(1, 1, 5, 16, 24))
    assert out.shape == (1, 3, 5, 16, 24)
    assert out.dtype == torch.float32
    out.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_module_has_four_convolutions_and_skips_add():
    net = RSUNet(RSUNetArchitecture(widths=(4, 6)), 1, 3)
    shapes = [tuple(p.shape[2:]) for n, p in net.named_parameters() if p.ndim == 5]
    assert shapes.count((3, 3, 3)) == 3 * 4
    assert shapes.count((1, 5, 5)) == 2
    assert shapes.count((1, 1, 1)) == 1
    with torch.no_grad():
        net.up[0].project.weight.zero_()
        skipped = net.head(
            net.merge[0](net.top(net.first(image := torch.rand(1, 1, 3, 8, 8))))
        )
        assert torch.allclose(net(image), skipped)
