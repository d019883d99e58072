"""What a net is asked to say, from what is true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pipeline.geometry import Vec3
from pipeline.nets.config import NEAREST, Head
from pipeline.training.config import CELLS
from pipeline.training.volumes import UNKNOWN


class Target(NamedTuple):
    """What each channel should say of a patch.

    Parameters
    ----------
    value : float32 array, (x, y, z, channel), Fortran order
        0 or 1; of distances, from 0 to 1; of the first two channels of an embedding, where
        a voxel lies along x and y [voxel].
    known : bool array, (x, y, z, channel), Fortran order
        Where that is known.
    """

    value: NDArray[np.float32]
    known: NDArray[np.bool_]


def target_of(
    heads: Sequence[Head],
    truth: Mapping[str, NDArray[Any]],
    known: NDArray[np.bool_] | None,
    shape: tuple[int, int, int],
    places: NDArray[np.float32] | None = None,
) -> Target:
    """Make the target of a patch.

    Parameters
    ----------
    heads : sequence of Head
        In the order of the channels.
    truth : mapping of str to array, (x, y, z)
        Cells and masks, by name; of a name that is absent nothing is known.
    known : bool array, (x, y, z), optional
        Where cells are known; everywhere if None.
    shape : (x, y, z)
        Extent of the patch [voxel].
    places : float32 array, (x, y, z, 2), optional
        Where each voxel lies along x and y; NaN where its section is missing [voxel].

    Returns
    -------
    Target
        Of all heads.
    """
    width = sum(head.width for head in heads)
    value = np.zeros((*shape, width), np.float32, order="F")
    valid = np.zeros((*shape, width), bool, order="F")
    start = 0
    for head in heads:
        part = slice(start, start + head.width)
        start += head.width
        if head.kind == "affinities":
            if CELLS in truth:
                value[..., part] = affinities(truth[CELLS], head.offsets)
                valid[..., part] = known_affinities(shape, head.offsets, known)
            continue
        if head.kind == "embedding":
            if places is not None:
                two = slice(part.start, part.start + 2)
                valid[..., two] = np.isfinite(places)
                value[..., two] = np.nan_to_num(places)
            continue
        for channel, name in enumerate(head.channels, part.start):
            if name in truth:
                mask = truth[name]
                valid[..., channel] = mask != UNKNOWN
                value[..., channel] = (
                    tanh_distance(mask == 1) if head.kind == "distance" else mask == 1
                )
        if head.kind == "classes":
            # Where none of the classes is true, none can be learnt.
            valid[..., part] &= value[..., part].any(axis=-1, keepdims=True)
            valid[..., part] &= valid[..., part].all(axis=-1, keepdims=True)
    return Target(value, valid)


def affinities(
    labels: NDArray[np.integer], offsets: Sequence[Vec3] = NEAREST
) -> NDArray[np.bool_]:
    """Say which voxels share a cell with those at some offsets before them.

    Parameters
    ----------
    labels : integer array, (x, y, z)
        Ids of cells; 0 belongs to none and shares nothing, not even with itself.
    offsets : sequence of Vec3
        Channel i joins a voxel and that at minus `offsets[i]` [voxel].

    Returns
    -------
    bool array, (x, y, z, channel), Fortran order
        False where the other voxel lies outside.
    """
    joined = np.zeros((*labels.shape, len(offsets)), dtype=bool, order="F")
    for channel, offset in enumerate(offsets):
        here, there = both_ends(labels.shape, offset)
        one, other = labels[here], labels[there]
        joined[..., channel][here] = (one == other) & (one != 0)
    return joined


def known_affinities(
    shape: tuple[int, int, int],
    offsets: Sequence[Vec3] = NEAREST,
    known: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Say where affinities are known: where both voxels lie inside and are known.

    Parameters
    ----------
    shape : (x, y, z)
        Extent of the patch [voxel].
    offsets : sequence of Vec3
        As of `affinities`.
    known : bool array, (x, y, z), optional
        Where cells are known; everywhere if None.

    Returns
    -------
    bool array, (x, y, z, channel), Fortran order
        Not to be written to.
    """
    inside = _inside(shape, tuple(offsets))
    if known is None:
        return inside
    valid = np.zeros(inside.shape, dtype=bool, order="F")
    for channel, offset in enumerate(offsets):
        here, there = both_ends(shape, offset)
        valid[..., channel][here] = known[here] & known[there]
    return valid


def both_ends(
    shape: Sequence[int], offset: Vec3
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the voxels that have another at minus an offset inside, and the others."""
    here, there = (
        tuple(
            slice(max(0, sign * o), max(0, n + min(0, sign * o)))
            for o, n in zip(offset, shape, strict=True)
        )
        for sign in (1, -1)
    )
    return here, there


def tanh_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Say how deep in an object each voxel lies: the label augmentor of CleftNet.

    Parameters
    ----------
    mask : bool array, (x, y, z)
        The objects.

    Returns
    -------
    float32 array, (x, y, z)
        tanh of the distance to the nearest voxel outside [voxel]; 0 outside. An object that
        fills the patch is deep throughout.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    if mask.all():
        return np.ones(mask.shape, np.float32)
    depth: NDArray[np.float32] = np.tanh(distance_transform_edt(mask)).astype(np.float32)
    return depth


@cache
def _inside(shape: tuple[int, int, int], offsets: tuple[Vec3, ...]) -> NDArray[np.bool_]:
    inside = np.zeros((*shape, len(offsets)), dtype=bool, order="F")
    for channel, offset in enumerate(offsets):
        inside[..., channel][both_ends(shape, offset)[0]] = True
    inside.flags.writeable = False
    return inside
