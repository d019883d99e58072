"""Synthetic neuropil as a source, computed where it is read: ``phantom://``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.errors import GeometryError, SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources.base import Source
from pipeline.phantom import Phantom

_ADDRESS = re.compile(r"phantom://(\d+),(\d+),(\d+)/(image|labels|clefts)(?:\?(.*))?")
_CHUNK = Vec3(128, 128, 32)


class PhantomSource(Source):
    """A box of a phantom, from voxel 0.

    Parameters
    ----------
    location : str
        ``phantom://X,Y,Z/image``, ``/labels`` or ``/clefts``, with the phantom's plain
        fields behind a question mark:
        ``phantom://512,512,100/image?seed=7&branching=0.2&synapses=0.8``.

    Raises
    ------
    SourceError
        If it is something else.
    """

    def __init__(self, location: str) -> None:
        match = _ADDRESS.fullmatch(location)
        if match is None:
            raise SourceError(
                f"{location}: is no phantom; give phantom://X,Y,Z/image, "
                "phantom://X,Y,Z/labels or phantom://X,Y,Z/clefts, with ?seed=N or other "
                "fields of it"
            )
        try:
            self._phantom = Phantom.model_validate(dict(parse_qsl(match[5] or "")))
        except ValidationError as error:
            faults = "; ".join(f"{f['loc'][0]}: {f['msg']}" for f in error.errors())
            raise SourceError(
                f"{location}: {faults}; a phantom has {', '.join(Phantom.model_fields)}"
            ) from error
        self._what = match[4]
        super().__init__(
            location,
            shape=Vec3(int(match[1]), int(match[2]), int(match[3])),
            dtype=np.dtype(np.uint8 if self._what == "image" else np.uint64),
            voxel_size_nm=self._phantom.voxel_size_nm,
            natural_chunk=_CHUNK,
        )

    def _read(self, box: Bbox) -> NDArray[Any]:
        if box.is_empty:
            raise GeometryError(f"{self.location}: box {box} holds no voxel")
        compute: dict[str, Callable[..., NDArray[Any]]] = {
            "image": self._phantom.image,
            "labels": self._phantom.labels,
            "clefts": self._phantom.clefts,
        }
        return compute[self._what](box.start.astuple(), box.stop.astuple())
