"""The nets that there are, as written under `[architecture]`; reads without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    model_validator,
)

from pipeline.geometry import Vec3

Norm: TypeAlias = Literal["instance", "batch"]
"""Over what activations are normalised: each patch (of a net of sections: each section)
alone, or the batch while training and its running mean afterwards."""

_DEFAULT = "rsunet"


class Strict(BaseModel):
    """A frozen configuration that knows all of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseArchitecture(Strict, ABC):
    """What is asked of every net before it is built."""

    planar: ClassVar[bool] = False
    """Whether the net sees each section alone."""

    norm: Norm = "instance"

    @property
    def fixed_patch(self) -> bool:
        """Whether the net is made for patches of one extent, `[inference] patch`."""
        return False

    @property
    @abstractmethod
    def granule(self) -> Vec3:
        """Extent that a patch must divide by [voxel]."""

    @property
    @abstractmethod
    def values_per_voxel(self) -> float:
        """Values of the net's largest tensor for each voxel of the patch."""


class RSUNetArchitecture(BaseArchitecture):
    """The residual symmetric U-Net of Lee et al. 2017, and as Macrina et al. 2021 alter it.

    Parameters
    ----------
    name : "rsunet"
        Which net; may be left out.
    widths : tuple of int
        Channels at each depth, finest first.
    fold : Vec3
        Block of neighbouring voxels that become channels at the input and come back at
        the output [voxel].
    upsampling : {"nearest", "bilinear"}
        How a coarser depth is brought to the extent of the finer one.
    norm : {"instance", "batch"}
        Over what activations are normalised.
    activation : {"relu", "elu"}
        What bends them.
    convolutions : 3 or 4
        Of a residual module: 3 in 2017; the extra one of 2021 makes 4.
    top_kernel : Vec3
        Filters of the residual modules at the finest depth [voxel], odd: (3, 3, 1) in 2017.
        All others are (3, 3, 3).
    pointwise_head : bool
        Whether another convolution, of 1 x 1 x 1, follows that of the output.
    """

    name: Literal["rsunet"] = "rsunet"
    widths: tuple[PositiveInt, ...] = Field(min_length=1)
    fold: Vec3 = Vec3(1, 1, 1)
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    norm: Norm = "instance"
    activation: Literal["relu", "elu"] = "relu"
    convolutions: Literal[3, 4] = 4
    top_kernel: Vec3 = Vec3(3, 3, 3)
    pointwise_head: bool = False

    @property
    def granule(self) -> Vec3:
        """Extent that a patch must divide by: the fold, and every pooling in x and y."""
        pooled = 2 ** (len(self.widths) - 1)
        return self.fold * Vec3(pooled, pooled, 1)

    @property
    def values_per_voxel(self) -> float:
        """Values of the net's largest tensor for each voxel of the patch."""
        return _widest(self.widths) / self.fold.product

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> Self:
        if any(n % 2 == 0 or n < 1 for n in self.top_kernel):
            raise ValueError(
                f"top_kernel {self.top_kernel} has no middle; give odd extents"
            )
        return self


class UNet2DArchitecture(BaseArchitecture):
    """The U-Net of sections that finds folds, cracks and resin in Macrina et al. 2021.

    Parameters
    ----------
    name : "unet2d"
        Which net.
    widths : tuple of int
        Channels at each depth, finest first.
    convolutions : int
        Convolutions of 3 x 3 at each depth, down and up.
    norm : {"instance", "batch"}
        Over what activations are normalised.
    """

    planar: ClassVar[bool] = True

    name: Literal["unet2d"]
    widths: tuple[PositiveInt, ...] = (16, 32, 64, 128, 256)
    convolutions: PositiveInt = 3
    norm: Norm = "instance"

    @property
    def granule(self) -> Vec3:
        """Extent that a patch must divide by: every pooling."""
        pooled = 2 ** (len(self.widths) - 1)
        return Vec3(pooled, pooled, 1)

    @property
    def values_per_voxel(self) -> float:
        """Of what comes up beside what was skipped."""
        below = (*self.widths[1:], 0)
        return _widest([a + b for a, b in zip(self.widths, below, strict=True)])


class CleftNetArchitecture(BaseArchitecture):
    """CleftNet of Liu and Ji 2021: a residual U-Net with augmentors of features.

    The augmentor of labels is a matter of heads: a head of masks gives the clefts, and a
    head of kind "distance" beside it their tanh distance map. Without the latter this is
    "CleftNet w/o LA"; with `query = "none"` it is "CleftNet w/o FA"; without both it is
    "ResUnet"; `query = "input"` is "CleftNet w SelfAttn".

    Parameters
    ----------
    name : "cleftnet"
        Which net.
    widths : tuple of int
        Channels at each depth, finest first; the last is the bottom block's.
    pool : tuple of Vec3
        By how much each step down shrinks [voxel]. The paper halves 8 sections four times,
        which leaves half a section: here the fourth step halves x and y alone.
    query : {"learned", "input", "none"}
        Whence the queries of the augmentors come: free parameters, the input, or there are
        no augmentors, but max pooling and trilinear interpolation alone.
    attention_width : int or None
        Channels of queries, keys and values; those of the input if None.
    augmented : int
        Finest depth between which and the one below it there is an augmentor; 0 for
        all. Attention there costs the square of the voxels.
    norm : {"instance", "batch"}
        Over what activations are normalised; the paper's is "batch".
    """

    name: Literal["cleftnet"]
    widths: tuple[PositiveInt, ...] = Field(default=(32, 64, 96, 128, 160), min_length=2)
    pool: tuple[Vec3, ...] = (
        Vec3(2, 2, 2),
        Vec3(2, 2, 2),
        Vec3(2, 2, 2),
        Vec3(2, 2, 1),
    )
    query: Literal["learned", "input", "none"] = "learned"
    attention_width: PositiveInt | None = None
    augmented: int = Field(default=0, ge=0)
    norm: Norm = "batch"

    @property
    def fixed_patch(self) -> bool:
        """Learned queries have the extent of one patch."""
        return self.query == "learned"

    @property
    def granule(self) -> Vec3:
        """Extent that a patch must divide by: every pooling."""
        granule = Vec3(1, 1, 1)
        for step in self.pool:
            granule = granule * step
        return granule

    @property
    def values_per_voxel(self) -> float:
        """Of what comes up beside what was skipped."""
        values, shrunk = [], 1
        for fine, coarse, step in zip(
            self.widths, self.widths[1:], self.pool, strict=False
        ):
            values.append((fine + coarse) / shrunk)
            shrunk *= step.product
        return max(*values, self.widths[-1] / shrunk)

    @model_validator(mode="after")
    def _every_step_has_a_pool(self) -> Self:
        if len(self.pool) != len(self.widths) - 1 or min(map(min, self.pool)) < 1:
            raise ValueError(
                f"widths {self.widths} ask for {len(self.widths) - 1} steps of pooling, "
                f"and pool is {self.pool}; give one positive extent for each"
            )
        return self


class _Encoded(BaseArchitecture):
    """A net of sections whose encoder is a ResNet.

    Parameters
    ----------
    encoder : {18, 34, 50, 101}
        Layers of the ResNet.
    norm : {"instance", "batch"}
        Over what activations are normalised.
    attention : {"none", "frequency"}
        "frequency" weighs the channels of every residual block by their components of the
        discrete cosine transform, as FANet does.
    """

    planar: ClassVar[bool] = True

    encoder: Literal[18, 34, 50, 101]
    norm: Norm = "batch"
    attention: Literal["none", "frequency"] = "none"

    @property
    def granule(self) -> Vec3:
        """Extent that a patch must divide by: every stride of the encoder."""
        return Vec3(32, 32, 1)

    @property
    def _stage_widths(self) -> tuple[int, ...]:
        expansion = 4 if self.encoder >= 50 else 1
        return (64, *(width * expansion for width in (64, 128, 256, 512)))


class ResNetUNetArchitecture(_Encoded):
    """The U-Net of U-RISC (Shi et al. 2021), whose way down is a ResNet.

    Parameters
    ----------
    name : "resnet_unet"
        Which net.
    decoder_widths : tuple of five int
        Channels on the way up, coarsest first.
    """

    name: Literal["resnet_unet"]
    encoder: Literal[18, 34, 50, 101] = 50
    decoder_widths: tuple[
        PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt
    ] = (256, 128, 64, 32, 16)

    @property
    def values_per_voxel(self) -> float:
        """Of what comes up beside what was skipped."""
        skipped = (0, *self._stage_widths[:-1])
        above = (*reversed(self.decoder_widths[:-1]), self._stage_widths[-1])
        return _widest([a + b for a, b in zip(skipped, above, strict=True)])


class LinkNetArchitecture(_Encoded):
    """LinkNet (Chaurasia and Culurciello 2017): a ResNet going down, thin blocks going up.

    Parameters
    ----------
    name : "linknet"
        Which net.
    """

    name: Literal["linknet"]
    encoder: Literal[18, 34, 50, 101] = 18

    @property
    def values_per_voxel(self) -> float:
        """The first convolution's, or the last but one's."""
        return max(_widest((0, *self._stage_widths)), 32.0)


class CASENetArchitecture(_Encoded):
    """CASENet (Yu et al. 2017) as U-RISC runs it: five depths, each read out and fused.

    Parameters
    ----------
    name : "casenet"
        Which net.
    """

    name: Literal["casenet"]
    encoder: Literal[18, 34, 50, 101] = 101

    @property
    def granule(self) -> Vec3:
        """Extent that a patch must divide by: the first and last strides are taken out."""
        return Vec3(8, 8, 1)

    @property
    def values_per_voxel(self) -> float:
        """The first convolution's, at full extent, or the last's, at an eighth."""
        first, two, three, four, five = self._stage_widths
        return max(first, two / 4, three / 16, four / 64, five / 64)


def _widest(widths: tuple[int, ...] | list[int]) -> float:
    """Return the most values per voxel when each depth has a quarter of the voxels."""
    return max(width / 4.0**depth for depth, width in enumerate(widths))


def _name(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("name", _DEFAULT)
    return getattr(value, "name", _DEFAULT)


Architecture: TypeAlias = Annotated[
    Annotated[RSUNetArchitecture, Tag("rsunet")]
    | Annotated[UNet2DArchitecture, Tag("unet2d")]
    | Annotated[CleftNetArchitecture, Tag("cleftnet")]
    | Annotated[ResNetUNetArchitecture, Tag("resnet_unet")]
    | Annotated[LinkNetArchitecture, Tag("linknet")]
    | Annotated[CASENetArchitecture, Tag("casenet")],
    Discriminator(_name),
]
"""Every net that there is; `name` says which."""
