"""Names of supervoxels that do not depend on how the volume was cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Grid, Vec3
from pipeline.ids import IdLayout

_Rows = NDArray[np.int64]


def named_by_first_voxel(
    ids: NDArray[np.uint64], *, basins: Grid, names: Grid
) -> NDArray[np.uint64]:
    """Name basins after their first voxels in a grid that no recipe's chunks change.

    A basin's id holds the place of its first voxel. Of the basins of a supervoxel, that
    which begins first, with x fastest through the whole volume, begins where the
    supervoxel does.

    Parameters
    ----------
    ids : uint64 array, (n,)
        As `watershed` names them; 0 stays 0.
    basins : Grid
        Chunks that they were made in.
    names : Grid
        Grid over the same bounds that the names refer to.

    Returns
    -------
    uint64 array, (n,)
        Names.

    Raises
    ------
    GeometryError
        If the grids have more chunks, or the chunks more voxels, than ids can hold.
    """
    layout = IdLayout.of_grid(names)
    layout.require_capacity(names.chunk.product)
    kept = ids != 0
    place = _first_voxels(ids[kept], basins)
    chunk = np.array(names.chunk.astuple())
    named = np.zeros_like(ids)
    if kept.any():
        named[kept] = layout.pack(place // chunk, 1 + _linear(place % chunk, names.chunk))
    return named


def _first_voxels(ids: NDArray[np.uint64], grid: Grid) -> _Rows:
    """Return where basins begin, (n, 3), counted from the start of the bounds."""
    positions, local = IdLayout.of_grid(grid).unpack(ids)
    chunk = np.array(grid.chunk.astuple())
    corner = positions * chunk
    size = np.minimum(chunk, np.array(grid.bounds.shape.astuple()) - corner)
    offset = local.astype(np.int64) - 1
    x = offset % size[:, 0]
    y = offset // size[:, 0] % size[:, 1]
    z = offset // (size[:, 0] * size[:, 1])
    voxels: _Rows = corner + np.stack([x, y, z], axis=1)
    return voxels


def _linear(voxels: _Rows, shape: Vec3) -> NDArray[np.int64]:
    """Return the places of voxels in a box, x fastest."""
    x, y, z = voxels.T
    place: NDArray[np.int64] = x + shape.x * (y + shape.y * z)
    return place
