"""Residual nets of He et al. 2016, as encoders of nets of sections.

Layers carry the names that are usual for them (conv1, bn1, layer1.0.conv1, ...), so that
weights trained elsewhere load by name.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn

from pipeline.nets.architectures import Norm
from pipeline.nets.blocks import convolution2d, normalisation
from pipeline.nets.frequency import FrequencyAttention

Depth: TypeAlias = Literal[18, 34, 50, 101]

_BLOCKS: dict[Depth, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
_WIDTHS = (64, 128, 256, 512)
_STEM = 64


class ResidualBlock(nn.Module):
    """Two convolutions, or three with a bottleneck, beside an identity or a projection.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    narrow : int or None
        Channels within the bottleneck, which the 3 x 3 convolution then strides; None
        makes two convolutions of 3 x 3.
    stride, dilation : int
        Of the block, and of its 3 x 3 filters [pixel].
    norm : {"instance", "batch"}
        Over what activations are normalised.
    attention : bool
        Whether channels are weighed by their frequencies before they are added.
    """

    def __init__(
        self,
        before: int,
        after: int,
        narrow: int | None,
        *,
        stride: int,
        dilation: int,
        norm: Norm,
        attention: bool,
    ) -> None:
        super().__init__()
        if narrow is None:
            self.conv1 = convolution2d(before, after, 3, stride=stride, dilation=dilation)
            self.bn1 = normalisation(norm, after, 2)
            self.conv2 = convolution2d(after, after, 3, dilation=dilation)
            self.bn2 = normalisation(norm, after, 2)
            self.conv3: nn.Module | None = None
        else:
            self.conv1 = convolution2d(before, narrow, 1)
            self.bn1 = normalisation(norm, narrow, 2)
            self.conv2 = convolution2d(narrow, narrow, 3, stride=stride, dilation=dilation)
            self.bn2 = normalisation(norm, narrow, 2)
            self.conv3 = convolution2d(narrow, after, 1)
            self.bn3 = normalisation(norm, after, 2)
        self.relu = nn.ReLU(inplace=True)
        self.attention = FrequencyAttention(after) if attention else nn.Identity()
        self.downsample = (
            nn.Identity()
            if stride == 1 and before == after
            else nn.Sequential(
                convolution2d(before, after, 1, stride=stride),
                normalisation(norm, after, 2),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None:
            y = self.bn3(self.conv3(self.relu(y)))
        out: Tensor = self.relu(self.attention(y) + self.downsample(x))
        return out


class ResNet(nn.Module):
    """The convolutions of a residual net: features at five depths.

    Parameters
    ----------
    depth : {18, 34, 50, 101}
        Number of its layers, as it is named by.
    channels_in : int
        Channels of the input.
    norm : {"instance", "batch"}
        Over what activations are normalised.
    attention : bool
        Whether every block weighs its channels by their frequencies.
    strides : five int
        Of the first convolution, of the pooling after it (as layer1 keeps the extent), and
        of layer2, layer3 and layer4 [pixel]. Where one is less than 2, filters behind it
        are spread out instead, so that they see as far as they would have.
    """

    def __init__(
        self,
        depth: Depth,
        channels_in: int,
        *,
        norm: Norm = "batch",
        attention: bool = False,
        strides: tuple[int, int, int, int, int] = (2, 2, 2, 2, 2),
    ) -> None:
        super().__init__()
        bottleneck = depth >= 50
        expansion = 4 if bottleneck else 1
        self.widths = (_STEM, *(width * expansion for width in _WIDTHS))
        self.conv1 = convolution2d(channels_in, _STEM, 7, stride=strides[0])
        self.bn1 = normalisation(norm, _STEM, 2)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=strides[1], padding=1)
        spread = 4 // (strides[0] * strides[1])
        before, layers = _STEM, []
        for stage, (width, n) in enumerate(zip(_WIDTHS, _BLOCKS[depth], strict=True)):
            stride = 1 if stage == 0 else strides[stage + 1]
            if stage > 0:
                spread *= 2 // stride
            blocks = []
            for i in range(n):
                blocks.append(
                    ResidualBlock(
                        before,
                        width * expansion,
                        width if bottleneck else None,
                        stride=stride if i == 0 else 1,
                        dilation=spread,
                        norm=norm,
                        attention=attention,
                    )
                )
                before = width * expansion
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute features, finest first: of the first convolution, and of each layer."""
        features: list[Tensor] = [self.relu(self.bn1(self.conv1(image)))]
        x = self.maxpool(features[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features
