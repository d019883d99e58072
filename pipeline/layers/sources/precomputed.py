"""Precomputed volumes at mip 0."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources.base import Axes, KindOfValues, Source, nanometers
from pipeline.layers.sources.stores import Folder, TensorstoreSource
from pipeline.specs import VoxelSize

_OF_TENSORSTORE = ("raw", "jpeg", "png", "compressed_segmentation")


def is_precomputed(folder: Folder) -> bool:
    """Whether a folder is a Precomputed layer."""
    return folder.json("info") is not None


def open_precomputed(location: str, folder: Folder) -> Source:
    """Open mip 0 of a Precomputed volume.

    Storage chunks that are not there are read as zeros.

    Raises
    ------
    SourceError
        If it is not a volume.
    """
    info = folder.json("info") or {}
    if not info.get("scales"):
        raise SourceError(
            f"{location}: {info.get('@type', 'layer')} without scales is not a volume; "
            "name an image or a segmentation"
        )
    scale = info["scales"][0]
    shape = (*scale["size"], info["num_channels"])
    axes = Axes.named(location, "xyzc", shape)
    kind: KindOfValues = "segmentation" if info["type"] == "segmentation" else "image"
    voxel_size = nanometers(scale["resolution"], "nm")
    offset = Vec3.of(scale.get("voxel_offset", (0, 0, 0)))
    if scale["encoding"] in _OF_TENSORSTORE and min(shape) > 0:
        return TensorstoreSource(
            location,
            folder.open("neuroglancer_precomputed", scale_index=0),
            axes,
            voxel_size_nm=voxel_size,
            voxel_offset=offset,
            kind_of_values=kind,
        )
    return _CloudVolumeSource(
        location, folder, axes, info, voxel_size=voxel_size, voxel_offset=offset, kind=kind
    )


class _CloudVolumeSource(Source):
    """A volume in an encoding that CloudVolume alone decodes."""

    def __init__(
        self,
        location: str,
        folder: Folder,
        axes: Axes,
        info: dict[str, Any],
        *,
        voxel_size: VoxelSize | None,
        voxel_offset: Vec3,
        kind: KindOfValues,
    ) -> None:
        super().__init__(
            location,
            shape=axes.extent,
            dtype=np.dtype(info["data_type"]),
            channels=axes.channels,
            voxel_size_nm=voxel_size,
            voxel_offset=voxel_offset,
            natural_chunk=Vec3.of(info["scales"][0]["chunk_sizes"][0]),
            kind_of_values=kind,
        )
        # Takes seconds to import, and few volumes need it.
        from cloudvolume import CloudVolume

        address = folder.address
        if folder.path is not None:
            address = f"file://{folder.path.absolute()}"
        self._volume = CloudVolume(
            f"precomputed://{address}", mip=0, progress=False, fill_missing=True, info=info
        )

    def _read(self, box: Bbox) -> NDArray[Any]:
        x, y, z = box.shifted(self.bounds.start).slices()
        if box.is_empty:
            return np.zeros((*box.shape, self.channels)[: 3 + (self.channels > 1)])
        part = np.array(self._volume[x, y, z], order="F")
        return part if self.channels > 1 else part[..., 0]
