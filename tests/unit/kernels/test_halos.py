"""Kernels need each side of the halo that they ask for, and no more."""

import numpy as np
import pytest

from pipeline.errors import GeometryError
from pipeline.geometry import Bbox, Halo, Vec3
from pipeline.kernels.basin_graph import (
    BASIN_GRAPH_HALO,
    MASKED_BASIN_GRAPH_HALO,
    basin_graph,
)
from pipeline.kernels.watershed import MASKED_WATERSHED_HALO, WATERSHED_HALO, watershed

BOUNDS = Bbox.of_shape((40, 40, 40))
BOX = Bbox(Vec3(3, 3, 3), Vec3(37, 37, 37))
LIMITS = {"low": 0.3, "high": 0.97}


def basins(affinities, where, mask=None):
    return watershed(affinities, **where, **LIMITS, mask=mask).tolist()


def joins(affinities, where, mask=None):
    """Which edges are on across lower faces; every voxel is a basin of its own."""
    shape = where["read_box"].shape.astuple()
    labels = np.arange(1, np.prod(shape) + 1, dtype=np.uint64).reshape(shape, order="F")
    return basin_graph(labels, affinities, **where, **LIMITS, mask=mask).joins.tolist()


CASES = [
    (basins, WATERSHED_HALO, False),
    (basins, MASKED_WATERSHED_HALO, True),
    (joins, BASIN_GRAPH_HALO, False),
    (joins, MASKED_BASIN_GRAPH_HALO, True),
]
PLANES = [
    (kernel, halo, masked, axis, plane)
    for kernel, halo, masked in CASES
    for axis in range(3)
    for plane in [*range(halo.before[axis]), *range(-halo.after[axis], 0)]
]


def read(make_affinities, halo, masked):
    """Read what the middle of a volume needs."""
    box = BOX.grown(halo)
    affinities = make_affinities(BOUNDS.shape.astuple(), "uint8", 4, 20)[box.slices()]
    mask = None
    if masked:
        rng = np.random.default_rng(7)
        mask = (rng.random(BOUNDS.shape.astuple()) > 0.2).astype(np.uint8)[box.slices()]
    return affinities, mask, {"box": BOX, "read_box": box, "bounds": BOUNDS}


@pytest.mark.parametrize(("kernel", "halo", "masked", "axis", "plane"), PLANES)
def test_every_plane_of_a_halo_is_looked_at(
    make_affinities, kernel, halo, masked, axis, plane
):
    """Of the outermost plane below, where there is a mask, only that is looked at."""
    affinities, mask, where = read(make_affinities, halo, masked)
    exact = kernel(affinities, where, mask)
    changed = affinities.copy(order="F"), None if mask is None else mask.copy(order="F")
    for array in changed:
        if array is not None:
            np.moveaxis(array, axis, 0)[plane] = 0
    assert kernel(changed[0], where, changed[1]) != exact


@pytest.mark.parametrize(("kernel", "halo", "masked"), CASES)
def test_a_wider_halo_changes_nothing(make_affinities, kernel, halo, masked):
    affinities, mask, where = read(make_affinities, halo, masked)
    wide = Halo(Vec3(3, 3, 3), Vec3(3, 3, 3))
    more, more_mask, there = read(make_affinities, wide, masked)
    found = kernel(more, there, more_mask)
    if kernel is basins:
        assert found == kernel(affinities, where, mask)
    else:
        assert len(found) == len(kernel(affinities, where, mask)) > 100


@pytest.mark.parametrize(("kernel", "halo", "masked"), CASES)
def test_a_halo_that_is_too_narrow_is_refused(make_affinities, kernel, halo, masked):
    narrow = Halo(halo.before, halo.after - Vec3(0, 1, 0))
    affinities, mask, where = read(make_affinities, narrow, masked)
    with pytest.raises(GeometryError, match="lack part of the halo"):
        kernel(affinities, where, mask)
