"""The folder of a run: its layers, records and documents, wherever it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from pipeline.errors import (
    DataError,
    MissingInputError,
    RootError,
    SourceError,
    StaleOutputError,
)
from pipeline.layers import (
    connectome,
    meshes,
    records,
    sharding,
    skeletons,
    synapse_lines,
    volumes,
)
from pipeline.layers.folder import (
    checksum,
    normalize,
    open_folder,
)
from pipeline.specs import (
    AnnotationsSpec,
    ConnectomeSpec,
    LayerSpec,
    Mesh,
    Meshes,
    MeshesSpec,
    Partitioned,
    Read,
    Record,
    RecordsSpec,
    Region,
    Skeleton,
    Skeletons,
    SkeletonsSpec,
    Table,
    Value,
    VolumeSpec,
)

_RECORDS_INFO = {"@type": "em_pipeline_records"}
_BATCH = 64
"""Objects that are encoded before they are sent together."""

_IN_PARENT = {"mesh": MeshesSpec, "skeletons": SkeletonsSpec}


class Store:
    """Folder of a run, on a file path, ``gs://``, ``s3://`` and, to read, ``https://``.

    A store is cheap to make and to send to another process: nothing is opened before it
    is used, and what was opened stays behind.

    Parameters
    ----------
    root : str
        Folder of the run. It need not exist yet.
    layers : mapping of str to str
        Layers that lie elsewhere, by name: a Precomputed layer or a source such as
        ``block.h5:raw``. They are only read.
    """

    def __init__(self, root: str, layers: Mapping[str, str] = {}) -> None:
        self.root = normalize(root)
        self.layers = dict(layers)
        self._folder = open_folder(self.root)
        self._opened: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[str, dict[str, str]]]:
        return type(self), (self.root, self.layers)

    # Layers

    def location(self, layer: str) -> str:
        """Return the cloud path of a layer, be it in the root or elsewhere."""
        if layer in self.layers:
            return normalize(self.layers[layer])
        return f"{self.root}/{layer}"

    def create(
        self, layer: str, spec: LayerSpec, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Write what describes a layer; doing so twice is harmless.

        A volume that is there with the same finest mip gets the coarser ones of the
        spec. Meshes and skeletons in a folder of a volume are made known in its `info`. A
        provenance that is already there is kept.

        Raises
        ------
        StaleOutputError
            If a layer of another description is there.
        RootError
            If the layer lies outside the root or cannot be written.
        DataError, GeometryError
            If the format cannot hold the layer.
        """
        self._check_own(layer)
        info = _info(layer, spec)
        present = self.get_json(f"{layer}/info")
        if present is None:
            self.put_json(f"{layer}/info", info)
            self._opened.pop(layer, None)
        elif _has_other_mips(present, info):
            linked = {k: v for k, v in present.items() if k in _IN_PARENT}
            self.put_json(f"{layer}/info", {**info, **linked})
            self._opened.pop(layer, None)
        else:
            differing = _differing(present, info)
            if differing:
                raise StaleOutputError(
                    f"{layer}: {self.location(layer)} holds a layer of another "
                    f"configuration, {'; '.join(differing)}; delete it or choose "
                    "another root"
                )
        if provenance is not None and self.get_json(f"{layer}/provenance") is None:
            self.put_json(f"{layer}/provenance", dict(provenance))
        self._link(layer, spec)

    def _link(self, layer: str, spec: LayerSpec) -> None:
        parent, _, name = layer.rpartition("/")
        if not parent:
            return
        for field, kind in _IN_PARENT.items():
            if isinstance(spec, kind):
                info = self.get_json(f"{parent}/info")
                if info is not None and "scales" in info and info.get(field) != name:
                    self.put_json(f"{parent}/info", {**info, field: name})

    def describe(self, layer: str) -> LayerSpec:
        """Return what a layer holds, from what is there.

        Raises
        ------
        MissingInputError
            If nothing is there.
        SourceError
            If it is nothing that can be read.
        """
        info = self._info_of(layer)
        if info is None:
            if layer in self.layers:
                spec: LayerSpec = self._source(layer).spec
                return spec
            raise MissingInputError(
                f"{layer}: there is no layer at {self.location(layer)}; run the stage that "
                "writes it, or name its place under [layers]"
            )
        if "scales" in info:
            return volumes.volume_spec(info, self.location(layer))
        if info == _RECORDS_INFO:
            return RecordsSpec()
        found = (
            meshes.meshes_spec(info)
            or skeletons.skeletons_spec(info)
            or connectome.connectome_spec(info)
            or synapse_lines.annotations_spec(info)
        )
        if found is None:
            raise SourceError(
                f"{layer}: the info at {self.location(layer)} describes neither a volume "
                "nor records, meshes, skeletons or synapses; name another place"
            )
        return found

    def is_precomputed(self, layer: str) -> bool:
        """Whether a layer is a Precomputed volume, and not a source of another format."""
        info = self._info_of(layer)
        return info is not None and "scales" in info

    def delete(self, layer: str) -> None:
        """Delete a layer of the run, and its mention in the `info` of its volume.

        Raises
        ------
        RootError
            If the layer lies outside the root.
        """
        self._check_own(layer)
        self._opened.pop(layer, None)
        self._folder.delete_folder(layer)
        parent, _, name = layer.rpartition("/")
        info = self.get_json(f"{parent}/info") if parent else None
        if info is not None:
            kept = {k: v for k, v in info.items() if k not in _IN_PARENT or v != name}
            if kept != info:
                self.put_json(f"{parent}/info", kept)

    # Data

    def read(self, read: Read) -> Any:
        """Read a box, a record or a list of records; arrays are read-only.

        Returns
        -------
        array, (x, y, z) or (x, y, z, channel)
            For a `Region`, in Fortran order; what was never written is 0.
        Table or Partitioned
            For a `Record`, as it was written; with a part, the `Table` of that part.
        list
            For a list of records.

        Raises
        ------
        MissingInputError
            If the layer or the record was never written.
        GeometryError
            If the box leaves the bounds.
        DataError
            If what is there is damaged.
        """
        try:
            return self._read(read)
        except DataError:
            # Of a cloud, it may have been damaged on the way: the second time it is not.
            if self._folder.is_local:
                raise
            return self._read(read)

    def _read(self, read: Read) -> Any:
        if isinstance(read, Region):
            return self._read_region(read)
        if isinstance(read, Record):
            return self._read_record(read)
        return self._folder.map(self._read_record, read)

    def write(
        self, target: Region | Record, spec: LayerSpec, value: Value
    ) -> dict[str, str]:
        """Write the output of a task, whole; doing so twice gives the same bytes.

        Storage chunks that are all zero are not stored, and deleted where they were.

        Parameters
        ----------
        target : Region or Record
            Whole storage chunks, one whole shard, or the key of a record. A key
            ``0_<n>_0_0`` of sharded meshes or skeletons is their shard n.
        spec : LayerSpec
            The layer, as it was created.
        value : array, Table, Partitioned, Meshes or Skeletons
            As the layer holds it.

        Returns
        -------
        dict of str to str
            Checksum of each object that was written, by its path in the layer.

        Raises
        ------
        DataError
            If the value is not what the layer holds.
        GeometryError
            If the box does not fit the storage chunks or shards.
        RootError, StorageUnavailableError
            If it cannot be written, for good or for now.
        """
        self._check_own(target.layer)
        written: dict[str, str] = {}
        blank: list[str] = []

        def put(item: tuple[str, bytes | None]) -> None:
            path, content = item
            if content is None:
                blank.append(f"{target.layer}/{path}")
            else:
                self._folder.put(f"{target.layer}/{path}", content, gzip=_is_gzipped(spec))
                written[path] = checksum(content)

        objects = _encoded(target, spec, value)
        while batch := list(islice(objects, _BATCH)):
            self._folder.map(put, batch)
        self._folder.delete(blank)
        return dict(sorted(written.items()))

    def check(
        self, layer: str, objects: Mapping[str, str], *, contents: bool = True
    ) -> list[str]:
        """List the objects of a layer that are not as they were written.

        Parameters
        ----------
        layer : str
            The layer.
        objects : mapping of str to str
            Checksums by path, as `write` returned them.
        contents : bool
            Whether to read the objects, or only to see that they are there.
        """

        def fault(path: str) -> str | None:
            name = f"{layer}/{path}"
            if not contents:
                return None if self._folder.exists(name) else f"{name} is missing"
            try:
                content = self._folder.get(name)
            except DataError:
                return f"{name} is damaged: it does not decompress"
            if content is None:
                return f"{name} is missing"
            found = checksum(content)
            if found != objects[path]:
                return f"{name} is damaged: {found} instead of {objects[path]}"
            return None

        return [f for f in self._folder.map(fault, sorted(objects)) if f is not None]

    def read_mesh(self, layer: str, segment: int) -> Mesh:
        """Read the surface mesh of a segment, the finest level of detail.

        Raises
        ------
        MissingInputError
            If the segment has none.
        """
        return meshes.read(self.location(layer), segment)

    def read_skeleton(self, layer: str, segment: int) -> Skeleton:
        """Read the skeleton of a segment.

        Raises
        ------
        MissingInputError
            If the segment has none.
        """
        return skeletons.read(self.location(layer), segment)

    def segments(self, layer: str) -> list[int]:
        """List the segments that have a mesh or a skeleton in a layer."""
        return sharding.segments(self.location(layer))

    # Documents

    def put_json(self, path: str, document: Any) -> None:
        """Write a small document under the root."""
        self.put_text(path, json.dumps(document, indent=2, sort_keys=True) + "\n")

    def get_json(self, path: str) -> Any | None:
        """Read a small document; None where there is none, or where it is torn."""
        content = self._folder.get(path)
        try:
            return None if content is None else json.loads(content)
        except ValueError:
            return None

    def put_text(self, path: str, text: str) -> None:
        """Write a text under the root."""
        self._folder.put(path, text.encode())

    def put_bytes(self, path: str, content: bytes) -> None:
        """Write a small file under the root."""
        self._folder.put(path, content)

    def get_text(self, path: str) -> str | None:
        """Read a text; None where there is none."""
        content = self._folder.get(path)
        return None if content is None else content.decode(errors="replace")

    def delete_document(self, path: str) -> None:
        """Delete a document, if it is there."""
        self._folder.delete([path])

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the paths under the root that begin with a prefix, in order."""
        return self._folder.paths(prefix)

    # Parts

    def _check_own(self, layer: str) -> None:
        if layer in self.layers:
            raise RootError(
                f"{layer}: it lies at {self.layers[layer]}, outside the root, and is only "
                "read; write another layer or remove it from [layers]"
            )

    def _info_of(self, layer: str) -> dict[str, Any] | None:
        if layer not in self.layers:
            content = self._folder.get(f"{layer}/info")
        elif self.layers[layer].startswith("phantom://"):
            content = None
        else:
            content = open_folder(self.location(layer)).get("info")
        try:
            info = None if content is None else json.loads(content)
        except ValueError:
            info = None
        return info if isinstance(info, dict) else None

    def _source(self, layer: str) -> Any:
        from pipeline.layers.sources import open_source

        if layer not in self._opened:
            self._opened[layer] = open_source(self.layers[layer])
        return self._opened[layer]

    def _volume(self, layer: str) -> Any:
        if layer not in self._opened:
            info = self._info_of(layer)
            if info is None and layer in self.layers:
                return self._source(layer)
            if info is None or "scales" not in info:
                raise MissingInputError(
                    f"{layer}: there is no volume at {self.location(layer)}; run the stage "
                    "that writes it, or name its place under [layers]"
                )
            self._opened[layer] = volumes.Volume(self.location(layer), info)
        return self._opened[layer]

    def _read_region(self, region: Region) -> Any:
        volume = self._volume(region.layer)
        if isinstance(volume, volumes.Volume):
            array = volume.read(region)
        else:
            spec = volume.spec
            volumes.check_inside(
                region, [spec.bounds_at(mip) for mip in range(len(spec.factors))]
            )
            array = np.asfortranarray(volume.read(region.box))
        array.setflags(write=False)
        return array

    def _read_record(self, record: Record) -> Table | Partitioned:
        folder, path = self._folder, f"{record.layer}/{record.key}"
        if record.layer in self.layers:
            folder, path = open_folder(self.location(record.layer)), record.key

        def fetch(start: int, stop: int | None) -> bytes | None:
            return folder.get(path, start or None, stop)

        table = records.decode(f"{record.layer}/{record.key}", fetch, record.part)
        if table is None:
            raise MissingInputError(
                f"{record.layer}: record {record.key} was never written at "
                f"{self.location(record.layer)}; run the stage that writes it to "
                "the end first"
            )
        return table


def _info(layer: str, spec: LayerSpec) -> dict[str, Any]:
    if isinstance(spec, VolumeSpec):
        return volumes.volume_info(layer, spec)
    if isinstance(spec, MeshesSpec):
        return meshes.meshes_info(layer, spec)
    if isinstance(spec, SkeletonsSpec):
        return skeletons.skeletons_info(spec)
    if isinstance(spec, ConnectomeSpec):
        return connectome.connectome_info(spec)
    if isinstance(spec, AnnotationsSpec):
        return synapse_lines.annotations_info(spec)
    return _RECORDS_INFO


def _encoded(
    target: Region | Record, spec: LayerSpec, value: Value
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the objects of a value by their path in the layer; None where it is blank."""
    if isinstance(target, Region):
        if isinstance(spec, VolumeSpec) and isinstance(value, np.ndarray):
            return volumes.encode(spec, target, value)
    elif isinstance(spec, RecordsSpec) and isinstance(value, dict | Partitioned):
        name = f"{target.layer}/{target.key}"
        return iter([(target.key, records.encode(name, value))])
    elif isinstance(spec, MeshesSpec) and isinstance(value, Meshes):
        return meshes.encode(target, spec, value)
    elif isinstance(spec, SkeletonsSpec) and isinstance(value, Skeletons):
        return skeletons.encode(target, spec, value)
    elif isinstance(spec, ConnectomeSpec) and isinstance(value, dict):
        return connectome.encode(target, spec, value)
    elif isinstance(spec, AnnotationsSpec) and isinstance(value, dict):
        return synapse_lines.encode(target, spec, value)
    raise DataError(
        f"{target.layer}: a layer of {spec.kind} does not hold {type(value).__name__} at a "
        f"{type(target).__name__.lower()}; mend the stage that returned it"
    )


def _is_gzipped(spec: LayerSpec) -> bool:
    return (
        isinstance(spec, VolumeSpec)
        and spec.shard is None
        and spec.encoding in volumes.GZIPPED
    )


def _has_other_mips(present: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether two volumes differ in nothing but how many coarser mips they have."""
    if (
        not isinstance(present, dict)
        or not present.get("scales")
        or not wanted.get("scales")
    ):
        return False
    finest = {**wanted, "scales": wanted["scales"][:1]}
    return present["scales"] != wanted["scales"] and not _differing(
        {**present, "scales": present["scales"][:1]}, finest
    )


def _differing(present: Any, wanted: Mapping[str, Any]) -> list[str]:
    """Say which fields of an `info` are not as wanted, naming both values."""
    if not isinstance(present, dict):
        return ["its info is not an object"]
    found: list[str] = []
    present = {k: v for k, v in present.items() if k not in _IN_PARENT}
    for field in sorted({*present, *wanted}):
        there, here = present.get(field), wanted.get(field)
        if there == here:
            continue
        if field == "scales" and there and here and len(there) == len(here):
            for mip, (old, new) in enumerate(zip(there, here, strict=True)):
                found.extend(
                    f"{key} of mip {mip} {old.get(key)} instead of {new.get(key)}"
                    for key in sorted({*old, *new})
                    if old.get(key) != new.get(key)
                )
        elif field == "scales":
            found.append(f"{len(there or ())} scales instead of {len(here or ())}")
        else:
            found.append(f"{field} {there} instead of {here}")
    return found
