"""Patches to learn from and patches to score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Generic, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Vec3
from pipeline.nets.config import ModelConfig
from pipeline.training.augmentation.grey import alter
from pipeline.training.augmentation.plan import Plan, choose
from pipeline.training.augmentation.warp import PlaneMap, draw, draw_grey, plane_maps, room
from pipeline.training.config import CELLS, Augmentation, Rejection, TrainConfig
from pipeline.training.targets import Target, target_of
from pipeline.training.volumes import Volume

T = TypeVar("T")

_STILL = Augmentation(flip=False)
_MOST_REJECTIONS = 100


@dataclass(frozen=True)
class Example:
    """A patch and what the net should say of it.

    Parameters
    ----------
    inputs : float32 array, (x, y, z, input), Fortran order
        Grey levels of the image, 0 to 255; other inputs, 0 or 1.
    target : Target
        Of all heads.
    volume : str
        Name of the volume that it is from.
    box : Bbox
        What of the source it was drawn from, about [voxel].
    """

    inputs: NDArray[np.float32]
    target: Target
    volume: str
    box: Bbox


def training_example(
    volumes: Sequence[Volume], model: ModelConfig, config: TrainConfig, index: int
) -> Example:
    """Draw a patch.

    It depends on the seed and its number alone, so a training that resumes, or that is
    shared among processes, sees what it would have seen.

    Parameters
    ----------
    volumes : sequence of Volume
        What is learnt from.
    model : ModelConfig
        Inputs and heads.
    config : TrainConfig
        Seed, patch, augmentation.
    index : int
        Number of the patch.

    Raises
    ------
    DataError
        If a volume is too small for the patch and the room that shifts and lost sections
        take, or if rejection never lets a patch through.
    """
    rng = np.random.default_rng([config.seed, index])
    weights = np.array([volume.weight for volume in volumes])
    for _ in range(_MOST_REJECTIONS):
        volume = volumes[rng.choice(len(volumes), p=weights / weights.sum())]
        place = _placed(rng, volume, config.patch, config.augmentation)
        if config.reject is None or not _rejected(rng, volume, place, config.reject):
            return _drawn(rng, volume, model, place, config.augmentation)
    rejection = config.reject
    raise DataError(
        f"{_MOST_REJECTIONS} patches of {config.patch} in a row were rejected, as they "
        f"hold {rejection}; ask for fewer voxels or a lower chance"
    )


@dataclass(frozen=True)
class _Place:
    plan: Plan
    maps: list[PlaneMap]
    middle: NDArray[np.int64]
    sections: NDArray[np.int64]


def _placed(rng: Generator, volume: Volume, patch: Vec3, config: Augmentation) -> _Place:
    rx, ry, rz = volume.ratio
    plan = choose(rng, patch.z, config)
    maps = plane_maps(rng, patch.astuple(), config, ratio=(rx, ry))
    places = _room(maps, volume, plan)
    if not _is_room(places):
        # A patch that does not fit when it is turned is shown as it lies.
        maps = plane_maps(rng, patch.astuple(), _STILL, ratio=(rx, ry))
        places = _room(maps, volume, plan)
    stretched = np.rint(plan.source * rz).astype(np.int64)
    spare = volume.shape.z - int(stretched.max())
    if not _is_room(places) or spare < 1:
        raise DataError(
            f"volume {volume.name} of {volume.shape} cannot give patches of {patch} with "
            f"shifts of {plan.furthest} and {plan.span} sections; use more data, smaller "
            "patches or smaller shifts"
        )
    middle = rng.integers(places[:, 0], places[:, 1])
    sections = stretched + int(rng.integers(spare))
    if config.flip and rng.random() < 0.5:
        sections = sections[0] + sections[-1] - sections
    return _Place(plan, maps, middle, sections)


def _room(maps: Sequence[PlaneMap], volume: Volume, plan: Plan) -> NDArray[np.int64]:
    return room(maps, (volume.shape.x, volume.shape.y), plan.furthest)


def _is_room(places: NDArray[np.int64]) -> bool:
    return bool((places[:, 1] > places[:, 0]).all())


def _rejected(rng: Generator, volume: Volume, place: _Place, rejection: Rejection) -> bool:
    if rejection.truth not in volume.truth:
        return False
    held = _truth(volume, place, rejection.truth)
    few = np.count_nonzero(held if rejection.truth == CELLS else held == 1)
    return bool(few < rejection.voxels) and rng.random() < rejection.chance


def _truth(volume: Volume, place: _Place, name: str) -> NDArray[np.generic]:
    shifts = place.plan.truth_shift
    return draw(volume.truth[name], place.maps, place.middle, place.sections, shifts)


def _drawn(
    rng: Generator,
    volume: Volume,
    model: ModelConfig,
    place: _Place,
    config: Augmentation,
) -> Example:
    plan = place.plan
    where = (place.maps, place.middle, place.sections)
    image = draw_grey(volume.inputs["image"], *where, plan.image_shift)
    image = alter(rng, image, plan.missing, config)
    inputs = np.empty((*image.shape, len(model.inputs)), np.float32, order="F")
    np.multiply(image, np.float32(255), out=inputs[..., 0])
    for channel, name in enumerate(model.inputs[1:], 1):
        inputs[..., channel] = draw(volume.inputs[name], *where, plan.image_shift)
    truth = {name: _truth(volume, place, name) for name in volume.truth}
    known = volume.known
    if known is not None:
        known = draw(known, *where, plan.truth_shift)
    shape = (image.shape[0], image.shape[1], image.shape[2])
    places = None
    if any(head.kind == "embedding" for head in model.head):
        places = _places(volume, place)
    target = target_of(model.head, truth, known, shape, places)
    return Example(inputs, target, volume.name, _box(volume, place))


def _places(volume: Volume, place: _Place) -> NDArray[np.float32]:
    """Return where in its section each voxel is from, in voxels of the patch."""
    plan = place.plan
    by_section = [
        (plane + shift[:, None, None]) / np.array(volume.ratio[:2])[:, None, None]
        for plane, shift in zip(place.maps, plan.image_shift, strict=True)
    ]
    places = np.stack(by_section, axis=-1).transpose(1, 2, 3, 0).astype(np.float32)
    places[:, :, plan.missing] = np.nan
    return np.asfortranarray(places)


def _box(volume: Volume, place: _Place) -> Bbox:
    low = np.min([m.min(axis=(1, 2)) for m in place.maps], axis=0) + place.middle
    high = np.max([m.max(axis=(1, 2)) for m in place.maps], axis=0) + place.middle
    first, last = int(place.sections.min()), int(place.sections.max())
    start = Vec3(int(low[0]), int(low[1]), first)
    return Bbox(start, Vec3(int(high[0]) + 1, int(high[1]) + 1, last + 1)).shifted(
        volume.start
    )


def unaltered_example(volume: Volume, model: ModelConfig, patch: Vec3, at: Vec3) -> Example:
    """Draw the patch that lies at a place, as it is.

    Parameters
    ----------
    volume : Volume
        Where it lies.
    model : ModelConfig
        Inputs and heads.
    patch : Vec3
        Extent [voxel of the model].
    at : Vec3
        First voxel, inside the volume [voxel of the volume].
    """
    rng = np.random.default_rng(0)
    maps = plane_maps(rng, patch.astuple(), _STILL, ratio=volume.ratio[:2])
    corner = np.floor(maps[0].min(axis=(1, 2))).astype(np.int64)
    plan = Plan.untouched(patch.z)
    sections = at.z + np.rint(plan.source * volume.ratio[2]).astype(np.int64)
    place = _Place(plan, maps, np.array([at.x, at.y]) - corner, sections)
    return _drawn(rng, volume, model, place, _STILL)


def validation_examples(
    volumes: Sequence[Volume], model: ModelConfig, patch: Vec3, n: int
) -> Iterator[Example]:
    """Spread patches over volumes on a golden-ratio sequence, the same at every call.

    Parameters
    ----------
    volumes : sequence of Volume
        What to score on, never learnt from.
    model : ModelConfig
        Inputs and heads.
    patch : Vec3
        Extent [voxel of the model].
    n : int
        How many of each volume.

    Raises
    ------
    DataError
        If a volume is smaller than a patch.
    """
    for volume in volumes:
        spare = _spare(volume, patch)
        for i in range(n):
            # Powers of the plastic number's inverse: the three-dimensional golden ratio.
            parts = [(0.5 + (i + 1) * 1.2207440846 ** -(a + 1)) % 1 for a in range(3)]
            at = Vec3.of([round(p * s) for p, s in zip(parts, spare, strict=True)])
            yield unaltered_example(volume, model, patch, at)


def tiles(volume: Volume, model: ModelConfig, patch: Vec3) -> Iterator[Example]:
    """Cover a volume with patches, the last of each axis shifted inward.

    Parameters
    ----------
    volume : Volume
        What to cover.
    model : ModelConfig
        Inputs and heads.
    patch : Vec3
        Extent [voxel of the model].

    Raises
    ------
    DataError
        If the volume is smaller than a patch.
    """
    spare = _spare(volume, patch)
    strides = [max(1, int(n * r)) for n, r in zip(patch, volume.ratio, strict=True)]
    starts = [[*range(0, s, stride), s] for s, stride in zip(spare, strides, strict=True)]
    for at in product(*starts):
        yield unaltered_example(volume, model, patch, Vec3.of(at))


def _spare(volume: Volume, patch: Vec3) -> Vec3:
    maps = plane_maps(
        np.random.default_rng(0), patch.astuple(), _STILL, ratio=volume.ratio[:2]
    )
    low, high = maps[0].min(axis=(1, 2)), maps[0].max(axis=(1, 2))
    extent = np.ceil(high).astype(int) - np.floor(low).astype(int) + 1
    needed = Vec3(
        int(extent[0]), int(extent[1]), int(np.rint((patch.z - 1) * volume.ratio[2])) + 1
    )
    spare = volume.shape - needed
    if min(spare) < 0:
        raise DataError(
            f"volume {volume.name} of {volume.shape} is smaller than a patch of {needed}; "
            "use a larger box or smaller patches"
        )
    return spare


class Ahead(Generic[T]):
    """Things that are made ahead of their use, in threads, in order.

    Parameters
    ----------
    make : callable
        Makes the thing of a number.
    threads : int
        How many are made at once; 0 makes each when it is asked for.
    """

    def __init__(self, make: Callable[[int], T], threads: int) -> None:
        self.make = make
        self.pool = ThreadPoolExecutor(threads) if threads else None
        self.waiting: dict[int, Future[T]] = {}
        self.ahead = 2 * threads

    def __getitem__(self, index: int) -> T:
        if self.pool is None:
            return self.make(index)
        for i in range(index, index + self.ahead + 1):
            if i not in self.waiting:
                self.waiting[i] = self.pool.submit(self.make, i)
        return self.waiting.pop(index).result()

    def close(self) -> None:
        """Let go of the threads; what was made ahead is dropped."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
