"""The residual symmetric U-Net of Lee et al. 2017, as Macrina et al. 2021 run it.

Inside this package tensors are (batch, channel, z, y, x); tuples of configuration are
x, y, z as everywhere else, and are reversed where a tensor is built.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def fold_pixels(image: Tensor, fold: tuple[int, int, int]) -> Tensor:
    """Move each block of neighbouring voxels into channels.

    Parameters
    ----------
    image : Tensor, (batch, channel, z, y, x)
        Extents divide by `fold`.
    fold : (x, y, z)
        Extent of a block [voxel].

    Returns
    -------
    Tensor, (batch, channel * block, z, y, x)
        Channels vary as (channel, z, y, x within the block).
    """
    fx, fy, fz = fold
    n, c, z, y, x = image.shape
    blocks = image.reshape(n, c, z // fz, fz, y // fy, fy, x // fx, fx)
    blocks = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(n, c * fz * fy * fx, z // fz, y // fy, x // fx)


def unfold_pixels(folded: Tensor, fold: tuple[int, int, int]) -> Tensor:
    """Undo `fold_pixels`.

    Parameters
    ----------
    folded : Tensor, (batch, channel * block, z, y, x)
        Channels vary as (channel, z, y, x within the block).
    fold : (x, y, z)
        Extent of a block [voxel].

    Returns
    -------
    Tensor, (batch, channel, z, y, x)
        The voxels in their places.
    """
    fx, fy, fz = fold
    n, c, z, y, x = folded.shape
    blocks = folded.reshape(n, c // (fz * fy * fx), fz, fy, fx, z, y, x)
    blocks = blocks.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return blocks.reshape(n, -1, z * fz, y * fy, x * fx)


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
        patches = [
            functional.batch_norm(p, None, None, self.weight, self.bias, training=True)
            for p in torch.split(x, 1)
        ]
        return patches[0] if len(patches) == 1 else torch.cat(patches)


class Unit(nn.Sequential):
    """Normalise, rectify, convolve: the pre-activation unit everything is made of.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    kernel : (x, y, z)
        Extent of the filter [voxel], odd.
    bias : bool
        Whether the convolution has one.
    """

    def __init__(
        self, before: int, after: int, kernel: tuple[int, int, int], *, bias: bool = False
    ) -> None:
        super().__init__(
            InstanceNorm(before), nn.ReLU(), convolution(before, after, kernel, bias=bias)
        )


class ResidualModule(nn.Module):
    """Four convolutions, the middle two beside an identity.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        kernel = (3, 3, 3)
        self.pre = Unit(before, after, kernel)
        self.residual = nn.Sequential(
            Unit(after, after, kernel), Unit(after, after, kernel)
        )
        self.post = Unit(after, after, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        x = self.pre(x)
        out: Tensor = self.post(x + self.residual(x))
        return out


class Up(nn.Module):
    """Project to the width above and double the extent in x and y.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.project = convolution(before, after, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; projecting first gives the same and is cheaper."""
        return functional.interpolate(
            self.project(x), scale_factor=(1, 2, 2), mode="nearest"
        )


class RSUNet(nn.Module):
    """Residual symmetric U-Net: logits of each output channel at every voxel.

    Skips are joined by addition; pooling is in x and y alone, as sections are thicker than
    pixels are wide. With `fold`, blocks of neighbouring pixels become channels at the input
    and come back at the output, so that the net computes at a coarser voxel.

    Parameters
    ----------
    widths : sequence of int
        Channels at each depth, finest first.
    channels_in, channels_out : int
        Channels of the image and of the output.
    fold : (x, y, z)
        Extent of a folded block [voxel].
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        channels_in: int = 1,
        channels_out: int = 3,
        fold: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.fold = fold
        block = fold[0] * fold[1] * fold[2]
        pairs = list(itertools.pairwise(widths))
        plane = (5, 5, 1)
        self.first = convolution(channels_in * block, widths[0], plane)
        self.top = ResidualModule(widths[0], widths[0])
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.down = nn.ModuleList(ResidualModule(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(Up(coarse, fine) for fine, coarse in pairs)
        self.merge = nn.ModuleList(ResidualModule(fine, fine) for fine, _ in pairs)
        self.head = Unit(widths[0], channels_out * block, plane, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, (batch, channel, z, y, x), of an image of the same extent."""
        x = fold_pixels(image, self.fold).contiguous(memory_format=torch.channels_last_3d)
        x = self.top(self.first(x))
        skips = []
        for module in self.down:
            skips.append(x)
            x = module(self.pool(x))
        for up, merge, skip in zip(
            reversed(self.up), reversed(self.merge), reversed(skips), strict=True
        ):
            x = merge(skip + up(x))
        return unfold_pixels(self.head(x).float(), self.fold)


def convolution(
    before: int, after: int, kernel: tuple[int, int, int], *, bias: bool = False
) -> nn.Conv3d:
    """Build a convolution that keeps the extent, with He's normal initialisation."""
    kx, ky, kz = kernel
    layer = nn.Conv3d(
        before, after, (kz, ky, kx), padding=(kz // 2, ky // 2, kx // 2), bias=bias
    )
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
