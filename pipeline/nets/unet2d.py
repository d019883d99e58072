"""The U-Net of sections that finds folds, cracks and resin in Macrina et al. 2021."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.nets.architectures import Norm, UNet2DArchitecture
from pipeline.nets.blocks import convolution2d, normalisation


def convolutions(before: int, after: int, n: int, norm: Norm) -> nn.Sequential:
    """Build n convolutions of 3 x 3, each normalised and rectified.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    n : int
        How many.
    norm : {"instance", "batch"}
        Over what activations are normalised.
    """
    layers: list[nn.Module] = []
    for width in [before, *(after for _ in range(n - 1))]:
        layers += [
            convolution2d(width, after, 3),
            normalisation(norm, after, 2),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet2D(nn.Module):
    """U-Net of sections: logits of each output channel at every pixel.

    On the way up, what comes from below is doubled in extent by repeating pixels, and
    joined to the channels that were skipped.

    Parameters
    ----------
    architecture : UNet2DArchitecture
        Widths, and convolutions at each depth.
    channels_in, channels_out : int
        Channels of the input and of the output.
    """

    def __init__(
        self, architecture: UNet2DArchitecture, channels_in: int, channels_out: int
    ) -> None:
        super().__init__()
        widths = architecture.widths
        n, norm = architecture.convolutions, architecture.norm
        pairs = list(itertools.pairwise(widths))
        self.top = convolutions(channels_in, widths[0], n, norm)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            convolutions(fine, coarse, n, norm) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(
            convolutions(fine + coarse, fine, n, norm) for fine, coarse in pairs
        )
        self.head = convolution2d(widths[0], channels_out, 3, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, (batch, channel, y, x), of sections of the same extent."""
        x: Tensor = self.top(image)
        skips = []
        for module in self.down:
            skips.append(x)
            x = module(self.pool(x))
        for module, skip in zip(reversed(self.up), reversed(skips), strict=True):
            below = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = module(torch.cat([skip, below], dim=1))
        logits: Tensor = self.head(x)
        return logits
