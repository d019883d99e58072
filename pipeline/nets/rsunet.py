"""The residual symmetric U-Net of Lee et al. 2017, as Macrina et al. 2021 run it."""

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.nets.architectures import RSUNetArchitecture
from pipeline.nets.blocks import convolution, enlarge, max_pool, normalisation

_PLANE = (1, 2, 2)


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


class Unit(nn.Sequential):
    """Normalise, bend, convolve: the pre-activation unit everything is made of.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    kernel : (x, y, z)
        Extent of the filter [voxel], odd.
    style : RSUNetArchitecture
        How to normalise and what bends.
    bias : bool
        Whether the convolution has one.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: tuple[int, int, int],
        style: RSUNetArchitecture,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(
            normalisation(style.norm, before, 3),
            nn.ReLU() if style.activation == "relu" else nn.ELU(),
            convolution(before, after, kernel, bias=bias),
        )


class ResidualModule(nn.Module):
    """Three or four convolutions, the second and third beside an identity.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    kernel : (x, y, z)
        Extent of all filters [voxel].
    style : RSUNetArchitecture
        How many convolutions, and of which kind.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: tuple[int, int, int],
        style: RSUNetArchitecture,
    ) -> None:
        super().__init__()
        self.pre = Unit(before, after, kernel, style)
        self.residual = nn.Sequential(
            Unit(after, after, kernel, style), Unit(after, after, kernel, style)
        )
        self.post = (
            Unit(after, after, kernel, style) if style.convolutions == 4 else nn.Identity()
        )

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
    mode : {"nearest", "bilinear"}
        How values between are found.
    """

    def __init__(
        self, before: int, after: int, mode: Literal["nearest", "bilinear"]
    ) -> None:
        super().__init__()
        self.project = convolution(before, after, (1, 1, 1))
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; projecting first gives the same and is cheaper."""
        x = self.project(x)
        return enlarge(x, _PLANE, "nearest" if self.mode == "nearest" else "trilinear")


class RSUNet(nn.Module):
    """Residual symmetric U-Net: logits of each output channel at every voxel.

    Skips are joined by addition; pooling is in x and y alone, as sections are thicker than
    pixels are wide. With `fold`, blocks of neighbouring pixels become channels at the input
    and come back at the output, so that the net computes at a coarser voxel.

    Parameters
    ----------
    architecture : RSUNetArchitecture
        Widths and kinds of layers.
    channels_in, channels_out : int
        Channels of the input and of the output.
    """

    def __init__(
        self, architecture: RSUNetArchitecture, channels_in: int, channels_out: int
    ) -> None:
        super().__init__()
        self.fold = architecture.fold.astuple()
        widths, block = architecture.widths, architecture.fold.product
        pairs = list(itertools.pairwise(widths))
        plane, cube = (5, 5, 1), (3, 3, 3)
        kernels = [architecture.top_kernel.astuple(), *(cube for _ in pairs)]

        def module(before: int, after: int, depth: int) -> ResidualModule:
            return ResidualModule(before, after, kernels[depth], architecture)

        self.first = convolution(channels_in * block, widths[0], plane)
        self.top = module(widths[0], widths[0], 0)
        self.down = nn.ModuleList(
            module(fine, coarse, depth) for depth, (fine, coarse) in enumerate(pairs, 1)
        )
        self.up = nn.ModuleList(
            Up(coarse, fine, architecture.upsampling) for fine, coarse in pairs
        )
        self.merge = nn.ModuleList(
            module(fine, fine, depth) for depth, (fine, _) in enumerate(pairs)
        )
        out = channels_out * block
        self.head = (
            nn.Sequential(
                Unit(widths[0], widths[0], plane, architecture),
                Unit(widths[0], out, (1, 1, 1), architecture, bias=True),
            )
            if architecture.pointwise_head
            else Unit(widths[0], out, plane, architecture, bias=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, (batch, channel, z, y, x), of an image of the same extent."""
        x = fold_pixels(image, self.fold).contiguous(memory_format=torch.channels_last_3d)
        x = self.top(self.first(x))
        skips = []
        for module in self.down:
            skips.append(x)
            x = module(max_pool(x, _PLANE))
        for up, merge, skip in zip(
            reversed(self.up), reversed(self.merge), reversed(skips), strict=True
        ):
            x = merge(skip + up(x))
        return unfold_pixels(self.head(x).float(), self.fold)
