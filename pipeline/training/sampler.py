"""Patches to learn from and patches to score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingInputError
from pipeline.geometry import Vec3
from pipeline.training.augment import augment
from pipeline.training.config import Augmentation, Data, Span
from pipeline.training.targets import affinities


@dataclass(frozen=True)
class Block:
    """An image and the cells in it.

    Parameters
    ----------
    image : uint8 array, (x, y, z)
        Grey levels.
    labels : integer array, (x, y, z)
        Ids of cells; 0 belongs to none.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.integer]

    def __post_init__(self) -> None:
        if self.image.shape != self.labels.shape or self.image.ndim != 3:
            raise DataError(
                f"image has shape {self.image.shape} and labels {self.labels.shape}; "
                "give two arrays of one shape, x, y, z"
            )
        if self.image.dtype != np.uint8 or self.labels.dtype.kind not in "iu":
            raise DataError(
                f"image is {self.image.dtype} and labels are {self.labels.dtype}; "
                "give a uint8 image and integer labels"
            )


@dataclass(frozen=True)
class Example:
    """A patch and what the net should say of it.

    Parameters
    ----------
    image : float32 array, (x, y, z)
        From 0 to 1.
    target : bool array, (x, y, z, 3)
        Affinities.
    """

    image: NDArray[np.float32]
    target: NDArray[np.bool_]


def load_block(folder: Path, data: Data, sections: Span) -> Block:
    """Read some sections of a dataset into memory.

    Parameters
    ----------
    folder : Path
        Where the data lie.
    data : Data
        Which file, which datasets.
    sections : (first, stop)
        Which sections.

    Raises
    ------
    MissingInputError
        If the file or a dataset is not there.
    DataError
        If it does not hold those sections.
    """
    path = folder / data.file
    if not path.is_file():
        raise MissingInputError(
            f"{path} does not exist; set EM_DATA to the folder of the data"
        )
    with h5py.File(path, "r") as file:
        for name in (data.image, data.labels):
            if name not in file:
                raise MissingInputError(
                    f"{path} holds {', '.join(file)} and no {name}; name one of them"
                )
            held = file[name].shape[0]
            if not 0 <= sections[0] < sections[1] <= held:
                raise DataError(
                    f"{path}:{name} holds sections 0 to {held}, not {sections[0]} to "
                    f"{sections[1]}; choose sections that are there"
                )
        span = slice(*sections)
        return Block(file[data.image][span].T, file[data.labels][span].T)


def training_example(
    block: Block, patch: Vec3, config: Augmentation, *, seed: int, step: int
) -> Example:
    """Draw the patch of one step.

    The patch depends on seed and step alone, so a training that resumes sees what it would
    have seen. It is drawn one voxel wider than asked: the first plane of each axis
    serves as predecessor after all turning, and is cut off.

    Parameters
    ----------
    block : Block
        What to learn from.
    patch : Vec3
        Extent [voxel].
    config : Augmentation
        How it is altered.
    seed, step : int
        What fixes it.

    Raises
    ------
    DataError
        If the block is too small for the patch and the margin that shifts need.
    """
    rng = np.random.default_rng([seed, step])
    margin = Vec3(config.max_shift, config.max_shift, 0)
    drawn = patch + 1 + margin * 2
    room = Vec3.of(block.image.shape) - drawn
    if min(room) < 0:
        raise DataError(
            f"a block of {block.image.shape} cannot give patches of {drawn}; "
            "use more data, smaller patches or smaller shifts"
        )
    start = [int(rng.integers(0, r + 1)) for r in room]
    box = tuple(slice(a, a + n) for a, n in zip(start, drawn, strict=True))
    image = block.image[box].astype(np.float32) / np.float32(255)
    image, labels = augment(rng, image, block.labels[box], config)
    inner = (slice(1, None),) * 3
    return Example(image[inner], affinities(labels)[inner])


def validation_examples(block: Block, patch: Vec3, n: int) -> list[Example]:
    """Spread patches over a block on a golden-ratio sequence, the same at every call.

    Parameters
    ----------
    block : Block
        What to score on, never learnt from.
    patch : Vec3
        Extent [voxel]; the score leaves out the first plane of each axis.
    n : int
        How many.

    Raises
    ------
    DataError
        If the block is smaller than a patch.
    """
    room = Vec3.of(block.image.shape) - patch
    if min(room) < 0:
        raise DataError(
            f"a block of {block.image.shape} is smaller than a patch of {patch}; "
            "use more sections or smaller patches"
        )
    examples = []
    for i in range(n):
        # Powers of the plastic number's inverse: the three-dimensional golden ratio.
        parts = [(0.5 + (i + 1) * 1.2207440846 ** -(a + 1)) % 1 for a in range(3)]
        start = [round(p * r) for p, r in zip(parts, room, strict=True)]
        box = tuple(slice(a, a + s) for a, s in zip(start, patch, strict=True))
        image = block.image[box].astype(np.float32) / np.float32(255)
        examples.append(Example(image, affinities(block.labels[box])))
    return examples
