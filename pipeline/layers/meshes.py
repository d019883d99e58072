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
    in_voxels = [(m.vertices / unit).astype(np.float32) for m in levels]
    low = np.floor(np.min([v.min(axis=0) for v in in_voxels], axis=0))
    # One more than the farthest vertex: none lies on the far face of the octree.
    extent = np.floor(np.max([v.max(axis=0) for v in in_voxels], axis=0)) + 1 - low
    cell = np.ceil(extent / 2 ** (len(levels) - 1))
    cuts: list[dict[Cell, Mesh]] = []
    for level, (vertices, mesh) in enumerate(zip(in_voxels, levels, strict=True)):
        cut = _cut(Mesh(vertices, mesh.faces), low, cell, level)
        for child in cuts[-1] if cuts else ():
            x, y, z = child
            # A cell that has a child is listed even where its own level holds nothing.
            cut.setdefault((x // 2, y // 2, z // 2), Mesh(vertices[:0], mesh.faces[:0]))
        cuts.append(dict(sorted(cut.items(), key=lambda item: _morton(item[0]))))
    manifest = MultiLevelPrecomputedMeshManifest(
        segment_id=segment,
        chunk_shape=cell,
        grid_origin=low,
        num_lods=len(levels),
        lod_scales=[2**level for level in range(len(levels))],
        vertex_offsets=[[0, 0, 0]] * len(levels),
        num_fragments_per_lod=[len(cut) for cut in cuts],
        fragment_positions=[list(cut) for cut in cuts],
        fragment_offsets=[],
    )
    fragments = [
        _fragment(mesh, manifest, level, row)
        for level, cut in enumerate(cuts)
        for row, mesh in enumerate(cut.values())
    ]
    manifest.fragment_offsets = [len(fragment) for fragment in fragments]
    return bytes(manifest.to_binary()), b"".join(fragments)


def _cut(
    mesh: Mesh, low: NDArray[np.floating[Any]], cell: NDArray[np.floating[Any]], level: int
) -> dict[Cell, Mesh]:
    """Cut a level of detail into the cells of its height in the octree."""
    import zmesh

    whole = zmesh.Mesh(mesh.vertices, mesh.faces.astype(np.uint32), None)
    if level > 0:
        below = zmesh.chunk_mesh(whole, cell * 2 ** (level - 1), low)
        whole = zmesh.Mesh.concatenate(*below.values())
        whole = whole.merge_close_vertices(radius=1e-5)
    pieces = zmesh.chunk_mesh(whole, cell * 2**level, low)
    return {
        (int(x), int(y), int(z)): Mesh(piece.vertices, piece.faces)
        for (x, y, z), piece in pieces.items()
        if len(piece.faces)
    }


def _morton(cell: Cell) -> int:
    """Return the place of a cell in z-curve order."""
    code = 0
    for bit in range(max(cell).bit_length()):
        for axis in range(3):
            code |= (cell[axis] >> bit & 1) << (3 * bit + axis)
    return code


def _fragment(mesh: Mesh, manifest: Any, level: int, row: int) -> bytes:
    import DracoPy  # type: ignore[import-not-found]
    from cloudvolume.datasource.precomputed.mesh.multilod import to_stored_model_space

    if not len(mesh.faces):
        return b""
    stored = to_stored_model_space(
        mesh.vertices,
        manifest,
        lod=level,
        vertex_quantization_bits=QUANTIZATION_BITS,
        frag=row,
    )
    low = stored.min(axis=0)
    try:
        return bytes(
            DracoPy.encode(
                stored,
                mesh.faces,
                quantization_bits=QUANTIZATION_BITS,
                compression_level=_DRACO_LEVEL,
                quantization_range=int((stored.max(axis=0) - low).max()),
                quantization_origin=low,
                create_metadata=True,
            )
        )
    except DracoPy.EncodingFailedException:
        # Every triangle of the fragment vanishes at this quantization.
        return b""


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
