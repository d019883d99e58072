"""Precomputed volumes at mip 0."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, RootError, SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources.base import Axes, Source, nanometers, reason
from pipeline.layers.sources.stores import Folder
from pipeline.layers.volumes import Volume
from pipeline.specs import Region


def is_precomputed(folder: Folder) -> bool:
    """Whether a folder is a Precomputed layer."""
    return folder.json("info") is not None


class PrecomputedSource(Source):
    """Mip 0 of a Precomputed volume; storage chunks that are not there read as 0.

    Parameters
    ----------
    location : str
        What the user gave.
    folder : Folder
        The layer.

    Raises
    ------
    SourceError
        If it is not a volume that is read.
    """

    def __init__(self, location: str, folder: Folder) -> None:
        info = folder.json("info") or {}
        if not info.get("scales"):
            raise SourceError(
                f"{location}: {info.get('@type', 'layer')} without scales is not a volume; "
                "name an image or a segmentation"
            )
        scale = info["scales"][0]
        axes = Axes.named(location, "xyzc", (*scale["size"], info["num_channels"]))
        super().__init__(
            location,
            shape=axes.extent,
            dtype=np.dtype(info["data_type"]),
            channels=axes.channels,
            voxel_size_nm=nanometers(scale["resolution"], "nm"),
            voxel_offset=Vec3.of(scale.get("voxel_offset", (0, 0, 0))),
            natural_chunk=Vec3.of(scale["chunk_sizes"][0]),
            kind_of_values=info["type"],
        )
        address = folder.address
        if folder.path is not None:
            address = f"file://{os.path.abspath(folder.path)}"
        self._volume = Volume(f"precomputed://{address}", info)

    def _read(self, box: Bbox) -> NDArray[Any]:
        try:
            return self._volume.read(Region(self.location, box.shifted(self.bounds.start)))
        except (DataError, RootError) as error:
            raise SourceError(
                f"{self.location}: box {box} cannot be read, "
                f"{reason(error.__cause__ or error)}; check the permissions, or copy it "
                "again from where it came"
            ) from error
