"""Four criteria of how well defined an image is, of every section, as exact sums.

The criteria are those that Shi et al. 2021 (U-RISC) compare images by. Each is made of
sums over pixels and pairs of neighbours, and the sums of boxes add up to those of the
whole, so that a section is measured however it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Halo
from pipeline.specs import Table

IMAGE_QUALITY_HALO = Halo.of(after=(2, 1, 0))
"""Partners of pixels: up to two to the right, and one below."""


@dataclass(frozen=True)
class SectionSums:
    """Sums over the pixels f(x, y) of sections, from which the criteria follow.

    Parameters
    ----------
    z : int64 array, (section,)
        Which sections, ascending.
    pixels : uint64 array, (section,)
        How many pixels.
    sum, squares : uint64 array, (section,)
        Of f, and of f².
    brenner : uint64 array, (section,)
        Of (f(x+2, y) - f(x, y))².
    smd2 : uint64 array, (section,)
        Of abs(f(x, y) - f(x+1, y)) abs(f(x, y) - f(x, y+1)).
    products : uint64 array, (section,)
        Of f(x, y) f(x+1, y).
    """

    z: NDArray[np.int64]
    pixels: NDArray[np.uint64]
    sum: NDArray[np.uint64]
    squares: NDArray[np.uint64]
    brenner: NDArray[np.uint64]
    smd2: NDArray[np.uint64]
    products: NDArray[np.uint64]

    @property
    def variance(self) -> NDArray[np.float64]:
        """Sum of (f - mean)², of each section."""
        return self._less_square_of_mean(self.squares)

    @property
    def vollath(self) -> NDArray[np.float64]:
        """Sum of f(x, y) f(x+1, y), less the pixels times mean², of each section."""
        return self._less_square_of_mean(self.products)

    def _less_square_of_mean(self, sums: NDArray[np.uint64]) -> NDArray[np.float64]:
        # In integers of any size, rounded once: sum² outgrows 64 bits, and the difference
        # of two large floats would be noise.
        return np.array(
            [
                (int(a) * int(n) - int(s) ** 2) / int(n)
                for a, s, n in zip(sums, self.sum, self.pixels, strict=True)
            ],
            np.float64,
        )

    def to_table(self) -> Table:
        """Return the sums and the two criteria that follow from several of them."""
        columns: Table = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**columns, "variance": self.variance, "vollath": self.vollath}

    @classmethod
    def from_table(cls, table: Table) -> SectionSums:
        """Read what `to_table` returns."""
        return cls(**{f.name: table[f.name] for f in fields(cls)})


def image_quality(
    image: NDArray[np.uint8], *, box: Bbox, read_box: Bbox, bounds: Bbox
) -> SectionSums:
    """Sum what the criteria of a box are made of.

    A pixel and its partners belong to the box that holds the pixel. A pair whose partner
    lies beyond the bounds is left out.

    Parameters
    ----------
    image : uint8 array, (x, y, z)
        Grey levels of `read_box`.
    box : Bbox
        Pixels that are summed over [voxel].
    read_box : Bbox
        The box with `IMAGE_QUALITY_HALO`, inside the bounds [voxel].
    bounds : Bbox
        Of the whole image [voxel].

    Returns
    -------
    SectionSums
        Of the sections of the box.

    Raises
    ------
    DataError
        If the image is not uint8 or does not fit the box.
    """
    if image.shape != read_box.shape.astuple() or image.dtype != np.uint8:
        raise DataError(
            f"image has shape {image.shape} and dtype {image.dtype}; give uint8 of shape "
            f"{read_box.shape}, the box {read_box}"
        )
    if bounds.intersection(box.grown(IMAGE_QUALITY_HALO)) != read_box:
        raise DataError(
            f"box {box} in bounds {bounds} needs an image of "
            f"{bounds.intersection(box.grown(IMAGE_QUALITY_HALO))}, not of {read_box}"
        )
    nx, ny, nz = box.shape
    at = box.start - read_box.start
    sections = [
        _sums(image[at.x :, at.y :, at.z + k].astype(np.int32), nx, ny) for k in range(nz)
    ]
    columns = np.array(sections, np.uint64).reshape(nz, 6)
    z = np.arange(box.start.z, box.stop.z, dtype=np.int64)
    pixels, total, squares, brenner, smd2, products = np.ascontiguousarray(columns.T)
    return SectionSums(z, pixels, total, squares, brenner, smd2, products)


def _sums(f: NDArray[np.int32], nx: int, ny: int) -> tuple[int, ...]:
    """Sum one section; its first nx by ny pixels are the box's, the rest partners."""
    own = f[:nx, :ny]
    right = f[1 : nx + 1, :ny]
    second = f[2 : nx + 2, :ny]
    below = f[:nx, 1 : ny + 1]
    has_right, has_second, has_below = right.shape[0], second.shape[0], below.shape[1]
    step_x = np.abs(own[:has_right] - right)
    step_y = np.abs(own[:, :has_below] - below)
    return (
        own.size,
        int(own.sum(dtype=np.uint64)),
        int((own * own).sum(dtype=np.uint64)),
        int(((second - own[:has_second]) ** 2).sum(dtype=np.uint64)),
        int((step_x[:, :has_below] * step_y[:has_right]).sum(dtype=np.uint64)),
        int((own[:has_right] * right).sum(dtype=np.uint64)),
    )


def merge_section_sums(parts: Sequence[SectionSums]) -> SectionSums:
    """Add up the sums of boxes that share no pixel; their order does not matter.

    Parameters
    ----------
    parts : sequence of SectionSums
        At least one.

    Returns
    -------
    SectionSums
        Of all sections that any of them has.
    """
    z, where = np.unique(np.concatenate([p.z for p in parts]), return_inverse=True)
    columns = {}
    for name in (f.name for f in fields(SectionSums) if f.name != "z"):
        total = np.zeros(len(z), np.uint64)
        np.add.at(total, where, np.concatenate([getattr(p, name) for p in parts]))
        columns[name] = total
    return SectionSums(z, **columns)
