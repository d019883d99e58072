"""What a layer holds, what a task reads of it, and the values that pass between them.

Stages describe their output with a spec, name what they read with a `Region` or a
`Record`, and return the values defined here. Layers read and write exactly these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.geometry import Bbox, Grid, Vec3

VoxelSize: TypeAlias = tuple[float, float, float]
"""Extent of a voxel along x, y, z [nm]."""

ImageEncoding = Literal["raw", "png", "jpeg", "fpzip", "zfpc"]
LabelEncoding = Literal["raw", "compressed_segmentation", "crackle", "compresso"]


_FLOATS = frozenset({"float32"})
_LABELS = frozenset({"uint32", "uint64"})
_MANY = range(1, 1024)
_ONE = range(1, 2)

HOLDS: Mapping[str, tuple[frozenset[str], range]] = {
    "raw": (
        _LABELS | _FLOATS | {"uint8", "uint16", "int8", "int16", "int32"},
        _MANY,
    ),
    "png": (frozenset({"uint8"}), _ONE),
    "jpeg": (frozenset({"uint8"}), _ONE),
    "fpzip": (_FLOATS, _MANY),
    "zfpc": (_FLOATS, _MANY),
    "compressed_segmentation": (_LABELS, _ONE),
    "crackle": (_LABELS, _ONE),
    "compresso": (_LABELS, _ONE),
}
"""Dtypes and numbers of channels that each encoding holds."""


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VolumeSpec(_Spec):
    """A Precomputed volume.

    Parameters
    ----------
    dtype : str
        Name of the numpy type, little endian.
    channels : int
        Values per voxel.
    bounds : Bbox
        Box of the layer at mip 0.
    voxel_size_nm : (x, y, z)
        Extent of a voxel at mip 0 [nm].
    kind_of_values : {"image", "segmentation"}
        Whether the values are intensities or ids.
    encoding : str
        How a storage chunk is compressed.
    storage_chunk : Vec3
        Extent of a storage chunk, the same at every mip.
    factors : tuple of Vec3
        Extent of a voxel of each mip in voxels of mip 0; the first is (1, 1, 1).
    shard : Vec3 or None
        Extent of the region that one shard file holds, or None for a file per
        storage chunk.
    """

    kind: Literal["volume"] = "volume"
    dtype: str
    channels: int = 1
    bounds: Bbox
    voxel_size_nm: VoxelSize
    kind_of_values: Literal["image", "segmentation"]
    encoding: ImageEncoding | LabelEncoding = "raw"
    storage_chunk: Vec3 = Vec3(64, 64, 64)
    factors: tuple[Vec3, ...] = (Vec3(1, 1, 1),)
    shard: Vec3 | None = None

    def bounds_at(self, mip: int) -> Bbox:
        """Return the bounds in voxels of a mip, rounded outward."""
        return self.bounds.coarser(self.factors[mip])

    def voxel_size_at(self, mip: int) -> VoxelSize:
        """Return the extent of a voxel of a mip [nm]."""
        x, y, z = (
            s * f for s, f in zip(self.voxel_size_nm, self.factors[mip], strict=True)
        )
        return x, y, z

    @property
    def itemsize(self) -> int:
        """Bytes of a voxel, all channels."""
        return int(np.dtype(self.dtype).itemsize) * self.channels


class RecordsSpec(_Spec):
    """Tables, one for each key of a grid."""

    kind: Literal["records"] = "records"


class Sharding(_Spec):
    """How ids are spread over files: murmurhash3 of the id, low bits first.

    The format is Neuroglancer's ``neuroglancer_uint64_sharded_v1``.
    """

    shard_bits: int = Field(default=0, ge=0, le=24)
    minishard_bits: int = Field(default=4, ge=0, le=24)


class MeshesSpec(_Spec):
    """Surface meshes of segments, in a folder of their segmentation.

    Parameters
    ----------
    form : {"multiresolution", "legacy"}
        Draco at several levels of detail, or one mesh with a manifest.
    voxel_size_nm : (x, y, z)
        Voxel that the vertices were computed at [nm].
    sharding : Sharding or None
        None writes files per segment.
    """

    kind: Literal["meshes"] = "meshes"
    form: Literal["multiresolution", "legacy"]
    voxel_size_nm: VoxelSize
    sharding: Sharding | None


class SkeletonsSpec(_Spec):
    """Skeletons of segments, in a folder of their segmentation; vertices in nm."""

    kind: Literal["skeletons"] = "skeletons"
    sharding: Sharding | None


class ConnectomeSpec(_Spec):
    """Synapses as Parquet, by pre and by post, and the edges between segments.

    Parameters
    ----------
    voxel_size_nm : (x, y, z)
        Extent of the voxels that sites are in [nm].
    sharding : Sharding
        How rows are spread over files, by the hash of their segment.
    """

    kind: Literal["connectome"] = "connectome"
    voxel_size_nm: VoxelSize
    sharding: Sharding


class AnnotationsSpec(_Spec):
    """Synapses as lines that Neuroglancer opens: a Precomputed annotation layer.

    Parameters
    ----------
    bounds : Bbox
        Where sites lie.
    voxel_size_nm : (x, y, z)
        Extent of the voxels that sites are in [nm].
    chunk : Vec3
        Cell of the finest level of the spatial index [voxel]; cells of each level above
        are twice as wide.
    height : int
        Levels above the finest.
    limit : int
        Lines that a cell above the finest shows at most.
    sharding : Sharding
        How lines are spread over files by their id, and by their segments.
    """

    kind: Literal["annotations"] = "annotations"
    bounds: Bbox
    voxel_size_nm: VoxelSize
    chunk: Vec3
    height: int = Field(ge=0)
    limit: int = Field(ge=1)
    sharding: Sharding


LayerSpec = Annotated[
    VolumeSpec
    | RecordsSpec
    | MeshesSpec
    | SkeletonsSpec
    | ConnectomeSpec
    | AnnotationsSpec,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a volume, in voxels of a mip."""

    layer: str
    box: Bbox
    mip: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """The table of one key; with ``part``, only that part of a partitioned table."""

    layer: str
    key: str
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """The tables of a box of keys, x fastest; none of the keys is held.

    Parameters
    ----------
    layer : str
        Records.
    level : int
        Of all the keys.
    positions : Bbox
        Their positions in the grid of that level.
    part : str or None
        Only that part of each.
    """

    layer: str
    level: int
    positions: Bbox
    part: str | None = None

    def __len__(self) -> int:
        return self.positions.volume

    def __iter__(self) -> Iterator[Record]:
        for x, y, z in self.positions.positions():
            yield Record(self.layer, f"{self.level}_{x}_{y}_{z}", self.part)


Read: TypeAlias = Region | Record | Records | list[Record]

Table: TypeAlias = dict[str, NDArray[Any]]
"""Named columns. Columns need not be of one length."""


@dataclass(frozen=True)
class Partitioned:
    """Tables kept together in one record, each of which can be read alone.

    Reading a part that was not written gives an empty dict.
    """

    parts: Mapping[str, Table]


@dataclass(frozen=True)
class Mesh:
    """Triangles around a segment.

    Parameters
    ----------
    vertices : float32 array, (n, 3)
        x, y, z [nm].
    faces : uint32 array, (m, 3)
        Rows of ``vertices``, counter-clockwise from outside.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.uint32]


@dataclass(frozen=True)
class Skeleton:
    """Centreline of a segment.

    Parameters
    ----------
    vertices : float32 array, (n, 3)
        x, y, z [nm].
    edges : uint32 array, (m, 2)
        Rows of ``vertices``.
    radius : float32 array, (n,)
        Distance to the surface [nm].
    """

    vertices: NDArray[np.float32]
    edges: NDArray[np.uint32]
    radius: NDArray[np.float32]


@dataclass(frozen=True)
class Meshes:
    """Surface meshes by segment id; each a list of levels of detail, finest first."""

    by_id: Mapping[int, list[Mesh]] = field(default_factory=dict)


@dataclass(frozen=True)
class Skeletons:
    """Skeletons by segment id."""

    by_id: Mapping[int, Skeleton] = field(default_factory=dict)


Value: TypeAlias = NDArray[Any] | Table | Partitioned | Meshes | Skeletons
"""What a task returns."""


def grid_of(spec: VolumeSpec, mip: int = 0) -> Grid:
    """Return the grid of storage chunks of a volume at a mip."""
    return Grid(spec.bounds_at(mip), spec.storage_chunk)
