"""Zarr versions 2 and 3, with the metadata of OME-NGFF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.errors import SourceError
from pipeline.geometry import Vec3
from pipeline.layers.sources.base import (
    Axes,
    KindOfValues,
    Source,
    from_attributes,
    listing,
    placed,
)
from pipeline.layers.sources.stores import Folder, Found, TensorstoreSource
from pipeline.specs import VoxelSize


@dataclass(frozen=True)
class _Node:
    """An array or a group.

    Parameters
    ----------
    driver : str or None
        tensorstore's driver for an array, None for a group.
    shape : tuple of int
        Shape of an array.
    dtype : object
        Type of an array, as the format writes it.
    names : list of str or None
        Names of the axes, where all have one.
    attributes : dict
        What users and programs left there.
    """

    driver: str | None
    shape: tuple[int, ...]
    dtype: Any
    names: list[str] | None
    attributes: dict[str, Any]

    @property
    def ome(self) -> dict[str, Any]:
        """The metadata of OME-NGFF: under ``ome`` from version 0.5, at the top before."""
        ome: dict[str, Any] = self.attributes.get("ome", self.attributes)
        return ome

    @property
    def multiscale(self) -> dict[str, Any] | None:
        """The first multiscale image of a group."""
        several = self.ome.get("multiscales")
        return several[0] if several else None


def is_zarr(folder: Folder) -> bool:
    """Whether a folder is a Zarr array or group, or is called one."""
    return folder.address.endswith(".zarr") or _node(folder, "") is not None


def open_zarr(location: str, folder: Folder, inner: str | None) -> Source:
    """Open an array, or level 0 of a multiscale image.

    Parameters
    ----------
    location : str
        What the user gave.
    folder : Folder
        The top of the hierarchy.
    inner : str or None
        Path of the array or image in it; None takes the only one there is.

    Raises
    ------
    SourceError
        If there is no such array, or if it is not a volume.
    """
    path = (inner or "").strip("/")
    node = _node(folder, path)
    if inner is None and not _is_volume(folder, path):
        path = folder.choose(_volumes(folder))
        node = _node(folder, path)
    group = path
    if node is not None and node.multiscale is not None:
        path = f"{path}/{node.multiscale['datasets'][0]['path']}".strip("/")
        node = _node(folder, path)
    elif path:
        group = path.rpartition("/")[0]
    if node is None or node.driver is None:
        raise SourceError(
            f"{location}: {path!r} is not an array; name one of: "
            f"{listing(_volumes(folder)) or 'there are none'}"
        )
    return _open(location, folder, path, node, group)


def _open(location: str, folder: Folder, path: str, node: _Node, group: str) -> Source:
    store = folder.open(str(node.driver), path)
    shape = tuple(store.shape)
    image = _node(folder, group)
    multiscale = image.multiscale if image is not None and group != path else None
    dataset = path.removeprefix(group).strip("/")
    voxel_size: VoxelSize | None = None
    offset: Vec3 | None = None
    kind: KindOfValues | None = None
    level = next(
        (d for d in (multiscale or {}).get("datasets", []) if d["path"] == dataset), None
    )
    if image is not None and multiscale is not None and level is not None:
        names, units = _ngff_axes(multiscale, len(shape))
        axes = Axes.named(location, names, shape)
        voxel_size, offset = _ngff_placed(multiscale, level, axes, units)
        kind = "segmentation" if "image-label" in image.ome else None
    else:
        axes = (
            Axes.named(location, node.names, shape)
            if node.names is not None and len(node.names) == len(shape)
            else Axes.unnamed(location, shape)
        )
        voxel_size, offset = from_attributes(node.attributes, axes)
    return TensorstoreSource(
        location,
        store,
        axes,
        voxel_size_nm=voxel_size,
        voxel_offset=offset,
        kind_of_values=kind,
    )


def _node(folder: Folder, path: str) -> _Node | None:
    at = f"{path}/" if path else ""
    document = folder.json(f"{at}zarr.json")
    if document is not None:
        is_array = document.get("node_type") == "array"
        names = document.get("dimension_names")
        return _Node(
            "zarr3" if is_array else None,
            tuple(document.get("shape", ())),
            document.get("data_type"),
            names if names and all(names) else None,
            document.get("attributes", {}),
        )
    document = folder.json(f"{at}.zarray")
    attributes = folder.json(f"{at}.zattrs")
    if document is not None:
        return _Node(
            "zarr",
            tuple(document["shape"]),
            document["dtype"],
            (attributes or {}).get("_ARRAY_DIMENSIONS"),
            attributes or {},
        )
    if attributes is not None or folder.json(f"{at}.zgroup") is not None:
        return _Node(None, (), None, None, attributes or {})
    return None


def _is_volume(folder: Folder, path: str) -> bool:
    node = _node(folder, path)
    return node is not None and (node.driver is not None or node.multiscale is not None)


def _volumes(folder: Folder) -> Found:
    found: Found = {}
    for path in folder.nodes(lambda path: _is_volume(folder, path)):
        node = _node(folder, path)
        if node is not None and node.multiscale is not None:
            node = _node(
                folder, f"{path}/{node.multiscale['datasets'][0]['path']}".strip("/")
            )
        if node is not None and len(node.shape) >= 3:
            found[path] = (node.shape, node.dtype)
    return found


def _ngff_axes(multiscale: dict[str, Any], n: int) -> tuple[list[str], list[str | None]]:
    """Return names and units of the axes; before version 0.3 they were t, c, z, y, x."""
    axes = multiscale.get("axes", list("tczyx"[-n:]))
    names = [axis if isinstance(axis, str) else axis["name"] for axis in axes]
    units = [None if isinstance(axis, str) else axis.get("unit") for axis in axes]
    return names, units


def _ngff_placed(
    multiscale: dict[str, Any],
    level: dict[str, Any],
    axes: Axes,
    units: list[str | None],
) -> tuple[VoxelSize | None, Vec3 | None]:
    """Apply the transformations of the level, then those of the whole image."""
    n = len(axes.shape)
    scale, translation = [1.0] * n, [0.0] * n
    is_scaled = is_translated = False
    for step in (
        *level.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        if step["type"] == "scale":
            is_scaled = True
            scale = [a * b for a, b in zip(scale, step["scale"], strict=True)]
            translation = [a * b for a, b in zip(translation, step["scale"], strict=True)]
        elif step["type"] == "translation":
            is_translated = True
            translation = [
                a + b for a, b in zip(translation, step["translation"], strict=True)
            ]
    spatial = (axes.x, axes.y, axes.z)
    return placed(
        [scale[a] for a in spatial] if is_scaled else None,
        [units[a] for a in spatial],
        [translation[a] for a in spatial] if is_translated else None,
    )
