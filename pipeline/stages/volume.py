"""How a stage that writes a volume says in what form."""

from __future__ import annotations

from pydantic import Field

from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.specs import HOLDS, ImageEncoding, LabelEncoding, VolumeSpec, VoxelSize
from pipeline.stages.base import ChunkStage, Specs


class VolumeStage(ChunkStage):
    """A chunk stage that writes a Precomputed volume.

    Parameters
    ----------
    encoding : str
        How storage chunks are compressed.
    storage_chunk : Vec3
        Extent of a storage chunk; divides ``chunk`` [voxel].
    sharded : bool
        Whether a chunk is written as one shard file.
    """

    encoding: ImageEncoding | LabelEncoding = "raw"
    storage_chunk: Vec3 = Field(default=Vec3(64, 64, 64))
    sharded: bool = False

    def volume(
        self,
        *,
        dtype: str,
        voxel_size_nm: VoxelSize,
        kind_of_values: str,
        channels: int = 1,
    ) -> VolumeSpec:
        """Return the spec of the output in the form that the fields ask for."""
        return VolumeSpec(
            dtype=dtype,
            channels=channels,
            bounds=self.bounds,
            voxel_size_nm=voxel_size_nm,
            kind_of_values="segmentation" if kind_of_values == "segmentation" else "image",
            encoding=self.encoding,
            storage_chunk=self.storage_chunk,
            shard=self.chunk if self.sharded else None,
        )

    def check(self, specs: Specs) -> list[str]:
        """Check that chunks divide into storage chunks and that the encoding fits."""
        faults = chunk_faults(
            self.name, self.grid, self.storage_chunk, sharded=self.sharded
        )
        try:
            output = self.describe(specs)
        except (KeyError, TypeError):
            # What is wrong with the inputs is said where they are checked.
            return faults
        if isinstance(output, VolumeSpec):
            allowed, _ = HOLDS[self.encoding]
            if output.dtype not in allowed:
                faults.append(
                    f"{self.name}: encoding {self.encoding} cannot hold {output.dtype} of "
                    f"{self.output}; it holds {', '.join(sorted(allowed))}"
                )
        return faults


def chunk_faults(name: str, grid: Grid, storage_chunk: Vec3, *, sharded: bool) -> list[str]:
    """Say on which axes a chunk does not divide into storage chunks.

    An axis with a single chunk needs no division: it ends at the bounds. A sharded
    layer takes a power of two of storage chunks along each axis, so that its shards
    follow the compressed Morton code.
    """
    faults = []
    for axis, letter in enumerate("xyz"):
        size, unit = grid.chunk[axis], storage_chunk[axis]
        if unit < 1:
            faults.append(f"{name}: storage chunk {storage_chunk} is not positive")
            break
        if grid.counts()[axis] > 1 and size % unit:
            near = max(unit, round(size / unit) * unit)
            faults.append(
                f"{name}: chunk {grid.chunk} does not divide into storage chunks of "
                f"{storage_chunk} on {letter}; use {near} for the chunk on {letter}"
            )
        elif sharded and (size % unit or (size // unit) & (size // unit - 1)):
            faults.append(
                f"{name}: a shard of {grid.chunk} is not a power of two of storage chunks "
                f"{storage_chunk} on {letter}; use {unit}, {2 * unit}, {4 * unit}, ..."
            )
    return faults


def expect_volume(
    stage: str,
    specs: Specs,
    layer: str,
    *,
    dtypes: tuple[str, ...],
    channels: int | None = 1,
) -> list[str]:
    """Say in what a layer differs from the volume that a stage takes; None is any."""
    spec = specs.get(layer)
    if spec is None:
        return []
    if not isinstance(spec, VolumeSpec):
        return [f"{stage}: {layer} holds {spec.kind}, and a volume is needed"]
    faults = []
    if spec.dtype not in dtypes:
        faults.append(f"{stage}: {layer} is {spec.dtype}; it takes {' or '.join(dtypes)}")
    if channels is not None and spec.channels != channels:
        faults.append(f"{stage}: {layer} has {spec.channels} channels; it takes {channels}")
    return faults


def expect_bounds(
    stage: str, specs: Specs, layer: str, bounds: Bbox, *, mip: int = 0
) -> list[str]:
    """Say so if a layer does not hold the bounds that a stage covers at a mip."""
    spec = specs.get(layer)
    if isinstance(spec, VolumeSpec) and not spec.bounds_at(mip).contains(bounds):
        at_mip = f" at mip {mip}" if mip else ""
        return [
            f"{stage}: bounds {bounds} are not inside {layer}, which holds "
            f"{spec.bounds_at(mip)}{at_mip}; give bounds within it"
        ]
    return []


def missing_mip(stage: str, layer: str, spec: VolumeSpec, mip: int) -> str:
    """Say that a layer lacks a mip."""
    return (
        f"{stage}: {layer} has mips 0 to {len(spec.factors) - 1}, not {mip}; add a "
        "downsample stage or read a finer mip"
    )


LABEL_DTYPES = ("uint8", "uint16", "uint32", "uint64")
AFFINITY_DTYPES = ("uint8", "float32")
