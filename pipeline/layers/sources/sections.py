"""Folders of sections, a TIFF, PNG or JPEG file for each."""

from __future__ import annotations

import re
import threading
from collections import Counter
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
from pipeline.layers.sources.base import DAMAGE, reason
from pipeline.layers.sources.stack import DecodedCache, StackSource
from pipeline.layers.sources.tiff import check_page, page_chunk, read_page

KINDS = {
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}


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
    """A folder of sections, in the natural order of their names.

    ``s9.png`` comes before ``s10.png``. The headers of all files are looked at when the
    folder is opened; files of other kinds and hidden files are passed over.

    Parameters
    ----------
    location : str
        What the user gave.
    folder : Path
        The folder.

    Raises
    ------
    SourceError
        If there are no sections, of several kinds, or of several sizes or types.
    """

    def __init__(self, location: str, folder: Path) -> None:
        self._files = _listed(location, folder)
        first = _header(location, self._files[0])
        for file in self._files[1:]:
            header = _header(location, file)
            if (header.width, header.height, header.dtype) != (
                first.width,
                first.height,
                first.dtype,
            ):
                raise SourceError(
                    f"{location}: {file.name} is {header} but {self._files[0].name} is "
                    f"{first}; make the sections one size and type"
                )
        super().__init__(
            location,
            shape=Vec3(first.width, first.height, len(self._files)),
            dtype=first.dtype,
            natural_chunk=first.chunk,
        )
        self._cache = DecodedCache()
        self._lock = threading.Lock()
        if first.is_coloured:
            self.read(Bbox.of_shape(Vec3(first.width, first.height, 1)))

    def _name(self, z: int) -> str:
        return self._files[z].name

    def _section(self, z: int, channel: int, rows: slice, columns: slice) -> NDArray[Any]:
        path = self._files[z]
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
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]


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
