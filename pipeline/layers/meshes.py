"""Surface meshes in the two forms that Neuroglancer opens.

In the multi-resolution form the box around a segment is cut into an octree, and each
level of detail into fragments along it. No triangle of a level crosses the cells of the
level below, so that a viewer can show one part of a segment finer than another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingInputError
from pipeline.layers.folder import open_folder, storage_errors
from pipeline.layers.sharding import (
    encode_shard,
    segment_sources,
    sharding_info,
    sharding_of,
)
from pipeline.specs import Mesh, Meshes, MeshesSpec, Record, VoxelSize

QUANTIZATION_BITS = 16
"""A vertex lies within 1/65535 of a cell of the octree from where it should."""

_DRACO_LEVEL = 7
_ON_PLANE = 1e-9

_MULTIRESOLUTION = "neuroglancer_multilod_draco"
_LEGACY = "neuroglancer_legacy_mesh"

Cell = tuple[int, int, int]


def meshes_info(layer: str, spec: MeshesSpec) -> dict[str, Any]:
    """Return the `info` of meshes.

    Raises
    ------
    DataError
        If the form does not exist in Neuroglancer.
    """
    if spec.form == "legacy":
        if spec.sharding is not None:
            raise DataError(
                f"{layer}: legacy meshes cannot be sharded; choose form multiresolution or "
                "no sharding"
            )
        return {"@type": _LEGACY, "voxel_size_nm": list(spec.voxel_size_nm)}
    x, y, z = spec.voxel_size_nm
    info: dict[str, Any] = {
        "@type": _MULTIRESOLUTION,
        "vertex_quantization_bits": QUANTIZATION_BITS,
        "transform": [x, 0, 0, 0, 0, y, 0, 0, 0, 0, z, 0],
        "lod_scale_multiplier": 1.0,
    }
    if spec.sharding is not None:
        info["sharding"] = sharding_info(spec.sharding, data_encoding="raw")
    return info


def meshes_spec(info: Mapping[str, Any]) -> MeshesSpec | None:
    """Return what an `info` describes, None if it is not of meshes."""
    if info.get("@type") == _MULTIRESOLUTION:
        transform = info["transform"]
        return MeshesSpec(
            form="multiresolution",
            voxel_size_nm=(transform[0], transform[5], transform[10]),
            sharding=sharding_of(info),
        )
    if info.get("@type") == _LEGACY:
        x, y, z = info.get("voxel_size_nm", (1.0, 1.0, 1.0))
        return MeshesSpec(form="legacy", voxel_size_nm=(x, y, z), sharding=None)
    return None


def encode(
    target: Record, spec: MeshesSpec, meshes: Meshes
) -> Iterator[tuple[str, bytes | None]]:
    """Encode meshes as objects; segments whose finest level is empty are left out.

    Yields
    ------
    path : str
        Object, relative to the layer.
    content : bytes or None
        None where a shard would be empty.

    Raises
    ------
    DataError
        If a mesh is malformed, or belongs to another shard than that of the key.
    """
    by_id: dict[int, list[Mesh]] = {}
    for segment in sorted(meshes.by_id):
        levels = [mesh for mesh in meshes.by_id[segment] if len(mesh.faces)]
        for mesh in levels:
            _check(f"{target.layer}: segment {segment}", mesh)
        if levels:
            by_id[segment] = levels
    if spec.form == "legacy":
        for segment, levels in by_id.items():
            yield f"{segment}:0", json.dumps({"fragments": [f"{segment}:0:0"]}).encode()
            yield f"{segment}:0:0", _legacy(levels[0])
        return
    if spec.sharding is None:
        for segment, levels in by_id.items():
            manifest, data = _multiresolution(segment, levels, spec.voxel_size_nm)
            yield f"{segment}.index", manifest
            yield f"{segment}", data
        return
    objects, sizes = {}, {}
    for segment, levels in by_id.items():
        manifest, data = _multiresolution(segment, levels, spec.voxel_size_nm)
        objects[segment] = data + manifest
        sizes[segment] = len(manifest)
    yield encode_shard(
        target, sharding_info(spec.sharding, data_encoding="raw"), objects, sizes
    )


def _check(name: str, mesh: Mesh) -> None:
    vertices, faces = mesh.vertices, mesh.faces
    if (
        vertices.ndim != 2
        or vertices.shape[1] != 3
        or faces.ndim != 2
        or faces.shape[1] != 3
    ):
        raise DataError(
            f"{name}: vertices {vertices.shape} and faces {faces.shape} are not rows of "
            "three; mend the stage that returned them"
        )
    if not np.isfinite(vertices).all() or int(faces.max()) >= len(vertices):
        raise DataError(
            f"{name}: a face names vertex {int(faces.max())} of {len(vertices)}, or a "
            "vertex is not finite; mend the stage that returned them"
        )


def _legacy(mesh: Mesh) -> bytes:
    count = np.array([len(mesh.vertices)], dtype="<u4")
    return b"".join(
        [
            count.tobytes(),
            mesh.vertices.astype("<f4").tobytes("C"),
            mesh.faces.astype("<u4").tobytes("C"),
        ]
    )


def _multiresolution(
    segment: int, levels: list[Mesh], voxel_size_nm: VoxelSize
) -> tuple[bytes, bytes]:
    """Return the manifest of a segment, and its fragments."""
    from cloudvolume.datasource.precomputed.mesh.multilod import (
        MultiLevelPrecomputedMeshManifest,
    )

    unit = np.asarray(voxel_size_nm, dtype=np.float64)
    in_voxels = [mesh.vertices / unit for mesh in levels]
    low = np.floor(np.min([v.min(axis=0) for v in in_voxels], axis=0))
    # Beyond the farthest vertex: none lies on the far face of the octree.
    extent = np.floor(np.max([v.max(axis=0) for v in in_voxels], axis=0)) + 1 - low
    cell = np.ceil(extent / 2 ** (len(levels) - 1))
    cuts: list[dict[Cell, bytes]] = []
    for level, (vertices, mesh) in enumerate(zip(in_voxels, levels, strict=True)):
        fragments = dict(
            _fragments(
                (vertices - low) / cell, mesh.faces.astype(np.int64), level, len(levels)
            )
        )
        for x, y, z in cuts[-1] if cuts else ():
            # A cell that has a child is listed even where its own level holds nothing.
            fragments.setdefault((x // 2, y // 2, z // 2), b"")
        cuts.append(dict(sorted(fragments.items(), key=lambda item: _morton(item[0]))))
    manifest = MultiLevelPrecomputedMeshManifest(
        segment_id=segment,
        chunk_shape=cell,
        grid_origin=low,
        num_lods=len(levels),
        lod_scales=[2**level for level in range(len(levels))],
        vertex_offsets=[[0, 0, 0]] * len(levels),
        num_fragments_per_lod=[len(cut) for cut in cuts],
        fragment_positions=[list(cut) for cut in cuts],
        fragment_offsets=[len(content) for cut in cuts for content in cut.values()],
    )
    data = b"".join(content for cut in cuts for content in cut.values())
    return bytes(manifest.to_binary()), data


def _morton(cell: Cell) -> int:
    """Return the place of a cell in z-curve order."""
    code = 0
    for bit in range(max(cell).bit_length()):
        for axis in range(3):
            code |= (cell[axis] >> bit & 1) << (3 * bit + axis)
    return code


def _fragments(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], level: int, n_levels: int
) -> Iterator[tuple[Cell, bytes]]:
    """Cut a level of detail into the cells of its height in the octree.

    Parameters
    ----------
    vertices : float64 array, (n, 3)
        In cells of level 0.
    """
    child = max(1, 2 ** (level - 1))
    for axis in range(3):
        for plane in range(child, 2 ** (n_levels - 1), child):
            vertices, faces = _split(vertices, faces, axis, plane)
    vertices = vertices / 2**level
    last = 2 ** (n_levels - 1 - level) - 1
    cells = np.clip(np.floor(vertices[faces].mean(axis=1)), 0, last).astype(np.int64)
    present, row_of = np.unique(cells, axis=0, return_inverse=True)
    for row, (x, y, z) in enumerate(present):
        within = faces[row_of.reshape(-1) == row]
        content = _draco(vertices, within, np.array([x, y, z]))
        if content:
            yield (int(x), int(y), int(z)), content


def _split(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], axis: int, plane: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut the triangles that cross a plane, so that each lies on one side of it.

    Triangles that share an edge share the vertex at which it is cut.
    """
    distance = vertices[:, axis] - plane
    side = np.where(np.abs(distance) < _ON_PLANE, 0, np.sign(distance)).astype(np.int64)
    sides = side[faces]
    crosses = (sides.min(axis=1) < 0) & (sides.max(axis=1) > 0)
    if not crosses.any():
        return vertices, faces
    cut, sides = faces[crosses], sides[crosses]
    # One corner lies alone on its side; turned to be the first, a, it is cut off.
    alone = np.where((sides > 0).sum(axis=1) == 1, 1, -1)
    first = np.argmax(sides == alone[:, np.newaxis], axis=1)
    a, b, c = np.take_along_axis(cut, (first[:, np.newaxis] + np.arange(3)) % 3, axis=1).T
    pairs = np.sort(np.concatenate([np.stack([a, b], 1), np.stack([a, c], 1)]), axis=1)
    edges, edge_of = np.unique(pairs, axis=0, return_inverse=True)
    low, high = edges.T
    along = distance[low] / (distance[low] - distance[high])
    points = vertices[low] + along[:, np.newaxis] * (vertices[high] - vertices[low])
    points[:, axis] = plane
    p, q = (len(vertices) + edge_of.reshape(2, -1)).astype(np.int64)
    p, q = np.where(side[b] == 0, b, p), np.where(side[c] == 0, c, q)
    pieces = np.concatenate(
        [np.stack([a, p, q], 1), np.stack([p, b, c], 1), np.stack([p, c, q], 1)]
    )
    return np.concatenate([vertices, points]), np.concatenate(
        [faces[~crosses], _proper(pieces)]
    )


def _proper(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop triangles that name a vertex twice."""
    a, b, c = faces.T
    proper: NDArray[np.int64] = faces[(a != b) & (b != c) & (c != a)]
    return proper


def _draco(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], cell: NDArray[np.int64]
) -> bytes:
    """Encode the triangles of a cell; empty where all vanish at this quantization."""
    import DracoPy  # type: ignore[import-not-found]

    top = 2**QUANTIZATION_BITS - 1
    used, faces = np.unique(faces, return_inverse=True)
    stored = np.clip(np.rint((vertices[used] - cell) * top), 0, top).astype(np.uint16)
    stored, merged = np.unique(stored, axis=0, return_inverse=True)
    faces = _proper(merged.reshape(-1)[faces.reshape(-1, 3)])
    if not len(faces):
        return b""
    low = stored.min(axis=0)
    return bytes(
        DracoPy.encode(
            stored,
            faces.astype(np.uint32),
            quantization_bits=QUANTIZATION_BITS,
            compression_level=_DRACO_LEVEL,
            quantization_range=int((stored.max(axis=0) - low).max()),
            quantization_origin=low,
            create_metadata=True,
        )
    )


def read(location: str, segment: int) -> Mesh:
    """Read the finest level of detail of a segment.

    Raises
    ------
    MissingInputError
        If there is none.
    """
    from cloudvolume.exceptions import MeshMissingError

    missing = MissingInputError(
        f"segment {segment} has no mesh at {location}; list the segments that have one, or "
        "run the stage that writes it"
    )
    folder = open_folder(location)
    info = json.loads(folder.get("info") or b"{}")
    index = f"{segment}:0" if info.get("@type") == _LEGACY else f"{segment}.index"
    if not info.get("sharding") and not folder.exists(index):
        raise missing
    with storage_errors(location):
        source, _ = segment_sources(location)
        try:
            mesh = source.mesh.get(segment)
        except MeshMissingError:
            raise missing from None
    mesh = mesh[segment] if isinstance(mesh, dict) else mesh
    return Mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
