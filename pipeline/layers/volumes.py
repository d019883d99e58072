"""Precomputed volumes: their `info`, and arrays as storage chunks or shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, GeometryError, PipelineError, SourceError
from pipeline.geometry import Bbox, ChunkKey, Grid, Vec3
from pipeline.layers.clouds import persistently
from pipeline.layers.folder import storage_errors
from pipeline.specs import (
    HOLDS,
    ImageEncoding,
    LabelEncoding,
    Region,
    VolumeSpec,
    VoxelSize,
    grid_of,
)

CSEG_BLOCK = (8, 8, 8)
"""Block of the compressed_segmentation encoding [voxel]."""

GZIPPED = {"raw", "compressed_segmentation"}
"""Encodings that do not compress enough by themselves."""

_MINISHARD_CHUNKS = 9
"""Bits of storage chunks within a minishard: an index of 12 kB at most."""


def check_spec(layer: str, spec: VolumeSpec) -> None:
    """Refuse a volume that the format cannot hold.

    Raises
    ------
    DataError
        If the encoding does not take the dtype or the channels.
    GeometryError
        If the storage chunks, the mips or the shards cannot be.
    """
    dtypes, channels = HOLDS[spec.encoding]
    if spec.dtype not in dtypes or spec.channels not in channels:
        fitting = [
            e for e, (d, c) in HOLDS.items() if spec.dtype in d and spec.channels in c
        ]
        raise DataError(
            f"{layer}: encoding {spec.encoding} does not hold {spec.dtype} with "
            f"{spec.channels} channels; "
            + (f"use {' or '.join(fitting)}" if fitting else "choose another dtype")
        )
    if spec.factors[:1] != (Vec3(1, 1, 1),):
        raise GeometryError(
            f"{layer}: the first of the factors is not (1, 1, 1); begin with it"
        )
    if len(set(spec.factors)) != len(spec.factors) or min(min(f) for f in spec.factors) < 1:
        raise GeometryError(
            f"{layer}: factors {[str(f) for f in spec.factors]} are not distinct and "
            "positive; give each mip its own"
        )
    for mip in range(len(spec.factors)):
        grid_of(spec, mip)
        if spec.shard is not None:
            _shard_bits(layer, spec, mip)


def volume_info(layer: str, spec: VolumeSpec) -> dict[str, Any]:
    """Return the `info` of a volume.

    Raises
    ------
    DataError, GeometryError
        If the format cannot hold it.
    """
    check_spec(layer, spec)
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": spec.kind_of_values,
        "data_type": spec.dtype,
        "num_channels": spec.channels,
        "scales": [_scale(layer, spec, mip) for mip in range(len(spec.factors))],
    }


def _scale(layer: str, spec: VolumeSpec, mip: int) -> dict[str, Any]:
    bounds = spec.bounds_at(mip)
    scale: dict[str, Any] = {
        "key": scale_key(spec, mip),
        "resolution": [_number(v) for v in spec.voxel_size_at(mip)],
        "voxel_offset": list(bounds.start),
        "size": list(bounds.shape),
        "chunk_sizes": [list(spec.storage_chunk)],
        "encoding": spec.encoding,
    }
    if spec.encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = list(CSEG_BLOCK)
    if spec.shard is not None:
        scale["sharding"] = _sharding(layer, spec, mip)
    return scale


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def scale_key(spec: VolumeSpec, mip: int) -> str:
    """Return the folder of a mip, its voxel size."""
    return "_".join(str(_number(v)) for v in spec.voxel_size_at(mip))


def volume_spec(info: Mapping[str, Any], location: str) -> VolumeSpec:
    """Return what an `info` describes.

    Mips whose voxel is no whole multiple of that of mip 0 are left out, and all after
    them. A shard that the grid does not fill is given as far as it is filled.

    Raises
    ------
    SourceError
        If it describes no volume, or one that this project does not read.
    """
    try:
        scales = info["scales"]
        first = scales[0]
        voxel_size: VoxelSize = tuple(float(v) for v in first["resolution"])  # type: ignore[assignment]
        encoding, chunk = first["encoding"], Vec3.of(first["chunk_sizes"][0])
        offset = Vec3.of(first.get("voxel_offset", (0, 0, 0)))
        bounds = Bbox.of_shape(first["size"], offset)
        dtype, channels = str(info["data_type"]).lower(), int(info["num_channels"])
        kind = info["type"]
        factors = _factors(voxel_size, scales)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SourceError(
            f"{location}: its info describes no Precomputed volume ({error!r}); mend or "
            "replace it"
        ) from error
    if encoding in ("png", "jpeg") and channels > 1:
        raise SourceError(
            f"{location}: encoding {encoding} with {channels} channels is not read; "
            "convert it to raw"
        )
    known = {*get_args(ImageEncoding), *get_args(LabelEncoding)}
    if encoding not in known or kind not in ("image", "segmentation"):
        raise SourceError(
            f"{location}: a volume of type {kind} with encoding {encoding}; only types "
            f"image and segmentation with {', '.join(sorted(known))} are read"
        )
    return VolumeSpec(
        dtype=dtype,
        channels=channels,
        bounds=bounds,
        voxel_size_nm=voxel_size,
        kind_of_values=kind,
        encoding=encoding,
        storage_chunk=chunk,
        factors=factors,
        shard=_shard_of(first.get("sharding"), Grid(bounds, chunk)),
    )


def _factors(
    voxel_size: VoxelSize, scales: Sequence[Mapping[str, Any]]
) -> tuple[Vec3, ...]:
    factors = []
    for scale in scales:
        ratios = np.asarray(scale["resolution"], dtype=float) / np.asarray(voxel_size)
        whole = np.rint(ratios)
        if (abs(ratios - whole) > 1e-6 * whole).any():
            break
        factors.append(Vec3(*(int(f) for f in whole)))
    return tuple(factors)


def bounds_of(info: Mapping[str, Any], mip: int) -> Bbox:
    """Return the bounds that an `info` gives for a mip."""
    scale = info["scales"][mip]
    return Bbox.of_shape(scale["size"], Vec3.of(scale.get("voxel_offset", (0, 0, 0))))


def _interleaved(counts: Vec3) -> Iterator[int]:
    """Yield the axis of each bit of a grid's compressed Morton code, low bits first."""
    bits = [(n - 1).bit_length() for n in counts]
    for bit in range(max(bits)):
        for axis in range(3):
            if bit < bits[axis]:
                yield axis


def _shard_bits(layer: str, spec: VolumeSpec, mip: int) -> tuple[int, int]:
    """Return the bits of the Morton code within a shard, and of the code altogether.

    A shard holds a run of the code, so its shape follows from a number of bits.
    """
    shard = spec.shard or spec.storage_chunk
    counts = grid_of(spec, mip).counts()
    per_axis = shard // spec.storage_chunk
    if shard % spec.storage_chunk != Vec3(0, 0, 0) or any(
        n < 1 or n & (n - 1) for n in per_axis
    ):
        raise GeometryError(
            f"{layer}: shard {shard} is not storage chunks of {spec.storage_chunk} times "
            "powers of two; choose such a shard"
        )
    wanted = [
        min(n.bit_length() - 1, (c - 1).bit_length())
        for n, c in zip(per_axis, counts, strict=True)
    ]
    axes = list(_interleaved(counts))
    within = sum(wanted)
    taken = [axes[:within].count(axis) for axis in range(3)]
    if taken != wanted:
        shape = spec.storage_chunk * Vec3(*(2**t for t in taken))
        raise GeometryError(
            f"{layer}: shard {shard} at mip {mip} is no run of the Morton code over "
            f"{counts} storage chunks of {spec.storage_chunk}; use shards of {shape}"
        )
    return within, len(axes)


def _sharding(layer: str, spec: VolumeSpec, mip: int) -> dict[str, Any]:
    within, total = _shard_bits(layer, spec, mip)
    preshift = min(within, _MINISHARD_CHUNKS)
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": preshift,
        "hash": "identity",
        "minishard_bits": within - preshift,
        "shard_bits": total - within,
        "minishard_index_encoding": "gzip",
        "data_encoding": "gzip" if spec.encoding in GZIPPED else "raw",
    }


def _shard_of(sharding: Mapping[str, Any] | None, grid: Grid) -> Vec3 | None:
    if sharding is None or sharding["hash"] != "identity":
        return None
    within = int(sharding["preshift_bits"]) + int(sharding["minishard_bits"])
    axes = list(_interleaved(grid.counts()))[:within]
    return grid.chunk * Vec3(*(2 ** axes.count(axis) for axis in range(3)))


def encode(
    spec: VolumeSpec, region: Region, array: NDArray[Any]
) -> Iterator[tuple[str, bytes | None]]:
    """Encode a box as the objects that hold it.

    Parameters
    ----------
    spec : VolumeSpec
        The layer.
    region : Region
        Whole storage chunks or, in a sharded layer, one whole shard.
    array : array, (x, y, z) or (x, y, z, channel)
        Values of the box.

    Yields
    ------
    path : str
        Object, relative to the layer.
    content : bytes or None
        What it holds; None where all is zero, and nothing is stored.

    Raises
    ------
    DataError
        If the array has another dtype or shape.
    GeometryError
        If the box does not cover its storage chunks, or its shard, exactly.
    """
    _check_array(spec, region, array)
    if spec.shard is not None:
        yield _encode_shard(spec, region, array)
        return
    folder = scale_key(spec, region.mip)
    for _, box, chunk in _storage_chunks(spec, region, array):
        ranges = (f"{a}-{b}" for a, b in zip(box.start, box.stop, strict=True))
        path = f"{folder}/{'_'.join(ranges)}"
        yield path, _encode_chunk(spec, chunk) if chunk.any() else None


def _check_array(spec: VolumeSpec, region: Region, array: NDArray[Any]) -> None:
    shape = region.box.shape.astuple()
    expected = shape if spec.channels == 1 else (*shape, spec.channels)
    if array.shape != expected:
        raise DataError(
            f"{region.layer}: the values for box {region.box} have shape {array.shape}, "
            f"not {expected}; mend the stage that returned them"
        )
    if array.dtype != np.dtype(spec.dtype):
        raise DataError(
            f"{region.layer}: the values for box {region.box} are {array.dtype}, but the "
            f"layer holds {spec.dtype}; mend the stage that returned them"
        )
    if not 0 <= region.mip < len(spec.factors):
        raise GeometryError(
            f"{region.layer}: there is no mip {region.mip}; it has {len(spec.factors)}"
        )
    bounds = spec.bounds_at(region.mip)
    unit = spec.storage_chunk
    box = region.box
    aligned = bounds.contains(box) and all(
        (a - o) % u == 0 and ((b - o) % u == 0 or b == end)
        for a, b, o, end, u in zip(
            box.start, box.stop, bounds.start, bounds.stop, unit, strict=True
        )
    )
    if not aligned or box.is_empty:
        raise GeometryError(
            f"{region.layer}: box {box} at mip {region.mip} does not cover whole storage "
            f"chunks of {unit} within bounds {bounds}; choose a chunk that is a multiple"
        )


def _storage_chunks(
    spec: VolumeSpec, region: Region, array: NDArray[Any]
) -> Iterator[tuple[ChunkKey, Bbox, NDArray[Any]]]:
    grid = grid_of(spec, region.mip)
    for key in grid.touching(region.box):
        box = grid.box(key)
        chunk = array[box.slices(region.box.start)]
        yield key, box, chunk


def _encode_chunk(spec: VolumeSpec, chunk: NDArray[Any]) -> bytes:
    from cloudvolume import chunks

    values = np.array(chunk.reshape((*chunk.shape[:3], spec.channels)), order="F")
    return bytes(chunks.encode(values, spec.encoding, block_size=CSEG_BLOCK))


def _encode_shard(
    spec: VolumeSpec, region: Region, array: NDArray[Any]
) -> tuple[str, bytes | None]:
    from cloudvolume.datasource.precomputed.common import compressed_morton_code
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    bounds = spec.bounds_at(region.mip)
    shards = Grid(bounds, spec.shard or spec.storage_chunk)
    key = next(shards.touching(region.box))
    if shards.box(key) != region.box:
        raise GeometryError(
            f"{region.layer}: box {region.box} at mip {region.mip} is not one shard of "
            f"{spec.shard} within bounds {bounds}; choose the shard as the chunk"
        )
    sharding = ShardingSpecification.from_dict(_sharding(region.layer, spec, region.mip))
    counts = np.array(grid_of(spec, region.mip).counts().astuple())
    corner = (region.box.start - bounds.start) // spec.storage_chunk
    code = int(compressed_morton_code(corner.astuple(), counts))
    number = sharding.compute_shard_location(code).shard_number
    path = f"{scale_key(spec, region.mip)}/{number}.shard"
    encoded = {
        int(compressed_morton_code(k.position.astuple(), counts)): _encode_chunk(
            spec, chunk
        )
        for k, _, chunk in _storage_chunks(spec, region, array)
        if chunk.any()
    }
    if not encoded:
        return path, None
    return path, bytes(sharding.synthesize_shard(dict(sorted(encoded.items()))))


class Volume:
    """A Precomputed volume that is open for reading.

    Parameters
    ----------
    location : str
        Its cloud path.
    info : mapping
        Its `info`.

    Raises
    ------
    SourceError
        If it is of a kind that is not read.
    """

    def __init__(self, location: str, info: Mapping[str, Any]) -> None:
        volume_spec(info, location)
        self._location = location
        self._info = info
        self._bounds = [bounds_of(info, mip) for mip in range(len(info["scales"]))]
        self._mips: dict[int, Any] = {}

    def _at(self, mip: int) -> Any:
        from cloudvolume import CloudVolume

        if mip not in self._mips:
            with storage_errors(self._location):
                self._mips[mip] = CloudVolume(
                    self._location,
                    mip=mip,
                    progress=False,
                    fill_missing=True,
                    cache=False,
                    info=dict(self._info),
                    provenance={},
                )
        return self._mips[mip]

    def read(self, region: Region) -> NDArray[Any]:
        """Read a box; what is not stored is 0.

        Returns
        -------
        array, (x, y, z) or (x, y, z, channel)
            Fortran order.

        Raises
        ------
        GeometryError
            If the box leaves the bounds, or the mip is not there.
        DataError
            If a storage chunk or a shard is damaged.
        """
        check_inside(region, self._bounds)
        shape = region.box.shape.astuple()
        channels = int(self._info["num_channels"])
        if region.box.is_empty:
            array = np.zeros((*shape, channels), self._info["data_type"], order="F")
        elif region.box.volume == 1:
            # CloudVolume has a way of its own to read one voxel, which mixes up channels.
            wider = self._widened(region)
            core = region.box.slices(wider.box.start)
            array = np.asfortranarray(self._download(wider)[core])
        else:
            array = np.asarray(self._download(region))
        return array[..., 0] if channels == 1 else array

    def _widened(self, region: Region) -> Region:
        bounds = self._bounds[region.mip]
        box = Bbox(region.box.start - 1, region.box.stop + 1).intersection(bounds)
        return Region(region.layer, box, region.mip)

    def _download(self, region: Region) -> Any:
        from cloudvolume.lib import Bbox as CloudBox

        box = CloudBox(region.box.start.astuple(), region.box.stop.astuple())

        def download() -> Any:
            with storage_errors(self._location):
                return self._at(region.mip).download(box)

        try:
            return persistently(download)
        except (PipelineError, MemoryError):
            raise
        except Exception as error:
            raise DataError(
                f"{region.layer}: box {region.box} at mip {region.mip} of {self._location} "
                f"is damaged ({type(error).__name__}: {error}); see what `em verify` says "
                "and run the stage that writes it again"
            ) from error


def check_inside(region: Region, bounds: Sequence[Bbox]) -> None:
    """Refuse a box outside the bounds of its mip.

    Parameters
    ----------
    region : Region
        What would be read.
    bounds : sequence of Bbox
        Bounds of each mip.

    Raises
    ------
    GeometryError
        If it leaves them, or the mip is not there.
    """
    if not 0 <= region.mip < len(bounds):
        raise GeometryError(
            f"{region.layer}: there is no mip {region.mip}; it has {len(bounds)}, numbered "
            "from 0"
        )
    if not bounds[region.mip].contains(region.box):
        raise GeometryError(
            f"{region.layer}: box {region.box} leaves the bounds {bounds[region.mip]} of "
            f"mip {region.mip}; choose a box inside"
        )
