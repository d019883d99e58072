"""Surface meshes and skeletons, read back by CloudVolume through their segmentation."""

import itertools
import json

import numpy as np
import pytest
import zmesh
from cloudvolume import CloudVolume
from cloudvolume.datasource.precomputed.mesh.multilod import (
    MultiLevelPrecomputedMeshManifest,
)
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

from pipeline.errors import DataError, GeometryError, MissingInputError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.meshes import QUANTIZATION_BITS
from pipeline.specs import (
    Mesh,
    Meshes,
    MeshesSpec,
    Record,
    Sharding,
    Skeleton,
    Skeletons,
    SkeletonsSpec,
    VolumeSpec,
)

VOXEL = (4.0, 4.0, 40.0)
LABELS = VolumeSpec(
    dtype="uint64",
    bounds=Bbox.of_shape((64, 64, 64), Vec3(-10, 5, 100)),
    voxel_size_nm=VOXEL,
    kind_of_values="segmentation",
)
SHARDING = Sharding(shard_bits=2, minishard_bits=3)
IDS = [1, 2, 77, 2**40 + 3, 2**60 + 9]


def ball(radius, at):
    """A closed mesh in nm around a ball of voxels, and a coarser one."""
    grid = np.indices((64, 64, 64)) - 32
    voxels = ((grid**2).sum(axis=0) < radius**2).astype(np.uint32)
    mesher = zmesh.Mesher(VOXEL)
    mesher.mesh(voxels)
    levels = []
    for reduction in (1, 3, 8):
        mesh = mesher.get(1, reduction_factor=reduction, max_error=200, voxel_centered=True)
        levels.append(
            Mesh(
                (mesh.vertices + np.asarray(at) * VOXEL).astype(np.float32),
                mesh.faces.astype(np.uint32),
            )
        )
    return levels


@pytest.fixture(scope="module")
def surfaces():
    return {s: ball(8 + 2 * n, (-10 + n, 5, 100)) for n, s in enumerate(IDS)}


def corners(vertices, faces):
    return vertices[faces].reshape(-1, 9)


def area(vertices, faces):
    a, b, c = (vertices[faces[:, n]].astype(np.float64) for n in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def enclosed(vertices, faces):
    a, b, c = (vertices[faces[:, n]].astype(np.float64) for n in range(3))
    return (np.cross(a, b) * c).sum() / 6


def hausdorff(a, b):
    """Return the distance from each row of one to the nearest of the other, at most."""
    return max(np.linalg.norm(b - row, axis=1).min() for row in a)


def shard_of(sharding, segment):
    spec = ShardingSpecification(
        type="neuroglancer_uint64_sharded_v1",
        preshift_bits=0,
        hash="murmurhash3_x86_128",
        minishard_bits=sharding.minishard_bits,
        shard_bits=sharding.shard_bits,
    )
    return int(spec.compute_shard_location(segment).shard_number, 16)


def write_all(store, layer, spec, value_of, by_id):
    """Write by shard as tasks do, or all at once where there are no shards."""
    store.create("labels", LABELS)
    store.create(layer, spec)
    if spec.sharding is None:
        return store.write(Record(layer, "0_0_0_0"), spec, value_of(by_id))
    written = {}
    for n in range(2**spec.sharding.shard_bits):
        within = {s: v for s, v in by_id.items() if shard_of(spec.sharding, s) == n}
        objects = store.write(Record(layer, f"0_{n}_0_0"), spec, value_of(within))
        assert len(objects) == bool(within)
        written |= objects
    return written


@pytest.mark.parametrize(
    "sharding", [None, SHARDING, Sharding(shard_bits=0, minishard_bits=0)]
)
def test_multiresolution_meshes(sharding, store, surfaces):
    spec = MeshesSpec(form="multiresolution", voxel_size_nm=VOXEL, sharding=sharding)
    written = write_all(store, "labels/meshes", spec, Meshes, surfaces)
    assert store.check("labels/meshes", written) == []
    info = store.get_json("labels/meshes/info")
    assert info["@type"] == "neuroglancer_multilod_draco"
    assert info["vertex_quantization_bits"] == 16
    assert info["lod_scale_multiplier"] == 1.0
    assert info["transform"] == [4, 0, 0, 0, 0, 4, 0, 0, 0, 0, 40, 0]
    assert ("sharding" in info) == (sharding is not None)
    assert store.describe("labels/meshes") == spec
    assert store.segments("labels/meshes") == IDS

    volume = CloudVolume(store.location("labels"), progress=False)
    for segment, levels in surfaces.items():
        # Half a step of the quantization of a cell of the octree, at level n 2**n as wide.
        cell = np.ptp(levels[0].vertices, axis=0) / 4 + np.asarray(VOXEL)
        for level, mesh in enumerate(levels):
            step = np.linalg.norm(cell) * 2**level / (2**QUANTIZATION_BITS - 1)
            found = volume.mesh.get(segment, lod=level)[segment]
            assert area(found.vertices, found.faces) == pytest.approx(
                area(mesh.vertices, mesh.faces), rel=1e-3
            )
            assert enclosed(found.vertices, found.faces) == pytest.approx(
                enclosed(mesh.vertices, mesh.faces), rel=1e-3
            )
            # Cutting adds vertices along the cells; those of the mesh all remain.
            assert hausdorff(mesh.vertices, found.vertices) <= step
        ours = store.read_mesh("labels/meshes", segment)
        assert ours.vertices.dtype == np.float32
        assert hausdorff(levels[0].vertices, ours.vertices) < 0.01
    with pytest.raises(MissingInputError, match="segment 5 has no mesh"):
        store.read_mesh("labels/meshes", 5)


def test_manifests_keep_the_rules_of_the_octree(store, surfaces):
    """What Neuroglancer relies on: z-curve order, parents, no triangle across children."""
    spec = MeshesSpec(form="multiresolution", voxel_size_nm=VOXEL, sharding=None)
    write_all(store, "labels/meshes", spec, Meshes, surfaces)
    volume = CloudVolume(store.location("labels"), progress=False)
    for segment in IDS:
        content = store._folder.get(f"labels/meshes/{segment}.index")
        manifest = MultiLevelPrecomputedMeshManifest.from_binary(content, segment)
        assert manifest.num_lods == 3
        assert list(manifest.lod_scales) == [1, 2, 4]
        cells = [[tuple(c) for c in level] for level in manifest.fragment_positions]
        assert cells[2] == [(0, 0, 0)]
        for level in range(3):
            code = [
                sum(
                    (c[a] >> b & 1) << (3 * b + a)
                    for b, a in itertools.product(range(4), range(3))
                )
                for c in cells[level]
            ]
            assert code == sorted(set(code))
            if level:
                parents = {tuple(v // 2 for v in c) for c in cells[level - 1]}
                assert parents <= set(cells[level])
                meshes = volume.mesh.get(segment, lod=level, concat=False)[segment]
                width = manifest.chunk_shape * 2 ** (level - 1)
                for mesh in meshes:
                    at = (mesh.vertices / VOXEL - manifest.grid_origin) / width
                    low, high = at[mesh.faces].min(axis=1), at[mesh.faces].max(axis=1)
                    assert (np.ceil(high - 0.001) - np.floor(low + 0.001) <= 1).all()
        sizes = sum(int(n.sum()) for n in manifest.fragment_offsets)
        assert sizes == len(store._folder.get(f"labels/meshes/{segment}"))


def test_legacy_meshes(store, surfaces):
    spec = MeshesSpec(form="legacy", voxel_size_nm=VOXEL, sharding=None)
    written = write_all(store, "labels/meshes", spec, Meshes, surfaces)
    assert set(written) == {f"{s}:0" for s in IDS} | {f"{s}:0:0" for s in IDS}
    assert json.loads(store.get_text("labels/meshes/77:0")) == {"fragments": ["77:0:0"]}
    assert store.get_json("labels/meshes/info")["@type"] == "neuroglancer_legacy_mesh"
    assert store.segments("labels/meshes") == IDS
    volume = CloudVolume(store.location("labels"), progress=False)
    for segment, levels in surfaces.items():
        found = volume.mesh.get(segment, remove_duplicate_vertices=False)
        ours = store.read_mesh("labels/meshes", segment)
        for mesh in (found, ours):
            np.testing.assert_array_equal(
                np.sort(corners(mesh.vertices, mesh.faces), axis=0),
                np.sort(corners(levels[0].vertices, levels[0].faces), axis=0),
            )
    with pytest.raises(MissingInputError, match="segment 5 has no mesh"):
        store.read_mesh("labels/meshes", 5)
    with pytest.raises(DataError, match="legacy meshes cannot be sharded"):
        store.create("other", spec.model_copy(update={"sharding": SHARDING}))


def test_meshes_without_faces_or_without_extent(store):
    flat = Mesh(
        np.array([[0, 0, 40], [40, 0, 40], [0, 40, 40]], np.float32),
        np.array([[0, 1, 2]], np.uint32),
    )
    empty = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint32))
    spec = MeshesSpec(form="multiresolution", voxel_size_nm=VOXEL, sharding=None)
    write_all(store, "labels/meshes", spec, Meshes, {1: [flat, flat], 2: [empty], 3: []})
    assert store.segments("labels/meshes") == [1]
    assert hausdorff(flat.vertices, store.read_mesh("labels/meshes", 1).vertices) < 0.01


def threads():
    rng = np.random.default_rng(0)
    return {
        s: Skeleton(
            rng.normal(size=(n + 2, 3)).astype(np.float32) * 1e4,
            np.array([[i, i + 1] for i in range(n + 1)], np.uint32),
            rng.random(n + 2).astype(np.float32) * 100,
        )
        for n, s in enumerate(IDS)
    }


@pytest.mark.parametrize("sharding", [None, SHARDING])
def test_skeletons(sharding, store):
    spec = SkeletonsSpec(sharding=sharding)
    written = write_all(store, "labels/skeletons", spec, Skeletons, threads())
    assert store.check("labels/skeletons", written) == []
    info = store.get_json("labels/skeletons/info")
    assert info["@type"] == "neuroglancer_skeletons"
    assert info["transform"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert [a["id"] for a in info["vertex_attributes"]] == ["radius"]
    assert store.segments("labels/skeletons") == IDS
    volume = CloudVolume(store.location("labels"), progress=False)
    for segment, skeleton in threads().items():
        for found in (
            volume.skeleton.get(segment),
            store.read_skeleton("labels/skeletons", segment),
        ):
            np.testing.assert_array_equal(found.vertices, skeleton.vertices)
            np.testing.assert_array_equal(found.edges, skeleton.edges)
            np.testing.assert_array_equal(found.radius, skeleton.radius)
    with pytest.raises(MissingInputError, match="segment 5 has no skeleton"):
        store.read_skeleton("labels/skeletons", 5)


def test_a_shard_takes_its_own_segments_only_and_is_cleared(store):
    spec = SkeletonsSpec(sharding=SHARDING)
    skeletons = threads()
    store.create("skeletons", spec)
    n = shard_of(SHARDING, 77)
    record = Record("skeletons", f"0_{n}_0_0")
    with pytest.raises(DataError, match=r"segment \d+ belongs to shard"):
        store.write(record, spec, Skeletons(skeletons))
    assert list(store.write(record, spec, Skeletons({77: skeletons[77]}))) == [
        f"{n:x}.shard"
    ]
    assert store.segments("skeletons") == [77]
    assert store.write(record, spec, Skeletons()) == {}
    assert store.segments("skeletons") == []
    with pytest.raises(GeometryError, match="level_x_y_z"):
        store.write(Record("skeletons", "zero"), spec, Skeletons())


@pytest.mark.parametrize("sharding", [None, SHARDING])
def test_bytes_do_not_depend_on_time_or_order(sharding, store, surfaces, monkeypatch):
    spec = MeshesSpec(form="multiresolution", voxel_size_nm=VOXEL, sharding=sharding)
    first = write_all(store, "a/meshes", spec, Meshes, surfaces)
    bones = SkeletonsSpec(sharding=sharding)
    second = write_all(store, "a/skeletons", bones, Skeletons, threads())
    monkeypatch.setattr("time.time", lambda: 2e9)
    backwards = dict(reversed(surfaces.items()))
    assert write_all(store, "b/meshes", spec, Meshes, backwards) == first
    backwards = dict(reversed(threads().items()))
    assert write_all(store, "b/skeletons", bones, Skeletons, backwards) == second


def test_malformed_values_are_refused(store):
    mesh = Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 3]], np.uint32))
    spec = MeshesSpec(form="multiresolution", voxel_size_nm=VOXEL, sharding=None)
    record = Record("m", "0_0_0_0")
    with pytest.raises(DataError, match="m: segment 4: a face names vertex 3 of 3"):
        store.write(record, spec, Meshes({4: [mesh]}))
    skeleton = Skeleton(
        np.zeros((2, 3), np.float32), np.zeros((1, 2), np.uint32), np.zeros(3, np.float32)
    )
    with pytest.raises(DataError, match=r"m: segment 4: .* radius \(3,\)"):
        store.write(record, SkeletonsSpec(sharding=None), Skeletons({4: skeleton}))
    with pytest.raises(DataError, match="a layer of meshes does not hold Skeletons"):
        store.write(record, spec, Skeletons({4: skeleton}))
