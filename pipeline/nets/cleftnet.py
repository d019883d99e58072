"""CleftNet of Liu and Ji 2021: synaptic clefts, by attention to what clefts have in common.

A feature augmentor resizes features as pooling, interpolation or nothing would, and adds
to each voxel of the result a mean over the whole input, weighed by how well each voxel's
key answers the query of that place. Queries are free parameters: what clefts look like,
learnt from all patches.
"""

from __future__ import annotations

import itertools
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.geometry import Vec3
from pipeline.nets.architectures import CleftNetArchitecture, Norm
from pipeline.nets.blocks import convolution, enlarge, initialise, max_pool, normalisation

Resize: TypeAlias = Literal["down", "same", "up"]
"""Whether a layer divides the extent by a factor, keeps it, or multiplies it."""

_CUBE = (3, 3, 3)
_POINT = (1, 1, 1)


class ResidualBlock(nn.Module):
    """A convolution, then two more beside an identity: normalised, with ELU.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    norm : {"instance", "batch"}
        Over what activations are normalised.
    """

    def __init__(self, before: int, after: int, norm: Norm) -> None:
        super().__init__()
        self.first = nn.Sequential(
            convolution(before, after, _CUBE), normalisation(norm, after, 3), nn.ELU()
        )
        self.residual = nn.Sequential(
            convolution(after, after, _CUBE),
            normalisation(norm, after, 3),
            nn.ELU(),
            convolution(after, after, _CUBE),
            normalisation(norm, after, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = self.first(x)
        return functional.elu(x + self.residual(x))


class Resizer(nn.Module):
    """Max pooling, nothing, or trilinear interpolation.

    Parameters
    ----------
    resize : {"down", "same", "up"}
        Which.
    factor : Vec3
        By how much the extent shrinks or grows [voxel].
    """

    def __init__(self, resize: Resize, factor: Vec3) -> None:
        super().__init__()
        self.resize = resize
        self.factor = (factor.z, factor.y, factor.x)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if self.resize == "down":
            return max_pool(x, self.factor)
        if self.resize == "up":
            return enlarge(x, self.factor, "trilinear")
        return x


class InputQuery(nn.Module):
    """Queries that are a linear transformation of the input, resized on the way.

    Parameters
    ----------
    before, after : int
        Channels of the input and of the queries.
    resize : {"down", "same", "up"}
        How the extent of the queries follows from that of the input.
    factor : Vec3
        By how much [voxel].
    """

    def __init__(self, before: int, after: int, resize: Resize, factor: Vec3) -> None:
        super().__init__()
        step = (factor.z, factor.y, factor.x)
        self.transform = (
            nn.ConvTranspose3d(before, after, step, stride=step, bias=False)
            if resize == "up"
            else nn.Conv3d(before, after, step, stride=step, bias=False)
        )
        initialise(self.transform)
        # As learned queries: of norm about 1.
        with torch.no_grad():
            self.transform.weight.mul_(after**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, (batch, channel, z, y, x)."""
        queries: Tensor = self.transform(x)
        return queries


class LearnedQuery(nn.Module):
    """Queries that are parameters, the same for every input.

    Parameters
    ----------
    width : int
        Channels.
    extent : Vec3
        How many there are along each axis.
    """

    def __init__(self, width: int, extent: Vec3) -> None:
        super().__init__()
        self.extent = (extent.z, extent.y, extent.x)
        # Of norm about 1, so that no voxel is attended to alone before anything is learnt.
        self.matrix = nn.Parameter(torch.randn(width, extent.product) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, (batch, channel, z, y, x)."""
        queries = self.matrix.reshape(-1, *self.extent)
        return queries.expand(x.shape[0], *queries.shape)


class FeatureAugmentor(nn.Module):
    """Resize features and add to each what the whole input says to its query.

    With V, K and Q of columns for voxels, out = resized + project(V softmax(Kᵀ Q)), where
    the softmax is over the voxels of the input.

    Parameters
    ----------
    width : int
        Channels in and out.
    attention_width : int
        Channels of queries, keys and values.
    resize : {"down", "same", "up"}
        How the extent changes.
    factor : Vec3
        By how much [voxel].
    extent : Vec3 or None
        Extent of the output, for which there are queries to learn; None makes queries
        from the input.
    """

    def __init__(
        self,
        width: int,
        attention_width: int,
        resize: Resize,
        factor: Vec3,
        extent: Vec3 | None,
    ) -> None:
        super().__init__()
        self.resizer = Resizer(resize, factor)
        self.key = convolution(width, attention_width, _POINT)
        self.value = convolution(width, attention_width, _POINT)
        self.query: nn.Module = (
            InputQuery(width, attention_width, resize, factor)
            if extent is None
            else LearnedQuery(attention_width, extent)
        )
        self.project = convolution(attention_width, width, _POINT)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (batch, channel, z, y, x)."""
        resized = self.resizer(x)
        query = self.query(x)
        if query.shape[2:] != resized.shape[2:]:
            raise ValueError(
                f"queries are of extent {tuple(reversed(query.shape[2:]))} and features of "
                f"{tuple(reversed(resized.shape[2:]))}; give patches of the extent that "
                "the net was made for"
            )
        attended = attend(query, self.key(x), self.value(x))
        out: Tensor = resized + self.project(attended)
        return out


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return for each query the mean of all values, weighed by exp(key . query).

    Parameters
    ----------
    query : Tensor, (batch, channel, z, y, x)
        One at each voxel of the output.
    key, value : Tensor, (batch, channel, z, y, x)
        One at each voxel of the input.

    Returns
    -------
    Tensor, (batch, channel, z, y, x)
        Of the queries' extent. No table of all pairs is held in memory.
    """
    q, k, v = (t.flatten(2).transpose(1, 2)[:, None] for t in (query, key, value))
    means = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    return means[:, 0].transpose(1, 2).reshape(query.shape[0], -1, *query.shape[2:])


class CleftNet(nn.Module):
    """CleftNet: logits of each output channel at every voxel.

    Parameters
    ----------
    architecture : CleftNetArchitecture
        Widths, steps, and which augmentors there are.
    patch : Vec3
        Extent of the patches that queries are learnt for [voxel].
    channels_in, channels_out : int
        Channels of the input and of the output.
    """

    def __init__(
        self,
        architecture: CleftNetArchitecture,
        patch: Vec3,
        channels_in: int,
        channels_out: int,
    ) -> None:
        super().__init__()
        widths, pool, norm = architecture.widths, architecture.pool, architecture.norm
        extents = [patch]
        for step in pool:
            extents.append(extents[-1] // step)

        def augmentor(width: int, resize: Resize, depth: int, out: int) -> nn.Module:
            factor = Vec3(1, 1, 1) if resize == "same" else pool[depth]
            if architecture.query == "none" or depth < architecture.augmented:
                return Resizer(resize, factor)
            return FeatureAugmentor(
                width,
                architecture.attention_width or width,
                resize,
                factor,
                extents[out] if architecture.query == "learned" else None,
            )

        *fine, last = widths
        depths = range(len(fine))
        pairs = list(itertools.pairwise(widths))
        self.encode = nn.ModuleList(
            ResidualBlock(before, after, norm)
            for before, after in zip((channels_in, *fine), fine, strict=False)
        )
        self.down = nn.ModuleList(
            augmentor(fine[depth], "down", depth, depth + 1) for depth in depths
        )
        self.bottom = nn.Sequential(
            ResidualBlock(fine[-1], last, norm),
            augmentor(last, "same", len(fine), len(fine)),
        )
        self.up = nn.ModuleList(
            augmentor(widths[depth + 1], "up", depth, depth) for depth in depths
        )
        self.decode = nn.ModuleList(
            ResidualBlock(before + after, after, norm) for after, before in pairs
        )
        self.head = convolution(widths[0], channels_out, _POINT, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, (batch, channel, z, y, x), of an image of the same extent."""
        x = image.contiguous(memory_format=torch.channels_last_3d)
        skips = []
        for encode, down in zip(self.encode, self.down, strict=True):
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for up, decode, skip in zip(
            reversed(self.up), reversed(self.decode), reversed(skips), strict=True
        ):
            x = decode(torch.cat([skip, up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits.float()
