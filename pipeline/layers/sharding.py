"""Objects of segments spread over shard files by the hash of their id.

The format is Neuroglancer's ``neuroglancer_uint64_sharded_v1``, for surface meshes and
skeletons. Shards of volumes follow the Morton code instead; see `volumes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import DataError
from pipeline.geometry import ChunkKey
from pipeline.layers.folder import open_folder, storage_errors
from pipeline.specs import Record, Sharding


def sharding_info(sharding: Sharding, *, data_encoding: str) -> dict[str, Any]:
    """Return the ``sharding`` of an `info`."""
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": 0,
        "hash": "murmurhash3_x86_128",
        "minishard_bits": sharding.minishard_bits,
        "shard_bits": sharding.shard_bits,
        "minishard_index_encoding": "gzip",
        "data_encoding": data_encoding,
    }


def sharding_of(info: Mapping[str, Any]) -> Sharding | None:
    """Return how the `info` of meshes or skeletons spreads them, None for not at all."""
    sharding = info.get("sharding")
    if not sharding:
        return None
    return Sharding(
        shard_bits=sharding["shard_bits"], minishard_bits=sharding["minishard_bits"]
    )


def encode_shard(
    target: Record,
    info: Mapping[str, Any],
    objects: Mapping[int, bytes],
    sizes: Mapping[int, int] | None = None,
) -> tuple[str, bytes | None]:
    """Assemble the shard that a key names.

    Parameters
    ----------
    target : Record
        Key ``0_<shard>_0_0``.
    info : mapping
        The ``sharding`` of the `info`.
    objects : mapping of int to bytes
        Objects by segment; all belong to the shard.
    sizes : mapping of int to int or None
        Bytes at the end of each object that the index points to; all of it by default.

    Returns
    -------
    path : str
        File of the shard, relative to the layer.
    content : bytes or None
        None where there is no object.

    Raises
    ------
    DataError
        If a segment belongs to another shard.
    """
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    sharding = ShardingSpecification.from_dict(dict(info))
    digits = -(-int(info["shard_bits"]) // 4)
    number = format(ChunkKey.parse(target.key).x, "x").zfill(digits)
    for segment in sorted(objects):
        belongs = sharding.compute_shard_location(segment).shard_number
        if belongs != number:
            raise DataError(
                f"{target.layer}: segment {segment} belongs to shard {belongs} but was "
                f"given for key {target.key}; choose the segments by the hash of their id"
            )
    path = f"{number}.shard"
    if not objects:
        return path, None
    return path, bytes(sharding.synthesize_shard(dict(sorted(objects.items())), sizes))


def segments(location: str) -> list[int]:
    """List the segments that meshes or skeletons are kept for, in order."""
    names = [path.rsplit("/", 1)[-1] for path in open_folder(location).paths("")]
    found: set[int] = set()
    for name in names:
        if match := re.fullmatch(r"(\d+)(\.index|:0)?", name):
            found.add(int(match[1]))
    shards = [name for name in names if name.endswith(".shard")]
    if shards:
        with storage_errors(location):
            source, folder = segment_sources(location)
            is_mesh = "draco" in source.mesh.meta.info["@type"]
            kind = source.mesh if is_mesh else source.skeleton
            for name in shards:
                found.update(int(s) for s in kind.reader.list_labels(name, folder))
    return sorted(found)


def segment_sources(location: str) -> tuple[Any, str]:
    """Open meshes or skeletons, whether or not a volume lies around them.

    Returns
    -------
    CloudVolume
        Of the folder above; only its ``mesh`` and ``skeleton`` are of use.
    str
        Name of the folder within it.
    """
    from cloudvolume import CloudVolume

    above, _, name = location.rpartition("/")
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="segmentation",
        data_type="uint64",
        encoding="raw",
        resolution=(1, 1, 1),
        voxel_offset=(0, 0, 0),
        volume_size=(1, 1, 1),
        mesh=name,
        skeletons=name,
    )
    return CloudVolume(above, info=info, progress=False, cache=False), name
