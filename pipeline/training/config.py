"""How a net is trained, as written in its `train.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.geometry import Vec3
from pipeline.nets.config import read_toml

Probability = Annotated[float, Field(ge=0, le=1)]
Span = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Strict):
    """An image with labels, in one HDF5 file, stored z, y, x.

    Parameters
    ----------
    file : str
        The file, in the folder given at the start.
    image, labels : str
        Its datasets, uint8 and integer; label 0 belongs to no cell.
    train, validation : (first, stop)
        Sections that are learnt from, and sections that are only scored [voxel].
    """

    file: str
    image: str
    labels: str
    train: Span
    validation: Span


class Augmentation(_Strict):
    """How often, and how far, a patch is altered.

    Parameters
    ----------
    grey : float
        Chance that brightness, contrast and gamma change.
    grey_range : float
        Greatest change of brightness and of contrast [fraction of the full range].
    misalign : float
        Chance that sections move sideways.
    max_shift : int
        How far they move at most [voxel].
    slip : float
        Share of the misalignments that move one section, and not all that follow.
    missing : float
        Chance that sections are lost.
    max_missing : int
        How many are lost at most.
    blur : float
        Chance that sections are out of focus.
    max_sigma : float
        How far out of focus at most [voxel].
    """

    grey: Probability = 0.0
    grey_range: float = Field(default=0.25, ge=0, lt=1)
    misalign: Probability = 0.0
    max_shift: int = Field(default=0, ge=0)
    slip: Probability = 0.3
    missing: Probability = 0.0
    max_missing: int = Field(default=1, ge=1)
    blur: Probability = 0.0
    max_sigma: float = Field(default=2.0, gt=0)


class Optimisation(_Strict):
    """The steps taken.

    Parameters
    ----------
    steps : int
        How many, one patch each.
    seconds : float or None
        End earlier after so much time [s]; the learning rate then falls with the time, and
        the result depends on the machine.
    rate : float
        Highest learning rate of AdamW.
    warmup : int
        Steps over which it rises; after them it falls to zero as a half cosine.
    weight_decay : float
        Decay of the weights of convolutions.
    clip : float
        Greatest norm of a gradient.
    average : float
        Decay of the exponential moving average of the weights, which is what is kept.
    """

    steps: int = Field(gt=0)
    seconds: float | None = Field(default=None, gt=0)
    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    average: float = Field(default=0.999, ge=0, lt=1)


class TrainConfig(_Strict):
    """A training.

    Parameters
    ----------
    seed : int
        Fixes the first weights and every patch.
    patch : Vec3
        What the net learns from at each step [voxel]; as wide in x as in y.
    threads : int
        Threads of the arithmetic.
    validation_patches : int
        Patches scored, always the same.
    validate_every, save_every : int
        Steps between scores, and between checkpoints.
    data, augmentation, optimisation
        See there.
    """

    seed: int = 0
    patch: Vec3
    threads: int = Field(default=1, gt=0)
    validation_patches: int = Field(default=6, gt=0)
    validate_every: int = Field(default=200, gt=0)
    save_every: int = Field(default=100, gt=0)
    data: Data
    augmentation: Augmentation = Augmentation()
    optimisation: Optimisation

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read a `train.toml`.

        Raises
        ------
        ModelError
            If it is absent or does not describe a training.
        """
        return read_toml(path, cls)
