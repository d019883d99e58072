"""Skeletons of shapes whose centreline one knows."""

import numpy as np
import pytest

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.centerline import Centerline, join
from pipeline.stages.skeletons import CenterlineSkeletons, SkeletonFragments

VOXEL = (10.0, 10.0, 20.0)
START = Vec3(4, 5, 6)


def skeletons(labels, chunk, **fields):
    """Run both stages by hand."""
    grid = {"bounds": Bbox.of_shape(labels.shape, START), "chunk": Vec3.of(chunk)}
    first = SkeletonFragments(
        segmentation="s", output="f", voxel_size_nm=VOXEL, const_nm=50.0, **grid
    )
    tasks = [first.task(key) for key in first.plan()[0]]
    parts = [
        first.process(t, segmentation=labels[t.read_box.slices(START)]).parts for t in tasks
    ]
    tables = [p["0"] for p in parts if "0" in p]
    last = CenterlineSkeletons(fragments="f", output="k", **grid, **fields)
    (key,) = last.plan()[0]
    return last.process(last.task(key), fragments=tables).by_id


@pytest.fixture
def tube():
    """A straight tube along x, 7 x 7 voxels wide, of 60 voxels."""
    labels = np.zeros((60, 13, 13), np.uint64, order="F")
    labels[:, 3:10, 3:10] = 5
    return labels


@pytest.mark.parametrize("chunk", [(60, 13, 13), (20, 13, 13), (23, 13, 13)])
def test_a_tube_has_one_line_through_its_middle(tube, chunk):
    found = skeletons(tube, chunk, dust_nm=0.0)
    assert list(found) == [5]
    line = found[5]
    assert len(line.edges) == len(line.vertices) - 1
    degree = np.bincount(line.edges.ravel())
    assert (degree == 1).sum() == 2
    middle = (np.array([0, 6.5, 6.5]) + list(START)) * VOXEL
    inner = line.vertices[10:-10]
    assert np.abs(inner[:, 1] - middle[1]).max() <= 10
    assert np.abs(inner[:, 2] - middle[2]).max() <= 20
    lengths = np.diff(line.vertices[line.edges].astype(float), axis=1)
    cable = np.linalg.norm(lengths, axis=2).sum()
    assert 500 < cable < 700
    assert (line.radius > 0).all()


def test_short_cable_is_dropped(tube):
    assert skeletons(tube, (60, 13, 13), dust_nm=400.0).keys() == {5}
    assert skeletons(tube, (60, 13, 13), dust_nm=900.0) == {}


def test_background_has_no_skeleton(tube):
    assert skeletons(np.zeros_like(tube), (20, 13, 13)) == {}


def line(points, edges):
    vertices = np.array(points, np.float32) * 100
    return Centerline(
        vertices, np.array(edges, np.uint32), np.full(len(vertices), 30, np.float32)
    )


def test_pieces_that_share_a_vertex_become_one():
    a = line([(0, 0, 0), (1, 0, 0)], [(0, 1)])
    b = line([(1, 0, 0), (2, 0, 0)], [(0, 1)])
    whole = join([a, b], dust_nm=0, tick_nm=0)
    assert len(whole.vertices) == 3
    assert len(whole.edges) == 2


def test_pieces_that_close_to_a_ring_are_cut_open_and_not_lost():
    """As four chunks around an edge give them, where the object is thick."""
    corners = [(0, 0, 0), (4, 0, 0), (4, 4, 0), (0, 4, 0)]
    pieces = [line([corners[i], corners[(i + 1) % 4]], [(0, 1)]) for i in range(4)]
    whole = join(pieces, dust_nm=0, tick_nm=0)
    assert whole is not None
    assert {tuple(v) for v in (whole.vertices / 100).tolist()} == set(corners)
    assert len(whole.edges) == 3


def test_a_ring_beside_a_line_leaves_the_line_as_it_is():
    corners = [(0, 0, 0), (4, 0, 0), (4, 4, 0), (0, 4, 0)]
    ring = [line([corners[i], corners[(i + 1) % 4]], [(0, 1)]) for i in range(4)]
    beside = line([(0, 0, 90), (4, 0, 90), (8, 0, 90)], [(0, 1), (1, 2)])
    whole = join([*ring, beside], dust_nm=0, tick_nm=0)
    assert len(whole.vertices) == 7
    assert len(whole.edges) == 5


def test_no_pieces_is_no_skeleton():
    empty = line(np.zeros((0, 3)), np.zeros((0, 2)))
    assert join([empty], dust_nm=0, tick_nm=0) is None
