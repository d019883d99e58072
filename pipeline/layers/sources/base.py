"""What every source tells of itself, and how stored axes, units and types are turned."""

from __future__ import annotations

import math
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GeometryError, PipelineError, SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VolumeSpec, VoxelSize

KindOfValues: TypeAlias = Literal["image", "segmentation"]

DAMAGE = (
    OSError,
    EOFError,
    ImportError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    BadZipFile,
    struct.error,
    zlib.error,
)
"""What the libraries raise when a file is not what it should be."""

_NANOMETERS = {
    "pm": 1e-3,
    "picometer": 1e-3,
    "angstrom": 0.1,
    "å": 0.1,
    "nm": 1.0,
    "nanometer": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "micron": 1e3,
    "micrometer": 1e3,
    "mm": 1e6,
    "millimeter": 1e6,
    "cm": 1e7,
    "centimeter": 1e7,
    "m": 1e9,
    "meter": 1e9,
    "inch": 2.54e7,
}


@dataclass(frozen=True)
class SectionOrigin:
    """Where a section of a source comes from.

    Parameters
    ----------
    number : int or None
        That it goes by; None where nothing says.
    file : str
        Name of its file; empty where there is none, and the section is blank.
    extent : (int, int)
        Of what the file holds, in x and y [pixel].
    """

    number: int | None
    file: str
    extent: tuple[int, int]


class Source(ABC):
    """A volume to be read, one piece at a time.

    Parameters
    ----------
    location : str
        What `open_source` was given.
    shape : Vec3
        Extent in x, y, z [voxel].
    dtype : numpy dtype
        Type stored in the file.
    channels : int
        Values per voxel.
    voxel_size_nm : (x, y, z) or None
        Extent of a voxel [nm]; None where the file does not say.
    voxel_offset : Vec3 or None
        First voxel; None where the file does not say.
    natural_chunk : Vec3
        What the file decodes at once; reading in multiples of it decodes nothing twice.
    kind_of_values : {"image", "segmentation"} or None
        None guesses: integers of 32 bits and more are ids.

    Attributes
    ----------
    dtype : str
        Name of the numpy type that `read` returns: bool is read as uint8, float16 and
        float64 as float32, every other type as it is.
    origins : mapping of int to SectionOrigin
        By z; empty where the source is no folder of files.
    remarks : tuple of str
        What a person should know of the source: sections that are missing, or smaller.

    Raises
    ------
    SourceError
        If there is no voxel, or if the type is not one of whole or real numbers.
    """

    def __init__(
        self,
        location: str,
        *,
        shape: Vec3,
        dtype: np.dtype[Any],
        channels: int = 1,
        voxel_size_nm: VoxelSize | None = None,
        voxel_offset: Vec3 | None = None,
        natural_chunk: Vec3,
        kind_of_values: KindOfValues | None = None,
    ) -> None:
        self.dtype = _read_as(location, dtype).name
        self.origins: Mapping[int, SectionOrigin] = {}
        self.remarks: tuple[str, ...] = ()
        if shape.product == 0 or channels == 0:
            raise SourceError(
                f"{location}: volume of {shape} voxels and {channels} channels is empty; "
                "name one that holds data"
            )
        self.location = location
        self.shape = shape
        self.channels = channels
        self.voxel_size_nm = voxel_size_nm
        self.voxel_offset = voxel_offset
        self.natural_chunk = natural_chunk.minimum(shape).maximum(Vec3(1, 1, 1))
        are_ids = np.dtype(self.dtype).kind in "iu" and np.dtype(self.dtype).itemsize >= 4
        self.kind_of_values: KindOfValues = kind_of_values or (
            "segmentation" if are_ids else "image"
        )

    @property
    def bounds(self) -> Bbox:
        """Box of the source: from its voxel offset, or from zero where it has none."""
        return Bbox.of_shape(self.shape, self.voxel_offset)

    @property
    def spec(self) -> VolumeSpec:
        """What the source holds, as a layer; voxels of 1 nm where it does not say."""
        return VolumeSpec(
            dtype=self.dtype,
            channels=self.channels,
            bounds=self.bounds,
            voxel_size_nm=self.voxel_size_nm or (1.0, 1.0, 1.0),
            kind_of_values=self.kind_of_values,
            storage_chunk=self.natural_chunk,
        )

    def read(self, box: Bbox) -> NDArray[Any]:
        """Read a box.

        Parameters
        ----------
        box : Bbox
            Within ``bounds``.

        Returns
        -------
        array, (x, y, z) or (x, y, z, channel)
            Fortran-contiguous and the caller's own; the channel axis is there only if
            there are several.

        Raises
        ------
        GeometryError
            If the box reaches outside the bounds.
        SourceError
            If what is stored there cannot be decoded.
        """
        bounds = self.bounds
        if box.start.minimum(bounds.start) != bounds.start or (
            box.stop.maximum(bounds.stop) != bounds.stop
        ):
            raise GeometryError(
                f"{self.location}: box {box} reaches outside the bounds {bounds}; "
                "give a box inside them"
            )
        try:
            stored = self._read(box.shifted(Vec3(0, 0, 0) - bounds.start))
        except PipelineError:
            raise
        except DAMAGE as error:
            raise SourceError(
                f"{self.location}: box {box} cannot be decoded, {reason(error)}; "
                "the file is damaged or unreadable, copy it again from where it came"
            ) from error
        with np.errstate(over="ignore"):
            return np.asfortranarray(stored, dtype=self.dtype)

    @abstractmethod
    def _read(self, box: Bbox) -> NDArray[Any]:
        """Return a new array of a box whose voxels count from zero."""

    def close(self) -> None:
        """Let go of open files; reading again is not possible."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _read_as(location: str, stored: np.dtype[Any]) -> np.dtype[Any]:
    if stored.kind == "b":
        return np.dtype(np.uint8)
    if stored.kind == "f" and stored.itemsize <= 8:
        return np.dtype(np.float32)
    if stored.kind in "iu":
        return stored.newbyteorder("=")
    raise SourceError(
        f"{location}: type {stored} is not a volume's; save it as whole numbers of "
        "8 to 64 bits or as float32"
    )


def reason(error: BaseException) -> str:
    """Return what a library said, on one line."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    line = " ".join(text.split(" [tensorstore_spec=")[0].split())
    return line or type(error).__name__


@dataclass(frozen=True)
class Axes:
    """Where x, y, z and the channel lie among the axes of a stored array.

    Every other axis has one entry and is dropped.

    Parameters
    ----------
    x, y, z : int
        Position of the axis.
    c : int or None
        Position of the channel, None where there is one channel.
    shape : tuple of int
        Shape of the stored array.
    """

    x: int
    y: int
    z: int
    c: int | None
    shape: tuple[int, ...]

    @classmethod
    def named(cls, location: str, names: Sequence[str], shape: Sequence[int]) -> Axes:
        """Find the axes by their names: x, y, z and c (or channel).

        Raises
        ------
        SourceError
            If one of x, y, z is missing, or if another axis has several entries.
        """
        found: dict[str, int] = {}
        for axis, (name, size) in enumerate(zip(names, shape, strict=True)):
            letter = "c" if name.lower() in ("c", "channel") else name.lower()
            if letter in "xyz" and len(letter) == 1 and letter not in found:
                found[letter] = axis
            elif letter == "c" and "c" not in found:
                if size != 1:
                    found["c"] = axis
            elif size != 1:
                raise SourceError(
                    f"{location}: axis {name!r} of {tuple(names)} has {size} entries; "
                    "save one volume, with the axes x, y, z and at most a channel c"
                )
        if not {"x", "y", "z"} <= found.keys():
            raise SourceError(
                f"{location}: axes {tuple(names)} of shape {tuple(shape)} lack one of "
                "x, y, z; save a three-dimensional volume"
            )
        return cls(found["x"], found["y"], found["z"], found.get("c"), tuple(shape))

    @classmethod
    def unnamed(
        cls, location: str, shape: Sequence[int], order: Literal["zyx", "xyz"] = "zyx"
    ) -> Axes:
        """Take the axes to be z, y, x (slowest first), or x, y, z (fastest first).

        Further slow axes may have one entry.

        Raises
        ------
        SourceError
            If the array is not three-dimensional.
        """
        n = len(shape)
        others = shape[: max(0, n - 3)] if order == "zyx" else shape[3:]
        if n < 3 or any(size != 1 for size in others):
            raise SourceError(
                f"{location}: shape {tuple(shape)} is not three-dimensional; save one "
                f"volume as {', '.join(order)}"
            )
        x, y, z = (n - 1, n - 2, n - 3) if order == "zyx" else (0, 1, 2)
        return cls(x, y, z, None, tuple(shape))

    @property
    def extent(self) -> Vec3:
        """Extent of the volume [voxel]."""
        return self.pick(self.shape)

    @property
    def channels(self) -> int:
        """Values per voxel."""
        return 1 if self.c is None else self.shape[self.c]

    def pick(self, values: Sequence[int]) -> Vec3:
        """Return the x, y, z of one whole number per stored axis."""
        return Vec3(int(values[self.x]), int(values[self.y]), int(values[self.z]))

    def index(self, box: Bbox) -> tuple[slice | int, ...]:
        """Return what cuts a box out of the stored array."""
        index: list[slice | int] = [0] * len(self.shape)
        index[self.x], index[self.y], index[self.z] = box.slices()
        if self.c is not None:
            index[self.c] = slice(0, self.channels)
        return tuple(index)

    def arrange(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Turn what ``index`` cut out to x, y, z, channel, as a view."""
        wanted = [self.x, self.y, self.z] + ([] if self.c is None else [self.c])
        kept = sorted(wanted)
        return stored.transpose([kept.index(axis) for axis in wanted])


def nanometers(
    values: Sequence[float], units: str | Sequence[str | None] | None
) -> VoxelSize | None:
    """Return three lengths in nm, or None where a unit or a length makes no sense.

    Parameters
    ----------
    values : (x, y, z)
        Lengths.
    units : str, (x, y, z) of str, or None
        Their units by name or by sign.
    """
    names = [units] * 3 if units is None or isinstance(units, str) else list(units)
    if len(values) != 3 or len(names) != 3:
        return None
    factors = [_factor(name) for name in names]
    try:
        lengths = [
            float(f"{float(v) * (f or 0):.9g}")
            for v, f in zip(values, factors, strict=True)
        ]
    except (TypeError, ValueError):
        return None
    if not all(0 < length < math.inf for length in lengths):
        return None
    x, y, z = lengths
    return x, y, z


def _factor(unit: Any) -> float | None:
    if not isinstance(unit, str):
        return None
    name = unit.strip().replace("\\u00B5", "µ").lower().replace("metre", "meter")
    return _NANOMETERS.get(name) or _NANOMETERS.get(name.removesuffix("s"))


def placed(
    size: Sequence[Any] | None,
    units: str | Sequence[str | None] | None,
    translation: Sequence[Any] | None,
) -> tuple[VoxelSize | None, Vec3 | None]:
    """Return the voxel size [nm] and the voxel offset nearest to a translation.

    Parameters
    ----------
    size : (x, y, z) or None
        Extent of a voxel.
    units : str, (x, y, z) of str, or None
        Unit of the extent and of the translation.
    translation : (x, y, z) or None
        Where the first voxel lies.
    """
    voxel_size = None if size is None else nanometers(size, units)
    if size is None or voxel_size is None or translation is None:
        return voxel_size, None
    offset = [round(float(t) / float(s)) for t, s in zip(translation, size, strict=True)]
    return voxel_size, Vec3.of(offset)


def from_attributes(
    attributes: Mapping[str, Any], axes: Axes
) -> tuple[VoxelSize | None, Vec3 | None]:
    """Read voxel size and voxel offset from the attributes of an array.

    Understood are ``resolution`` or ``voxel_size`` with ``offset`` (in the array's own
    axis order; nm unless ``units`` says otherwise; CREMI, funlib), ``resolution_nm_zyx``,
    and ``element_size_um`` (z, y, x; ilastik, Fiji).
    """
    for key in ("resolution", "voxel_size"):
        size = _spatial(attributes.get(key), axes)
        units = attributes.get("units", "nm")
        if size is not None:
            units = units if isinstance(units, str) else _spatial(units, axes)
            return placed(size, units, _spatial(attributes.get("offset"), axes))
    for key, unit in (("resolution_nm_zyx", "nm"), ("element_size_um", "um")):
        if key in attributes and np.shape(attributes[key]) == (3,):
            return placed(attributes[key][::-1], unit, None)
    return None, None


def _spatial(values: Any, axes: Axes) -> list[Any] | None:
    """Return x, y, z of one value per stored axis, or per spatial axis among them."""
    if np.ndim(values) != 1:
        return None
    kept = [axes.x, axes.y, axes.z]
    if len(values) == 3:
        kept = [sorted(kept).index(axis) for axis in kept]
    elif len(values) != len(axes.shape):
        return None
    return [values[axis] for axis in kept]


def listing(found: Mapping[str, tuple[tuple[int, ...], Any]]) -> str:
    """Return names with their shapes and types, for an error message."""
    shown = [f"{name} {shape} {dtype}" for name, (shape, dtype) in list(found.items())[:20]]
    if len(found) > 20:
        shown.append(f"and {len(found) - 20} more")
    return ", ".join(shown)


def choose(
    location: str, path: str, found: Mapping[str, tuple[tuple[int, ...], Any]], what: str
) -> str:
    """Return the only volume of a container.

    Raises
    ------
    SourceError
        If there are none or several.
    """
    if len(found) == 1:
        return next(iter(found))
    if not found:
        raise SourceError(
            f"{location}: no three-dimensional {what} of numbers is in it; "
            "name a file that holds a volume"
        )
    raise SourceError(
        f"{location}: holds {len(found)} volumes: {listing(found)}; "
        f"name one, as {path}:{next(iter(found))}"
    )
