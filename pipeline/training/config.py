"""How a net is trained, as written in its `train.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.geometry import Bbox, Vec3
from pipeline.nets.config import read_toml
from pipeline.specs import VoxelSize

Probability = Annotated[float, Field(ge=0, le=1)]
Extent = Annotated[float, Field(ge=0)]

CELLS = "cells"
"""What heads of affinities learn from: ids of cells, 0 for what belongs to none."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Truth(_Strict):
    """What is true of a volume, in a source of its own or as values of one.

    Parameters
    ----------
    source : str
        The labels: `file.h5:dataset`, a folder of sections, a layer.
    values : tuple of int
        Of a mask: the labels that are inside it; all but 0 if empty. Of cells: unused.
    ignore : tuple of int
        Labels of voxels that nothing is known of.
    """

    source: str
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = ()


class VolumeConfig(_Strict):
    """Tissue to learn from, to score on, or both.

    Parameters
    ----------
    name : str
        What messages call it.
    inputs : dict
        Source of each input of the model: `image`, and what else it asks for.
    truth : dict
        By name: `cells` for affinities; for all other heads what a channel is called. A
        source, or a table with `source`, `values`, `ignore`. What a volume does not say is
        not learnt from it.
    labelled : str
        Source that is 0 where nothing is known; everything is known if empty.
    voxel_size_nm : (x, y, z), optional
        Extent of its voxels [nm]; needed where the sources do not say.
    train, validation : (first, stop) or (x0, y0, z0, x1, y1, z1), optional
        Sections, or a box, that are learnt from, and that are only scored [voxel].
    weight : float
        How often it is drawn from, relative to the others.
    """

    name: str
    inputs: dict[str, str]
    truth: dict[str, Truth]
    labelled: str = ""
    voxel_size_nm: VoxelSize | None = None
    train: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()
    weight: float = Field(default=1.0, gt=0)

    @field_validator("truth", mode="before")
    @classmethod
    def _source_alone(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {k: {"source": v} if isinstance(v, str) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _boxes_are_boxes(self) -> Self:
        for name in ("train", "validation"):
            given = getattr(self, name)
            half = len(given) // 2
            if len(given) not in (0, 2, 6) or any(
                a < 0 or b <= a for a, b in zip(given[:half], given[half:], strict=True)
            ):
                raise ValueError(
                    f"{name} of volume {self.name} is {list(given)}; give [first, stop] "
                    "sections or [x0, y0, z0, x1, y1, z1], with first < stop"
                )
        if "image" not in self.inputs:
            raise ValueError(f"volume {self.name} has no input image; name its source")
        return self

    def box(self, use: Literal["train", "validation"], bounds: Bbox) -> Bbox | None:
        """Return the box that a use asks for, or None; bounds give its x and y."""
        given = self.train if use == "train" else self.validation
        match given:
            case (first, stop):
                start, end = bounds.start, bounds.stop
                return Bbox(Vec3(start.x, start.y, first), Vec3(end.x, end.y, stop))
            case (_, _, _, _, _, _):
                return Bbox(Vec3.of(given[:3]), Vec3.of(given[3:]))
            case _:
                return None


class Augmentation(_Strict):
    """How often, and how far, a patch is altered; all off if left out.

    Of `misalign`, `missing`, `misalign_missing`, `lost` and `lost_missing` at most one
    happens to a patch (Macrina et al. 2021).

    Parameters
    ----------
    flip : bool
        Whether the sixteen ways that sections can lie are all shown.
    warp : float
        Chance that sections are warped, all alike.
    rotation : float
        Greatest rotation in the plane, either way [degree].
    scale, shear, stretch : float
        Greatest change of the scale, of the shear, and of the scale across the patch
        (perspective) [fraction].
    twist : float
        Greatest rotation of the last section against the first [degree].
    bend : float
        Typical smooth displacement [voxel].
    loose_rotation, loose_shift, loose_bend : float
        What is done to each section on its own, for embeddings to be learnt: typical
        rotation [degree], greatest shift along either axis, and greatest of the typical
        smooth displacements [voxel].
    grey : float
        Chance that brightness, contrast and gamma change.
    grey_range : float
        Greatest change of brightness and of contrast [fraction of the full range].
    misalign : float
        Chance that sections move sideways.
    max_shift : tuple of int
        How far they move at most, one of these at a time [voxel].
    slip : float
        Share of the misalignments that move one section, and not all that follow.
    interpolate : bool
        Whether the cells of a section that slips stay where they were.
    missing : float
        Chance that sections are missing: two in a row, single ones, or both.
    max_missing : int
        How many single ones at most.
    misalign_missing : float
        Chance that sections are missing where others move.
    lost : float
        Chance that one or two sections are cut out with their truth.
    lost_missing : float
        Chance that three sections are one that is missing.
    blur : float
        Chance that sections are out of focus.
    max_blurred : int
        How many at most.
    max_sigma : float
        How far out of focus at most [voxel].
    partial : float
        Share of missing and of blurred sections that are so on one side of a line only.
    """

    flip: bool = True
    warp: Probability = 0.0
    rotation: Extent = 45.0
    scale: float = Field(default=0.1, ge=0, lt=1)
    shear: float = Field(default=0.1, ge=0, lt=1)
    stretch: float = Field(default=0.1, ge=0, lt=0.5)
    twist: Extent = 0.0
    bend: Extent = 0.0
    loose_rotation: Extent = 0.0
    loose_shift: Extent = 0.0
    loose_bend: Extent = 0.0
    grey: Probability = 0.0
    grey_range: float = Field(default=0.25, ge=0, lt=1)
    misalign: Probability = 0.0
    max_shift: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(10, 30, 50), min_length=1
    )
    slip: Probability = 0.3
    interpolate: bool = True
    missing: Probability = 0.0
    max_missing: int = Field(default=7, ge=1)
    misalign_missing: Probability = 0.0
    lost: Probability = 0.0
    lost_missing: Probability = 0.0
    blur: Probability = 0.0
    max_blurred: int = Field(default=7, ge=1)
    max_sigma: float = Field(default=2.0, gt=0)
    partial: Probability = 0.5

    @property
    def exclusive(self) -> dict[str, float]:
        """Chances of what excludes one another."""
        names = ("misalign", "missing", "misalign_missing", "lost", "lost_missing")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _chances_add_up(self) -> Self:
        total = sum(self.exclusive.values())
        if total > 1 + 1e-9:
            raise ValueError(
                f"{', '.join(self.exclusive)} exclude one another and have chances of "
                f"{total:g} together; give at most 1"
            )
        return self


class LossTerm(_Strict):
    """One summand of the loss.

    Parameters
    ----------
    head : str
        Which head of the model.
    kind : str
        `cross_entropy` (binary, or over classes), `focal` and `dice` of logits,
        `squared` of distances, `coherence` of masks with distances, or `matching` of
        embeddings.
    weight : float
        What it is multiplied by.
    balance : bool
        Whether both (all) classes of a channel weigh the same in each patch; of
        `cross_entropy` and `squared`.
    margin : float
        Targets lie so far from 0 and 1 ("inverse margin"); of binary `cross_entropy`.
    gamma : float
        How much less what is told well weighs; of `focal`.
    distance : str
        Head of distances; of `coherence`.
    patch, search : int
        Extent of what is looked for, and how far [voxel]; of `matching`.
    sections : int
        In how many sections after; of `matching`.
    """

    head: str
    kind: Literal["cross_entropy", "focal", "dice", "squared", "coherence", "matching"]
    weight: float = Field(default=1.0, gt=0)
    balance: bool = True
    margin: float = Field(default=0.0, ge=0, lt=0.5)
    gamma: float = Field(default=2.0, ge=0)
    distance: str = ""
    patch: int = Field(default=64, ge=8)
    search: int = Field(default=14, ge=2)
    sections: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _coherence_has_two_heads(self) -> Self:
        if (self.kind == "coherence") != bool(self.distance):
            raise ValueError(
                f"loss {self.kind} of head {self.head} has distance = {self.distance!r}; "
                "name a head of distances for coherence, and for nothing else"
            )
        return self


class Rejection(_Strict):
    """Which patches are mostly thrown back, as they hold next to nothing.

    Parameters
    ----------
    truth : str
        Name of a truth.
    voxels : int
        A patch with fewer of it is thrown back...
    chance : float
        ...with this chance, and another is drawn.
    """

    truth: str
    voxels: int = Field(gt=0)
    chance: float = Field(default=0.95, ge=0, lt=1)


class Optimisation(_Strict):
    """The steps taken.

    Parameters
    ----------
    steps : int
        How many.
    seconds : float, optional
        End earlier after so much time of the processor [s]; the learning rate then falls
        with the time, and the result depends on the machine.
    optimiser : {"adamw", "adam", "amsgrad"}
        Which.
    rate : float
        Highest learning rate.
    betas, eps : floats
        Of Adam.
    weight_decay : float
        Decay of the weights of convolutions, of AdamW.
    warmup : int
        Steps over which the rate rises.
    schedule : {"cosine", "constant", "step", "poly"}
        How it falls: as a half cosine to 0; not; by `factor` at each of `milestones`; or as
        (1 - progress) to the power `power`.
    milestones : tuple of float
        Where the rate falls [fraction of the training].
    factor, power : float
        See `schedule`.
    clip : float
        Greatest norm of a gradient.
    average : float
        Decay of the exponential moving average of the weights, which is what is kept.
    """

    steps: int = Field(gt=0)
    seconds: float | None = Field(default=None, gt=0)
    optimiser: Literal["adamw", "adam", "amsgrad"] = "adamw"
    rate: float = Field(default=1e-3, gt=0)
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: int = Field(default=100, ge=0)
    schedule: Literal["cosine", "constant", "step", "poly"] = "cosine"
    milestones: tuple[Probability, ...] = (0.5, 0.75, 0.9)
    factor: float = Field(default=0.1, gt=0, lt=1)
    power: float = Field(default=0.9, gt=0)
    clip: float = Field(default=1.0, gt=0)
    average: float = Field(default=0.999, ge=0, lt=1)


class Validation(_Strict):
    """What is scored, and when.

    Parameters
    ----------
    every : int
        Steps between scores of patches.
    patches : int
        How many patches of each volume, always the same.
    segment_every : int
        Steps between segmentations of the validation boxes, scored by ARAND and VOI; 0
        segments at the end only.
    """

    every: int = Field(default=200, gt=0)
    patches: int = Field(default=6, gt=0)
    segment_every: int = Field(default=0, ge=0)


class TrainConfig(_Strict):
    """A training.

    Parameters
    ----------
    seed : int
        Fixes the first weights and every patch.
    patch : Vec3
        What the net learns from at each step [voxel].
    batch : int
        Patches of a step, in each process.
    threads : int
        Threads of the arithmetic, in each process.
    loaders : int
        Threads that draw patches ahead; 0 draws them within the step.
    device : str
        `cpu`, `cuda`, or `auto` for a GPU where there is one.
    precision : {"float32", "bfloat16"}, optional
        Arithmetic of the convolutions; that of the model's inference if left out.
    start : str
        Folder of a model whose weights are begun with, from that of `train.toml`; random
        ones if empty.
    start_without : tuple of str
        Parts of the net that begin with random weights all the same, such as `head` where
        the model that is begun with says other things.
    save_every : int
        Steps between checkpoints.
    volume, loss, reject, augmentation, optimisation, validation
        See there. A head without loss has balanced cross entropy, one of distances the
        balanced square.
    """

    seed: int = 0
    patch: Vec3
    batch: int = Field(default=1, gt=0)
    threads: int = Field(default=1, gt=0)
    loaders: int = Field(default=0, ge=0)
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] | None = None
    start: str = ""
    start_without: tuple[str, ...] = ()
    save_every: int = Field(default=100, gt=0)
    volume: tuple[VolumeConfig, ...] = Field(min_length=1)
    loss: tuple[LossTerm, ...] = ()
    reject: Rejection | None = None
    augmentation: Augmentation = Augmentation()
    optimisation: Optimisation
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _there_is_something_to_learn(self) -> Self:
        if not any(volume.train for volume in self.volume):
            raise ValueError("no volume has a train box; give one")
        names = [volume.name for volume in self.volume]
        if len(set(names)) < len(names):
            raise ValueError(f"volumes are named {names}; give each a name of its own")
        return self

    @property
    def identity(self) -> str:
        """What a resumed training must share: everything that its weights follow from.

        Its length may change, and with it the fall of the learning rate from there on.
        """
        apart = {
            "threads": True,
            "loaders": True,
            "device": True,
            "save_every": True,
            "validation": True,
            "optimisation": {"steps", "seconds"},
        }
        return self.model_dump_json(exclude=apart)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read a `train.toml`.

        Raises
        ------
        ModelError
            If it is absent or does not describe a training.
        """
        return read_toml(path, cls)
