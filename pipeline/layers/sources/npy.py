"""Arrays of numpy, stored z, y, x: NPY files and the members of NPZ files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources.base import Axes, Source, choose, listing

_Header = tuple[tuple[int, ...], bool, np.dtype[Any]]


class NpySource(Source):
    """An array in the NPY format, mapped into memory.

    Parameters
    ----------
    location : str
        What the user gave.
    file : binary file
        What holds the array.
    start : int
        Where in the file the NPY format begins [byte].

    Raises
    ------
    SourceError
        If the array is not a volume, or is cut short.
    """

    def __init__(self, location: str, file: IO[bytes], start: int = 0) -> None:
        file.seek(start)
        shape, is_fortran, dtype = _header(file)
        axes = Axes.unnamed(location, shape)
        extent = axes.extent
        super().__init__(
            location,
            shape=extent,
            dtype=dtype,
            natural_chunk=Vec3(1, extent.y, extent.z)
            if is_fortran
            else Vec3(extent.x, extent.y, 1),
        )
        data = file.tell()
        stop = data + extent.product * dtype.itemsize
        size = file.seek(0, 2)
        if size < stop:
            raise SourceError(
                f"{location}: cut short, {size} of {stop} bytes are there for shape "
                f"{shape}; copy it again from where it came"
            )
        order = "F" if is_fortran else "C"
        self._array = np.memmap(file, dtype, "r", data, shape, order)  # type: ignore[call-overload]
        self._axes = axes

    def _read(self, box: Bbox) -> NDArray[Any]:
        part = self._axes.arrange(self._array[self._axes.index(box)])
        return np.array(part, order="F")


def open_npy(location: str, path: str) -> NpySource:
    """Open an NPY file."""
    with Path(path).open("rb") as file:
        return NpySource(location, file)


def open_npz(location: str, path: str, name: str | None) -> NpySource:
    """Open an array of an NPZ file.

    A member stored plain is mapped where it lies; a compressed one is decompressed to
    a temporary file on disk, which goes when the source does.

    Parameters
    ----------
    location : str
        What the user gave.
    path : str
        The NPZ file.
    name : str or None
        The array; None takes the only volume there is.

    Raises
    ------
    SourceError
        If there is no such array, or if it is not a volume.
    """
    with Path(path).open("rb") as file, ZipFile(file) as archive:
        members = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        if name is None or name not in members:
            found = _volumes(archive, members)
            if name is not None:
                raise SourceError(
                    f"{location}: {name!r} is not an array of {path}; name one of its "
                    f"volumes: {listing(found) or 'there are none'}"
                )
            name = choose(location, path, found, "array")
        member = members[name]
        if member.compress_type == ZIP_STORED:
            return NpySource(location, file, _start(file, member))
        with tempfile.TemporaryFile() as plain, archive.open(member) as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
            plain.flush()
            return NpySource(location, plain)


def _header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the NPY format holds no plain array")


def _volumes(
    archive: ZipFile, members: dict[str, ZipInfo]
) -> dict[str, tuple[tuple[int, ...], Any]]:
    found: dict[str, tuple[tuple[int, ...], Any]] = {}
    for name, info in members.items():
        with archive.open(info) as member:
            shape, _, dtype = _header(member)
        if len(shape) == 3 and dtype.kind in "biuf":
            found[name] = (shape, dtype)
    return found


def _start(file: IO[bytes], member: ZipInfo) -> int:
    """Return where the bytes of a member stored plain begin."""
    file.seek(member.header_offset)
    local = file.read(30)
    name, extra = (int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
    return member.header_offset + 30 + name + extra
