"""What a model is, as written in its `model.toml`; reads without torch."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.errors import ModelError
from pipeline.geometry import Vec3
from pipeline.nets.architectures import Architecture, Strict

CONFIG_FILE = "model.toml"
_LEAST_EMBEDDING = 2


NEAREST = (Vec3(1, 0, 0), Vec3(0, 1, 0), Vec3(0, 0, 1))
"""Offsets of affinities to the predecessors along x, y and z."""


class Head(Strict):
    """Some channels of the output that belong together.

    Parameters
    ----------
    name : str
        What it gives, such as "affinities", "myelin" or "semantic".
    kind : {"affinities", "masks", "classes", "distance", "embedding"}
        What its channels mean. Affinities and masks are probabilities by themselves
        (sigmoid of the logit); of classes one is true, and their probabilities add up to 1
        (softmax); a distance is the tanh of the way to the nearest boundary voxel inside
        an object [voxel] and 0 outside (tanh, and what is negative counts as 0). An
        embedding says by what a place of a section is found again in the next ones; its
        channels, of which there are at least two, mean nothing by themselves, and one half
        (sigmoid) stands for nothing.
    offsets : tuple of Vec3
        Of affinities: channel i says whether a voxel and that at minus `offsets[i]` share a
        cell [voxel].
    channels : tuple of str
        Of all others: what each channel says.
    """

    name: str
    kind: Literal["affinities", "masks", "classes", "distance", "embedding"]
    offsets: tuple[Vec3, ...] = ()
    channels: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.offsets or self.channels)

    @model_validator(mode="after")
    def _channels_are_named(self) -> Self:
        given, wanted = (
            (self.channels, self.offsets)
            if self.kind == "affinities"
            else (self.offsets, self.channels)
        )
        if given or not wanted:
            raise ValueError(
                f"head {self.name} of {self.kind} has offsets {self.offsets} and channels "
                f"{self.channels}; give offsets for affinities and else channels"
            )
        if self.kind == "embedding" and len(wanted) < _LEAST_EMBEDDING:
            raise ValueError(
                f"head {self.name} is an embedding of {len(wanted)} channel; name at "
                f"least {_LEAST_EMBEDDING}"
            )
        if len(set(wanted)) < len(wanted):
            raise ValueError(
                f"head {self.name} names a channel twice in {wanted}; name each once"
            )
        return self


class Normalisation(Strict):
    """What is taken off the image, and what it is then divided by [grey level]."""

    mean: float
    std: float = Field(gt=0)


class Inference(Strict):
    """How the net is run over a layer.

    Parameters
    ----------
    patch : Vec3
        Extent that the net sees at once [voxel].
    overlap : Vec3
        What neighbouring patches share [voxel].
    precision : {"float32", "bfloat16"}
        Arithmetic of the convolutions; sums and weights stay float32.
    """

    patch: Vec3
    overlap: Vec3
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def stride(self) -> Vec3:
        """Distance from patch to patch [voxel]."""
        return self.patch - self.overlap

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if min(self.overlap) < 0 or min(self.stride) < 1:
            raise ValueError(
                f"overlap {self.overlap} of patches of {self.patch} leaves a stride of "
                f"{self.stride}; give 0 <= overlap < patch"
            )
        return self


class ModelConfig(Strict):
    """A model: net, what goes in, what comes out, and the weights that belong to it.

    Parameters
    ----------
    name : str
        The model's name, that of its folder.
    inputs : tuple of str
        What the channels of the input are; the first is the image.
    head : tuple of Head
        What comes out, in the order of the channels.
    voxel_size_nm : (x, y, z)
        Voxel that the net was trained at [nm].
    weights : str
        File of the weights, beside `model.toml`.
    sha256 : str
        Its checksum; empty before the first export.
    architecture, normalisation, inference
        See there.
    """

    name: str
    inputs: tuple[str, ...] = Field(default=("image",), min_length=1)
    head: tuple[Head, ...] = Field(min_length=1)
    voxel_size_nm: tuple[float, float, float]
    weights: str = "weights.safetensors"
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    architecture: Architecture
    normalisation: Normalisation
    inference: Inference

    @property
    def width(self) -> int:
        """Number of output channels, of all heads."""
        return sum(head.width for head in self.head)

    def channels_of(self, name: str) -> slice:
        """Return which output channels are a head's.

        Raises
        ------
        ModelError
            If there is no such head; lists those that there are.
        """
        start = 0
        for head in self.head:
            if head.name == name:
                return slice(start, start + head.width)
            start += head.width
        names = ", ".join(head.name for head in self.head)
        raise ModelError(
            f"model {self.name} has no head {name}; it gives {names}: take one of them or "
            "another model"
        )

    def channel_of(self, output: str | None) -> tuple[int, str]:
        """Return which output channel is meant, and its whole name.

        Parameters
        ----------
        output : str or None
            "HEAD", which means its first channel, or "HEAD/CHANNEL"; None means the first
            of all. A channel of affinities is named by its offset, x,y,z.

        Raises
        ------
        ModelError
            If there is no such head or channel; lists those that there are.
        """
        head_name, _, channel_name = (output or self.head[0].name).partition("/")
        channels = self.channels_of(head_name)
        head = next(head for head in self.head if head.name == head_name)
        names = head.channels or tuple(
            ",".join(map(str, offset)) for offset in head.offsets
        )
        name = channel_name or names[0]
        if name not in names:
            raise ModelError(
                f"head {head_name} of model {self.name} has no channel {name}; it has "
                f"{' and '.join(names)}: take one of them"
            )
        return channels.start + names.index(name), f"{head_name}/{name}"

    @model_validator(mode="after")
    def _heads_have_names_of_their_own(self) -> Self:
        names = [head.name for head in self.head]
        if len(set(names)) < len(names):
            raise ValueError(f"heads are named {names}; give each a name of its own")
        return self

    @model_validator(mode="after")
    def _patch_fits_the_net(self) -> Self:
        granule = self.architecture.granule
        if any(self.inference.patch % granule):
            raise ValueError(
                f"patch {self.inference.patch} does not divide by {granule}, which "
                "the depth of the net and its fold ask for"
            )
        coarse = self.inference.patch // granule
        values = coarse.product // (coarse.z if self.architecture.planar else 1)
        if self.architecture.norm == "instance" and values < 2:
            raise ValueError(
                f"patch {self.inference.patch} leaves one value at the coarsest depth, "
                "which cannot be normalised by itself; give a larger patch or fewer depths"
            )
        return self

    @classmethod
    def load(cls, directory: Path) -> ModelConfig:
        """Read the `model.toml` of a folder.

        Raises
        ------
        ModelError
            If it is absent or is not a model's configuration.
        """
        return read_toml(directory / CONFIG_FILE, cls)

    @property
    def digest(self) -> str:
        """Identity of the model: SHA-256 of its configuration, weights' included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def read_toml(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read a frozen configuration from a TOML file.

    Parameters
    ----------
    path : Path
        The file.
    kind : type
        What it describes.

    Raises
    ------
    ModelError
        If it is absent, is not TOML, or describes something else; all faults are listed.
    """
    try:
        return kind.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist; give the folder of a model, which holds {path.name}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not TOML: {error}; mend the file") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'the whole'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ModelError(f"{path} has faults, {faults}; mend the file") from error
