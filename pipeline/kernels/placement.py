"""Where a chunk's arrays lie in the volume, checked before a kernel trusts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, GeometryError
from pipeline.geometry import Bbox, Halo, Vec3

Triple: TypeAlias = tuple[int, int, int]
Corners: TypeAlias = tuple[Triple, Triple]

_SCALES = {
    np.dtype(np.uint8): 255,
    np.dtype(np.float16): 1 << 20,
    np.dtype(np.float32): 1 << 20,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """A chunk of a volume and the box of the arrays that were read for it.

    Parameters
    ----------
    box : Bbox
        Voxels that the chunk owns.
    read_box : Bbox
        Voxels of the arrays.
    bounds : Bbox
        Bounds of the volume.
    halo : Halo
        Voxels beyond ``box`` that the kernel reads, where the bounds have them.

    Raises
    ------
    GeometryError
        If the boxes do not lie in one another, or the arrays lack a part of the halo.
    """

    box: Bbox
    read_box: Bbox
    bounds: Bbox
    halo: Halo

    def __post_init__(self) -> None:
        if self.box.is_empty or not self.bounds.contains(self.read_box):
            raise GeometryError(
                f"chunk {self.box}, read with {self.read_box}, does not lie in bounds "
                f"{self.bounds}; clip boxes to the bounds"
            )
        needed = self.box.grown(self.halo).intersection(self.bounds)
        if not self.read_box.contains(needed):
            raise GeometryError(
                f"arrays of {self.read_box} lack part of the halo of chunk {self.box}; "
                f"read at least {needed}"
            )

    @property
    def origin(self) -> Triple:
        """First voxel of the arrays."""
        return self.read_box.start.astuple()

    @property
    def core(self) -> Corners:
        """The chunk as a box of the arrays."""
        return _corners(self.box.shifted(Vec3(0, 0, 0) - self.read_box.start))

    @property
    def corners(self) -> Corners:
        """The bounds of the volume."""
        return _corners(self.bounds)

    def affinities(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return affinities as a kernel takes them: a view, in any memory order.

        Raises
        ------
        DataError
            If the array has another dtype or shape.
        """
        scale_of(array)
        self._require_shape("affinities", array, (*self.read_box.shape, 3))
        # Kernels know no float16 and take its bits.
        return array.view(np.uint16) if array.dtype == np.float16 else array

    def labels(self, array: NDArray[Any]) -> NDArray[np.uint64]:
        """Return labels as a kernel takes them, without a copy if uint64 in Fortran order.

        Raises
        ------
        DataError
            If the array has another dtype or shape.
        """
        self._require_shape("labels", array, self.read_box.shape.astuple())
        return label_volume(array)

    def mask(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        """Return a mask as a kernel takes it, without a copy if in Fortran order.

        Raises
        ------
        DataError
            If the array is neither uint8 nor bool, or has another shape.
        """
        if array.dtype not in (np.uint8, np.bool_):
            raise DataError(f"the mask is {array.dtype}; give uint8 or bool, 0 masks out")
        self._require_shape("the mask's voxels", array, self.read_box.shape.astuple())
        return np.asfortranarray(array).view(np.uint8)

    def _require_shape(
        self, name: str, array: NDArray[Any], shape: tuple[int, ...]
    ) -> None:
        if array.shape != shape:
            raise DataError(
                f"{name} have shape {array.shape} but box {self.read_box} calls for {shape}"
            )


def label_volume(array: NDArray[Any]) -> NDArray[np.uint64]:
    """Return labels as uint64 in Fortran order, without a copy where they are.

    Raises
    ------
    DataError
        If the labels are not unsigned integers.
    """
    if array.dtype.kind != "u":
        raise DataError(f"labels are {array.dtype}; ids are unsigned integers")
    return np.asfortranarray(array, np.uint64)


def scale_of(affinities: NDArray[Any]) -> int:
    """Return the fixed-point number that stands for an affinity of 1.

    Affinities enter comparisons and sums as whole numbers, so that no result depends on
    the order in which chunks arrive: uint8 v stands for v / 255 and is v; float16 and
    float32 are rounded to the nearest multiple of 2**-20, halves up.

    Raises
    ------
    DataError
        If the dtype is none of uint8, float16 and float32.
    """
    try:
        return _SCALES[affinities.dtype]
    except KeyError:
        raise DataError(
            f"affinities are {affinities.dtype}; give uint8 (255 stands for 1), float16 or "
            "float32"
        ) from None


@contextmanager
def data_errors() -> Iterator[None]:
    """Turn what a kernel says of its data into a `DataError`."""
    try:
        yield
    except ValueError as error:
        raise DataError(str(error)) from None


def _corners(box: Bbox) -> Corners:
    return box.start.astuple(), box.stop.astuple()
