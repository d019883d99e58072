"""Pieces that more than one net is made of.

Inside this package tensors are (batch, channel, z, y, x), or (batch, channel, y, x) within
a net of sections; tuples of configuration are x, y, z as everywhere else, and are reversed
where a tensor is built.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.nets.architectures import Norm

_DEEP = 16
_VOLUMES = 5


def is_turned(x: Tensor) -> bool:
    """Say whether layers compute a patch with z between y and x, as rows of a flat volume.

    The gradients that torch 2.13 computes on processors with AMX, of convolutions in three
    dimensions in bfloat16, are written beyond their memory where the first extent is less
    than about ten: the process crashes, or worse, does not. A patch of few sections is
    therefore learnt from with its extents as (y, z, x), which is as fast as any.

    Parameters
    ----------
    x : Tensor, (batch, channel, z, y, x)
        Input of a layer.
    """
    return torch.is_grad_enabled() and x.device.type == "cpu" and x.shape[2] < _DEEP


class Convolution(nn.Conv3d):
    """A convolution that keeps the extent, also of few sections."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the memory of what comes out lies as suits the next layer."""
        if not is_turned(x):
            return super().forward(x)
        last = torch.channels_last_3d
        weight = self.weight.transpose(2, 3).contiguous(memory_format=last)
        rows = x.transpose(2, 3).contiguous(memory_format=last)
        around = [extent // 2 for extent in weight.shape[2:]]
        done = functional.conv3d(rows, weight, self.bias, padding=around)
        return done.transpose(2, 3)


def max_pool(x: Tensor, factor: tuple[int, int, int]) -> Tensor:
    """Keep the greatest of each block of voxels.

    Parameters
    ----------
    x : Tensor, (batch, channel, z, y, x)
        Features.
    factor : (z, y, x)
        Extent of a block [voxel].
    """
    if not is_turned(x):
        return functional.max_pool3d(x, factor)
    z, y, along_x = factor
    return functional.max_pool3d(x.transpose(2, 3), (y, z, along_x)).transpose(2, 3)


def enlarge(
    x: Tensor, factor: tuple[int, int, int], mode: Literal["nearest", "trilinear"]
) -> Tensor:
    """Multiply the extent.

    Parameters
    ----------
    x : Tensor, (batch, channel, z, y, x)
        Features.
    factor : (z, y, x)
        By how much.
    mode : {"nearest", "trilinear"}
        How values between are found.
    """
    if not is_turned(x):
        return functional.interpolate(x, scale_factor=factor, mode=mode)
    z, y, along_x = factor
    rows = functional.interpolate(
        x.transpose(2, 3), scale_factor=(y, z, along_x), mode=mode
    )
    return rows.transpose(2, 3)


class InstanceNorm(nn.Module):
    """Zero mean and unit variance of each channel over one patch, then scale and shift.

    Batch normalisation of a batch of one, from its own statistics, is the same function;
    it is used for its kernel, which keeps channels last and takes bfloat16.

    Parameters
    ----------
    width : int
        Number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch, each of its patches alone."""
        if x.shape[2:].numel() == 1:
            raise ValueError(
                "one value cannot be normalised by itself; give a larger patch, or a net "
                "of fewer depths"
            )
        if x.ndim == _VOLUMES and is_turned(x):
            return self._each(x.transpose(2, 3)).transpose(2, 3)
        return self._each(x)

    def _each(self, x: Tensor) -> Tensor:
        patches = [
            functional.batch_norm(p, None, None, self.weight, self.bias, training=True)
            for p in torch.split(x, 1)
        ]
        return patches[0] if len(patches) == 1 else torch.cat(patches)


def normalisation(norm: Norm, width: int, dimensions: int) -> nn.Module:
    """Build the layer that normalises.

    Parameters
    ----------
    norm : {"instance", "batch"}
        Over what.
    width : int
        Number of channels.
    dimensions : 2 or 3
        Of a section, or of a patch.
    """
    if norm == "instance":
        return InstanceNorm(width)
    return nn.BatchNorm2d(width) if dimensions == 2 else nn.BatchNorm3d(width)


def convolution(
    before: int, after: int, kernel: tuple[int, int, int], *, bias: bool = False
) -> Convolution:
    """Build a convolution that keeps the extent, with He's normal initialisation.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    kernel : (x, y, z)
        Extent of the filter [voxel], odd.
    bias : bool
        Whether it has one, 0 at first.
    """
    kx, ky, kz = kernel
    layer = Convolution(
        before, after, (kz, ky, kx), padding=(kz // 2, ky // 2, kx // 2), bias=bias
    )
    initialise(layer)
    return layer


def convolution2d(
    before: int,
    after: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """Build a convolution of sections, with He's normal initialisation.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    kernel : int
        Extent of the filter along x and y [pixel], odd.
    stride, dilation : int
        Step of the output, and of the filter's taps [pixel].
    bias : bool
        Whether it has one, 0 at first.
    """
    layer = nn.Conv2d(
        before,
        after,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        bias=bias,
    )
    initialise(layer)
    return layer


def initialise(layer: nn.Module) -> None:
    """Draw the weights of a convolution by He's normal rule; its bias is 0."""
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, Tensor):
        raise TypeError(f"{layer} has no weights to draw")
    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)


class Sections(nn.Module):
    """A net of sections, run over each section of a patch alone.

    Parameters
    ----------
    net : Module
        From (batch, channel, y, x) to the same extent.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, float32, (batch, channel, z, y, x)."""
        n, c, z, y, x = image.shape
        sections = image.transpose(1, 2).reshape(n * z, c, y, x)
        sections = sections.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.net(sections).float()
        return logits.reshape(n, z, -1, y, x).transpose(1, 2).contiguous()
