"""N5, whose axes are x, y, z."""

from __future__ import annotations

from typing import Any

from pipeline.errors import SourceError
from pipeline.geometry import Vec3
from pipeline.layers.sources.base import (
    Axes,
    Source,
    listing,
    placed,
)
from pipeline.layers.sources.stores import Folder, Found, TensorstoreSource
from pipeline.specs import VoxelSize


def is_n5(folder: Folder) -> bool:
    """Whether a folder is an N5 array or group, or is called one."""
    return folder.address.endswith(".n5") or folder.json("attributes.json") is not None


def open_n5(location: str, folder: Folder, inner: str | None) -> Source:
    """Open an array, or level ``s0`` of a group of scales.

    Parameters
    ----------
    location : str
        What the user gave.
    folder : Folder
        The top of the hierarchy.
    inner : str or None
        Path of the array in it; None takes the only one there is.

    Raises
    ------
    SourceError
        If there is no such array, or if it is not a volume.
    """
    path = (inner or "").strip("/")
    if inner is None and _array(folder, path) is None:
        path = folder.choose(_volumes(folder))
    array = _array(folder, path)
    if array is None:
        raise SourceError(
            f"{location}: {path!r} is not an array; name one of: "
            f"{listing(_volumes(folder)) or 'there are none'}"
        )
    attributes = _attributes(folder, array)
    store = folder.open("n5", array)
    shape = tuple(store.shape)
    names = attributes.get("axes")
    if isinstance(names, list) and len(names) == len(shape):
        axes = Axes.named(location, names, shape)
    else:
        axes = Axes.unnamed(location, shape, "xyz")
    above = _attributes(folder, array.rpartition("/")[0]) if array else {}
    voxel_size, offset = _metadata(attributes, above)
    return TensorstoreSource(
        location, store, axes, voxel_size_nm=voxel_size, voxel_offset=offset
    )


def _attributes(folder: Folder, path: str) -> dict[str, Any]:
    return folder.json(f"{path}/attributes.json" if path else "attributes.json") or {}


def _array(folder: Folder, path: str) -> str | None:
    """Return the array at a path: itself, or the finest of its scales."""
    for array in (path, f"{path}/s0".strip("/")):
        if "dimensions" in _attributes(folder, array):
            return array
    return None


def _volumes(folder: Folder) -> Found:
    found: Found = {}
    for path in folder.nodes(lambda path: _array(folder, path) is not None):
        attributes = _attributes(folder, _array(folder, path) or "")
        if len(attributes["dimensions"]) >= 3:
            found[path] = (tuple(attributes["dimensions"]), attributes.get("dataType"))
    return found


def _metadata(
    attributes: dict[str, Any], above: dict[str, Any]
) -> tuple[VoxelSize | None, Vec3 | None]:
    """Read the voxel size and offset, from the array or else from its group.

    ``transform`` holds for the array that has it. ``pixelResolution`` and ``resolution``
    are of the finest scale, which ``downsamplingFactors`` multiplies.
    """
    if "transform" in attributes:
        transform = attributes["transform"]
        where = [transform["axes"].index(axis) for axis in "xyz"]
        moved = transform.get("translate")
        return placed(
            [transform["scale"][i] for i in where],
            [transform["units"][i] for i in where],
            [moved[i] for i in where] if moved else None,
        )
    factors = attributes.get("downsamplingFactors", [1, 1, 1])
    for holder in (attributes, above):
        pixel = holder.get("pixelResolution")
        if isinstance(pixel, dict):
            size, units = pixel["dimensions"], pixel.get("unit")
        elif pixel is not None:
            size, units = pixel, holder.get("units")
        elif "resolution" in holder:
            size, units = holder["resolution"], holder.get("units", "nm")
        else:
            continue
        size = [s * f for s, f in zip(size[:3], factors[:3], strict=True)]
        units = units[:3] if isinstance(units, list) else units
        return placed(size, units, holder["offset"][:3] if "offset" in holder else None)
    return None, None
