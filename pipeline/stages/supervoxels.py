"""Supervoxels by watershed: basins by chunk, and their merging up the octree.

``basins`` labels every chunk and merges what lies within it, ``basin_graph`` merges
what lies across faces, node by node, ``supervoxel_table`` hands every chunk what
became of its basins, and ``relabel`` applies that. The kernels order edges strictly, so
supervoxels are the same in every chunking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import GeometryError
from pipeline.geometry import Grid, Halo, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.basin_graph import (
    BASIN_GRAPH_HALO,
    MASKED_BASIN_GRAPH_HALO,
    basin_graph,
)
from pipeline.kernels.merge_basins import (
    OpenBasins,
    SingleLinkage,
    merge_basins,
    open_basins,
)
from pipeline.kernels.naming import named_by_first_voxel
from pipeline.kernels.partition import Unfinished
from pipeline.kernels.watershed import (
    MASKED_WATERSHED_HALO,
    WATERSHED_HALO,
    watershed,
)
from pipeline.specs import Partitioned, Read, Region, Table, VolumeSpec
from pipeline.stages.base import Layer, Specs, Stage, Task
from pipeline.stages.octree import OUTCOMES, STATE, DownSweep, OpenBytes, UpSweep
from pipeline.stages.volume import (
    AFFINITY_DTYPES,
    VolumeStage,
    expect_bounds,
    expect_volume,
)

BASIN_OPEN_BYTES = OpenBytes(per_face_voxel=100.0)


class _Watershed(Stage):
    """What the stages that look at affinities have in common.

    Parameters
    ----------
    affinities : str
        Volume of three channels.
    mask : str
        Volume of uint8 with the same voxels; where it is 0 there are no affinities.
        Empty for none.
    myelin : str
        Volume of uint8, 255 for sure, or float32 with the same voxels; where it is above
        the threshold there are no affinities. Empty for none.
    myelin_threshold : float
        Probability of myelin.
    low : float
        Voxels without an affinity above this are background.
    high : float
        Affinities from here on always join.
    size_threshold : int
        Two basins of this size or more are not merged [voxel].
    dust : int
        Smaller supervoxels become background [voxel].
    """

    affinities: Layer
    mask: Layer = ""
    myelin: Layer = ""
    myelin_threshold: float = Field(default=0.3, ge=0, le=1)
    low: float = Field(default=0.01, ge=0, lt=1)
    high: float = Field(default=0.99, gt=0)
    size_threshold: int = Field(default=400, ge=0)
    dust: int = Field(default=200, ge=0)

    @property
    def is_masked(self) -> bool:
        """Whether there are voxels without affinities."""
        return bool(self.mask or self.myelin)

    def voxel_reads(self, task: Task) -> dict[str, Read]:
        """Read affinities and masks with the halo."""
        reads: dict[str, Read] = {"affinities": Region(self.affinities, task.read_box)}
        for field, layer in (("mask", self.mask), ("myelin", self.myelin)):
            if layer:
                reads[field] = Region(layer, task.read_box)
        return reads

    def kept(
        self, mask: NDArray[np.uint8] | None, myelin: NDArray[Any] | None
    ) -> NDArray[np.uint8] | None:
        """Return where affinities count, 1 or 0, or None for everywhere."""
        kept = None if mask is None else mask != 0
        if myelin is not None:
            limit = self.myelin_threshold * (255 if myelin.dtype == np.uint8 else 1)
            is_free = myelin <= limit
            kept = is_free if kept is None else kept & is_free
        return None if kept is None else np.asfortranarray(kept).view(np.uint8)

    def affinity_faults(self, specs: Specs) -> list[str]:
        """Check the affinities, the masks and the thresholds."""
        faults = []
        for layer, dtypes, channels in (
            (self.affinities, AFFINITY_DTYPES, 3),
            (self.mask, ("uint8",), 1),
            (self.myelin, ("uint8", "float32"), 1),
        ):
            if layer:
                faults += expect_volume(
                    self.name, specs, layer, dtypes=dtypes, channels=channels
                )
                faults += expect_bounds(self.name, specs, layer, self.bounds)
        if self.low >= self.high:
            faults.append(f"{self.name}: low {self.low} is not below high {self.high}")
        return faults


class Basins(VolumeStage, _Watershed):
    """Watershed basins, merged as far as a chunk can decide; cut at chunk faces.

    Ids carry the place of their chunk. Basins are merged by size-dependent single
    linkage (Zlateski & Seung 2015) where nothing outside the chunk has a say.
    """

    name: ClassVar[str] = "basins"
    halo: ClassVar[Halo] = WATERSHED_HALO
    bytes_per_voxel: ClassVar[float] = 12.0

    @property
    def reach(self) -> Halo:
        """Look further if there is a mask."""
        return MASKED_WATERSHED_HALO if self.is_masked else self.halo

    def reads(self, task: Task) -> dict[str, Read]:
        """Read affinities and masks with the halo."""
        return self.voxel_reads(task)

    def process(
        self,
        task: Task,
        affinities: NDArray[Any],
        mask: NDArray[np.uint8] | None = None,
        myelin: NDArray[Any] | None = None,
    ) -> NDArray[np.uint64]:
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
            size_threshold=self.size_threshold,
            dust=self.dust,
            mask=self.kept(mask, myelin),
            base=layout.base(task.key.position),
            threads=task.threads,
        )

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write uint64 ids at the affinities' voxel size."""
        return self.volume(
            dtype="uint64",
            voxel_size_nm=_volume(specs, self.affinities).voxel_size_nm,
            kind_of_values="segmentation",
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the inputs, and that ids can hold the places of all voxels."""
        return [
            *self.affinity_faults(specs),
            *id_faults(self.name, self.grid),
            *super().check(specs),
        ]


class BasinGraphs(UpSweep, _Watershed):
    """Merges basins across the faces of chunks, up the octree.

    A chunk owns the edges whose upper voxel it holds. Whether such an edge is on depends
    on what the voxel below chose, which looks one further up: hence one voxel each way.
    A node joins what its children were cut from, and merges by size-dependent single
    linkage what goes on nowhere outside it.

    Parameters
    ----------
    basins : str
        Ids, made from the same affinities with the same thresholds.
    """

    name: ClassVar[str] = "basin_graph"
    open_bytes: ClassVar[OpenBytes] = BASIN_OPEN_BYTES
    halo: ClassVar[Halo] = BASIN_GRAPH_HALO
    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "basins": ("bounds", "chunk", *_Watershed.__annotations__)
    }
    bytes_per_voxel: ClassVar[float] = 12.0

    basins: Layer

    @property
    def reach(self) -> Halo:
        """Look further if there is a mask."""
        return MASKED_BASIN_GRAPH_HALO if self.is_masked else self.halo

    def leaf_reads(self, task: Task) -> dict[str, Read]:
        """Read ids, affinities and masks with the halo."""
        return {"basins": Region(self.basins, task.read_box), **self.voxel_reads(task)}

    def leaf(
        self,
        task: Task,
        *args: Any,
        basins: NDArray[Any],
        affinities: NDArray[Any],
        mask: NDArray[np.uint8] | None = None,
        myelin: NDArray[Any] | None = None,
    ) -> Table:
        """Measure the chunk."""
        graph = basin_graph(
            basins,
            affinities,
            box=task.box,
            read_box=task.read_box,
            bounds=task.bounds,
            low=self.low,
            high=self.high,
            mask=self.kept(mask, myelin),
            size_threshold=self.size_threshold,
            threads=task.threads,
        )
        return open_basins(graph).to_table()

    def decide(
        self,
        task: Task,
        children: Sequence[Table],
        *,
        octants: Sequence[int],
        outward: Sequence[int],
    ) -> Partitioned:
        """Merge."""
        state, outcomes = merge_basins(
            [OpenBasins.from_table(c) for c in children],
            octants=octants,
            outward=outward,
            size_threshold=self.size_threshold,
            dust=self.dust,
        )
        return Partitioned({STATE: state.to_table(), OUTCOMES: outcomes.to_table()})

    def linkage(self, scale: int) -> SingleLinkage:
        """Merge by greatest affinity, as sizes allow."""
        return SingleLinkage(self.size_threshold, self.dust)

    def unfinished(self, scale: int, state: Table) -> Unfinished:
        """Leave what is open or waits."""
        return self.linkage(scale).unfinished(OpenBasins.from_table(state))

    def check(self, specs: Specs) -> list[str]:
        """Check the inputs."""
        return self.affinity_faults(specs) + super().check(specs)


class SupervoxelTable(DownSweep):
    """The supervoxel of every basin, chunk by chunk.

    A supervoxel is named after its first voxel, so that its id is the same in every
    chunking.

    Parameters
    ----------
    decisions : str
        Records of the basin graph, over the same grid.
    id_chunk : Vec3
        Grid from the start of the bounds that ids refer to, whatever the chunks [voxel].
    """

    name: ClassVar[str] = "supervoxel_table"
    open_bytes: ClassVar[OpenBytes] = BASIN_OPEN_BYTES

    id_chunk: Vec3 = Vec3(512, 512, 128)

    def names(self, targets: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Name basins after their first voxels."""
        # Many basins are one supervoxel.
        each, rows = np.unique(targets, return_inverse=True)
        named = named_by_first_voxel(
            each, basins=self.grid, names=Grid(self.bounds, self.id_chunk)
        )
        return named[rows]

    def check(self, specs: Specs) -> list[str]:
        """Check that ids can hold the places of all voxels."""
        return id_faults(self.name, Grid(self.bounds, self.id_chunk))


def id_faults(name: str, grid: Grid) -> list[str]:
    """Say so if ids cannot hold the places of a grid's voxels."""
    try:
        IdLayout.of_grid(grid).require_capacity(grid.chunk.product)
    except GeometryError as error:
        return [f"{name}: {error}"]
    return []


def _volume(specs: Specs, layer: str) -> VolumeSpec:
    spec = specs[layer]
    if not isinstance(spec, VolumeSpec):
        raise TypeError(f"{layer} holds {spec.kind}, and a volume is needed")
    return spec
