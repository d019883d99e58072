"""Skeletons in Neuroglancer's form, in nm, with the radius at each vertex."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.errors import DataError, MissingInputError
from pipeline.layers.folder import storage_errors
from pipeline.layers.sharding import (
    encode_shard,
    segment_sources,
    sharding_info,
    sharding_of,
)
from pipeline.specs import Record, Skeleton, Skeletons, SkeletonsSpec

_TYPE = "neuroglancer_skeletons"


def skeletons_info(spec: SkeletonsSpec) -> dict[str, Any]:
    """Return the `info` of skeletons."""
    info: dict[str, Any] = {
        "@type": _TYPE,
        "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "vertex_attributes": [
            {"id": "radius", "data_type": "float32", "num_components": 1}
        ],
    }
    if spec.sharding is not None:
        info["sharding"] = sharding_info(spec.sharding, data_encoding="gzip")
    return info


def skeletons_spec(info: Mapping[str, Any]) -> SkeletonsSpec | None:
    """Return what an `info` describes, None if it is not of skeletons."""
    if info.get("@type") != _TYPE:
        return None
    return SkeletonsSpec(sharding=sharding_of(info))


def encode(
    target: Record, spec: SkeletonsSpec, skeletons: Skeletons
) -> Iterator[tuple[str, bytes | None]]:
    """Encode skeletons as objects.

    Yields
    ------
    path : str
        Object, relative to the layer.
    content : bytes or None
        None where a shard would be empty.

    Raises
    ------
    DataError
        If a skeleton is malformed, or belongs to another shard than that of the key.
    """
    objects = {
        segment: _binary(f"{target.layer}: segment {segment}", skeletons.by_id[segment])
        for segment in sorted(skeletons.by_id)
    }
    if spec.sharding is None:
        yield from ((str(segment), content) for segment, content in objects.items())
        return
    yield encode_shard(target, sharding_info(spec.sharding, data_encoding="gzip"), objects)


def _binary(name: str, skeleton: Skeleton) -> bytes:
    vertices, edges, radius = skeleton.vertices, skeleton.edges, skeleton.radius
    if (
        vertices.shape != (len(vertices), 3)
        or edges.shape != (len(edges), 2)
        or radius.shape != (len(vertices),)
        or (len(edges) and int(edges.max()) >= len(vertices))
    ):
        raise DataError(
            f"{name}: vertices {vertices.shape}, edges {edges.shape} and radius "
            f"{radius.shape} do not make a skeleton; mend the stage that returned them"
        )
    counts = np.array([len(vertices), len(edges)], dtype="<u4")
    return b"".join(
        [
            counts.tobytes(),
            vertices.astype("<f4").tobytes("C"),
            edges.astype("<u4").tobytes("C"),
            radius.astype("<f4").tobytes("C"),
        ]
    )


def read(location: str, segment: int) -> Skeleton:
    """Read the skeleton of a segment.

    Raises
    ------
    MissingInputError
        If there is none.
    """
    from cloudvolume.exceptions import EmptyFileException, SkeletonDecodeError

    with storage_errors(location):
        source, _ = segment_sources(location)
        try:
            skeleton = source.skeleton.get(segment)
        except (EmptyFileException, SkeletonDecodeError):
            raise MissingInputError(
                f"segment {segment} has no skeleton at {location}; list the segments that "
                "have one, or run the stage that writes it"
            ) from None
    return Skeleton(
        vertices=skeleton.vertices.astype(np.float32),
        edges=skeleton.edges.astype(np.uint32),
        radius=skeleton.radius.astype(np.float32),
    )
