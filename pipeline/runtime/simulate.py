"""A stack of loose sections made from an aligned one, as one HDF5 file with the truth."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, StaleOutputError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources import Source
from pipeline.phantom.loose import MASKS, Loosening, LooseSection, loosen
from pipeline.specs import VoxelSize


def simulate_stack(
    source: Source,
    path: Path,
    settings: Loosening,
    *,
    box: Bbox,
    voxel_size_nm: VoxelSize,
    with_fields: bool = False,
    replace: bool = False,
    tell: Callable[[], None] = lambda: None,
) -> frozenset[int]:
    """Write sections as they might have been found, with what is true of them.

    The file holds, all in the order z, y, x: `image`; the masks `fold`, `crack` and
    `resin` over the canvas, and `defects`, any of them (0 or 1); `lost`, the pixels of the
    tissue that the canvas does not show; `aligned`, the tissue itself; and, if wanted,
    `field` with (dx, dy) last [pixel]: a pixel of the tissue lies on the canvas at its own
    place plus these.
    Attributes say how it was made.

    Parameters
    ----------
    source : Source
        Aligned sections, uint8.
    path : Path
        The file.
    settings : Loosening
        What becomes of the sections.
    box : Bbox
        Which part of it.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    with_fields : bool
        Whether to write the fields, eight bytes a pixel.
    replace : bool
        Whether to write over a file that is there.
    tell : function
        Told after each section.

    Returns
    -------
    frozenset of int
        The missing sections, counted from the first that was taken.

    Raises
    ------
    DataError
        If the source is not a uint8 image, lacks the sections, or if the settings fold the
        tissue over itself.
    StaleOutputError
        If the file is there and is not to be replaced.
    """
    if source.dtype != "uint8":
        raise DataError(
            f"{source.location} is {source.dtype}; give a uint8 image, see em ingest"
        )
    if not source.bounds.contains(box):
        raise DataError(
            f"{source.location} covers {source.bounds} and not {box}; choose a box inside"
        )
    if path.exists() and not replace:
        raise StaleOutputError(f"{path} is there; give another --to, or --replace")
    n, shape = box.shape.z, box.shape
    missing = settings.missing_of(n)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with h5py.File(partial, "w") as file:
            _describe(file, source, settings, box, missing, voxel_size_nm)
            names = ("aligned", "image", *MASKS, "defects", "lost")
            for name in names:
                file.create_dataset(name, (n, shape.y, shape.x), "uint8", compression="lzf")
            if with_fields:
                file.create_dataset("field", (n, shape.y, shape.x, 2), "float32")
            for z in range(n):
                at = box.start + Vec3(0, 0, z)
                section = Bbox(at, at + Vec3(shape.x, shape.y, 1))
                tissue = source.read(section).reshape(shape.x, shape.y)
                found = _loosened(tissue, z, settings)
                _write(file, z, tissue, found, is_missing=z in missing)
                tell()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return missing


def _loosened(tissue: NDArray[np.uint8], z: int, settings: Loosening) -> LooseSection:
    try:
        return loosen(tissue, z, settings)
    except ValueError as error:
        raise DataError(f"section {z}: {error}") from error


def _describe(
    file: h5py.File,
    source: Source,
    settings: Loosening,
    box: Bbox,
    missing: frozenset[int],
    voxel_size_nm: VoxelSize,
) -> None:
    file.attrs["source"] = source.location
    file.attrs["box"] = str(box)
    file.attrs["settings"] = settings.model_dump_json()
    file.attrs["missing"] = sorted(missing)
    file.attrs["voxel_size_nm"] = voxel_size_nm


def _write(
    file: h5py.File,
    z: int,
    tissue: NDArray[np.uint8],
    found: LooseSection,
    *,
    is_missing: bool,
) -> None:
    file["aligned"][z] = tissue.T
    if "field" in file:
        file["field"][z] = found.field.transpose(1, 0, 2)
    if is_missing:
        file["lost"][z] = 1
        return
    file["image"][z] = found.image.T
    file["lost"][z] = found.lost.T
    any_of_them = np.logical_or.reduce([m for m in found.masks.values()])
    file["defects"][z] = any_of_them.T
    for name, mask in found.masks.items():
        file[name][z] = mask.T
