"""HDF5 datasets, stored z, y, x."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources.base import (
    Axes,
    Source,
    choose,
    from_attributes,
    listing,
)


class Hdf5Source(Source):
    """A dataset of an HDF5 file.

    The axes are z, y, x unless the attribute ``axes`` names them. The voxel size comes
    from the dataset's attributes.

    Parameters
    ----------
    location : str
        What the user gave.
    path : str
        The file.
    dataset : str or None
        The dataset; None takes the only volume there is.

    Raises
    ------
    SourceError
        If there is no such dataset, or if it is not a volume.
    """

    def __init__(self, location: str, path: str, dataset: str | None) -> None:
        self._file = h5py.File(path, "r")
        try:
            self._open(location, path, dataset)
        except BaseException:
            self._file.close()
            raise

    def _open(self, location: str, path: str, dataset: str | None) -> None:
        if dataset is None:
            dataset = choose(location, path, _volumes(self._file), "dataset")
        stored = self._file.get(dataset)
        if not isinstance(stored, h5py.Dataset):
            raise SourceError(
                f"{location}: {dataset!r} is not a dataset of {path}; name one of its "
                f"volumes: {listing(_volumes(self._file)) or 'there are none'}"
            )
        axes = self._axes_of(location, stored)
        voxel_size, offset = from_attributes(stored.attrs, axes)
        section = Vec3(axes.extent.x, axes.extent.y, 1)
        super().__init__(
            location,
            shape=axes.extent,
            dtype=stored.dtype,
            channels=axes.channels,
            voxel_size_nm=voxel_size,
            voxel_offset=offset,
            natural_chunk=axes.pick(stored.chunks) if stored.chunks else section,
        )
        self._stored = stored
        self._axes = axes

    def _axes_of(self, location: str, stored: h5py.Dataset) -> Axes:
        shape: tuple[int, ...] = stored.shape or ()
        names = stored.attrs.get("axes")
        if isinstance(names, str) and len(names) == len(shape):
            return Axes.named(location, names, shape)
        if len(shape) < 3 or any(n > 1 for n in shape[:-3]):
            raise SourceError(
                f"{location}: shape {shape} is not three-dimensional; name the axes in the "
                "attribute axes, as 'czyx', or name one of the volumes: "
                f"{listing(_volumes(self._file)) or 'there are none'}"
            )
        return Axes.unnamed(location, shape)

    def _read(self, box: Bbox) -> NDArray[Any]:
        return self._axes.arrange(np.asarray(self._stored[self._axes.index(box)]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _volumes(file: h5py.File) -> dict[str, tuple[tuple[int, ...], Any]]:
    found = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "biuf":
            return
        if item.ndim == 3 or (item.ndim == 4 and "axes" in item.attrs):
            found[name] = (item.shape, item.dtype)

    file.visititems(visit)
    return found
