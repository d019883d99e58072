"""What the stages that run a net over an image have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import BackendError, ModelError
from pipeline.geometry import Vec3
from pipeline.specs import Read, Region, VolumeSpec, VoxelSize
from pipeline.stages.base import Layer, Pool, Specs, Stage, Task
from pipeline.stages.volume import (
    VolumeStage,
    expect_bounds,
    expect_volume,
    missing_mip,
)

if TYPE_CHECKING:
    from pipeline.nets import Head, ModelConfig
    from pipeline.nets.inference import Runner

_FARTHEST_SCALE = 1.6
"""How far voxels may be from those that a net was trained at, along any axis."""


class NetStage(Stage):
    """What the stages that run a net have in common, whatever they give it.

    Parameters
    ----------
    model : str
        Folder of the model, or its name in ``$EM_MODELS`` or in the project's ``models``.
    weights : str
        Digest of the model; filled in when a run starts.
    backend : {"auto", "torch", "compiled", "openvino"}
        What computes; settled when a run starts, so that all its workers use the same.
    device : {"auto", "cpu", "cuda"}
        Where; settled likewise, by the machine that starts the run.
    batch : int
        Patches that are computed at once; more than 1 pays on a GPU.
    """

    pool: ClassVar[Pool] = "gpu"
    places: ClassVar[frozenset[str]] = frozenset({"model"})
    streams: ClassVar[bool] = True

    model: str
    weights: str = ""
    backend: Literal["auto", "torch", "compiled", "openvino"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: int = Field(default=1, ge=1)

    @property
    @abstractmethod
    def head_name(self) -> str:
        """Head of the model that is taken."""

    def pinned(self) -> Self:
        """Fix the weights, and what computes.

        Raises
        ------
        ModelError
            If there is no such model, or if the weights are others than those fixed.
        BackendError
            If the backend does not run on the device.
        """
        from pipeline.nets.backends import choose

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
        backend, device = choose(self.backend, self.device)
        return self.model_copy(
            update={"weights": found, "backend": backend, "device": device}
        )

    def voxel_faults(self, layer: str, size_nm: VoxelSize, mip: int = 0) -> list[str]:
        """Say so if voxels are far from those that the net was trained at.

        A net that sees each section alone does not know how thick sections are.
        """
        config = self._config
        trained = config.voxel_size_nm
        axes = 2 if config.architecture.planar else 3
        if all(
            1 / _FARTHEST_SCALE <= a / b <= _FARTHEST_SCALE
            for a, b in list(zip(size_nm, trained, strict=True))[:axes]
        ):
            return []
        return [
            f"{self.name}: voxels of {layer} at mip {mip} are {size_nm} nm and model "
            f"{self.model} was trained at {trained} nm; use a mip or a model nearer to it"
        ]

    @property
    def head_of_model(self) -> Head:
        """The head that is taken; ModelError if the model has none of that name."""
        self._config.channels_of(self.head_name)
        return next(h for h in self._config.head if h.name == self.head_name)

    @property
    def _config(self) -> ModelConfig:
        return _config(str(model_folder(self.model)))

    def _runner(self, threads: int) -> Runner:
        return _runner(
            str(model_folder(self.model)),
            self.weights,
            self.head_name,
            self.backend,
            self.device,
            self.batch,
            threads,
        )


class Prediction(NetStage, VolumeStage):
    """What a net says of an image.

    Patches lie on one grid from the start of the bounds, whatever the chunks, and every
    patch that touches a chunk is predicted whole; so the halo is up to a patch wide and
    no seam shows. Where the image is blank the net does not run, and says 0.

    Parameters
    ----------
    image : str
        Volume of uint8 intensities.
    mip : int
        Mip of the image that is read; ``bounds`` are in its voxels.
    image_mask : str
        Volume of uint8 in the voxels of the output; where it is 0 the net sees 0 instead of
        the image. Empty for none.
    output_mask : str
        Volume of uint8 in the voxels of the output; where it is 0 the output is 0. Empty
        for none.
    turns : {1, 8, 16}
        In how many ways each patch is turned and flipped, and computed: as it is, within
        the section, or with z flipped too. The mean over all is taken.
    """

    image: Layer
    mip: int = Field(default=0, ge=0)
    image_mask: Layer = ""
    output_mask: Layer = ""
    turns: Literal[1, 8, 16] = 1

    @abstractmethod
    def head_faults(self, head: Head) -> list[str]:
        """Say why a head of that name will not do."""

    @property
    def read_mip(self) -> int:
        """Mip of the image."""
        return self.mip

    def reads(self, task: Task) -> dict[str, Read]:
        """Read every patch that touches the chunk, and the masks."""
        from pipeline.nets import read_box

        box = read_box(task.box, task.bounds, self._config.inference)
        reads: dict[str, Read] = {"image": Region(self.image, box, self.mip)}
        if self.image_mask:
            reads["image_mask"] = Region(self.image_mask, box)
        if self.output_mask:
            reads["output_mask"] = Region(self.output_mask, task.box)
        return reads

    def said(
        self,
        task: Task,
        image: NDArray[np.uint8],
        image_mask: NDArray[np.uint8] | None,
        output_mask: NDArray[np.uint8] | None,
    ) -> NDArray[np.float32] | None:
        """Return the head's probabilities of the chunk, or None if all of it is blank."""
        from pipeline.nets import read_box

        if image_mask is not None:
            image = np.where(image_mask == 0, np.uint8(0), image)
        if not image.any() or (output_mask is not None and not output_mask.any()):
            return None

        from pipeline.nets.inference import predict

        return predict(
            self._runner(task.threads),
            image,
            read=read_box(task.box, task.bounds, self._config.inference),
            core=task.box,
            bounds=task.bounds,
            turns=self.turns,
            wanted=output_mask,
        )

    def blank(self, task: Task, dtype: str, channels: int = 1) -> NDArray[Any]:
        """Return a chunk of nothing."""
        extra = (channels,) if channels > 1 else ()
        return np.zeros((*task.box.shape, *extra), dtype, order="F")

    def check(self, specs: Specs) -> list[str]:
        """Check the image, the masks, and whether the model gives what is asked for."""
        faults = expect_volume(self.name, specs, self.image, dtypes=("uint8",))
        spec = specs.get(self.image)
        if isinstance(spec, VolumeSpec) and self.mip >= len(spec.factors):
            return [*faults, missing_mip(self.name, self.image, spec, self.mip)]
        faults += expect_bounds(self.name, specs, self.image, self.bounds, mip=self.mip)
        for mask in filter(None, (self.image_mask, self.output_mask)):
            faults += expect_volume(self.name, specs, mask, dtypes=("uint8",))
            faults += expect_bounds(self.name, specs, mask, self.bounds)
        faults += super().check(specs)
        try:
            config = self._config
        except ModelError as error:
            return [*faults, f"{self.name}: {error}"]
        if isinstance(spec, VolumeSpec):
            faults += self.voxel_faults(self.image, spec.voxel_size_at(self.mip), self.mip)
        if len(config.inputs) > 1:
            faults.append(
                f"{self.name}: model {self.model} takes {', '.join(config.inputs)}, and "
                "the stage has an image alone; take another model"
            )
        patch = config.inference.patch
        if self.turns > 1 and patch.x != patch.y:
            faults.append(
                f"{self.name}: patches of {patch} of model {self.model} cannot be turned "
                f"{self.turns} ways; give turns = 1, or a model whose patch is as wide as "
                "high"
            )
        head = next((h for h in config.head if h.name == self.head_name), None)
        if head is None:
            heads = ", ".join(h.name for h in config.head)
            return [
                *faults,
                f"{self.name}: model {self.model} gives {heads} and no head "
                f"{self.head_name}; take another model",
            ]
        return faults + self.head_faults(head)

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate as the engine does, with what is read and written meanwhile [byte].

        For one thread; each further one computes a patch of its own.
        """
        from pipeline.nets import peak_bytes

        core = self.chunk.minimum(Vec3.of(self.bounds.shape))
        task = self.task(next(iter(self.keys(level))))
        read = sum(
            region.box.volume
            for region in self.reads(task).values()
            if isinstance(region, Region)
        )
        output = self.describe(specs)
        beside = read + 2 * output.itemsize * core.product
        engine = peak_bytes(
            self._config,
            core,
            width=self.head_of_model.width,
            batch=self.batch,
            turns=self.turns,
        )
        return engine + beside

    @abstractmethod
    def describe(self, specs: Specs) -> VolumeSpec:
        """Say what is written."""

    def voxel_size(self, specs: Specs) -> tuple[float, float, float]:
        """Return the voxel of the image at the mip that is read [nm]."""
        image = specs[self.image]
        if not isinstance(image, VolumeSpec):
            raise TypeError(f"{self.image} holds {image.kind}, and a volume is needed")
        return image.voxel_size_at(self.mip)


class NamedHead(Prediction):
    """A prediction whose recipe names the head of the model.

    Parameters
    ----------
    head : str
        Head of the model.
    """

    head: str

    @property
    def head_name(self) -> str:
        """The one that is named."""
        return self.head


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
def _runner(
    folder: str,
    digest: str,
    head: str,
    backend: Literal["auto", "torch", "compiled", "openvino"],
    device: Literal["auto", "cpu", "cuda"],
    batch: int,
    threads: int,
) -> Runner:
    import torch

    from pipeline.nets.backends import choose
    from pipeline.nets.inference import Runner
    from pipeline.nets.model import load_model

    computes, where = choose(backend, device)
    if where == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "this machine has no GPU that torch can use, and the run was started for one; "
            'start workers where there is one, or start the run anew with device = "cpu"'
        )
    model = load_model(folder, where)
    if digest and model.digest != digest:
        raise ModelError(
            f"model in {folder} has digest {model.digest}, and the run was started with "
            f"{digest}; restore the model or start another run"
        )
    # A GPU is kept busy by one thread that computes and one that brings the next batch.
    lanes = 2 if where == "cuda" else threads
    return Runner(model, computes, head=head, batch=batch, lanes=lanes)
