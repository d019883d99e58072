"""TIFF stacks: plain multi-page and BigTIFF, ImageJ hyperstacks, OME-TIFF."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources.base import Axes, Source, nanometers
from pipeline.layers.sources.stack import DecodedCache, StackSource
from pipeline.specs import VoxelSize

Page = tifffile.TiffPage | tifffile.TiffFrame


def open_tiff(location: str, path: str) -> Source:
    """Open a TIFF stack: mapped where it is stored plain, decoded by pages otherwise.

    Raises
    ------
    SourceError
        If it is cut short, or if its pages are not the sections of one volume.
    """
    file = tifffile.TiffFile(path)
    try:
        _check_chain(location, file)
        return _open(location, file)
    except BaseException:
        file.close()
        raise


def _open(location: str, file: tifffile.TiffFile) -> Source:
    series = file.series
    if not series:
        raise SourceError(f"{location}: TIFF without a page; name one that holds sections")
    voxel_size = _voxel_size(file)
    if len(series) > 1:
        pages = _equal_pages(location, file)
        names, shape = "ZYX", (len(pages), *pages[0].shape)
        if len(pages[0].shape) == 3:
            names = f"Z{pages[0].axes}"
        return _Paged(location, file, pages, names, shape, voxel_size)
    only = series[0]
    names, shape = only.axes, tuple(only.shape)
    if only.dataoffset is not None and not only.is_multifile and "S" not in names:
        return _Mapped(location, file, only, voxel_size)
    return _Paged(location, file, list(only.pages), names, shape, voxel_size)


class _Mapped(Source):
    """Pages that lie plain and one after another, mapped into memory."""

    def __init__(
        self,
        location: str,
        file: tifffile.TiffFile,
        series: tifffile.TiffPageSeries,
        voxel_size: VoxelSize | None,
    ) -> None:
        shape = tuple(series.shape)
        names = _volume_axes(location, series.axes, shape)
        if "z" not in names:
            names, shape = f"z{names}", (1, *shape)
        axes = Axes.named(location, names, shape)
        dtype = np.dtype(series.dtype or "V").newbyteorder(file.byteorder)
        extent = axes.extent
        super().__init__(
            location,
            shape=extent,
            dtype=dtype,
            channels=axes.channels,
            voxel_size_nm=voxel_size,
            natural_chunk=Vec3(extent.x, extent.y, 1),
        )
        start = int(series.dataoffset or 0)
        stop = start + math.prod(shape) * dtype.itemsize
        if file.filehandle.size < stop:
            raise _cut_short(location, file.filehandle.size, stop)
        self._array = np.memmap(file.filehandle.path, dtype, "r", start, shape)
        self._axes = axes
        file.close()

    def _read(self, box: Bbox) -> NDArray[Any]:
        part = self._axes.arrange(self._array[self._axes.index(box)])
        return np.array(part, order="F")


class _Paged(StackSource):
    """Pages that are decoded by strip or tile."""

    def __init__(
        self,
        location: str,
        file: tifffile.TiffFile,
        pages: Sequence[Page | None],
        names: str,
        shape: tuple[int, ...],
        voxel_size: VoxelSize | None,
    ) -> None:
        first = pages[0]
        keyframe = None if first is None else keyframe_of(first)
        if keyframe is None or keyframe.imagedepth > 1:
            raise SourceError(
                f"{location}: not a stack of sections; save one section in each page"
            )
        frame = [
            (name, size)
            for name, size in zip(_volume_axes(location, names, shape), shape, strict=True)
            if name not in "yxs"
        ]
        self._axes = Axes.named(
            location,
            [*(name for name, _ in frame), *("" if "z" in dict(frame) else "z"), "y", "x"],
            [
                *(size for _, size in frame),
                *(() if "z" in dict(frame) else (1,)),
                keyframe.imagelength,
                keyframe.imagewidth,
            ],
        )
        super().__init__(
            location,
            shape=self._axes.extent,
            dtype=np.dtype(keyframe.dtype or "V"),
            channels=self._axes.channels,
            voxel_size_nm=voxel_size,
            natural_chunk=page_chunk(keyframe),
        )
        if len(pages) != math.prod(self._axes.shape[:-2]):
            raise SourceError(
                f"{location}: {len(pages)} pages for shape {self._axes.shape}; save it "
                "again with one section in each page"
            )
        for number, page in enumerate(pages):
            if page is None:
                raise SourceError(
                    f"{location}: page {number} of {len(pages)} is missing; put the files "
                    "that belong together into one folder"
                )
            check_page(location, page)
        self._pages = [page for page in pages if page is not None]
        self._cache = DecodedCache()
        self._lock = threading.Lock()
        self._closing = weakref.finalize(self, file.close)
        self.read(Bbox.of_shape(self.shape.minimum(Vec3(1, 1, 1))))

    def _section(self, z: int, channel: int, rows: slice, columns: slice) -> NDArray[Any]:
        at = [0] * len(self._axes.shape)
        at[self._axes.z] = z
        if self._axes.c is not None:
            at[self._axes.c] = channel
        number = int(np.ravel_multi_index(at[:-2], self._axes.shape[:-2]))
        return read_page(self._pages[number], rows, columns, self._cache, number)

    def close(self) -> None:
        """Close the file."""
        self._closing()


def _volume_axes(location: str, names: str, shape: tuple[int, ...]) -> str:
    """Name the axis of the sections z, whatever the file calls it."""
    known = names.lower()
    if "z" in known:
        return known
    long = [n for n, size in zip(known, shape, strict=True) if n not in "yxsc" and size > 1]
    if len(long) == 1:
        return known.replace(long[0], "z")
    channels = dict(zip(known, shape, strict=True)).get("c", 1)
    if not long and channels > 1:
        raise SourceError(
            f"{location}: {channels} channels of one section; save the pages as the "
            "slices of a stack"
        )
    if len(long) > 1:
        raise SourceError(
            f"{location}: axes {names} of shape {shape} have no z; save one stack of "
            "sections"
        )
    return known


def _equal_pages(location: str, file: tifffile.TiffFile) -> list[Page]:
    pages: list[Page] = []
    first = file.pages.first
    for number, page in enumerate(file.pages):
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise SourceError(
                f"{location}: page {number} is {size_of(page)} but page 0 is "
                f"{size_of(first)}; make the sections one size and type"
            )
        pages.append(page)
    return pages


def keyframe_of(page: Page) -> tifffile.TiffPage:
    """Return the page that says how a page is stored."""
    key = page.keyframe
    if key is None:
        raise tifffile.TiffFileError(f"page {page.index} does not say how it is stored")
    return key


def size_of(page: Page) -> str:
    """Return the size and type of a page, for an error message."""
    key = keyframe_of(page)
    return f"{key.imagewidth} x {key.imagelength} {key.dtype}"


def page_chunk(page: Page) -> Vec3:
    """Return what a page is best read in: its tile, or all of it."""
    key = keyframe_of(page)
    if key.is_tiled:
        return Vec3(key.tilewidth, key.tilelength, 1)
    return Vec3(key.imagewidth, key.imagelength, 1)


def check_page(location: str, page: Page) -> None:
    """Make sure that the bytes of a page lie within its file.

    Raises
    ------
    SourceError
        If the file is cut short.
    """
    counts = np.asarray(page.databytecounts, np.int64)
    ends = np.where(counts > 0, np.asarray(page.dataoffsets, np.int64) + counts, 0)
    stop = int(ends.max(initial=0))
    size = int(page.parent.filehandle.size)
    if stop > size:
        raise _cut_short(location, size, stop)


def read_page(
    page: Page, rows: slice, columns: slice, cache: DecodedCache, number: int
) -> NDArray[Any]:
    """Decode the strips or tiles of a page that a rectangle touches.

    Parameters
    ----------
    page : tifffile page
        A page of two dimensions.
    rows, columns : slice
        The rectangle [pixel].
    cache : DecodedCache
        Holds the strips or tiles decoded.
    number : int
        Identity of the page in the cache.

    Returns
    -------
    array, (y, x, sample)
        Values as stored.
    """
    key = keyframe_of(page)
    separate, _, length, width, contiguous = key.shaped
    high = min(key.tilelength if key.is_tiled else key.rowsperstrip, length)
    wide = key.tilewidth if key.is_tiled else width
    down, across = -(-length // high), -(-width // wide)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    out = np.zeros((*shape, separate, contiguous), key.dtype)
    for s in range(separate):
        for i in range(rows.start // high, -(-rows.stop // high)):
            for j in range(columns.start // wide, -(-columns.stop // wide)):
                index = (s * down + i) * across + j
                piece = cache.get((number, index), partial(_decode, page, index))
                y, x = i * high, j * wide
                top, left = max(y, rows.start), max(x, columns.start)
                bottom = min(y + piece.shape[0], rows.stop)
                right = min(x + piece.shape[1], columns.stop)
                out[
                    top - rows.start : bottom - rows.start,
                    left - columns.start : right - columns.start,
                    s,
                ] = piece[top - y : bottom - y, left - x : right - x]
    return out.reshape(*shape, separate * contiguous)


def _decode(page: Page, index: int) -> NDArray[Any]:
    """Decode a strip or tile, (y, x, sample)."""
    key = keyframe_of(page)
    handle = page.parent.filehandle
    was_closed = handle.closed
    if was_closed:
        handle.open()
    try:
        handle.seek(page.dataoffsets[index])
        count = page.databytecounts[index]
        data = handle.read(count) if count else None
    finally:
        if was_closed:
            handle.close()
    tables = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
    if key.jpegheader is not None:
        tables["jpegheader"] = key.jpegheader
    decoded, _, shape = key.decode(data, index, **tables)
    if decoded is None:
        return np.full(shape[1:], key.nodata, key.dtype)
    piece: NDArray[Any] = decoded[0]
    return piece


def _check_chain(location: str, file: tifffile.TiffFile) -> None:
    """Make sure that the chain of pages ends with its end, not with the file's."""
    if not len(file.pages):
        raise SourceError(f"{location}: TIFF without a page; name one that holds sections")
    at = file.pages.next_page_offset
    width = file.tiff.offsetsize
    handle = file.filehandle
    if at is None or at + width > handle.size:
        raise _cut_short(location, handle.size, (at or handle.size) + width)
    handle.seek(at)
    following = int.from_bytes(
        handle.read(width), "little" if file.byteorder == "<" else "big"
    )
    if following >= handle.size:
        raise _cut_short(location, handle.size, following)


def _cut_short(location: str, size: int, needed: int) -> SourceError:
    return SourceError(
        f"{location}: cut short, {size} bytes are there but its pages reach to byte "
        f"{needed}; copy it again from where it came"
    )


def _voxel_size(file: tifffile.TiffFile) -> VoxelSize | None:
    """Read ImageJ's or OME's voxel size; resolution for printers says nothing."""
    if file.is_ome and file.ome_metadata:
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        names = [f"PhysicalSize{axis}" for axis in "XYZ"]
        return nanometers(
            [float(pixels.get(name, 0)) for name in names],
            [pixels.get(f"{name}Unit", "µm") for name in names],
        )
    if file.is_imagej and file.imagej_metadata:
        tags = file.pages.first.tags
        resolutions = [tags.get(name) for name in ("XResolution", "YResolution")]
        spacing = file.imagej_metadata.get("spacing")
        if spacing is None or None in resolutions:
            return None
        # A fraction of pixels per unit, which ImageJ writes to six digits.
        x, y = (
            float(f"{tag.value[1] / tag.value[0]:.6g}") if tag and tag.value[0] else 0.0
            for tag in resolutions
        )
        return nanometers([x, y, float(spacing)], file.imagej_metadata.get("unit"))
    return None
