"""The ways to turn a patch that tissue does not mind, and what affinities become."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from pipeline.geometry import Vec3

Count: TypeAlias = Literal[1, 8, 16]
"""How many: as it is; turned and flipped within the section; the same with z flipped."""


@dataclass(frozen=True)
class Source:
    """Where a channel is found in what a net says of a turned patch.

    Parameters
    ----------
    channel : int
        The channel that is wanted.
    source : int
        That which says it.
    anchor : Vec3
        By how much it lies beside: the value for a voxel stands at the voxel minus this
        [voxel].
    """

    channel: int
    source: int
    anchor: Vec3


@dataclass(frozen=True)
class Symmetry:
    """Swap x and y, or not; then flip axes.

    Parameters
    ----------
    swap : bool
        Whether x and y change places.
    flips : (bool, bool, bool)
        Whether x, y, z are reversed after that.
    """

    swap: bool
    flips: tuple[bool, bool, bool]

    def turn(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array, (x, y, z) or (x, y, z, channel); a view."""
        return self._flip(array.swapaxes(0, 1) if self.swap else array)

    def turn_back(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undo `turn`; a view. What channels mean is not changed back; see `sources`."""
        flipped = self._flip(array)
        return flipped.swapaxes(0, 1) if self.swap else flipped

    def _flip(self, array: NDArray[Any]) -> NDArray[Any]:
        return array[tuple(slice(None, None, -1 if f else 1) for f in self.flips)]

    def sources(self, offsets: Sequence[Vec3]) -> list[Source]:
        """Say where affinities are found once the patch is turned back.

        The affinity of a voxel and that at minus an offset is, of a turned patch, that of
        the turned offset. Where this points the other way it is found as the affinity of
        the *other* voxel of the pair: one offset away.

        Parameters
        ----------
        offsets : sequence of Vec3
            Those of the channels [voxel].

        Returns
        -------
        list of Source
            A channel is missing if no channel has its offset turned, either way.
        """
        found = []
        for channel, offset in enumerate(offsets):
            turned = self._turned(offset)
            if turned in offsets:
                found.append(Source(channel, offsets.index(turned), Vec3(0, 0, 0)))
            elif turned * -1 in offsets:
                found.append(Source(channel, offsets.index(turned * -1), offset))
        return found

    def _turned(self, offset: Vec3) -> Vec3:
        x, y, z = offset
        swapped = (y, x, z) if self.swap else (x, y, z)
        return Vec3.of([-n if f else n for n, f in zip(swapped, self.flips, strict=True)])


def symmetries(count: Count) -> list[Symmetry]:
    """List symmetries, that which changes nothing first.

    Parameters
    ----------
    count : {1, 8, 16}
        How many; more than one need patches that are as wide as high.

    Returns
    -------
    list of Symmetry
        8 are those of a square in the plane of sections, 16 these with z flipped or not.
    """
    if count == 1:
        return [Symmetry(False, (False, False, False))]
    both = (False, True)
    return [
        Symmetry(swap, (x, y, z))
        for z, y, x, swap in itertools.product(
            both if count == 16 else (False,), both, both, both
        )
    ]
