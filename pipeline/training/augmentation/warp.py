"""Where in its section each voxel of a patch lies: flipped, turned, scaled, bent at once.

A map says for each voxel where it comes from, counted from the middle of the patch. All
that is done to the plane is one map, so that a patch is drawn with four look-ups a voxel,
whatever the map is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import zoom

from pipeline.training.config import Augmentation

PlaneMap: TypeAlias = NDArray[np.float32]
"""float32, (2, x, y): where a voxel comes from along x and y, from the middle [voxel]."""

Matrix: TypeAlias = NDArray[np.float64]
"""float64, (3, 3): of homogeneous coordinates x, y, 1."""

Scalar = TypeVar("Scalar", bound=np.generic)

_KNOTS = 6


def flip(rng: Generator) -> Matrix:
    """Flip x, flip y and exchange them, each or not: one of the eight ways."""
    signs = np.where(rng.random(2) < 0.5, -1.0, 1.0)
    matrix = np.diag([*signs, 1.0])
    return matrix[[1, 0, 2]] if rng.random() < 0.5 else matrix


def rotation(angle: float) -> Matrix:
    """Turn by an angle [degree]."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def scale(rng: Generator, most: float) -> Matrix:
    """Zoom in or out."""
    return np.diag([*np.repeat(_factor(rng, most), 2), 1.0])


def shear(rng: Generator, most: float) -> Matrix:
    """Move rows sideways, the further the higher they lie."""
    return np.array([[1, rng.uniform(-most, most), 0], [0, 1, 0], [0, 0, 1]])


def stretch(rng: Generator, most: float, extent: tuple[int, int]) -> Matrix:
    """Scale one side more than the other, as if seen in perspective."""
    tilt = rng.uniform(-most, most, 2) / np.maximum(np.array(extent) / 2, 1)
    return np.array([[1, 0, 0], [0, 1, 0], [*tilt, 1]])


def twist(rng: Generator, most: float, n: int) -> list[Matrix]:
    """Turn each section of a patch a little further than the one before."""
    whole = rng.uniform(-most, most)
    return [rotation(angle) for angle in np.linspace(-whole / 2, whole / 2, n)]


def bend(rng: Generator, typical: float, extent: tuple[int, int]) -> PlaneMap:
    """Displace smoothly at random: a coarse grid of displacements, drawn out by splines."""
    knots = rng.normal(0, typical, (2, _KNOTS, _KNOTS))
    factors = [n / _KNOTS for n in extent]
    field = [zoom(k, factors, order=3, mode="nearest", grid_mode=True) for k in knots]
    return np.stack(field).astype(np.float32)


def plane_maps(
    rng: Generator,
    extent: tuple[int, int, int],
    config: Augmentation,
    *,
    ratio: Sequence[float] = (1.0, 1.0),
) -> list[PlaneMap]:
    """Draw the maps of a patch.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    extent : (x, y, z)
        Of the patch [voxel].
    config : Augmentation
        What is done, and how far.
    ratio : (x, y)
        Voxels of the volume for each of the patch.

    Returns
    -------
    list of float32 array, (2, x, y)
        One for each section; the same object where they are alike.
    """
    nx, ny, nz = extent
    matrix = np.diag([ratio[0], ratio[1], 1.0])
    matrices, bent = [matrix] * nz, None
    if config.flip:
        matrices = [matrix @ flip(rng)] * nz
    if rng.random() < config.warp:
        turned = matrices[0] @ rotation(rng.uniform(-config.rotation, config.rotation))
        sized = scale(rng, config.scale) @ shear(rng, config.shear)
        matrix = turned @ sized @ stretch(rng, config.stretch, (nx, ny))
        matrices = [matrix] * nz
        if config.twist and nz > 1:
            matrices = [matrix @ turn for turn in twist(rng, config.twist, nz)]
        if config.bend:
            bent = bend(rng, config.bend, (nx, ny))
    if config.loose_rotation or config.loose_shift or config.loose_bend:
        return [
            _loosened(rng, each, (nx, ny), bent, config, ratio=ratio) for each in matrices
        ]
    maps: dict[int, PlaneMap] = {}
    for each in matrices:
        if id(each) not in maps:
            maps[id(each)] = plane_map(each, (nx, ny), bent)
    return [maps[id(each)] for each in matrices]


def _loosened(
    rng: Generator,
    matrix: Matrix,
    extent: tuple[int, int],
    bent: PlaneMap | None,
    config: Augmentation,
    *,
    ratio: Sequence[float],
) -> PlaneMap:
    """Return the map of a section that also moves on its own."""
    moved = rotation(rng.normal(0, config.loose_rotation))
    moved[:2, 2] = rng.uniform(-config.loose_shift, config.loose_shift, 2)
    own = bend(rng, rng.uniform(0, config.loose_bend), extent)
    own *= np.array(ratio, np.float32)[:, None, None]
    return plane_map(matrix @ moved, extent, own if bent is None else bent + own)


def plane_map(
    matrix: Matrix, extent: tuple[int, int], bent: PlaneMap | None = None
) -> PlaneMap:
    """Return the map of a matrix, with a displacement upon it.

    Parameters
    ----------
    matrix : float64 array, (3, 3)
        From voxels of the patch, counted from its middle, to voxels of the volume.
    extent : (x, y)
        Of the patch [voxel].
    bent : float32 array, (2, x, y), optional
        Added to it.

    Returns
    -------
    float32 array, (2, x, y)
        The map.
    """
    x, y = (np.arange(n) - (n - 1) // 2 for n in extent)
    places = np.stack(
        [*np.broadcast_arrays(x[:, None], y[None, :]), np.ones(extent)]
    ).astype(np.float32)
    mapped = np.einsum("ij,jxy->ixy", matrix.astype(np.float32), places)
    plane: PlaneMap = mapped[:2] / mapped[2:]
    return plane if bent is None else plane + bent


def room(
    maps: Sequence[PlaneMap], shape: tuple[int, int], furthest: int
) -> NDArray[np.int64]:
    """Say where the middle of a patch may lie.

    Parameters
    ----------
    maps : sequence of float32 array, (2, x, y)
        Of its sections.
    shape : (x, y)
        Extent of the volume [voxel].
    furthest : int
        How far a section moves at most [voxel].

    Returns
    -------
    int array, (axis, 2)
        First place, and that behind the last, along x and y [voxel]; there is none where
        the second is not greater.
    """
    each = list({id(m): m for m in maps}.values())
    low = np.min([np.floor(m.min(axis=(1, 2))) for m in each], axis=0).astype(np.int64)
    high = np.max([np.ceil(m.max(axis=(1, 2))) for m in each], axis=0).astype(np.int64)
    return np.stack([furthest - low, np.array(shape) - high - furthest], axis=1)


def draw(
    array: NDArray[Scalar],
    maps: Sequence[PlaneMap],
    middle: Sequence[int] | NDArray[np.int64],
    sections: NDArray[np.int64],
    shifts: NDArray[np.int64],
) -> NDArray[Scalar]:
    """Draw sections through their maps; each voxel is the nearest one.

    Parameters
    ----------
    array : array, (x, y, z), Fortran order
        The volume.
    maps : sequence of float32 array, (2, x, y)
        One for each section of the patch.
    middle : (x, y)
        Where the middle of the patch lies in the volume [voxel].
    sections : int array, (z,)
        Which section of the volume each is.
    shifts : int array, (z, 2)
        How far each comes from elsewhere along x and y [voxel].

    Returns
    -------
    array, (x, y, z), Fortran order
        Of the same type.
    """
    out = np.empty((*maps[0].shape[1:], len(sections)), array.dtype, order="F")
    indices: dict[int, NDArray[np.int64]] = {}
    for z, (plane, section, shift) in enumerate(zip(maps, sections, shifts, strict=True)):
        if id(plane) not in indices:
            indices[id(plane)] = _index(np.rint(plane), array.shape[0])
        at = indices[id(plane)] + _offset(middle, shift, array.shape[0])
        flat = array[:, :, section].ravel("F")[at]
        out[:, :, z] = flat.reshape(out.shape[:2], order="F")
    return out


def draw_grey(
    image: NDArray[np.uint8],
    maps: Sequence[PlaneMap],
    middle: Sequence[int] | NDArray[np.int64],
    sections: NDArray[np.int64],
    shifts: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Draw sections through their maps, linearly between voxels.

    Parameters are those of `draw`.

    Returns
    -------
    float32 array, (x, y, z), Fortran order
        Grey levels, from 0 to 1.
    """
    out = np.empty((*maps[0].shape[1:], len(sections)), np.float32, order="F")
    nx, corners = image.shape[0], _Corners(maps, image.shape[0])
    for z, (plane, section, shift) in enumerate(zip(maps, sections, shifts, strict=True)):
        flat = image[:, :, section].ravel("F")
        index, weights = corners[plane]
        at = index + _offset(middle, shift, nx)
        value = np.zeros(at.shape, np.float32)
        for step, weight in weights:
            value += weight * flat[at + step]
        out[:, :, z] = value.reshape(out.shape[:2], order="F")
    out /= np.float32(255)
    return out


class _Corners:
    """The voxels around each place of a map, and how much each of them weighs."""

    def __init__(self, maps: Sequence[PlaneMap], nx: int) -> None:
        self.of: dict[int, tuple[NDArray[np.int64], list[tuple[int, Any]]]] = {}
        for plane in maps:
            if id(plane) not in self.of:
                base = np.floor(plane)
                fx, fy = (plane - base).reshape(2, *plane.shape[1:])
                weights = [
                    (0, (1 - fx) * (1 - fy)),
                    (1, fx * (1 - fy)),
                    (nx, (1 - fx) * fy),
                    (nx + 1, fx * fy),
                ]
                # What weighs nothing is not looked up: it may lie outside the volume.
                held = [(step, w.ravel("F")) for step, w in weights if w.any()]
                self.of[id(plane)] = (_index(base, nx), held)

    def __getitem__(
        self, plane: PlaneMap
    ) -> tuple[NDArray[np.int64], list[tuple[int, Any]]]:
        return self.of[id(plane)]


def _index(plane: NDArray[np.floating[Any]], nx: int) -> NDArray[np.int64]:
    whole = plane.astype(np.int64)
    index: NDArray[np.int64] = (whole[0] + nx * whole[1]).ravel("F")
    return index


def _offset(
    middle: Sequence[int] | NDArray[np.int64], shift: NDArray[np.int64], nx: int
) -> int:
    return int(middle[0] + shift[0] + nx * (middle[1] + shift[1]))


def _factor(rng: Generator, most: float) -> float:
    return float(np.exp(rng.uniform(-1, 1) * np.log1p(most)))
