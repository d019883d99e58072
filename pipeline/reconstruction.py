"""The recipe of a block: from its image to neurons with meshes and skeletons.

What `em reconstruct` runs, and keeps as ``runs/<name>.json`` in the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VoxelSize

_STORAGE_XY = 64
_CHUNK_XY = 256
_CHUNK_Z = 64
_AFFINITY_XY = 512
_MOST_INGESTED = 2**30
_NOWHERE = Vec3(0, 0, 0)


@dataclass(frozen=True)
class Block:
    """What is reconstructed, and how.

    Parameters
    ----------
    source : str
        Location of the image.
    bounds : Bbox
        Box of it, in voxels of the output.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    shift : Vec3
        Offset of the output from the source [voxel].
    model : str
        Affinity model.
    truth : str or None
        Location of labels with the same voxels, to score against.
    threshold : float or None
        Mean affinity down to which segments are merged; None takes the stage's.
    intensity_range : (float, float) or None
        Values that become 0 and 255, for an image that is not uint8.
    """

    source: str
    bounds: Bbox
    voxel_size_nm: VoxelSize
    shift: Vec3 = _NOWHERE
    model: str = "cortex-rsunet"
    truth: str | None = None
    truth_shift: Vec3 = _NOWHERE
    threshold: float | None = None
    intensity_range: tuple[float, float] | None = None


def block_recipe(name: str, block: Block) -> dict[str, Any]:
    """Write the recipe of a block, as `Recipe.parse` reads it.

    Chunks are cut so that no thin slab is left over; the net gets wider ones, because
    it predicts whole patches and does those on a chunk's border once for each side.
    """
    shape = block.bounds.shape
    chunk = Vec3(
        _even(shape.x, _CHUNK_XY, _STORAGE_XY),
        _even(shape.y, _CHUNK_XY, _STORAGE_XY),
        _even(shape.z, _CHUNK_Z, 1),
    )
    wide = Vec3(
        _even(shape.x, _AFFINITY_XY, _STORAGE_XY),
        _even(shape.y, _AFFINITY_XY, _STORAGE_XY),
        chunk.z,
    )
    if all(n == 1 for n in shape.ceil_div(wide)):
        wide = Vec3(chunk.x, wide.y, wide.z)
    storage = [_STORAGE_XY, _STORAGE_XY, chunk.z]
    mips = max(1, min(4, int(math.log2(max(2, min(shape.x, shape.y) // 32)))))
    mip = _mesh_mip(block.voxel_size_nm, mips)
    coarse = block.bounds.coarser(Vec3(2**mip, 2**mip, 1))
    coarse_voxel = [
        block.voxel_size_nm[0] * 2**mip,
        block.voxel_size_nm[1] * 2**mip,
        block.voxel_size_nm[2],
    ]
    labels = {"encoding": "compressed_segmentation", "storage_chunk": storage}
    layers = {"source": block.source}
    stages: list[dict[str, Any]] = [
        {
            "use": "ingest",
            "source": "source",
            "output": "image",
            "voxel_size_nm": list(block.voxel_size_nm),
            "shift": list(block.shift),
            "storage_chunk": storage,
            **(
                {"intensity_range": list(block.intensity_range)}
                if block.intensity_range
                else {}
            ),
        },
        {
            "use": "affinities",
            "image": "image",
            "output": "affinities",
            "model": block.model,
            "chunk": list(wide),
            "storage_chunk": storage,
        },
        {"use": "basins", "affinities": "affinities", "output": "basins", **labels},
        {
            "use": "basin_graph",
            "basins": "basins",
            "affinities": "affinities",
            "output": "basin_graph",
        },
        {
            "use": "supervoxel_table",
            "decisions": "basin_graph",
            "output": "supervoxel_table",
        },
        {
            "use": "relabel",
            "labels": "basins",
            "table": "supervoxel_table",
            "output": "supervoxels",
            **labels,
        },
        {
            "use": "region_graph",
            "supervoxels": "supervoxels",
            "affinities": "affinities",
            "output": "region_graph",
        },
        {
            "use": "agglomeration",
            "graph": "region_graph",
            "output": "agglomeration",
            **({} if block.threshold is None else {"threshold": block.threshold}),
        },
        {"use": "segment_table", "decisions": "agglomeration", "output": "segment_table"},
        {
            "use": "relabel",
            "labels": "supervoxels",
            "table": "segment_table",
            "output": "segmentation",
            **labels,
        },
        _pyramid("image", mips, storage),
        _pyramid("segmentation", mips, storage),
        *_surfaces("segmentation", mip, coarse, coarse_voxel),
        *_centerlines("segmentation", mip, coarse, coarse_voxel),
    ]
    if block.truth is not None:
        layers["truth_source"] = block.truth
        stages += [
            {
                "use": "ingest",
                "source": "truth_source",
                "output": "truth",
                "kind_of_values": "segmentation",
                "voxel_size_nm": list(block.voxel_size_nm),
                "shift": list(block.truth_shift),
                **labels,
            },
            _pyramid("truth", mips, storage),
            *_centerlines("truth", mip, coarse, coarse_voxel),
            {
                "use": "overlaps",
                "segmentation": "segmentation",
                "truth": "truth",
                "output": "overlaps",
            },
        ]
    return {
        "name": name,
        "grid": {
            "bounds": {"start": list(block.bounds.start), "stop": list(block.bounds.stop)},
            "chunk": list(chunk),
        },
        "layers": layers,
        "stage": stages,
    }


def ingest_chunks(shape: Vec3, natural_chunk: Vec3, *, sharded: bool) -> tuple[Vec3, Vec3]:
    """Choose the chunk of an ingest, and its storage chunk.

    A source that decodes whole sections is read in whole sections, while they fit.

    Parameters
    ----------
    shape : Vec3
        Extent of the source [voxel].
    natural_chunk : Vec3
        What it decodes at once.
    sharded : bool
        Whether a chunk is a shard, whose extents are powers of two.
    """
    is_sections = natural_chunk.x >= shape.x and natural_chunk.y >= shape.y
    thin = Vec3(128, 128, 16)
    whole = Vec3(_whole(shape.x, thin.x), _whole(shape.y, thin.y), thin.z)
    if is_sections and not sharded and whole.product <= _MOST_INGESTED:
        return whole, thin
    return Vec3(512, 512, 64), Vec3(64, 64, 64)


def _whole(size: int, unit: int) -> int:
    return math.ceil(size / unit) * unit


def _even(size: int, most: int, unit: int) -> int:
    """Return the chunk that cuts an axis into equal parts of at most ``most``."""
    parts = math.ceil(size / most)
    return _whole(math.ceil(size / parts), unit)


def _mesh_mip(voxel_size_nm: VoxelSize, mips: int) -> int:
    """Return the mip whose voxels are about as wide as they are deep."""
    ratio = voxel_size_nm[2] / max(voxel_size_nm[0], voxel_size_nm[1])
    return max(0, min(mips, round(math.log2(max(ratio, 1.0)))))


def _pyramid(layer: str, mips: int, storage: list[int]) -> dict[str, Any]:
    return {
        "use": "downsample",
        "layer": layer,
        "output": f"{layer}/pyramid",
        "mips": mips,
        "storage_chunk": storage,
    }


def _surfaces(
    layer: str, mip: int, bounds: Bbox, voxel_size_nm: list[float]
) -> list[dict[str, Any]]:
    at = _coarse(mip, bounds, voxel_size_nm)
    return [
        {
            "use": "mesh_fragments",
            "segmentation": layer,
            "output": f"{layer}_mesh_fragments",
            "mip": mip,
            **at,
        },
        {
            "use": "meshes",
            "fragments": f"{layer}_mesh_fragments",
            "output": f"{layer}/meshes",
            **at,
        },
    ]


def _centerlines(
    layer: str, mip: int, bounds: Bbox, voxel_size_nm: list[float]
) -> list[dict[str, Any]]:
    at = _coarse(mip, bounds, voxel_size_nm)
    return [
        {
            "use": "skeleton_fragments",
            "segmentation": layer,
            "output": f"{layer}_skeleton_fragments",
            "mip": mip,
            **at,
        },
        {
            "use": "skeletons",
            "fragments": f"{layer}_skeleton_fragments",
            "output": f"{layer}/skeletons",
            "bounds": at["bounds"],
            "chunk": at["chunk"],
            "sharding": at["sharding"],
        },
    ]


def _coarse(mip: int, bounds: Bbox, voxel_size_nm: list[float]) -> dict[str, Any]:
    shape = bounds.shape
    return {
        "bounds": {"start": list(bounds.start), "stop": list(bounds.stop)},
        "chunk": [_even(n, _CHUNK_XY, 1) for n in shape],
        "voxel_size_nm": voxel_size_nm,
        "sharding": {"shard_bits": 1, "minishard_bits": 4},
    }
