"""Surface meshes of shapes whose surface one knows."""

import numpy as np
import pytest

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.surface_mesh import enclosed_volume, weld
from pipeline.stages.meshes import MeshFragments, SurfaceMeshes
from pipeline.stages.shards import unpack

VOXEL = (10.0, 10.0, 20.0)


def meshes(labels, chunk, **fields):
    """Run both stages by hand; return what each gives."""
    grid = {"bounds": Bbox.of_shape(labels.shape, Vec3(4, 5, 6)), "chunk": Vec3.of(chunk)}
    first = MeshFragments(segmentation="s", output="f", voxel_size_nm=VOXEL, **grid)
    tasks = [first.task(key) for key in first.plan()[0]]
    parts = [
        first.process(t, segmentation=labels[t.read_box.slices(Vec3(4, 5, 6))]).parts
        for t in tasks
    ]
    tables = [p["0"] for p in parts if p]
    last = SurfaceMeshes(fragments="f", output="m", voxel_size_nm=VOXEL, **grid, **fields)
    (key,) = last.plan()[0]
    return tables, last.process(last.task(key), fragments=tables).by_id


def ball(radius, shape):
    x, y, z = (np.arange(n) - (n - 1) / 2 for n in shape)
    inside = x[:, None, None] ** 2 + y[:, None] ** 2 + (2 * z) ** 2 < radius**2
    return np.asfortranarray(inside * np.uint64(7))


def assert_closed(faces):
    """Every edge is there once in each direction."""
    edges = np.concatenate([faces[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    forward = {tuple(e) for e in edges.tolist()}
    assert len(forward) == len(edges)
    assert forward == {(b, a) for a, b in forward}


@pytest.mark.parametrize("chunk", [(26, 24, 14), (9, 24, 14), (9, 7, 5)])
def test_a_ball_in_any_chunks_is_one_closed_surface(chunk):
    labels = ball(10, (26, 24, 14))
    tables, found = meshes(labels, chunk, dust_um3=0.0)
    ((segment, pieces),) = unpack(tables)
    vertices, faces = weld([(p["vertices"], p["faces"]) for p in pieces])
    assert segment == 7
    assert_closed(faces)
    n_voxels = np.count_nonzero(labels)
    assert enclosed_volume(vertices, faces) == pytest.approx(n_voxels * 2000, rel=0.1)
    assert list(found) == [7]


def test_vertices_lie_around_the_middle_of_the_object():
    _, found = meshes(ball(10, (26, 24, 14)), (26, 24, 14), dust_um3=0.0)
    vertices = found[7][0].vertices
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    centre = (np.array([26, 24, 14]) / 2 + (4, 5, 6)) * VOXEL
    np.testing.assert_allclose(middle, centre, atol=10)


def test_an_object_that_fills_the_bounds_is_closed_there():
    labels = np.full((6, 5, 4), 3, np.uint64, order="F")
    tables, _ = meshes(labels, (3, 5, 2), dust_um3=0.0)
    ((_, pieces),) = unpack(tables)
    vertices, faces = weld([(p["vertices"], p["faces"]) for p in pieces])
    assert_closed(faces)
    assert 0.8 < enclosed_volume(vertices, faces) / (labels.size * 2000) <= 1


def test_dust_has_no_mesh():
    labels = ball(10, (26, 24, 14))
    labels[0, 0, 0] = 9
    um3 = np.count_nonzero(labels == 7) * 2000 / 1e9
    assert set(meshes(labels, (26, 24, 14), dust_um3=0.0)[1]) == {7, 9}
    assert set(meshes(labels, (26, 24, 14), dust_um3=um3 / 2)[1]) == {7}
    assert set(meshes(labels, (26, 24, 14), dust_um3=um3 * 2)[1]) == set()


def test_levels_of_detail_have_ever_fewer_triangles():
    _, found = meshes(ball(10, (26, 24, 14)), (26, 24, 14), reduction=1, dust_um3=0.0)
    counts = [len(level.faces) for level in found[7]]
    assert len(counts) == 3
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[-1]


def test_legacy_meshes_have_one_level_and_no_shards():
    _, found = meshes(ball(10, (26, 24, 14)), (26, 24, 14), form="legacy", dust_um3=0.0)
    assert len(found[7]) == 1
    stage = SurfaceMeshes(
        fragments="f",
        output="m",
        bounds=Bbox.of_shape((4, 4, 4)),
        chunk=Vec3(4, 4, 4),
        voxel_size_nm=VOXEL,
        form="legacy",
    )
    assert "legacy meshes of m are files per segment" in stage.check({})[0]
