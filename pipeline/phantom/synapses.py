"""Synapses of the phantom: where they are, and what they look like.

Space is cut into cells of one size, and a cell holds at most one synapse, which lies well
within it: so whatever lies in a box is known from the cells that the box touches. It is
found where the two objects nearest to a random point of the cell touch, and its cleft is
what lies close to both of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.hashing import key, lattice_hash, mixed, uniform, uniform_triples
from pipeline.phantom.tissue import Cells

CELL_NM = 640.0
"""Edge of a cell."""
REACH_NM = 240.0
"""How far around its point a synapse is looked for and drawn."""
DISC_NM = 150.0
"""Radius of the ball that clefts lie in."""
NEAREST_NM = 90.0
"""How far both cells may be from the point."""
SMALLEST_NM3 = 1.5e6
"""Smaller clefts are left out: about 1400 voxels of 6 x 6 x 30 nm."""

_VESICLE_NM = 55.0
_DENSITY_NM = 34.0

Labels: TypeAlias = Callable[[Cells, Cells], NDArray[np.uint64]]


@dataclass(frozen=True)
class PhantomSynapse:
    """A synapse of a phantom, in a box of its own.

    Parameters
    ----------
    id : int
        Its own everywhere, below 2**53.
    pre, post : int
        Objects before and behind the cleft.
    start : int64 array, (3,)
        First voxel of the box.
    cleft : bool array, (x, y, z)
        The cleft.
    density : bool array, (x, y, z)
        What of the postsynaptic object is dark.
    vesicles : bool array, (x, y, z)
        What of the presynaptic object holds vesicles.
    """

    id: int
    pre: int
    post: int
    start: Cells
    cleft: NDArray[np.bool_]
    density: NDArray[np.bool_]
    vesicles: NDArray[np.bool_]

    @property
    def centre(self) -> tuple[float, float, float]:
        """Mean place of the cleft's voxels [voxel]."""
        x, y, z = np.argwhere(self.cleft).mean(axis=0) + self.start
        return float(x), float(y), float(z)


def cells_of(
    start: Cells, stop: Cells, voxel_size_nm: tuple[float, float, float]
) -> list[tuple[int, int, int]]:
    """List the cells whose synapse may lie in a box.

    Parameters
    ----------
    start, stop : int64 array, (3,)
        The box [voxel].
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    """
    size = np.array(voxel_size_nm)
    low = np.floor(start * size / CELL_NM).astype(np.int64)
    high = np.ceil(stop * size / CELL_NM).astype(np.int64)
    return [
        (int(x), int(y), int(z))
        for x in range(low[0], high[0])
        for y in range(low[1], high[1])
        for z in range(low[2], high[2])
    ]


def synapse_of(
    cell: tuple[int, int, int],
    labels: Labels,
    *,
    seed: int,
    share: float,
    membrane_nm: float,
    voxel_size_nm: tuple[float, float, float],
) -> PhantomSynapse | None:
    """Work out the synapse of a cell.

    Parameters
    ----------
    cell : (x, y, z)
        The cell.
    labels : callable
        Returns the objects of a box, from start to stop.
    seed : int
        Of the tissue.
    share : float
        Share of cells that may have one.
    membrane_nm : float
        Thickness of membranes [nm].
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].

    Returns
    -------
    PhantomSynapse or None
        None where there is none.
    """
    from scipy.ndimage import distance_transform_edt, label

    bits = lattice_hash(key(seed, 70), *(np.array([c], np.int64) for c in cell))
    if uniform(bits)[0] >= share:
        return None
    size = np.array(voxel_size_nm)
    room = CELL_NM - 2 * REACH_NM
    point = np.array(cell) * CELL_NM + REACH_NM + room * uniform_triples(mixed(bits))[0]
    middle = np.floor(point / size).astype(np.int64)
    half = np.floor(REACH_NM / size).astype(np.int64)
    start, stop = middle - half, middle + half + 1
    found = labels(start, stop)
    away = [(np.arange(n) - h) * s for n, h, s in zip(found.shape, half, size, strict=True)]
    distance = np.sqrt(away[0][:, None, None] ** 2 + away[1][:, None] ** 2 + away[2] ** 2)
    near = found[(distance <= NEAREST_NM) & (found != 0)]
    each = np.unique(near)
    if len(each) < 2:
        return None
    nearest = np.array([distance[found == one].min() for one in each])
    first, second = (int(o) for o in each[np.argsort(nearest, kind="stable")[:2]])
    # Of two the thin one is an axon, and of two axons chance says which; dendrites do not
    # synapse onto one another here.
    thin = [one & 1 == 1 for one in (first, second)]
    if not any(thin):
        return None
    if all(thin):
        order = mixed(np.array([first, second], np.uint64))
        thin = [bool(order[0] < order[1]), bool(order[0] >= order[1])]
    pre, post = (first, second) if thin[0] else (second, first)

    to_pre, to_post = (
        distance_transform_edt(found != np.uint64(one), sampling=voxel_size_nm)
        for one in (pre, post)
    )
    reach = membrane_nm + float(np.min(size)) / 2
    # What one sees of a cleft is mostly the density behind it.
    touching = (to_pre <= reach + _DENSITY_NM / 2) & (to_post <= reach)
    patches, n = label(touching & (distance <= DISC_NM), structure=np.ones((3, 3, 3)))
    if n == 0:
        return None
    sizes = np.bincount(patches.reshape(-1))[1:]
    cleft = patches == 1 + int(np.argmax(sizes))
    if sizes.max() * np.prod(size) < SMALLEST_NM3:
        return None
    to_cleft = distance_transform_edt(~cleft, sampling=voxel_size_nm)
    x, y, z = (c & (2**17 - 1) for c in cell)
    return PhantomSynapse(
        id=1 + ((x << 34) | (y << 17) | z),
        pre=pre,
        post=post,
        start=start,
        cleft=cleft,
        density=(found == np.uint64(post)) & (to_cleft <= _DENSITY_NM),
        vesicles=(found == np.uint64(pre)) & (to_cleft <= 170.0) & (to_pre <= 0),
    )


def draw(
    brightness: NDArray[np.float32],
    start: Cells,
    synapse: PhantomSynapse,
    *,
    seed: int,
    voxel_size_nm: tuple[float, float, float],
) -> None:
    """Darken the cleft and the density behind it, and put vesicles before it, in place.

    Parameters
    ----------
    brightness : float32 array, (x, y, z)
        Of a box, as `appearance.drawn` gives it.
    start : int64 array, (3,)
        First voxel of the box.
    synapse : PhantomSynapse
        What is drawn.
    seed : int
        Of the tissue.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    """
    stop = start + np.array(brightness.shape)
    low = np.maximum(start, synapse.start)
    high = np.minimum(stop, synapse.start + np.array(synapse.cleft.shape))
    if (low >= high).any():
        return
    into = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    of = tuple(
        slice(a, b) for a, b in zip(low - synapse.start, high - synapse.start, strict=True)
    )
    part = brightness[into]
    part[synapse.density[of]] *= np.float32(0.45)
    part[synapse.cleft[of]] = np.minimum(part[synapse.cleft[of]], np.float32(46))
    chosen = np.nonzero(synapse.vesicles[of])
    point = [(c + a) * s for c, a, s in zip(chosen, low, voxel_size_nm, strict=True)]
    cell = [np.floor(p / _VESICLE_NM).astype(np.int64) for p in point]
    hashes = lattice_hash(key(seed, 71), *cell)
    jitter = uniform_triples(mixed(hashes))
    away = [
        p - (c + 0.4 + 0.2 * jitter[:, a]) * _VESICLE_NM
        for a, (p, c) in enumerate(zip(point, cell, strict=True))
    ]
    distance = np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2)
    is_there = (uniform(hashes) < 0.85) & (distance < 21.0)
    shade = np.where(distance < 11.0, 158.0, 78.0).astype(np.float32)
    part[chosen] = np.where(is_there, shade, part[chosen])
