"""Folders of sections, a TIFF, PNG or JPEG file for each."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pipeline.errors import SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources.base import DAMAGE, SectionOrigin, reason
from pipeline.layers.sources.numbering import natural, number_sections
from pipeline.layers.sources.stack import DecodedCache, StackSource
from pipeline.layers.sources.tiff import check_page, page_chunk, read_page

KINDS = {
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}
_NAMED = 8
"""Smaller sections that a remark names."""


@dataclass(frozen=True)
class _Header:
    """What a section says of itself before it is decoded."""

    width: int
    height: int
    dtype: np.dtype[Any]
    is_coloured: bool
    chunk: Vec3

    def __str__(self) -> str:
        return f"{self.width} x {self.height} {self.dtype}"


class SectionsSource(StackSource):
    """A folder of sections, in the order of their numbers.

    Where the names differ in one number, that is the number of the section, and a number
    that no file has is a blank section in its place; otherwise files are taken in the
    natural order of their names, ``s9.png`` before ``s10.png``. The volume is as wide as
    the widest section; the pixels of each lie from the corner at zero, and what a smaller
    one lacks is blank. The headers of all files are looked at when the folder is opened;
    files of other kinds and hidden files are passed over.

    Parameters
    ----------
    location : str
        What the user gave.
    folder : Path
        The folder.

    Raises
    ------
    SourceError
        If there are no sections, of several kinds or types, two of one number, or fewer
        than are missing.
    """

    def __init__(self, location: str, folder: Path) -> None:
        listed = _listed(location, folder)
        numbering = number_sections(location, listed)
        headers = {path: _header(location, path) for path in listed}
        first = headers[listed[0]]
        for path, header in headers.items():
            if header.dtype != first.dtype:
                raise SourceError(
                    f"{location}: {path.name} is {header} but {listed[0].name} is "
                    f"{first}; make the sections one type"
                )
        self._files = numbering.files
        self._headers = headers
        width = max(h.width for h in headers.values())
        height = max(h.height for h in headers.values())
        super().__init__(
            location,
            shape=Vec3(width, height, len(self._files)),
            dtype=first.dtype,
            natural_chunk=first.chunk,
        )
        self.remarks = numbering.remarks + _sizes(location, headers)
        numbers = numbering.numbers or (None,) * len(self._files)
        self.origins = {
            z: self._origin(path, number)
            for z, (path, number) in enumerate(zip(self._files, numbers, strict=True))
        }
        self._cache = DecodedCache()
        self._lock = threading.Lock()
        if first.is_coloured:
            self.read(Bbox.of_shape(Vec3(width, height, 1)))

    def _origin(self, path: Path | None, number: int | None) -> SectionOrigin:
        if path is None:
            return SectionOrigin(number, "", (0, 0))
        header = self._headers[path]
        return SectionOrigin(number, path.name, (header.width, header.height))

    def _name(self, z: int) -> str:
        path = self._files[z]
        return super()._name(z) if path is None else path.name

    @property
    def _blank(self) -> float:
        """What a pixel holds that nothing was imaged at: the darkest, or no id."""
        kind = np.dtype(self.dtype)
        if self.kind_of_values == "segmentation" or kind.kind == "u":
            return 0
        return float(np.finfo(kind).min if kind.kind == "f" else np.iinfo(kind).min)

    def _section(self, z: int, channel: int, rows: slice, columns: slice) -> NDArray[Any]:
        path = self._files[z]
        extent = (rows.stop - rows.start, columns.stop - columns.start)
        if path is None:
            return np.full((*extent, 1), self._blank, self.dtype)
        header = self._headers[path]
        inside = (
            slice(rows.start, min(rows.stop, header.height)),
            slice(columns.start, min(columns.stop, header.width)),
        )
        if inside == (rows, columns):
            return self._decoded(path, z, rows, columns)
        result = np.full((*extent, 1), self._blank, self.dtype)
        y, x = (s.stop - s.start for s in inside)
        if x > 0 and y > 0:
            result[:y, :x, 0] = self._grey(self._decoded(path, z, *inside), z)
        return result

    def _decoded(self, path: Path, z: int, rows: slice, columns: slice) -> NDArray[Any]:
        """Return part of what a file holds, (y, x, sample)."""
        try:
            if KINDS[path.suffix.lower()] == "TIFF":
                with tifffile.TiffFile(path) as file:
                    return read_page(file.pages.first, rows, columns, self._cache, z)
            return self._cache.get(z, lambda: _pixels(path))[rows, columns]
        except DAMAGE as error:
            raise SourceError(
                f"{self.location}: {path.name} cannot be decoded, {reason(error)}; "
                "it is damaged or unreadable, copy it again from where it came"
            ) from error


def _sizes(location: str, headers: Mapping[Path, _Header]) -> tuple[str, ...]:
    """Say which sections are smaller than the volume."""
    width = max(h.width for h in headers.values())
    height = max(h.height for h in headers.values())
    smaller = [
        f"{path.name} ({h.width} x {h.height})"
        for path, h in headers.items()
        if (h.width, h.height) != (width, height)
    ]
    if not smaller:
        return ()
    more = f" and {len(smaller) - _NAMED} more" if len(smaller) > _NAMED else ""
    return (
        f"{location}: {len(smaller)} of {len(headers)} sections are smaller than "
        f"{width} x {height}: {', '.join(smaller[:_NAMED])}{more}; what they lack to the "
        "right and below is blank",
    )


def _listed(location: str, folder: Path) -> list[Path]:
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in KINDS and not path.name.startswith(".")
    ]
    if not files:
        raise SourceError(
            f"{location}: folder holds no section (TIFF, PNG, JPEG) and is no Zarr, N5 or "
            "Precomputed volume; name the folder that does"
        )
    kinds = Counter(KINDS[path.suffix.lower()] for path in files)
    if len(kinds) > 1:
        counts = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
        raise SourceError(
            f"{location}: folder holds {counts} files; keep the sections of one volume "
            "alone in a folder"
        )
    return sorted(files, key=natural)


def _header(location: str, path: Path) -> _Header:
    try:
        if KINDS[path.suffix.lower()] == "TIFF":
            return _tiff_header(location, path)
        with _opened(path) as image:
            width, height = image.size
            mode = image.mode
            return _Header(
                width,
                height,
                _dtype(image),
                mode not in ("1", "L", "I", "F") and not mode.startswith("I;"),
                Vec3(width, height, 1),
            )
    except SourceError:
        raise
    except DAMAGE as error:
        raise SourceError(
            f"{location}: {path.name} is not a {KINDS[path.suffix.lower()]} file that can "
            f"be read, {reason(error)}; copy it again from where it came"
        ) from error


def _tiff_header(location: str, path: Path) -> _Header:
    with tifffile.TiffFile(path) as file:
        if len(file.pages) > 1:
            raise SourceError(
                f"{location}: {path.name} has {len(file.pages)} pages; open it alone as a "
                "stack, or save one section in each file"
            )
        page = file.pages.first
        check_page(f"{location}: {path.name}", page)
        separate, depth, height, width, contiguous = page.shaped
        if depth > 1:
            raise SourceError(
                f"{location}: {path.name} is {depth} sections deep; save one in each file"
            )
        return _Header(
            width,
            height,
            np.dtype(page.dtype or "V").newbyteorder("="),
            separate * contiguous > 1,
            page_chunk(page),
        )


def _opened(path: Path) -> ImageFile.ImageFile:
    """Open an image by its kind, without Pillow's limit on the number of pixels."""
    if KINDS[path.suffix.lower()] == "PNG":
        return PngImageFile(path)
    return JpegImageFile(path)


def _dtype(image: ImageFile.ImageFile) -> np.dtype[Any]:
    if image.mode == "CMYK":
        raise SourceError(f"{image.filename!r} is in CMYK; save it as grey")
    if image.mode.startswith("I"):
        return np.dtype(np.uint16)
    if any("16" in str(tile.args) for tile in image.tile):
        # Pillow would cut these to 8 bits.
        raise SourceError(
            f"{image.filename!r} has several samples of 16 bits in a pixel; save it as "
            "16-bit grey"
        )
    return np.dtype(np.uint8)


def _pixels(path: Path) -> NDArray[Any]:
    """Decode a PNG or JPEG file, (y, x, sample)."""
    with _opened(path) as image:
        dtype = _dtype(image)
        is_palette = image.mode in ("P", "PA")
        pixels = np.asarray(image.convert("RGBA") if is_palette else image, dtype)
    return pixels if pixels.ndim == 3 else pixels[..., None]
