"""Takes knife chatter out of sections: bands of one orientation and a range of widths.

The knife vibrates, and leaves bands along its edge. They are damped by a linear filter of
finite extent that keeps what a section holds at other orientations and other sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fftfreq, ifft2, irfft2, next_fast_len, rfft2

REACH = 3.0
"""Reach of the filter in wavelengths of the longest bands."""
_LEAST_COVERED = 0.2


@dataclass(frozen=True)
class ChatterFilter:
    """What finds the bands in a section.

    Parameters
    ----------
    orientation : float
        Of the bands, from x towards y [degree].
    shortest, longest : float
        From one band to the next [pixel].
    spread : float
        How far bands may be turned from the orientation [degree].
    """

    orientation: float
    shortest: float
    longest: float
    spread: float = 10.0

    @property
    def reach(self) -> int:
        """How far away pixels have a say [pixel]."""
        return math.ceil(REACH * self.longest)

    def kernel(self) -> NDArray[np.float64]:
        """Return the weights that the bands are found by, (2 reach + 1, 2 reach + 1).

        Their sum is 0, so that no grey level is a band.
        """
        return _weights(self)

    def response(self, wavelength: float, orientation: float) -> float:
        """Return the share of bands that is found, and taken away.

        Parameters
        ----------
        wavelength : float
            From one band to the next [pixel].
        orientation : float
            Of the bands [degree].
        """
        turn = math.radians(orientation)
        n = np.arange(-self.reach, self.reach + 1)
        phase = (n * math.cos(turn) - n[:, None] * math.sin(turn)) / wavelength
        return float((self.kernel() * np.cos(2 * np.pi * phase)).sum())


@lru_cache(maxsize=1)
def _weights(chatter: ChatterFilter) -> NDArray[np.float64]:
    reach = chatter.reach
    size = 4 * reach + 1
    x, y = np.meshgrid(fftfreq(size), fftfreq(size), indexing="ij")
    turn = math.radians(chatter.orientation)
    across = np.abs(y * math.cos(turn) - x * math.sin(turn))
    along = np.abs(x * math.cos(turn) + y * math.sin(turn))
    # As the weights end at the reach, all edges of the band are as blurred as this,
    # and the band is so much wider that it is whole within.
    blur = 1 / reach
    low, high = 1 / chatter.longest - 1.5 * blur, 1 / chatter.shortest + 1.5 * blur
    width = np.maximum(math.tan(math.radians(chatter.spread)) * across, blur)
    passed = (
        _rises(across, low, blur)
        * _rises(-across, -high, blur)
        * _rises(-along, -(width + blur), blur)
    )
    whole = np.roll(np.real(ifft2(passed)), (reach, reach), axis=(0, 1))
    n = np.arange(-reach, reach + 1) / (reach + 1)
    away = np.hypot(n[:, None], n)
    taper = np.where(away < 1, np.cos(np.minimum(away, 1) * np.pi / 2) ** 2, 0.0)
    weights = whole[: 2 * reach + 1, : 2 * reach + 1] * taper
    return np.asarray(weights - taper * (weights.sum() / taper.sum()))


def _rises(values: NDArray[np.float64], start: float, width: float) -> NDArray[np.float64]:
    """Return 0 up to a value, 1 beyond it and a width more, and a line between."""
    return np.asarray(np.clip((values - start) / width, 0, 1))


class Damping:
    """A filter, ready for squares of one extent.

    Parameters
    ----------
    chatter : ChatterFilter
        What is damped.
    extent : (int, int)
        Of the squares, in x and y [pixel]; what is read is wider by the reach.
    """

    def __init__(self, chatter: ChatterFilter, extent: tuple[int, int]) -> None:
        self._reach, self._extent = chatter.reach, extent
        self._size = [next_fast_len(n + 2 * self._reach, real=True) for n in extent]
        weights = chatter.kernel()
        self._weights = rfft2(weights, self._size)
        self._envelope = rfft2(np.abs(weights) / np.abs(weights).sum(), self._size)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Damp the bands of a square.

        Parameters
        ----------
        image : uint8 array, (x, y)
            The square and as much around as the reach; 0 where there is no tissue.

        Returns
        -------
        uint8 array, (x, y)
            The square; 0 where the image is.
        """
        inner = tuple(slice(self._reach, self._reach + n) for n in self._extent)
        square = image[inner]
        if not square.any():
            return np.zeros(self._extent, np.uint8)
        shown = image > 0
        grey = image.astype(np.float64)
        grey -= grey.sum() / shown.sum()
        bands = self._sum(np.where(shown, grey, 0.0), self._weights)
        if not shown.all():
            # Beside a border only a part of the weights sees the bands.
            covered = self._sum(shown.astype(np.float64), self._envelope)
            bands /= np.clip(covered, _LEAST_COVERED, 1.0)
        calm = np.clip(np.rint(square - bands), 1, 255)
        return np.where(square > 0, calm, 0).astype(np.uint8)

    def _sum(
        self, values: NDArray[np.float64], weights: NDArray[np.complex128]
    ) -> NDArray[np.float64]:
        """Add up what is around each pixel of the square, by weights."""
        whole = irfft2(rfft2(values, self._size) * weights, self._size)
        first = 2 * self._reach
        x, y = self._extent
        return np.asarray(whole[first : first + x, first : first + y])
