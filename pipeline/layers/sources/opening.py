"""Telling the format of a source by its name and by what lies there."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import PipelineError, SourceError
from pipeline.layers.sources.base import DAMAGE, Source, reason
from pipeline.layers.sources.hdf5 import Hdf5Source
from pipeline.layers.sources.n5 import is_n5, open_n5
from pipeline.layers.sources.npy import open_npy, open_npz
from pipeline.layers.sources.phantom import PhantomSource
from pipeline.layers.sources.precomputed import PrecomputedSource, is_precomputed
from pipeline.layers.sources.sections import KINDS, SectionsSource
from pipeline.layers.sources.stores import Folder
from pipeline.layers.sources.tiff import open_tiff
from pipeline.layers.sources.zarr import is_zarr, open_zarr

SUPPORTED = (
    "TIFF stacks (.tif, .tiff), folders of TIFF, PNG or JPEG sections, "
    "HDF5 (file.h5:dataset), .npy, .npz (file.npz:array), Zarr, N5 and Precomputed "
    "folders, and phantom://X,Y,Z/image for synthetic neuropil"
)

_HDF5 = (".h5", ".hdf5", ".hdf")
_FORMATS = r"(?:(precomputed|zarr[23]?|n5)://)?"
_REMOTE = ("gs", "s3", "http", "https")


def open_source(location: str) -> Source:
    """Open a volume for reading.

    Parameters
    ----------
    location : str
        A file, a folder, or the address (gs://, s3://, https://) of a Zarr, N5 or
        Precomputed volume. ``container:name`` names the array of an HDF5, NPZ, Zarr or N5
        container; it may be left out where there is only one. HDF5, NPY, NPZ, Zarr
        without names of axes and TIFF are stored z, y, x; N5 and Precomputed x, y, z.

    Raises
    ------
    SourceError
        If nothing is there, if the format is not known, or if it is not a volume.
    StorageUnavailableError
        If an object store does not answer.
    """
    try:
        return _open(location)
    except PipelineError:
        raise
    except DAMAGE as error:
        raise SourceError(
            f"{location}: cannot be opened, {reason(error)}; the file is damaged or not "
            "what its name says, copy it again from where it came"
        ) from error


def _open(location: str) -> Source:
    match = re.fullmatch(rf"{_FORMATS}(?:file://)?(.*)", location, re.DOTALL)
    address = match[2] if match else location
    if address.startswith("phantom:"):
        return PhantomSource(location)
    scheme = re.match(r"([A-Za-z0-9+.-]+)://", address)
    if scheme:
        if scheme[1] not in _REMOTE:
            raise SourceError(
                f"{location}: {scheme[1]}:// is not an address that can be read; give a "
                "path, gs://, s3:// or https://"
            )
        address, inner = _split(address)
        return _open_folder(location, Folder(location, address), inner)
    address, inner = _split_existing(address)
    path = Path(address).expanduser()
    if not path.exists():
        raise SourceError(f"{location}: no such file or folder; check the path")
    if path.is_dir():
        return _open_folder(location, Folder(location, str(path)), inner)
    return _open_file(location, path, inner)


def _open_file(location: str, path: Path, inner: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix in _HDF5:
        return Hdf5Source(location, str(path), inner)
    if suffix == ".npz":
        return open_npz(location, str(path), inner)
    if suffix == ".npy":
        return open_npy(location, str(path))
    if KINDS.get(suffix) == "TIFF":
        return open_tiff(location, str(path))
    if suffix in KINDS:
        raise SourceError(
            f"{location}: is one section; give the folder of the sections, {path.parent}"
        )
    raise SourceError(
        f"{location}: extension {suffix!r} is not known; give one of {SUPPORTED}"
    )


def _open_folder(location: str, folder: Folder, inner: str | None) -> Source:
    if is_precomputed(folder):
        return PrecomputedSource(location, folder)
    if is_zarr(folder):
        return open_zarr(location, folder, inner)
    if is_n5(folder):
        return open_n5(location, folder, inner)
    if folder.path is not None:
        return SectionsSource(location, folder.path)
    raise SourceError(
        f"{location}: no info, zarr.json, .zarray, .zgroup or attributes.json is there; "
        "give the address of a Precomputed, Zarr or N5 volume, and download other "
        "formats first"
    )


def _split(address: str) -> tuple[str, str | None]:
    """Part a container from the name within, where the container's extension shows it."""
    match = re.match(r"(.+?\.(?:h5|hdf5?|npz|zarr|n5)/?):(.+)", address)
    return (match[1], match[2]) if match else (address, None)


def _split_existing(address: str) -> tuple[str, str | None]:
    """Part a container from the name within, by which of them exists."""
    if Path(address).expanduser().exists():
        return address, None
    for colon in re.finditer(":", address):
        if Path(address[: colon.start()]).expanduser().exists() and colon.start():
            return address[: colon.start()], address[colon.end() :]
    return _split(address)
