"""Arrays that tensorstore reads, from files, gs://, s3:// and https://."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from pipeline.errors import SourceError, StorageUnavailableError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources.base import Axes, KindOfValues, Source, choose, reason
from pipeline.specs import VoxelSize

_BUSY = ("ABORTED:", "DEADLINE_EXCEEDED:", "RESOURCE_EXHAUSTED:", "UNAVAILABLE:")
"""How tensorstore marks the failures that pass."""

_FAILURES = (OSError, RuntimeError, ValueError, LookupError, NotImplementedError)

_RETRIES = {"max_retries": 5, "initial_delay": "200ms"}
_CONTEXT = {
    "http_request_retries": _RETRIES,
    "gcs_request_retries": _RETRIES,
    "s3_request_retries": _RETRIES,
}

Found = dict[str, tuple[tuple[int, ...], Any]]


class Folder:
    """A folder of a file system or of an object store, and the JSON documents in it.

    Parameters
    ----------
    location : str
        What the user gave.
    address : str
        A path, or the URL of a folder in an object store.
    """

    def __init__(self, location: str, address: str) -> None:
        self.location = location
        self.address = address.rstrip("/")
        self.path = None if "://" in address else Path(address)
        self._context = ts.Context(_CONTEXT)
        self._documents: dict[str, dict[str, Any] | None] = {}
        self._store = self._call(
            lambda: ts.KvStore.open(self.spec(), context=self._context).result()
        )

    def spec(self, node: str = "") -> Any:
        """Return the address of a node of the folder for tensorstore."""
        inside = f"{node}/" if node else ""
        if self.path is None:
            return f"{self.address}/{inside}"
        return {"driver": "file", "path": f"{os.path.abspath(self.path)}/{inside}"}

    def json(self, key: str) -> dict[str, Any] | None:
        """Return a document, None where there is none.

        Raises
        ------
        SourceError
            If it is not JSON.
        StorageUnavailableError
            If the store does not answer.
        """
        if key not in self._documents:
            self._documents[key] = self._load(key)
        return self._documents[key]

    def _load(self, key: str) -> dict[str, Any] | None:
        found = self._call(lambda: self._store.read(key).result())
        if found.state != "value":
            return None
        try:
            document = json.loads(found.value)
        except ValueError as error:
            raise SourceError(
                f"{self.location}: {key} is not JSON, {error}; copy it again from where "
                "it came"
            ) from error
        if not isinstance(document, dict):
            raise SourceError(f"{self.location}: {key} is no JSON object; write it again")
        return document

    def open(self, driver: str, node: str = "", **more: Any) -> Any:
        """Open an array with tensorstore.

        Raises
        ------
        SourceError
            If tensorstore does not take it.
        StorageUnavailableError
            If the store does not answer.
        """
        spec = {"driver": driver, "kvstore": self.spec(node), **more}
        return self._call(
            lambda: ts.open(spec, read=True, open=True, context=self._context).result()
        )

    def _call(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except _FAILURES as error:
            raise failure(self.location, error) from error

    def nodes(self, is_leaf: Callable[[str], bool]) -> list[str]:
        """List the nodes below that are leaves, without looking into them.

        An object store is not listed.
        """
        return [] if self.path is None else list(self._leaves("", is_leaf))

    def _leaves(self, node: str, is_leaf: Callable[[str], bool]) -> list[str]:
        if is_leaf(node):
            return [node]
        below = sorted(
            p.name for p in (self.path or Path()).joinpath(node).iterdir() if p.is_dir()
        )
        children = [f"{node}/{name}" if node else name for name in below]
        return [leaf for child in children for leaf in self._leaves(child, is_leaf)]

    def choose(self, found: Found) -> str:
        """Return the only volume there is.

        Raises
        ------
        SourceError
            If there are none or several, or if the folder cannot be listed.
        """
        if self.path is None:
            raise SourceError(
                f"{self.location}: no array is there, and an object store is not searched; "
                f"check the address, or name an array in it as {self.address}:array"
            )
        return choose(self.location, self.address, found, "array")


def failure(location: str, error: Exception) -> SourceError | StorageUnavailableError:
    """Turn what tensorstore raised into an error that says whether to try again."""
    said = reason(error)
    if said.startswith(_BUSY):
        return StorageUnavailableError(
            f"{location}: the store does not answer, {said}; check the address, "
            "then try again"
        )
    return SourceError(
        f"{location}: cannot be read, {said}; check the address and the permissions, or "
        "copy it again from where it came"
    )


class TensorstoreSource(Source):
    """An array that tensorstore reads.

    Parameters
    ----------
    location : str
        What the user gave.
    store : tensorstore.TensorStore
        The array.
    axes : Axes
        Where its axes are.
    voxel_size_nm, voxel_offset, kind_of_values
        As for `Source`.
    """

    def __init__(
        self,
        location: str,
        store: Any,
        axes: Axes,
        *,
        voxel_size_nm: VoxelSize | None = None,
        voxel_offset: Vec3 | None = None,
        kind_of_values: KindOfValues | None = None,
    ) -> None:
        super().__init__(
            location,
            shape=axes.extent,
            dtype=np.dtype(store.dtype.numpy_dtype),
            channels=axes.channels,
            voxel_size_nm=voxel_size_nm,
            voxel_offset=voxel_offset,
            natural_chunk=axes.pick(store.chunk_layout.read_chunk.shape),
            kind_of_values=kind_of_values,
        )
        self._store = store[ts.d[:].translate_to[0]]
        self._axes = axes

    def _read(self, box: Bbox) -> NDArray[Any]:
        order = "F" if self._axes.x < self._axes.z else "C"
        try:
            stored = self._store[self._axes.index(box)].read(order=order).result()
        except _FAILURES as error:
            raise failure(f"{self.location}: box {box}", error) from error
        return self._axes.arrange(np.asarray(stored))
