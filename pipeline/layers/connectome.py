"""Synapses and edges as Parquet: files by the hash of a segment, by pre and by post."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingInputError
from pipeline.geometry import ChunkKey
from pipeline.kernels.partners import SynapseRows
from pipeline.kernels.sharding import ids_by_shard
from pipeline.layers import parquet
from pipeline.layers.folder import Folder, open_folder
from pipeline.layers.parquet import ParquetColumn, ParquetTable, Rows
from pipeline.specs import ConnectomeSpec, Record, Sharding, Table, VoxelSize

Direction: TypeAlias = Literal["pre", "post", "edges"]

DIRECTIONS: tuple[Direction, ...] = ("pre", "post", "edges")
"""Tables, by the level of the key of the task that writes them."""

_TYPE = "em_pipeline_connectome"
_AXES = "xyz"


def _places(name: str, what: str) -> list[ParquetColumn]:
    return [
        *(
            ParquetColumn(f"{name}_{a}", np.int64, "voxel", f"{a} of {what}", "keep")
            for a in _AXES
        ),
        *(
            ParquetColumn(f"{name}_{a}_nm", np.float64, "nm", f"{a} of {what}", "keep")
            for a in _AXES
        ),
    ]


def _side(side: str, word: str) -> list[ParquetColumn]:
    return [
        ParquetColumn(
            f"{side}_segment", np.uint64, "", f"{word} segment, 0 for none", "keep"
        ),
        ParquetColumn(
            f"{side}_supervoxel", np.uint64, "", f"supervoxel at the {word} site", "keep"
        ),
        ParquetColumn(
            f"{side}_score", np.float32, "", f"how sure the {word} cell is, 0 to 1", "keep"
        ),
        ParquetColumn(
            f"{side}_class", np.uint8, "", f"semantic class at the {word} site", "keep"
        ),
        *_places(side, f"the {word} site"),
    ]


SYNAPSES = ParquetTable(
    "synapses",
    "a synapse",
    (
        ParquetColumn("id", np.uint64, "", "its cleft, named by its first voxel", "keep"),
        ParquetColumn("size", np.uint64, "voxel", "voxels of the cleft", "keep"),
        ParquetColumn("clefts", np.uint32, "", "components that became one", "keep"),
        ParquetColumn("flags", np.uint32, "", "bits; see docs/synapses.md", "keep"),
        *_places("cleft", "the middle of the cleft"),
        *_side("pre", "presynaptic"),
        *_side("post", "postsynaptic"),
    ),
)

EDGES = ParquetTable(
    "edges",
    "a pair of segments",
    (
        ParquetColumn("pre_segment", np.uint64, "", "presynaptic segment", "keep"),
        ParquetColumn("post_segment", np.uint64, "", "postsynaptic segment", "keep"),
        ParquetColumn("synapses", np.uint32, "", "synapses from one to the other", "keep"),
        ParquetColumn("flagged", np.uint32, "", "how many of them have a flag", "keep"),
        ParquetColumn("size", np.uint64, "voxel", "voxels of all their clefts", "keep"),
    ),
)


def connectome_info(spec: ConnectomeSpec) -> dict[str, Any]:
    """Return the `info` of a connectome."""
    return {
        "@type": _TYPE,
        "voxel_size_nm": list(spec.voxel_size_nm),
        "sharding": spec.sharding.model_dump(),
        "tables": list(DIRECTIONS),
    }


def connectome_spec(info: Mapping[str, Any]) -> ConnectomeSpec | None:
    """Return what an `info` describes, None if it is not of a connectome."""
    if info.get("@type") != _TYPE:
        return None
    return ConnectomeSpec.model_validate(
        {k: info[k] for k in ("voxel_size_nm", "sharding")}
    )


def encode(
    target: Record, spec: ConnectomeSpec, table: Table
) -> Iterator[tuple[str, bytes | None]]:
    """Encode the rows of a file; the same rows give the same bytes.

    Parameters
    ----------
    target : Record
        Key ``<level>_<shard>_0_0``; levels are those of `DIRECTIONS`.
    spec : ConnectomeSpec
        The layer.
    table : Table
        Rows of synapses, or of edges.
    """
    key = ChunkKey.parse(target.key)
    direction = DIRECTIONS[key.level]
    if direction == "edges":
        kind, columns = EDGES, {**table, "size": table["sizes"]}
    else:
        kind = SYNAPSES
        columns = synapse_columns(SynapseRows.from_table(table), spec.voxel_size_nm)
    size = ",".join(f"{v:g}" for v in spec.voxel_size_nm)
    metadata = {"voxel_size_nm": size, "by": direction, "shard": str(key.x)}
    content = parquet.encode(kind, kind.rows(columns), scale=1, metadata=metadata)
    yield _path(direction, key.x), content


def synapse_columns(rows: SynapseRows, voxel_size_nm: VoxelSize) -> dict[str, NDArray[Any]]:
    """Return the columns of `SYNAPSES`.

    The middle of a cleft is exact in nm and rounded down in voxels; sites are the middles
    of their voxels.
    """
    size_nm = np.array(voxel_size_nm)
    middle = rows.sums / np.maximum(rows.sizes, 1)[:, None]
    places = {
        "cleft": (rows.centroids, (middle + 0.5) * size_nm),
        "pre": (rows.pre_site, (rows.pre_site + 0.5) * size_nm),
        "post": (rows.post_site, (rows.post_site + 0.5) * size_nm),
    }
    columns: dict[str, NDArray[Any]] = {
        "id": rows.ids,
        "size": rows.sizes,
        "clefts": rows.clefts,
        "flags": rows.flags,
    }
    for name, (voxel, nm) in places.items():
        for axis, letter in enumerate(_AXES):
            columns[f"{name}_{letter}"] = np.ascontiguousarray(voxel[:, axis])
            columns[f"{name}_{letter}_nm"] = np.ascontiguousarray(nm[:, axis])
    for side in ("pre", "post"):
        for what in ("segment", "supervoxel", "score", "class"):
            columns[f"{side}_{what}"] = getattr(rows, f"{side}_{what}")
    return columns


@dataclass(frozen=True)
class ConnectomeReader:
    """The tables of a connectome, file by file.

    Parameters
    ----------
    location : str
        Folder of the layer.
    folder : Folder
        The same, opened.
    spec : ConnectomeSpec
        What it holds.
    """

    location: str
    folder: Folder
    spec: ConnectomeSpec

    @classmethod
    def open(cls, location: str) -> ConnectomeReader:
        """Open the folder of a connectome.

        Raises
        ------
        MissingInputError
            If there is none.
        """
        folder = open_folder(location)
        content = folder.get("info")
        spec = None if content is None else connectome_spec(json.loads(content))
        if spec is None:
            raise MissingInputError(
                f"{location} holds no connectome; run a stage connectome, or name the "
                "folder of one"
            )
        return cls(location, folder, spec)

    @property
    def n_shards(self) -> int:
        """Files of each table."""
        return int(2**self.spec.sharding.shard_bits)

    def blocks(self, direction: Direction) -> Iterator[Rows]:
        """Yield the rows of a table, a file at a time.

        Raises
        ------
        MissingInputError
            If a file was not written.
        DataError
            If a file is of another run, or is damaged.
        """
        for shard in range(self.n_shards):
            yield self.rows(direction, shard)

    def rows(self, direction: Direction, shard: int) -> Rows:
        """Return the rows of one file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = _path(direction, shard)
        content = self.folder.get(path)
        if content is None:
            raise MissingInputError(
                f"{self.location}/{path} was never written; run stage connectome to the end"
            )
        try:
            metadata = pq.read_schema(io.BytesIO(content)).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.location}/{path} is no Parquet file "
                f"({' '.join(str(error).split())}); delete it and run stage connectome "
                "again"
            ) from error
        size = ",".join(f"{v:g}" for v in self.spec.voxel_size_nm)
        told = {k.decode(): v.decode() for k, v in metadata.items()}
        wanted = {"voxel_size_nm": size, "by": direction, "shard": str(shard)}
        for name, value in wanted.items():
            if told.get(name) != value:
                raise DataError(
                    f"{self.location}/{path} has {name} {told.get(name)}, not {value}: "
                    "tables of two runs are mixed; delete the folder and run stage "
                    "connectome again"
                )
        table = EDGES if direction == "edges" else SYNAPSES
        rows = parquet.decode(table, path, content)
        if direction != "edges":
            self._require_own(rows, direction, shard)
        return rows

    def of(self, segment: int, direction: Direction) -> Rows:
        """Return the synapses, or edges, whose pre (or post) is a segment.

        One file is read.
        """
        rows = self.rows(direction, shard_of(segment, self.spec.sharding))
        side = "post_segment" if direction == "post" else "pre_segment"
        return np.asarray(rows[rows[side] == np.uint64(segment)])

    def _require_own(self, rows: Rows, direction: Direction, shard: int) -> None:
        """Refuse rows of another sharding, and a synapse that is there twice."""
        ids = rows["id"]
        segments = rows[f"{direction}_segment"]
        keys = np.unique(np.where(segments == 0, ids, segments))
        sharding = self.spec.sharding
        found = ids_by_shard(
            keys, shard_bits=sharding.shard_bits, minishard_bits=sharding.minishard_bits
        )
        if set(found) - {shard} or len(np.unique(ids)) < len(ids):
            raise DataError(
                f"{self.location}/{_path(direction, shard)} has synapses of another shard "
                "or one twice: tables of two runs are mixed; delete the folder and run "
                "stage connectome again"
            )


def shard_of(segment: int, sharding: Sharding) -> int:
    """Return the shard that a segment's rows lie in."""
    (found,) = ids_by_shard(
        np.array([segment], np.uint64),
        shard_bits=sharding.shard_bits,
        minishard_bits=sharding.minishard_bits,
    )
    return found


def _path(direction: Direction, shard: int) -> str:
    return f"{direction}/{shard:06d}.parquet"
