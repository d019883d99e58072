"""Names of supervoxels against the voxels themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import GeometryError
from pipeline.geometry import Bbox, ChunkKey, Grid, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.naming import named_by_first_voxel

EXTENTS = st.builds(Vec3, *[st.integers(1, 9)] * 3)
STARTS = st.builds(Vec3, *[st.integers(-20, 20)] * 3)


def basin_at(voxel, grid):
    """Return the id of the basin that begins at a voxel, counted from the bounds."""
    key = ChunkKey(0, *(voxel // grid.chunk))
    box = grid.box(key)
    within = voxel + grid.bounds.start - box.start
    place = within.x + box.shape.x * (within.y + box.shape.y * within.z)
    return IdLayout.of_grid(grid).base(key.position) + 1 + place


def every_voxel(shape):
    """Yield all voxels of a box, x fastest."""
    for z, y, x in np.ndindex(*shape.astuple()[::-1]):
        yield Vec3(x, y, z)


@given(EXTENTS, EXTENTS, EXTENTS, STARTS)
def test_a_basin_takes_the_name_of_the_place_where_it_begins(shape, chunk, names, start):
    """Chunks that the bounds cut short included, and a grid for names that is another."""
    bounds = Bbox.of_shape(shape, start)
    basins, named = Grid(bounds, chunk), Grid(bounds, names)
    voxels = list(every_voxel(shape))
    ids = np.array([basin_at(v, basins) for v in voxels], np.uint64)
    layout = IdLayout.of_grid(named)
    expected = []
    for voxel in voxels:
        within = voxel % names
        label = 1 + within.x + names.x * (within.y + names.y * within.z)
        expected.append(layout.base(voxel // names) + label)
    found = named_by_first_voxel(ids, basins=basins, names=named)
    assert found.tolist() == expected
    assert len(set(expected)) == shape.product


def test_background_stays_background():
    grid = Grid(Bbox.of_shape((4, 4, 4)), Vec3(2, 2, 2))
    ids = np.array([0, IdLayout.of_grid(grid).base(Vec3(1, 0, 0)) + 1, 0], np.uint64)
    whole = Grid(grid.bounds, Vec3(4, 4, 4))
    found = named_by_first_voxel(ids, basins=grid, names=whole)
    assert found.tolist() == [0, IdLayout.of_grid(whole).base(Vec3(0, 0, 0)) + 3, 0]
    nothing = np.zeros(0, np.uint64)
    assert named_by_first_voxel(nothing, basins=grid, names=whole).tolist() == []


def test_a_grid_of_names_that_ids_cannot_hold_is_refused():
    """2**11 chunks along an axis leave 23 bits for the places in one."""
    bounds = Bbox.of_shape((2**22, 2**11, 2**11))
    basins, names = Grid(bounds, Vec3(2**22, 1, 1)), Grid(bounds, Vec3(2**11, 2**11, 2**11))
    with pytest.raises(GeometryError, match=r"8589934592 labels in a chunk do not fit"):
        named_by_first_voxel(np.zeros(0, np.uint64), basins=basins, names=names)
