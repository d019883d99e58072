"""Nets of sections that find membranes in U-RISC (Shi et al. 2021), on residual nets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.nets.architectures import (
    CASENetArchitecture,
    LinkNetArchitecture,
    Norm,
    ResNetUNetArchitecture,
)
from pipeline.nets.blocks import convolution2d, initialise, normalisation
from pipeline.nets.resnet import ResNet
from pipeline.nets.unet2d import convolutions


class ResNetUNet(nn.Module):
    """U-Net with a residual encoder: logits of each output channel at every pixel.

    At each of five steps up, what comes from below is doubled in extent by repeating
    pixels, joined to the encoder's features of that extent, and convolved twice. At full
    extent there is nothing to join.

    Parameters
    ----------
    architecture : ResNetUNetArchitecture
        Encoder, and widths of the way up.
    channels_in, channels_out : int
        Channels of the input and of the output.
    """

    def __init__(
        self, architecture: ResNetUNetArchitecture, channels_in: int, channels_out: int
    ) -> None:
        super().__init__()
        norm = architecture.norm
        self.encoder = ResNet(
            architecture.encoder,
            channels_in,
            norm=norm,
            attention=architecture.attention == "frequency",
        )
        widths = architecture.decoder_widths
        below = (self.encoder.widths[-1], *widths[:-1])
        skipped = (*reversed(self.encoder.widths[:-1]), 0)
        self.up = nn.ModuleList(
            convolutions(b + s, after, 2, norm)
            for b, s, after in zip(below, skipped, widths, strict=True)
        )
        self.head = convolution2d(widths[-1], channels_out, 3, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, (batch, channel, y, x), of sections of the same extent."""
        *features, x = self.encoder(image)
        for module, skip in zip(self.up, [*reversed(features), None], strict=True):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = module(x if skip is None else torch.cat([x, skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


class LinkNet(nn.Module):
    """LinkNet: blocks of three thin layers go up, and the encoder's features are added.

    Parameters
    ----------
    architecture : LinkNetArchitecture
        Encoder.
    channels_in, channels_out : int
        Channels of the input and of the output.
    """

    def __init__(
        self, architecture: LinkNetArchitecture, channels_in: int, channels_out: int
    ) -> None:
        super().__init__()
        norm = architecture.norm
        self.encoder = ResNet(
            architecture.encoder,
            channels_in,
            norm=norm,
            attention=architecture.attention == "frequency",
        )
        stem, *widths = self.encoder.widths
        above = (stem, *widths[:-1])
        self.up = nn.ModuleList(
            _link_block(before, after, norm, stride=1 if i == 0 else 2)
            for i, (before, after) in enumerate(zip(widths, above, strict=True))
        )
        half = stem // 2
        self.head = nn.Sequential(
            _transposed(stem, half, 3, stride=2),
            normalisation(norm, half, 2),
            nn.ReLU(inplace=True),
            convolution2d(half, half, 3),
            normalisation(norm, half, 2),
            nn.ReLU(inplace=True),
            _transposed(half, channels_out, 2, stride=2, bias=True),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, (batch, channel, y, x), of sections of the same extent."""
        features = self.encoder(image)[1:]
        x = features.pop()
        for i in range(len(self.up) - 1, -1, -1):
            x = self.up[i](x)
            if i > 0:
                x = x + features[i - 1]
        logits: Tensor = self.head(x)
        return logits


def _link_block(before: int, after: int, norm: Norm, *, stride: int) -> nn.Sequential:
    quarter = before // 4
    return nn.Sequential(
        convolution2d(before, quarter, 1),
        normalisation(norm, quarter, 2),
        nn.ReLU(inplace=True),
        _transposed(quarter, quarter, 3, stride=stride),
        normalisation(norm, quarter, 2),
        nn.ReLU(inplace=True),
        convolution2d(quarter, after, 1),
        normalisation(norm, after, 2),
        nn.ReLU(inplace=True),
    )


def _transposed(
    before: int, after: int, kernel: int, *, stride: int, bias: bool = False
) -> nn.ConvTranspose2d:
    """Build a transposed convolution whose output is `stride` times as wide."""
    padding = (kernel - 1) // 2
    layer = nn.ConvTranspose2d(
        before,
        after,
        kernel,
        stride=stride,
        padding=padding,
        output_padding=stride - kernel + 2 * padding,
        bias=bias,
    )
    initialise(layer)
    return layer


class CASENet(nn.Module):
    """CASENet: every depth of the encoder is read out, and what they say is fused.

    As in U-RISC all five depths give every output channel, each by one convolution of
    1 x 1 brought to full extent; the five of a channel lie side by side and are fused by
    a convolution of 1 x 1 of their own. The strides of the first and of the last depth are
    taken out, so that the coarsest features are an eighth of the image.

    Parameters
    ----------
    architecture : CASENetArchitecture
        Encoder.
    channels_in, channels_out : int
        Channels of the input and of the output.
    """

    def __init__(
        self, architecture: CASENetArchitecture, channels_in: int, channels_out: int
    ) -> None:
        super().__init__()
        self.encoder = ResNet(
            architecture.encoder,
            channels_in,
            norm=architecture.norm,
            attention=architecture.attention == "frequency",
            strides=(1, 2, 2, 2, 1),
        )
        widths = self.encoder.widths
        self.side = nn.ModuleList(
            convolution2d(width, channels_out, 1, bias=True) for width in widths
        )
        self.fuse = nn.Conv2d(
            channels_out * len(widths), channels_out, 1, groups=channels_out
        )
        # At first the fused logit is the mean of what the depths say.
        nn.init.constant_(self.fuse.weight, 1 / len(widths))
        nn.init.zeros_(self.fuse.bias)  # type: ignore[arg-type]

    def sides(self, image: Tensor) -> list[Tensor]:
        """Compute what each depth says, finest first: logits at full extent."""
        extent = image.shape[2:]
        return [
            functional.interpolate(
                read(x), size=extent, mode="bilinear", align_corners=False
            )
            for read, x in zip(self.side, self.encoder(image), strict=True)
        ]

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, (batch, channel, y, x), of sections of the same extent."""
        # Channel by channel: all depths of the first, then of the second, ...
        beside = torch.stack(self.sides(image), dim=2).flatten(1, 2)
        logits: Tensor = self.fuse(beside)
        return logits
