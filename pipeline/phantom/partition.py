"""Give every voxel to the nearest neurite, tile by tile.

Space is bent by smooth noise and turned, so that nothing follows the lattices. Voxels are
worked out in small tiles that sit at multiples of their size, and a tile weighs only
those tubes that can matter in it: first those that can matter in its block of
4 x 4 x 4 tiles, then of these its own. Both choices err on the safe side by the
Lipschitz bound of the distance, and both depend on the tile alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.hashing import key, lattice_hash, uniform_triples
from pipeline.phantom.tissue import (
    COARSENESS,
    STEEPEST,
    Cells,
    Segments,
    Tissue,
    excess_distance,
    inverse_or_zero,
    unique_cells,
)

TILES = 4  # tiles along each axis of a block
BLOCKS_AT_ONCE = 64
FULL_TILE = 64  # voxels that make it worth to choose tubes for a tile
VOXELS_AT_ONCE = 1 << 16

# Smooth noise that bends space: wavelength and greatest shift, in fine spacings.
_BENDS = ((12.5, 2.2), (3.75, 0.47), (1.25, 0.16), (0.6, 0.05))

# An oblique rotation with rational entries, from the quaternion (4, 1, 2, 1).
_TURN = np.array([[12, -4, 18], [12, 18, -4], [-14, 12, 12]]) / 22.0

_FINE_AROUND = np.stack(
    np.meshgrid(*[np.arange(-3, 3)] * 3, indexing="ij"), axis=-1
).reshape(-1, 3)
_COARSE_AROUND = np.stack(
    np.meshgrid(*[np.arange(-2, 2)] * 3, indexing="ij"), axis=-1
).reshape(-1, 3)


@dataclass(frozen=True)
class Tiles:
    """The nearest neurites of the voxels of some tiles.

    Parameters
    ----------
    index : int64 array, (tile, 3)
        Position of each tile, in tiles.
    corners : float32 array, (tile, 2, 2, 2, 3)
        Where its corners come to lie in tissue space, from `centre` [nm].
    centre : float64 array, (tile, 3)
        Where its centre comes to lie in tissue space [nm].
    segments : Segments
        The tubes that `nearest` counts.
    nearest : int64 array, (tile, x, y, z)
        The tube whose distance less radius is smallest.
    gap : float32 array, (tile, x, y, z)
        How much larger that is for the nearest other object, at most the reach that
        was asked for [nm]: about twice the distance to the middle of the membrane.
    """

    index: Cells
    corners: NDArray[np.float32]
    centre: NDArray[np.float64]
    segments: Segments
    nearest: NDArray[np.int64]
    gap: NDArray[np.float32]

    def position(self) -> NDArray[np.float32]:
        """Return where voxels lie in tissue space, from `centre`, (3, tile, x, y, z)."""
        return _interpolated(self.corners, self.nearest.shape[1:])


def tile_shape(
    voxel_size_nm: tuple[float, float, float], spacing_nm: float
) -> tuple[int, int, int]:
    """Choose the tile: about a seventh of the spacing on each axis.

    Where voxels are so large that this is few of them, it is up to half the spacing.

    Parameters
    ----------
    voxel_size_nm : (x, y, z)
        Of the image [nm].
    spacing_nm : float
        Between neighbouring axons [nm].

    Returns
    -------
    (x, y, z)
        In voxels, each in 1 .. 16.
    """
    for part in (0.15, 0.2, 0.3, 0.45):
        x, y, z = (min(max(round(part * spacing_nm / v), 1), 16) for v in voxel_size_nm)
        if x * y * z >= FULL_TILE:
            break
    return x, y, z


def partition(
    tissue: Tissue,
    voxel_size_nm: tuple[float, float, float],
    start: Cells,
    stop: Cells,
    *,
    reach_nm: float,
    everywhere: bool,
) -> Iterator[Tiles]:
    """Divide a box among the neurites.

    Parameters
    ----------
    tissue : Tissue
        Which neurites.
    voxel_size_nm : (x, y, z)
        Of the image [nm].
    start, stop : int64 arrays, (3,)
        The box [voxel].
    reach_nm : float
        Gaps beyond this are not told apart [nm].
    everywhere : bool
        Whether `nearest` is right to the tube where one object is alone; if not, only
        the object is right there, at less cost.

    Yields
    ------
    Tiles
        Together, every tile that touches the box, once.
    """
    shape = np.array(tile_shape(voxel_size_nm, tissue.spacing_nm))
    first, last = start // shape, -(-stop // shape)
    blocks = _grid(first // TILES, -(-last // TILES))
    for begin in range(0, len(blocks), BLOCKS_AT_ONCE):
        yield from _blocks(
            tissue,
            shape * np.array(voxel_size_nm, dtype=np.float64),
            blocks[begin : begin + BLOCKS_AT_ONCE],
            (first, last),
            shape,
            reach_nm,
            everywhere,
        )


def _blocks(
    tissue: Tissue,
    tile_nm: NDArray[np.float64],
    blocks: Cells,
    within: tuple[Cells, Cells],
    shape: Cells,
    reach_nm: float,
    everywhere: bool,
) -> Iterator[Tiles]:
    corners = _bent_and_turned(tissue, blocks, tile_nm)
    centre = corners[:, TILES // 2, TILES // 2, TILES // 2]
    radius = _farthest(corners.reshape(len(blocks), -1, 3), centre)

    fine = np.floor(centre / tissue.spacing_nm).astype(np.int64)[:, None] + _FINE_AROUND
    coarse = (
        np.floor(centre / (tissue.spacing_nm * COARSENESS)).astype(np.int64)[:, None]
        + _COARSE_AROUND
    )
    fine_cells, fine_row = unique_cells(fine)
    coarse_cells, coarse_row = unique_cells(coarse)
    segments, fine_at, coarse_at = tissue.segments(fine_cells, coarse_cells)
    choice = np.concatenate([fine_at[fine_row], coarse_at[coarse_row]], axis=1)
    tubes = _Tubes.of(segments)
    choice, _ = _those_that_matter(tubes, choice, centre, radius, reach_nm)

    local = _grid(np.zeros(3, dtype=np.int64), np.full(3, TILES))
    index = (blocks[:, None] * TILES + local).reshape(-1, 3)
    block = np.repeat(np.arange(len(blocks)), len(local))
    wanted = ((index >= within[0]) & (index < within[1])).all(axis=1)
    index, block = index[wanted], block[wanted]
    if not len(index):
        return
    x, y, z = (index - blocks[block] * TILES).T
    tile_corners = np.stack(
        [
            corners[block, x + i, y + j, z + k]
            for i in (0, 1)
            for j in (0, 1)
            for k in (0, 1)
        ],
        axis=1,
    )
    middle = 0.5 * (tile_corners[:, 0] + tile_corners[:, 7])
    choice, count = _those_that_matter(
        tubes, choice[block], middle, _farthest(tile_corners, middle), reach_nm
    )
    relative = (tile_corners - middle[:, None]).astype(np.float32)
    relative = relative.reshape(-1, 2, 2, 2, 3)
    extent = (int(shape[0]), int(shape[1]), int(shape[2]))

    objects = tubes.object[choice]
    is_single = (objects == objects[:, :1]) | (np.arange(choice.shape[1]) >= count[:, None])
    is_single = is_single.all(axis=1) & (not everywhere or count == 1)
    single = np.flatnonzero(is_single)
    if single.size:
        whole = (len(single), *extent)
        yield Tiles(
            index[single],
            relative[single],
            middle[single],
            segments,
            np.broadcast_to(choice[single, 0][:, None, None, None], whole),
            np.broadcast_to(np.float32(reach_nm), whole),
        )
    contested = np.flatnonzero(~is_single)
    contested = contested[np.argsort(count[contested], kind="stable")]
    at_once = max(1, VOXELS_AT_ONCE // int(np.prod(shape)))
    for begin in range(0, len(contested), at_once):
        some = contested[begin : begin + at_once]
        position = _interpolated(relative[some], extent)
        nearest, gap = _contest(
            tubes, position, middle[some], choice[some], count[some], reach_nm
        )
        yield Tiles(index[some], relative[some], middle[some], segments, nearest, gap)


@dataclass(frozen=True)
class _Tubes:
    """Segments made ready for many distance computations."""

    start: NDArray[np.float64]
    along: NDArray[np.float64]
    inverse: NDArray[np.float64]
    radius: NDArray[np.float64]
    growth: NDArray[np.float64]
    object: NDArray[np.int64]

    @classmethod
    def of(cls, segments: Segments) -> "_Tubes":
        along = segments.end - segments.start
        square = along[:, 0] ** 2 + along[:, 1] ** 2 + along[:, 2] ** 2
        return cls(
            start=segments.start,
            along=along,
            inverse=inverse_or_zero(square),
            radius=segments.start_radius,
            growth=segments.end_radius - segments.start_radius,
            object=np.unique(segments.label, return_inverse=True)[1].reshape(-1),
        )


def _those_that_matter(
    tubes: _Tubes,
    choice: NDArray[np.int64],
    centre: NDArray[np.float64],
    radius: NDArray[np.float64],
    reach_nm: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep, per ball, the tubes that can be nearest in it or within reach of that.

    Returns rows of tubes, the nearest to the centre first, and how many of each row
    count; -1 in `choice` and whatever lies beyond the count is no tube.
    """
    x, y, z = (centre[:, None, a] - tubes.start[choice, a] for a in range(3))
    dx, dy, dz = (tubes.along[choice, a] for a in range(3))
    distance = excess_distance(
        (x, y, z), (dx, dy, dz), tubes.inverse[choice], tubes.radius[choice],
        tubes.growth[choice],
    )  # fmt: skip
    distance[choice < 0] = np.inf
    order = np.argsort(distance, axis=1, kind="stable")
    distance = np.take_along_axis(distance, order, axis=1)
    limit = distance[:, :1] + (2 * STEEPEST * radius + reach_nm)[:, None]
    count = (distance <= limit).sum(axis=1)
    kept = np.take_along_axis(choice, order[:, : count.max()], axis=1)
    kept[np.arange(kept.shape[1]) >= count[:, None]] = -1
    return kept, count


def _contest(
    tubes: _Tubes,
    position: NDArray[np.float32],
    centre: NDArray[np.float64],
    choice: NDArray[np.int64],
    count: NDArray[np.int64],
    reach_nm: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the nearest tube per voxel, and by how much it beats any other object.

    Tiles come in the order of their count, so that rank r concerns the last of them.
    """
    shape = position.shape[1:]
    best = np.full(shape, np.inf, dtype=np.float32)
    second = np.full(shape, np.inf, dtype=np.float32)
    owner = np.full(shape, -1, dtype=np.int64)
    nearest = np.zeros(shape, dtype=np.int64)
    for rank in range(choice.shape[1]):
        since = int(np.searchsorted(count, rank, side="right"))
        if since == len(count):
            break
        tube = choice[since:, rank]
        start = (tubes.start[tube] - centre[since:]).astype(np.float32)
        along = tubes.along[tube].astype(np.float32)
        per_tile = (slice(None), None, None, None)
        x, y, z = (position[a, since:] - start[:, a][per_tile] for a in range(3))
        dx, dy, dz = (along[:, a][per_tile] for a in range(3))
        distance = excess_distance(
            (x, y, z),
            (dx, dy, dz),
            tubes.inverse[tube].astype(np.float32)[per_tile],
            tubes.radius[tube].astype(np.float32)[per_tile],
            tubes.growth[tube].astype(np.float32)[per_tile],
        )
        who = tubes.object[tube][per_tile]
        held, runner_up, owned = best[since:], second[since:], owner[since:]
        is_nearer = distance < held
        is_same = owned == who
        loser = np.maximum(distance, held)
        np.minimum(runner_up, loser, out=runner_up, where=~is_same)
        np.minimum(held, distance, out=held)
        np.copyto(owned, who, where=is_nearer)
        np.copyto(nearest[since:], tube[per_tile], where=is_nearer)
    return nearest, np.minimum(second - best, np.float32(reach_nm))


def _farthest(
    points: NDArray[np.float64], centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the greatest distance of each row of points from its centre."""
    x, y, z = (points[..., a] - centre[:, None, a] for a in range(3))
    return np.asarray(np.sqrt((x * x + y * y + z * z).max(axis=1)))


def _grid(start: Cells, stop: Cells) -> Cells:
    """List the cells of a box, (n, 3)."""
    axes = [np.arange(a, b, dtype=np.int64) for a, b in zip(start, stop, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _interpolated(
    corners: NDArray[np.float32], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Interpolate tile corners to voxel centres, (3, tile, x, y, z)."""
    parts = [((np.arange(n) + 0.5) / n).astype(np.float32) for n in shape]
    values = np.moveaxis(corners, -1, 0)
    low, high = values[..., 0], values[..., 1]
    values = low[..., None] + parts[2] * (high - low)[..., None]
    low, high = values[:, :, :, 0], values[:, :, :, 1]
    values = low[..., None, :] + parts[1][:, None] * (high - low)[..., None, :]
    low, high = values[:, :, 0], values[:, :, 1]
    return np.asarray(low[:, :, None] + parts[0][:, None, None] * (high - low)[:, :, None])


def _bent_and_turned(
    tissue: Tissue, blocks: Cells, tile_nm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Say where the tile corners of blocks come to lie in tissue space."""
    local = _grid(np.zeros(3, dtype=np.int64), np.full(3, TILES + 1))
    straight = (blocks[:, None] * TILES + local) * tile_nm
    bent = straight.copy()
    for octave, (wavelength, shift) in enumerate(_BENDS):
        noise = _smooth_noise(
            key(tissue.seed, 40 + octave), straight / (wavelength * tissue.spacing_nm)
        )
        bent += noise * (shift * tissue.spacing_nm)
    x, y, z = (bent[..., a] for a in range(3))
    turned = [row[0] * x + row[1] * y + row[2] * z for row in _TURN]
    side = TILES + 1
    return np.stack(turned, axis=-1).reshape(len(blocks), side, side, side, 3)


def _smooth_noise(key: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluate three independent smooth fields in -1 .. 1 at points, (..., 3)."""
    cell = np.floor(points).astype(np.int64)
    part = points - cell
    part = part * part * (3 - 2 * part)
    lower = cell.reshape(-1, 3).min(axis=0)
    upper = cell.reshape(-1, 3).max(axis=0) + 2
    x, y, z = (np.arange(a, b, dtype=np.int64) for a, b in zip(lower, upper, strict=True))
    lattice = 2 * uniform_triples(lattice_hash(key, x[:, None, None], y[:, None], z)) - 1
    i, j, k = np.moveaxis(cell - lower, -1, 0)
    px, py, pz = (part[..., a, None] for a in range(3))

    def along_z(i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        low, high = lattice[i, j, k], lattice[i, j, k + 1]
        return np.asarray(low + pz * (high - low))

    def along_yz(i: NDArray[np.int64]) -> NDArray[np.float64]:
        low, high = along_z(i, j), along_z(i, j + 1)
        return np.asarray(low + py * (high - low))

    low, high = along_yz(i), along_yz(i + 1)
    return np.asarray(low + px * (high - low))
