"""Affinities of an image, by a net."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import ModelError
from pipeline.geometry import Vec3
from pipeline.specs import Read, Region, VolumeSpec
from pipeline.stages.base import Layer, Pool, Specs, Task
from pipeline.stages.volume import (
    VolumeStage,
    expect_bounds,
    expect_volume,
    missing_mip,
)

if TYPE_CHECKING:
    from pipeline.nets import ModelConfig
    from pipeline.nets.model import Model


_HEAD = "affinities"

_FARTHEST_SCALE = 1.6
"""How far voxels may be from those that a net was trained at, along any axis."""


class Affinities(VolumeStage):
    """Probability that each voxel and its predecessor along x, y, z share a cell.

    Patches lie on one grid from the start of the bounds, whatever the chunks, and every
    patch that touches a chunk is predicted whole; so the halo is up to a patch wide and
    no seam shows. Across the lower faces of the bounds the affinity is 0.

    Parameters
    ----------
    image : str
        Volume of uint8 intensities.
    model : str
        Folder of the model, or its name in ``$EM_MODELS`` or in the project's ``models``.
    weights : str
        Digest of the model; filled in when a run starts.
    dtype : {"uint8", "float32"}
        255 stands for 1 in uint8.
    mip : int
        Mip of the image that is read; ``bounds`` are in its voxels.
    """

    name: ClassVar[str] = "affinities"
    pool: ClassVar[Pool] = "gpu"
    places: ClassVar[frozenset[str]] = frozenset({"model"})

    image: Layer
    model: str
    weights: str = ""
    dtype: Literal["uint8", "float32"] = "uint8"
    mip: int = Field(default=0, ge=0)

    @property
    def read_mip(self) -> int:
        """Mip of the image."""
        return self.mip

    def reads(self, task: Task) -> dict[str, Read]:
        """Read every patch that touches the chunk."""
        from pipeline.nets import read_box

        box = read_box(task.box, task.bounds, self._config.inference)
        return {"image": Region(self.image, box, self.mip)}

    def process(self, task: Task, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Predict."""
        from pipeline.nets import read_box
        from pipeline.nets.inference import predict, quantise

        affinities = predict(
            _model(str(model_folder(self.model)), self.weights),
            image,
            read=read_box(task.box, task.bounds, self._config.inference),
            core=task.box,
            bounds=task.bounds,
        )[..., self._config.channels_of(_HEAD)][..., :3]
        for axis in range(3):
            if task.box.start[axis] == task.bounds.start[axis]:
                np.moveaxis(affinities[..., axis], axis, 0)[0] = 0
        return quantise(affinities) if self.dtype == "uint8" else affinities

    def pinned(self) -> Self:
        """Fix the weights.

        Raises
        ------
        ModelError
            If there is no such model, or if the weights are others than those fixed.
        """
        found = self._config.digest
        weights = model_folder(self.model) / self._config.weights
        if not weights.is_file():
            raise ModelError(
                f"model {self.model} has no weights at {weights}; fetch them, or train and "
                "export them"
            )
        if self.weights and found != self.weights:
            raise ModelError(
                f"model {self.model} has digest {found}, not {self.weights}; restore it, "
                "or leave out weights to take what is there"
            )
        return self.model_copy(update={"weights": found})

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write one channel per axis at the image's voxel size."""
        image = specs[self.image]
        if not isinstance(image, VolumeSpec):
            raise TypeError(f"{self.image} holds {image.kind}, and a volume is needed")
        return self.volume(
            dtype=self.dtype,
            channels=3,
            voxel_size_nm=image.voxel_size_at(self.mip),
            kind_of_values="image",
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the image and whether the model gives affinities."""
        from pipeline.nets import NEAREST

        faults = expect_volume(self.name, specs, self.image, dtypes=("uint8",))
        spec = specs.get(self.image)
        if isinstance(spec, VolumeSpec) and self.mip >= len(spec.factors):
            return [*faults, missing_mip(self.name, self.image, spec, self.mip)]
        faults += expect_bounds(self.name, specs, self.image, self.bounds, mip=self.mip)
        faults += super().check(specs)
        try:
            offsets = next((h.offsets for h in self._config.head if h.name == _HEAD), ())
        except ModelError as error:
            return [*faults, f"{self.name}: {error}"]
        image, trained = specs.get(self.image), self._config.voxel_size_nm
        if isinstance(image, VolumeSpec) and any(
            not 1 / _FARTHEST_SCALE <= a / b <= _FARTHEST_SCALE
            for a, b in zip(image.voxel_size_at(self.mip), trained, strict=True)
        ):
            faults.append(
                f"{self.name}: voxels of {self.image} at mip {self.mip} are "
                f"{image.voxel_size_at(self.mip)} nm and model {self.model} was trained at "
                f"{trained} nm; use a mip or a model nearer to it"
            )
        if offsets[:3] != NEAREST:
            heads = ", ".join(head.name for head in self._config.head)
            faults.append(
                f"{self.name}: model {self.model} gives {heads} and no head {_HEAD} that "
                "begins with the nearest along x, y and z; take another model"
            )
        return faults

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate as the engine does [byte]."""
        from pipeline.nets import peak_bytes

        return peak_bytes(self._config, self.chunk.minimum(Vec3.of(self.bounds.shape)))

    @property
    def _config(self) -> ModelConfig:
        return _config(str(model_folder(self.model)))


def model_folder(name: str) -> Path:
    """Return the folder of a model, by path or by name.

    Raises
    ------
    ModelError
        If there is none; lists where it was looked for.
    """
    places = [Path(name)]
    if os.environ.get("EM_MODELS"):
        places.append(Path(os.environ["EM_MODELS"]) / name)
    places.append(Path(__file__).parents[2] / "models" / name)
    for place in places:
        if (place / "model.toml").is_file():
            return place
    looked = ", ".join(str(p) for p in places)
    raise ModelError(
        f"there is no model {name} (looked in {looked}); give a model's folder"
    )


@lru_cache(maxsize=8)
def _config(folder: str) -> ModelConfig:
    from pipeline.nets import ModelConfig

    return ModelConfig.load(Path(folder))


@lru_cache(maxsize=2)
def _model(folder: str, digest: str) -> Model:
    import torch

    from pipeline.nets.model import load_model

    model = load_model(folder, "cuda" if torch.cuda.is_available() else "cpu")
    if digest and model.digest != digest:
        raise ModelError(
            f"model in {folder} has digest {model.digest}, and the run was started with "
            f"{digest}; restore the model or start another run"
        )
    return model
