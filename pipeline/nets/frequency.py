"""Channel attention by the frequencies of the features, as in FANet (Sun et al.).

Squeeze and excitation weighs a channel by its mean, which is the lowest component of the
discrete cosine transform. Here channels fall into 16 groups, and each group is described
by a component of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BANDS = 7
FREQUENCIES = (
    (0, 0), (0, 1), (6, 0), (0, 5),
    (0, 2), (1, 0), (1, 2), (4, 0),
    (5, 0), (1, 6), (3, 0), (0, 4),
    (0, 6), (0, 3), (3, 5), (2, 2),
)  # fmt: skip
"""Components (y, x) of the paper's table 1, in units of a seventh of the spectrum."""

_REDUCTION = 16


def cosine_component(height: int, width: int, y: int, x: int) -> Tensor:
    """Return a basis function of the discrete cosine transform, of norm 1.

    Parameters
    ----------
    height, width : int
        Extent [pixel].
    y, x : int
        Frequencies, of half periods within the extent.

    Returns
    -------
    Tensor, float32, (height, width)
        What a map is multiplied by and summed to give its component.
    """
    rows = torch.cos(math.pi * y * (torch.arange(height) + 0.5) / height)
    columns = torch.cos(math.pi * x * (torch.arange(width) + 0.5) / width)
    scale = math.sqrt((2 if y else 1) * (2 if x else 1) / (height * width))
    return scale * rows[:, None] * columns[None, :]


class FrequencyAttention(nn.Module):
    """Weigh channels by what a small net makes of their frequency components.

    The transform is of the whole map, whatever its extent, and not of one shrunk to seven
    pixels beforehand: that is what FANet adds to FcaNet.

    Parameters
    ----------
    width : int
        Number of channels, a multiple of 16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % len(FREQUENCIES):
            raise ValueError(
                f"{width} channels do not fall into {len(FREQUENCIES)} equal groups; give "
                f"a multiple of {len(FREQUENCIES)}"
            )
        narrow = max(1, width // _REDUCTION)
        self.weigh = nn.Sequential(
            nn.Linear(width, narrow, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(narrow, width, bias=False),
            nn.Sigmoid(),
        )

    def components(self, x: Tensor) -> Tensor:
        """Return the component of each channel, float32, (batch, channel)."""
        n, c, height, width = x.shape
        basis = torch.stack(
            [
                cosine_component(height, width, _at(y, height), _at(x_, width))
                for y, x_ in FREQUENCIES
            ]
        ).to(x.device)
        groups = x.float().reshape(n, len(FREQUENCIES), -1, height, width)
        return torch.einsum("ngchw,ghw->ngc", groups, basis).reshape(n, c)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of (batch, channel, y, x)."""
        weights: Tensor = self.weigh(self.components(x))
        return x * weights.to(x.dtype)[:, :, None, None]


def _at(band: int, extent: int) -> int:
    """Return the frequency that a band begins with, for a map of an extent."""
    return min(band * max(1, extent // BANDS), extent - 1)
