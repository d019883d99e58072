"""Connected components of a mask: clefts, nuclei, mitochondria.

``component_pieces`` numbers every chunk, ``component_graph`` joins pieces across faces,
node by node, ``component_table`` hands every chunk what became of its pieces, and
``relabel`` applies that. ``component_extents`` and ``components`` measure the result by
map and reduce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.geometry import ChunkKey, Grid, Halo
from pipeline.ids import IdLayout
from pipeline.kernels.components import (
    COMPONENT_HALO,
    Connectivity,
    Extents,
    component_graph,
    component_pieces,
    extents,
    merge_extents,
)
from pipeline.kernels.merge_basins import OpenBasins, SingleLinkage, merge_basins
from pipeline.kernels.partition import Unfinished
from pipeline.kernels.sharding import ids_by_shard
from pipeline.specs import (
    LayerSpec,
    Partitioned,
    Read,
    Record,
    RecordsSpec,
    Region,
    Sharding,
    Table,
    VolumeSpec,
    VoxelSize,
)
from pipeline.stages.base import ChunkStage, Layer, Specs, Task
from pipeline.stages.octree import OUTCOMES, STATE, OpenBytes, UpSweep
from pipeline.stages.shards import ShardStage
from pipeline.stages.supervoxels import SupervoxelTable, id_faults
from pipeline.stages.volume import VolumeStage, expect_bounds, expect_volume

COMPONENT_OPEN_BYTES = OpenBytes(per_face_voxel=20.0)


class ComponentPieces(VolumeStage):
    """Connected components of each chunk; cut at chunk faces.

    Ids carry the place of their chunk and of their first voxel.

    Parameters
    ----------
    mask : str
        Volume of probabilities, uint8 with 255 for sure, or float32; or of ids, of which
        all but 0 are inside.
    threshold : float
        Voxels of this probability or more are inside.
    connectivity : {6, 18, 26}
        Neighbours of a voxel.
    """

    name: ClassVar[str] = "component_pieces"
    bytes_per_voxel: ClassVar[float] = 14.0

    mask: Layer
    threshold: float = Field(default=0.5, gt=0, le=1)
    connectivity: Connectivity = 26

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the chunk."""
        return {"mask": Region(self.mask, task.box)}

    def process(self, task: Task, mask: NDArray[Any]) -> NDArray[np.uint64]:
        """Label the chunk."""
        layout = IdLayout.of_grid(self.grid)
        layout.require_capacity(task.box.volume)
        return component_pieces(
            self.inside(mask),
            connectivity=self.connectivity,
            base=layout.base(task.key.position),
        )

    def inside(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Return what belongs to a component."""
        if mask.dtype == np.uint8:
            return np.asarray(mask >= np.ceil(self.threshold * 255))
        if mask.dtype == np.float32:
            return np.asarray(mask >= np.float32(self.threshold))
        return np.asarray(mask != 0)

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write uint64 ids at the mask's voxel size."""
        mask = specs[self.mask]
        if not isinstance(mask, VolumeSpec):
            raise TypeError(f"{self.mask} holds {mask.kind}, and a volume is needed")
        return self.volume(
            dtype="uint64",
            voxel_size_nm=mask.voxel_size_nm,
            kind_of_values="segmentation",
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the mask, and that ids can hold the places of all voxels."""
        return [
            *expect_volume(
                self.name, specs, self.mask, dtypes=("uint8", "float32", "uint32", "uint64")
            ),
            *expect_bounds(self.name, specs, self.mask, self.bounds),
            *id_faults(self.name, self.grid),
            *super().check(specs),
        ]


class ComponentGraphs(UpSweep):
    """Joins pieces across the faces of chunks, and drops what stays small.

    A chunk owns the contacts of its voxels with those before them, x fastest. What
    touches an open face is kept, however small, until it is whole.

    Parameters
    ----------
    pieces : str
        Ids of pieces.
    connectivity : {6, 18, 26}
        As for the pieces.
    dust : int
        Smaller components become background [voxel].
    """

    name: ClassVar[str] = "component_graph"
    halo: ClassVar[Halo] = COMPONENT_HALO
    open_bytes: ClassVar[OpenBytes] = COMPONENT_OPEN_BYTES
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "pieces": ("bounds", "chunk", "connectivity")
    }
    bytes_per_voxel: ClassVar[float] = 4.0

    pieces: Layer
    connectivity: Connectivity = 26
    dust: int = Field(default=40, ge=0)

    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Read ids with the halo."""
        return {"pieces": Region(self.pieces, task.read_box)}

    def leaf(self, task: Task, *args: Any, pieces: NDArray[np.uint64]) -> Table:
        """Measure the chunk."""
        return component_graph(
            pieces,
            box=task.box,
            read_box=task.read_box,
            bounds=task.bounds,
            connectivity=self.connectivity,
        ).to_table()

    def decide(
        self,
        task: Task,
        children: Sequence[Table],
        *,
        octants: Sequence[int],
        outward: Sequence[int],
    ) -> Partitioned:
        """Join."""
        state, outcomes = merge_basins(
            [OpenBasins.from_table(c) for c in children],
            octants=octants,
            outward=outward,
            size_threshold=0,
            dust=self.dust,
        )
        return Partitioned({STATE: state.to_table(), OUTCOMES: outcomes.to_table()})

    def linkage(self, scale: int) -> SingleLinkage:
        """Join whatever touches."""
        return SingleLinkage(0, self.dust)

    def unfinished(self, scale: int, state: Table) -> Unfinished:
        """Leave what is open."""
        return self.linkage(scale).unfinished(OpenBasins.from_table(state))

    def check(self, specs: Specs) -> list[str]:
        """Check the ids."""
        return [
            *expect_volume(self.name, specs, self.pieces, dtypes=("uint64",)),
            *expect_bounds(self.name, specs, self.pieces, self.bounds),
            *super().check(specs),
        ]


class ComponentTable(SupervoxelTable):
    """The component of every piece, chunk by chunk.

    A component is named after its first voxel, x fastest through the whole volume, so that
    its id is the same in every chunking.

    Parameters
    ----------
    decisions : str
        Records of the component graph, over the same grid.
    """

    name: ClassVar[str] = "component_table"
    open_bytes: ClassVar[OpenBytes] = COMPONENT_OPEN_BYTES


class ComponentExtents(ChunkStage):
    """Voxels, sum of places and box of what each chunk holds of every component.

    Parameters
    ----------
    components : str
        Volume of ids.
    sharding : Sharding
        As in the stage that adds up.
    """

    name: ClassVar[str] = "component_extents"
    bytes_per_voxel: ClassVar[float] = 4.0

    components: Layer
    sharding: Sharding = Sharding()

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the chunk."""
        return {"components": Region(self.components, task.box)}

    def process(self, task: Task, components: NDArray[np.uint64]) -> Partitioned:
        """Measure, and group by the shard of the id."""
        found = extents(components, task.box)
        return Partitioned(
            {
                str(shard): taken(found.to_table(), np.isin(found.ids, ids))
                for shard, ids in in_shards(found.ids, self.sharding).items()
            }
        )

    def target(self, task: Task) -> Record:
        """Write a record per chunk."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def check(self, specs: Specs) -> list[str]:
        """Check the ids."""
        return [
            *expect_volume(self.name, specs, self.components, dtypes=("uint64",)),
            *expect_bounds(self.name, specs, self.components, self.bounds),
        ]


class Components(ShardStage):
    """Voxels, sum of places and box of every component.

    A record has a part for each chunk that holds the centroid of a component, so that a
    component is found where it lies.

    Parameters
    ----------
    fragments : str
        Records of `component_extents`.
    """

    name: ClassVar[str] = "components"

    def process(self, task: Task, fragments: list[Table]) -> Partitioned:
        """Add up."""
        parts = [Extents.from_table(f) for f in fragments if f]
        if not parts:
            return Partitioned({})
        found = merge_extents(parts)
        return by_chunk(found.to_table(), found.centroids, self.grid)

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()


def in_shards(ids: NDArray[np.uint64], sharding: Sharding) -> dict[int, NDArray[np.uint64]]:
    """Return the distinct ids of each shard."""
    return ids_by_shard(
        np.unique(ids),
        shard_bits=sharding.shard_bits,
        minishard_bits=sharding.minishard_bits,
    )


def taken(table: Table, rows: NDArray[Any]) -> Table:
    """Return some rows of a table, all of whose columns are equally long."""
    return {name: values[rows] for name, values in table.items()}


def by_chunk(table: Table, places: NDArray[np.int64], grid: Grid) -> Partitioned:
    """Part rows by the chunk that holds their place, within the bounds.

    Parameters
    ----------
    table : Table
        Rows.
    places : int64 array, (n, 3)
        Voxel of each.
    grid : Grid
        The chunks.
    """
    start = np.array(grid.bounds.start.astuple())
    chunk = (places - start) // np.array(grid.chunk.astuple())
    each, of = np.unique(chunk, axis=0, return_inverse=True)
    of = of.reshape(-1)
    return Partitioned(
        {
            str(ChunkKey(0, *place)): taken(table, np.flatnonzero(of == row))
            for row, place in enumerate(each.tolist())
        }
    )


def rows_for_chunk(layer: str, key: ChunkKey, sharding: Sharding) -> list[Record]:
    """Return the reads of what every shard has for a chunk."""
    shards = range(2**sharding.shard_bits)
    return [Record(layer, str(ChunkKey(0, s, 0, 0)), str(key)) for s in shards]


def joined(tables: Sequence[Table]) -> Table:
    """Return the rows of tables of the same columns; empty if there are none."""
    full = [t for t in tables if t]
    return {c: np.concatenate([t[c] for t in full]) for c in (full[0] if full else ())}


def same_grid_faults(name: str, specs: Specs, layers: Sequence[str]) -> list[str]:
    """Say so if volumes that belong together differ in their voxels."""
    sizes = {
        layer: spec.voxel_size_nm
        for layer in layers
        if isinstance(spec := specs.get(layer), VolumeSpec)
    }
    return [
        f"{name}: voxels of {layers[0]} are {sizes[layers[0]]} nm and those of {layer} "
        f"{size} nm; give layers of the same voxels"
        for layer, size in sizes.items()
        if layers[0] in sizes and not np.allclose(size, sizes[layers[0]])
    ]


def voxel_size_faults(
    name: str, specs: Specs, layer: str, voxel_size_nm: VoxelSize
) -> list[str]:
    """Say so if voxels of a layer are not as large as a stage says."""
    spec = specs.get(layer)
    if not isinstance(spec, VolumeSpec) or spec.voxel_size_nm == voxel_size_nm:
        return []
    return [
        f"{name}: voxel of {layer} is {spec.voxel_size_nm} nm, not {voxel_size_nm}; use "
        "that"
    ]
