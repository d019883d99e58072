"""What a model is, as written in its `model.toml`; reads without torch."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pipeline.errors import ModelError
from pipeline.geometry import Vec3

CONFIG_FILE = "model.toml"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Strict):
    """The net.

    Parameters
    ----------
    name : {"rsunet"}
        Which net.
    widths : tuple of int
        Channels at each depth, finest first.
    fold : Vec3
        Block of neighbouring voxels that become channels at the input and come back at
        the output [voxel].
    """

    name: Literal["rsunet"] = "rsunet"
    widths: tuple[PositiveInt, ...] = Field(min_length=1)
    fold: Vec3 = Vec3(1, 1, 1)

    @property
    def granule(self) -> Vec3:
        """Extent that a patch must divide by: the fold, and every pooling in x and y."""
        pooled = 2 ** (len(self.widths) - 1)
        return self.fold * Vec3(pooled, pooled, 1)


class Normalisation(_Strict):
    """What is taken off the image, and what it is then divided by [grey level]."""

    mean: float
    std: float = Field(gt=0)


class Inference(_Strict):
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


class ModelConfig(_Strict):
    """A model: net, what goes in, what comes out, and the weights that belong to it.

    Parameters
    ----------
    name : str
        The model's name, that of its folder.
    channels : tuple of str
        What each output channel means; for affinities the axis of the predecessor.
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
    channels: tuple[str, ...] = Field(min_length=1)
    voxel_size_nm: tuple[float, float, float]
    weights: str = "weights.safetensors"
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    architecture: Architecture
    normalisation: Normalisation
    inference: Inference

    @model_validator(mode="after")
    def _patch_fits_the_net(self) -> Self:
        granule = self.architecture.granule
        if any(self.inference.patch % granule):
            raise ValueError(
                f"patch {self.inference.patch} does not divide by {granule}, which "
                f"{len(self.architecture.widths)} depths and the fold ask for"
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
