"""Volumes kept section by section, with the last decoded pieces held for the next box."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.geometry import Bbox
from pipeline.layers.sources.base import Source

CACHE_BYTES = 64 * 2**20
"""Decoded pieces that a stack holds; a larger one is held alone [byte]."""


class DecodedCache:
    """The pieces decoded last, up to a number of bytes.

    Parameters
    ----------
    limit : int
        Bytes to hold; the last piece is held whatever its size.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._held: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return a piece, decoding it if it is not held."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        piece = decode()
        self._held[key] = piece
        self._bytes += piece.nbytes
        while self._bytes > self._limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return piece


class StackSource(Source):
    """A volume of sections, each decoded alone or in part."""

    _lock: threading.Lock

    def _read(self, box: Bbox) -> NDArray[Any]:
        columns, rows, sections = box.slices()
        out = np.empty((*box.shape, self.channels), self.dtype, order="F")
        if box.is_empty:
            sections = slice(0, 0)
        with self._lock:
            for at, z in enumerate(range(sections.start, sections.stop)):
                for c in range(self.channels):
                    samples = self._section(z, c, rows, columns)
                    out[:, :, at, c] = self._grey(samples, z).T
        return out[..., 0] if self.channels == 1 else out

    @abstractmethod
    def _section(self, z: int, channel: int, rows: slice, columns: slice) -> NDArray[Any]:
        """Return part of a section, (y, x, sample)."""

    def _name(self, z: int) -> str:
        """Return how an error calls a section."""
        return f"section {z}"

    def _grey(self, samples: NDArray[Any], z: int) -> NDArray[Any]:
        """Return (y, x) of (y, x, sample), where the samples say the same."""
        n = samples.shape[-1]
        if n > 4:
            raise SourceError(
                f"{self.location}: {self._name(z)} has {n} samples in a pixel; save one"
            )
        if n in (2, 4):
            opaque = np.iinfo(samples.dtype).max if samples.dtype.kind in "iu" else 1
            if np.any(samples[..., -1] != opaque):
                raise SourceError(
                    f"{self.location}: {self._name(z)} is transparent in places; save it "
                    "as grey, without an alpha channel"
                )
        grey: NDArray[Any] = samples[..., 0]
        if n >= 3 and np.any(samples[..., 1:3] != grey[..., None]):
            raise SourceError(
                f"{self.location}: {self._name(z)} is in colour, its red, green and blue "
                "differ; save intensities as grey and labels as whole numbers"
            )
        return grey
