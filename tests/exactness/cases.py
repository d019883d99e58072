"""Small volumes, cut in every way: what the stages and the definitions are both given."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3

from .oracle import Rules

KINDS = ("continuous", "three-level", "constant", "one-hot", "tissue")
DTYPES = ("uint8", "float16", "float32")
GIVEN = ("", "cells", "noise")
MASKS = ("", "mask", "myelin", "mask and myelin")
MYELIN_THRESHOLD = 0.3
MOST_CHUNKS = 256
LARGEST = Vec3(12, 10, 8)
VAST = Vec3(26, 24, 20)
"""Kernels work in another way where there are many basins."""


@dataclass(frozen=True)
class Volume:
    """A volume and the parameters of its segmentation.

    Parameters
    ----------
    kind, dtype : str
        Of the affinities; see `affinities`.
    given : str
        Supervoxels that are given, see `parts`; none, and the watershed makes them.
    shape, start : Vec3
        Its extent and first voxel.
    id_chunk : Vec3
        Grid that ids refer to.
    low, high, size_threshold, dust : number
        Of the watershed.
    threshold, floor : float
        Of the agglomeration and of its history.
    masks : str
        Masks that there are, see `Volume.layers`.
    rules : Rules or None
        What is not merged; with rules there is a semantic volume.
    in_partitions : bool
        Whether the top of the octree is replaced by merging in partitions.
    threads : int
        Threads of a kernel.
    seed : int
        What the values are drawn from.
    """

    kind: str
    dtype: str
    given: str
    shape: Vec3
    start: Vec3
    id_chunk: Vec3
    low: float
    high: float
    size_threshold: int
    dust: int
    threshold: float
    floor: float
    masks: str
    rules: Rules | None
    in_partitions: bool
    threads: int
    seed: int

    @property
    def bounds(self) -> Bbox:
        return Bbox.of_shape(self.shape, self.start)

    def affinities(self) -> NDArray[Any]:
        """Make the affinities, (x, y, z, 3)."""
        return affinities(self.kind, self.dtype, self.shape.astuple(), self.seed)

    def layers(self) -> dict[str, NDArray[Any]]:
        """Make the layers that are given beside supervoxels.

        A mask of 0 and myelin above its threshold take away affinities.
        """
        rng = np.random.default_rng(self.seed + 2)
        shape = self.shape.astuple()
        layers = {"affinities": self.affinities()}
        if "mask" in self.masks:
            layers["mask"] = rng.choice(np.array([0, 1, 255], np.uint8), shape)
        if "myelin" in self.masks:
            myelin = np.round(rng.random(shape) ** 3 * 255)
            as_float = bool(rng.integers(2))
            layers["myelin"] = (
                np.float32(myelin / 255) if as_float else myelin.astype(np.uint8)
            )
        if self.rules is not None:
            kinds = 1 + _cells(rng, shape, 4) % 5
            noise = rng.integers(0, 6, shape)
            layers["semantics"] = np.where(rng.random(shape) < 0.25, noise, kinds)
            layers["semantics"] = layers["semantics"].astype(np.uint8)
        return {name: np.asfortranarray(array) for name, array in layers.items()}

    def parts(self) -> NDArray[np.uint32]:
        """Make the supervoxels that are given, (x, y, z), numbered anyhow from 1."""
        return parts(self.given, self.shape.astuple(), self.seed)


@dataclass(frozen=True)
class Case:
    """A volume, how it is cut, and what must not matter.

    Parameters
    ----------
    volume : Volume
        What is segmented.
    chunk : Vec3
        Chunk of the grid.
    order : int
        What the order of the tasks of a wave is drawn from.
    memory_order : {"F", "C"}
        Axis that varies fastest in the arrays that tasks are given, the first or the last.
    """

    volume: Volume
    chunk: Vec3
    order: int
    memory_order: Literal["F", "C"]


def affinities(
    kind: str, dtype: str, shape: tuple[int, int, int], seed: int
) -> NDArray[Any]:
    """Make affinities of a kind.

    ``continuous`` has next to no ties in float32, ``three-level`` and ``constant`` next to
    nothing else; ``one-hot`` holds one affinity of 1 at each voxel; ``tissue`` is high
    inside cells and low between them, with noise.
    """
    rng = np.random.default_rng(seed)
    if kind == "continuous":
        values = rng.random((*shape, 3))
    elif kind == "three-level":
        values = rng.choice([0.2, 0.6, 1.0], (*shape, 3))
    elif kind == "constant":
        values = np.full((*shape, 3), rng.choice([0.0, 0.4, 0.75, 1.0]))
    elif kind == "one-hot":
        values = np.eye(3)[rng.integers(0, 3, shape)]
    else:
        values = _tissue(rng, shape)
    if dtype == "uint8":
        return np.asfortranarray(np.rint(values * 255), np.uint8)
    return np.asfortranarray(values, dtype)


def _tissue(rng: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Draw cells; a face between two of them is a membrane."""
    cell = _cells(rng, shape, max(2, math.prod(shape) // 60))
    values = np.empty((*shape, 3))
    for axis in range(3):
        inside = cell == np.roll(cell, 1, axis)
        values[..., axis] = np.where(inside, 0.85, 0.25)
    return np.clip(values + rng.normal(0, 0.15, values.shape), 0, 1)


def parts(given: str, shape: tuple[int, int, int], seed: int) -> NDArray[np.uint32]:
    """Make a partition of a volume into pieces that hang together; 0 is background.

    ``cells`` surround random points, ``noise`` has the shapes of chance. A node of the
    octree knows that a supervoxel goes on outside by the faces that it touches, so a
    supervoxel must be connected by faces of voxels, as those of the watershed are.
    """
    rng = np.random.default_rng(seed + 1)
    n = int(rng.integers(2, 3 + math.prod(shape) // 8))
    labels = _cells(rng, shape, n) if given == "cells" else rng.integers(0, 3, shape)
    labels = np.where(rng.random(shape) < rng.choice([0, 0.2]), 0, 1 + labels)
    pieces: NDArray[np.uint32] = cc3d.connected_components(
        labels.astype(np.uint32), connectivity=6, out_dtype=np.uint32
    )
    return pieces


def _cells(
    rng: np.random.Generator, shape: tuple[int, int, int], n: int
) -> NDArray[np.int64]:
    """Give every voxel the number of the nearest of n random points."""
    centres = rng.random((n, 3)) * shape
    voxels = np.stack(np.indices(shape), axis=-1)
    nearest: NDArray[np.int64] = (
        ((voxels[..., None, :] - centres) ** 2).sum(axis=-1).argmin(axis=-1)
    )
    return nearest


def volumes(
    kind: str,
    dtype: str,
    given: str,
    seed: int,
    *,
    largest: Vec3 = LARGEST,
    in_partitions: bool = False,
) -> Iterator[Volume]:
    """Draw volumes without end."""
    rng = random.Random(f"{kind} {dtype} {given} {seed}")
    while True:
        small = rng.random() < 0.2
        extent = [rng.randint(1 if small else n // 2 + 1, n) for n in largest]
        yield Volume(
            kind=kind,
            dtype=dtype,
            given=given,
            shape=Vec3(*extent),
            start=Vec3(*(rng.randint(-5, 9) for _ in range(3))),
            id_chunk=Vec3(*(rng.randint(2, 13) for _ in range(3))),
            low=rng.choice([0.0, 0.01, 0.3, 0.5]),
            high=rng.choice([0.6, 0.9, 0.99, 2.0]),
            size_threshold=rng.choice([0, 2, 5, 12, 40, 400]),
            dust=rng.choice([0, 1, 3, 8, 25]),
            threshold=rng.choice([0.0, 0.25, 0.4, 0.6, 1.0]),
            floor=rng.choice([0.0, 0.05, 0.3, 0.7]),
            masks=rng.choice(["", "", *MASKS]),
            rules=rng.choice([None, draw_rules(rng)]),
            in_partitions=in_partitions,
            threads=rng.choice([1, 1, 2, 5]),
            seed=rng.randrange(2**32),
        )


def draw_rules(rng: random.Random) -> Rules:
    """Draw constraints that small volumes run into."""
    return Rules(
        activation=rng.choice([0.4, 0.5, 0.8, 1.0]),
        labelled_size=rng.choice([0, 5, 25]),
        labelled_share=rng.choice([0.51, 0.6, 0.75]),
        both_members=rng.choice([0, 1, 3]),
        one_member=rng.choice([1, 2, 6]),
    )


def cuts(shape: Vec3, rng: random.Random) -> Iterator[Vec3]:
    """Yield chunks for a shape: whole, slices of one voxel, odd ones, and very many."""
    yield shape
    axis = rng.randrange(3)
    yield Vec3(*(1 if a == axis else n for a, n in enumerate(shape)))
    yield Vec3(*(rng.randint(1 + n // 4, 1 + n // 2) for n in shape))
    wanted = rng.choice([24, 60, MOST_CHUNKS])
    every = itertools.product(*(range(1, n + 1) for n in shape))
    allowed = [c for c in every if n_chunks(shape, c) <= MOST_CHUNKS]
    nearest = sorted(allowed, key=lambda c: abs(n_chunks(shape, c) - wanted))
    yield Vec3(*rng.choice(nearest[:5]))


def n_chunks(shape: Vec3, chunk: tuple[int, int, int]) -> int:
    """Count the chunks of a volume."""
    return shape.ceil_div(Vec3(*chunk)).product
