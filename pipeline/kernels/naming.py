"""Names of supervoxels that do not depend on how the volume was cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Grid, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.relabel import RemapTable

_Rows = NDArray[np.int64]


def named_by_first_voxel(table: RemapTable, *, basins: Grid, ids: Grid) -> RemapTable:
    """Rename the supervoxels of a table after where they begin.

    A basin's id holds the place of its first voxel. The first of a supervoxel's basins,
    with x fastest through the whole volume, begins where the supervoxel does; that place
    in a grid of its own, which no recipe's chunks change, is its id.

    Parameters
    ----------
    table : RemapTable
        From basins, as `watershed` names them, to supervoxels; 0 drops.
    basins : Grid
        Chunks that the basins were made in.
    ids : Grid
        Grid over the same bounds that ids refer to.

    Returns
    -------
    RemapTable
        The same table with other names for the supervoxels.

    Raises
    ------
    GeometryError
        If the grids have more chunks, or the chunks more voxels, than ids can hold.
    """
    layout = IdLayout.of_grid(ids)
    layout.require_capacity(ids.chunk.product)
    kept = table.targets != 0
    first = _first_voxels(table.ids[kept], basins)
    linear = _linear(first, basins.bounds.shape)
    order = np.lexsort((linear, table.targets[kept]))
    _, begins, member = np.unique(
        table.targets[kept][order], return_index=True, return_inverse=True
    )
    chunk = np.array(ids.chunk.astuple())
    place = first[order[begins]]
    local = 1 + _linear(place % chunk, ids.chunk)
    names = layout.pack(place // chunk, local) if len(place) else np.zeros(0, np.uint64)
    renamed = np.empty(len(order), np.uint64)
    renamed[order] = names[member]
    targets = np.zeros_like(table.targets)
    targets[kept] = renamed
    return RemapTable(table.ids, targets)


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
