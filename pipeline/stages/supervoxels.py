"""Supervoxels by watershed: basins by chunk, their graph by octree, merged at its top.

``basins`` labels every chunk, ``basin_graph`` collects what chunks know of the whole,
``supervoxel_table`` decides what becomes of each basin, and ``relabel`` applies that.
The kernels order edges strictly, so supervoxels are the same in every chunking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import GeometryError
from pipeline.geometry import ChunkKey, Grid, Halo, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.basin_graph import (
    BASIN_GRAPH_HALO,
    BasinGraph,
    basin_graph,
    merge_basin_graphs,
)
from pipeline.kernels.merge_basins import merge_basins
from pipeline.kernels.naming import named_by_first_voxel
from pipeline.kernels.watershed import WATERSHED_HALO, watershed
from pipeline.specs import (
    LayerSpec,
    Partitioned,
    Read,
    Record,
    RecordsSpec,
    Region,
    Table,
    VolumeSpec,
)
from pipeline.stages.base import Layer, OctreeStage, Specs, Stage, Task, root_record
from pipeline.stages.volume import (
    AFFINITY_DTYPES,
    VolumeStage,
    expect_bounds,
    expect_volume,
)


class Basins(VolumeStage):
    """Watershed basins, cut at chunk faces; ids carry the place of their chunk.

    Parameters
    ----------
    affinities : str
        Volume of three channels.
    low : float
        Voxels without an affinity above this are background.
    high : float
        Affinities from here on always join.
    """

    name: ClassVar[str] = "basins"
    halo: ClassVar[Halo] = WATERSHED_HALO
    bytes_per_voxel: ClassVar[float] = 24.0

    affinities: Layer
    low: float = Field(default=0.01, ge=0, lt=1)
    high: float = Field(default=0.99, gt=0)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read affinities with the halo."""
        return {"affinities": Region(self.affinities, task.read_box)}

    def process(self, task: Task, affinities: NDArray[Any]) -> NDArray[np.uint64]:
        """Label the chunk."""
        layout = IdLayout.of_grid(self.grid)
        layout.require_capacity(task.box.volume)
        return watershed(
            affinities,
            box=task.box,
            read_box=task.read_box,
            bounds=task.bounds,
            low=self.low,
            high=self.high,
            base=layout.base(task.key.position),
        )

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write uint64 ids at the affinities' voxel size."""
        return self.volume(
            dtype="uint64",
            voxel_size_nm=_volume(specs, self.affinities).voxel_size_nm,
            kind_of_values="segmentation",
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the affinities and thresholds."""
        faults = _affinity_faults(self, specs)
        if self.low >= self.high:
            faults.append(f"{self.name}: low {self.low} is not below high {self.high}")
        faults += id_faults(self.name, self.grid)
        return faults + super().check(specs)


class BasinGraphs(OctreeStage):
    """What joins basins across chunk faces, and the greatest edge between any two.

    A chunk owns the edges whose upper voxel it holds. Whether such an edge is on depends
    on what the voxel below chose, which looks one further up: hence one voxel each way.

    Parameters
    ----------
    basins, affinities : str
        Ids and what they were made from.
    low, high : float
        As for the basins.
    """

    name: ClassVar[str] = "basin_graph"
    halo: ClassVar[Halo] = BASIN_GRAPH_HALO
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "basins": ("bounds", "chunk", "affinities", "low", "high")
    }
    bytes_per_voxel: ClassVar[float] = 70.0
    merge_bytes_per_voxel: ClassVar[float] = 60.0

    basins: Layer
    affinities: Layer
    low: float = Field(default=0.01, ge=0, lt=1)
    high: float = Field(default=0.99, gt=0)

    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Read ids and affinities with the halo."""
        return {
            "basins": Region(self.basins, task.read_box),
            "affinities": Region(self.affinities, task.read_box),
        }

    def leaf(self, task: Task, basins: NDArray[Any], affinities: NDArray[Any]) -> Table:
        """Measure the chunk."""
        return basin_graph(
            basins,
            affinities,
            box=task.box,
            read_box=task.read_box,
            bounds=task.bounds,
            low=self.low,
            high=self.high,
        ).to_table()

    def merge(self, children: list[Table]) -> Table:
        """Add up."""
        return merge_basin_graphs([BasinGraph.from_table(c) for c in children]).to_table()

    def check(self, specs: Specs) -> list[str]:
        """Check the affinities."""
        return _affinity_faults(self, specs)


class SupervoxelTable(Stage):
    """What becomes of every basin: one task, over the top of the basin graph.

    Single linkage by size (Zlateski & Seung 2015), then removal of dust. A supervoxel is
    named after its first voxel, so that its id is the same in every chunking. The table
    is kept in parts by chunk, so that a chunk reads its own.

    Parameters
    ----------
    graph : str
        Records of the basin graph, over the same grid.
    size_threshold : int
        Two of this size or more are not merged [voxel].
    dust : int
        Smaller supervoxels become background [voxel].
    id_chunk : Vec3
        Grid from the start of the bounds that ids refer to, whatever the chunks [voxel].
    """

    name: ClassVar[str] = "supervoxel_table"
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {"graph": ("bounds", "chunk")}

    graph: Layer
    size_threshold: int = Field(default=400, ge=0)
    dust: int = Field(default=200, ge=0)
    id_chunk: Vec3 = Vec3(512, 512, 128)

    def grid_at(self, level: int) -> Grid:
        """Return a grid of one chunk."""
        return Grid(self.bounds, self.bounds.shape)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the top."""
        return {"graph": root_record(self.graph, self.grid)}

    def process(self, task: Task, graph: Table) -> Partitioned:
        """Merge, and part the table by chunk."""
        merged = merge_basins(
            BasinGraph.from_table(graph), size_threshold=self.size_threshold, dust=self.dust
        )
        table = named_by_first_voxel(
            merged, basins=self.grid, ids=Grid(self.bounds, self.id_chunk)
        )
        positions, _ = IdLayout.of_grid(self.grid).unpack(table.ids)
        # Ids ascend, so those of a chunk are neighbours.
        first = np.flatnonzero(
            np.r_[True, (positions[1:] != positions[:-1]).any(axis=1)][: len(table.ids)]
        )
        last = np.append(first, len(table.ids))[1:]
        return Partitioned(
            {
                str(ChunkKey(0, *(int(p) for p in positions[a]))): {
                    "ids": table.ids[a:b],
                    "targets": table.targets[a:b],
                }
                for a, b in zip(first, last, strict=True)
            }
        )

    def target(self, task: Task) -> Record:
        """Write one record."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write a record."""
        return RecordsSpec()

    def check(self, specs: Specs) -> list[str]:
        """Check that ids can hold the places of all voxels."""
        return id_faults(self.name, Grid(self.bounds, self.id_chunk))

    def memory(self, specs: Specs) -> int:
        """Estimate from the basins that membranes cut a volume into [byte]."""
        return int(BASIN_BYTES * self.bounds.volume / VOXELS_PER_BASIN)


def id_faults(name: str, grid: Grid) -> list[str]:
    """Say so if ids cannot hold the places of a grid's voxels."""
    try:
        IdLayout.of_grid(grid).require_capacity(grid.chunk.product)
    except GeometryError as error:
        return [f"{name}: {error}"]
    return []


VOXELS_PER_BASIN = 8
"""Fewest voxels that a basin was seen to have on average, with uint8 affinities."""
BASIN_BYTES = 480
"""A basin, its edges, and working copies."""


def _volume(specs: Specs, layer: str) -> VolumeSpec:
    spec = specs[layer]
    if not isinstance(spec, VolumeSpec):
        raise TypeError(f"{layer} holds {spec.kind}, and a volume is needed")
    return spec


def _affinity_faults(stage: Basins | BasinGraphs, specs: Specs) -> list[str]:
    return expect_volume(
        stage.name, specs, stage.affinities, dtypes=AFFINITY_DTYPES, channels=3
    ) + expect_bounds(stage.name, specs, stage.affinities, stage.bounds)
