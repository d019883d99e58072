"""Synapses as lines that Neuroglancer opens: ``neuroglancer_annotations_v1``.

A line leads from the presynaptic site to the postsynaptic one. It is found by its id, by
each of its segments, and by place: each level of the spatial index has cells twice as wide
as those of the level below it, and a line lies in one cell of one level, the one that holds
the middle of its cleft.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Bbox, ChunkKey, Grid, Vec3
from pipeline.kernels.partners import SynapseRows
from pipeline.layers.sharding import encode_shard, sharding_info
from pipeline.specs import AnnotationsSpec, Record, Sharding, Table

RELATIONSHIPS = ("pre_segment", "post_segment")
"""Segments that a line belongs to; of each a folder of the layer."""

PROPERTIES: tuple[tuple[str, str, str], ...] = (
    ("size", "int32", "voxels of the cleft"),
    ("pre_score", "float32", "how sure the presynaptic cell is"),
    ("post_score", "float32", "how sure the postsynaptic cell is"),
    (
        "flags",
        "uint16",
        "bits: " + "no pre, no post, autapse, glia, vessel, at bounds, long, vanished",
    ),
    ("clefts", "uint8", "components that became one"),
)
"""Name, type and meaning of what is said of each line, those of four bytes first."""

_TYPE = "neuroglancer_annotations_v1"
_INDICES = ("by_id", *RELATIONSHIPS)
_LINE = np.dtype(
    [
        ("line", "<f4", (2, 3)),
        ("size", "<i4"),
        ("pre_score", "<f4"),
        ("post_score", "<f4"),
        ("flags", "<u2"),
        ("clefts", "u1"),
        ("padding", "u1"),
    ]
)


def annotations_info(spec: AnnotationsSpec) -> dict[str, Any]:
    """Return the `info` of a layer of lines."""
    grid = Grid(spec.bounds, spec.chunk)
    sharding = sharding_info(spec.sharding, data_encoding="raw")
    return {
        "@type": _TYPE,
        "annotation_type": "LINE",
        "dimensions": {
            axis: [size * 1e-9, "m"]
            for axis, size in zip("xyz", spec.voxel_size_nm, strict=True)
        },
        "lower_bound": [float(v) for v in spec.bounds.start],
        "upper_bound": [float(v) for v in spec.bounds.stop],
        "properties": [
            {"id": name, "type": kind, "description": meaning}
            for name, kind, meaning in PROPERTIES
        ],
        "relationships": [
            {"id": name, "key": name, "sharding": sharding} for name in RELATIONSHIPS
        ],
        "by_id": {"key": "by_id", "sharding": sharding},
        "spatial": [
            {
                "key": f"spatial{level}",
                "grid_shape": list(grid.counts(level)),
                "chunk_size": [float(v) for v in spec.chunk * 2**level],
                "limit": spec.limit,
            }
            for level in reversed(range(spec.height + 1))
        ],
    }


def annotations_spec(info: Mapping[str, Any]) -> AnnotationsSpec | None:
    """Return what an `info` describes, None if it is not of lines of ours."""
    if info.get("@type") != _TYPE or not info.get("spatial"):
        return None
    finest = info["spatial"][-1]
    x, y, z = (1e9 * float(info["dimensions"][a][0]) for a in "xyz")
    sharding = info["by_id"]["sharding"]
    return AnnotationsSpec(
        bounds=Bbox(_vec(info["lower_bound"]), _vec(info["upper_bound"])),
        voxel_size_nm=(round(x, 9), round(y, 9), round(z, 9)),
        chunk=_vec(finest["chunk_size"]),
        height=len(info["spatial"]) - 1,
        limit=finest["limit"],
        sharding=Sharding(
            shard_bits=sharding["shard_bits"], minishard_bits=sharding["minishard_bits"]
        ),
    )


def encode(
    target: Record, spec: AnnotationsSpec, table: Table
) -> Iterator[tuple[str, bytes | None]]:
    """Encode the lines of a shard of an index, or of a cell.

    Parameters
    ----------
    target : Record
        Key ``<level>_<x>_<y>_<z>``: level 0 is a shard of lines by id, 1 and 2 a shard by
        pre and by post, 3 and on a cell of the spatial index, the finest first.
    spec : AnnotationsSpec
        The layer.
    table : Table
        Rows of synapses, ascending by id.

    Yields
    ------
    path : str
        Object, relative to the layer.
    content : bytes or None
        None where there is no line.

    Raises
    ------
    DataError
        If a row belongs to another shard.
    """
    rows = SynapseRows.from_table(table)
    key = ChunkKey.parse(target.key)
    lines = _lines(rows)
    if key.level >= len(_INDICES):
        path = f"spatial{key.level - len(_INDICES)}/{key.x}_{key.y}_{key.z}"
        yield path, _several(lines, rows.ids) if len(rows.ids) else None
        return
    index = _INDICES[key.level]
    objects: dict[int, bytes] = {}
    if index == "by_id":
        for i, line in enumerate(lines):
            related = b"".join(
                struct.pack("<I", int(segment != 0))
                + (struct.pack("<Q", segment) if segment else b"")
                for segment in (int(rows.pre_segment[i]), int(rows.post_segment[i]))
            )
            objects[int(rows.ids[i])] = line.tobytes() + related
    else:
        segments = getattr(rows, index)
        whole = np.flatnonzero(segments)
        order = whole[np.argsort(segments[whole], kind="stable")]
        each, counts = np.unique(segments[order], return_counts=True)
        ends = np.cumsum(counts)
        for segment, start, stop in zip(each, ends - counts, ends, strict=True):
            members = order[start:stop]
            objects[int(segment)] = _several(lines[members], rows.ids[members])
    path, content = encode_shard(
        target, sharding_info(spec.sharding, data_encoding="raw"), objects
    )
    yield f"{index}/{path}", content


def _lines(rows: SynapseRows) -> NDArray[np.void]:
    """Return what is said of each line, but for its id and its segments."""
    lines = np.zeros(len(rows.ids), _LINE)
    # A line ends in the middles of voxels.
    lines["line"][:, 0] = rows.pre_site + 0.5
    lines["line"][:, 1] = rows.post_site + 0.5
    lines["size"] = np.minimum(rows.sizes, np.uint64(2**31 - 1))
    lines["pre_score"], lines["post_score"] = rows.pre_score, rows.post_score
    lines["flags"] = rows.flags
    lines["clefts"] = np.minimum(rows.clefts, 255)
    return lines


def _several(lines: NDArray[np.void], ids: NDArray[np.uint64]) -> bytes:
    return struct.pack("<Q", len(ids)) + lines.tobytes() + ids.astype("<u8").tobytes()


def _vec(numbers: list[float]) -> Vec3:
    if any(n != int(n) for n in numbers):
        raise DataError(
            f"annotations have bounds or cells of {numbers}, not whole voxels; name a "
            "layer that this project wrote"
        )
    return Vec3.of([int(n) for n in numbers])
