"""Supervoxel ids: octree position in the high bits, local label in the low.

The layout is PyChunkedGraph's. From the highest bit down, an id is 8 bits of layer
(always 1, the layer of supervoxels), the position of a chunk along x, y and z in equally
many bits, and the label within the chunk in what is left::

    | 8: layer = 1 | bits: x | bits: y | bits: z | 56 - 3 bits: local label |

Local labels count from 1, as the id of label 0 would name the chunk itself, and id 0
stays background. The label says where the basin or supervoxel begins: 1 plus the place of
its first voxel in the chunk, x fastest. So equal supervoxels have equal ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import GeometryError
from pipeline.geometry import Grid, Vec3


@dataclass(frozen=True, slots=True)
class IdLayout:
    """How the 64 bits of an id are shared out.

    Parameters
    ----------
    bits : int
        Bits for the position of a chunk along each axis, 1 to 18.

    Raises
    ------
    GeometryError
        If ``bits`` is out of range.
    """

    LAYER_BITS: ClassVar[int] = 8
    LAYER: ClassVar[int] = 1

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 18:
            raise GeometryError(
                f"ids cannot give {self.bits} bits to each axis of the chunk grid; "
                "use 1 to 18, by larger chunks if need be"
            )

    @classmethod
    def of_grid(cls, grid: Grid) -> IdLayout:
        """Return the layout with just enough bits for the longest axis of a grid.

        Raises
        ------
        GeometryError
            If an axis has more than 2**18 chunks.
        """
        return cls(max(1, (max(grid.counts()) - 1).bit_length()))

    @property
    def local_bits(self) -> int:
        """Bits for the label within a chunk."""
        return 64 - self.LAYER_BITS - 3 * self.bits

    @property
    def max_local(self) -> int:
        """Greatest label within a chunk."""
        return (1 << self.local_bits) - 1

    def base(self, position: Vec3) -> int:
        """Return the number below the first id of a chunk: label k has id base + k.

        Raises
        ------
        GeometryError
            If the position does not fit.
        """
        limit = 1 << self.bits
        if not all(0 <= p < limit for p in position):
            raise GeometryError(self._misplaced(position))
        return (
            self.LAYER << (64 - self.LAYER_BITS)
            | position.x << (self.local_bits + 2 * self.bits)
            | position.y << (self.local_bits + self.bits)
            | position.z << self.local_bits
        )

    def require_capacity(self, n_labels: int) -> None:
        """Check that a chunk's labels fit into its ids.

        Raises
        ------
        GeometryError
            If they do not.
        """
        if n_labels > self.max_local:
            raise GeometryError(
                f"{n_labels} labels in a chunk do not fit into {self.local_bits} bits, "
                f"which number {self.max_local}; use smaller chunks"
            )

    def pack(self, positions: ArrayLike, local: ArrayLike) -> NDArray[np.uint64]:
        """Make ids of chunk positions and local labels.

        Parameters
        ----------
        positions : integer array, (..., 3)
            x, y, z of the chunk in its grid.
        local : integer array, (...)
            Labels, from 1.

        Returns
        -------
        uint64 array, (...)
            Ids.

        Raises
        ------
        GeometryError
            If a position or a label does not fit.
        """
        place = np.asarray(positions)
        label = np.asarray(local)
        outside = ((place < 0) | (place >= 1 << self.bits)).any(axis=-1)
        if outside.any():
            raise GeometryError(self._misplaced(place[outside][0].tolist()))
        if ((label < 1) | (label > self.max_local)).any():
            raise GeometryError(
                f"local labels reach from {label.min()} to {label.max()} but ids hold "
                f"1 to {self.max_local}; use smaller chunks"
            )
        ids = np.full(label.shape, self.LAYER, np.uint64)
        for axis in range(3):
            ids = ids << np.uint64(self.bits) | place[..., axis].astype(np.uint64)
        return ids << np.uint64(self.local_bits) | label.astype(np.uint64)

    def unpack(self, ids: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Take ids apart; the inverse of `pack`.

        Parameters
        ----------
        ids : uint64 array, (...)
            Ids of supervoxels.

        Returns
        -------
        positions : int64 array, (..., 3)
            x, y, z of the chunk in its grid.
        local : uint64 array, (...)
            Labels within the chunk, from 1.

        Raises
        ------
        GeometryError
            If an id is not one of a supervoxel.
        """
        packed = np.asarray(ids, np.uint64)
        local = packed & np.uint64(self.max_local)
        layer = packed >> np.uint64(64 - self.LAYER_BITS)
        wrong = (layer != self.LAYER) | (local == 0)
        if wrong.any():
            raise GeometryError(
                f"{packed[wrong].flat[0]} is not the id of a supervoxel; background and "
                "segments of other layers have no chunk"
            )
        mask = np.uint64((1 << self.bits) - 1)
        shifts = [self.local_bits + self.bits * (2 - axis) for axis in range(3)]
        positions = np.stack([packed >> np.uint64(s) & mask for s in shifts], axis=-1)
        return positions.astype(np.int64), local

    def _misplaced(self, position: Iterable[int]) -> str:
        return (
            f"chunk {tuple(position)} does not fit into ids with {self.bits} bits an axis; "
            f"use larger chunks or a layout for grids beyond {1 << self.bits}"
        )
