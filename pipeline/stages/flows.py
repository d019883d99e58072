"""Fine alignment: patches are matched, displacements are solved for, fields drawn."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.specs import Read, Region, VolumeSpec
from pipeline.stages.base import Layer, Specs, Task
from pipeline.stages.volume import VolumeStage, expect_bounds, expect_volume

_PER_NEIGHBOUR = 3
_TEARS = 2
_OPENED = 0.5
_NOTHING = np.float32(127.5)
"""What an embedding says where it says nothing."""
_BESIDE = np.float32(0.5)
"""What local contrast weighs beside an embedding."""


class Flows(VolumeStage):
    """The shift of patches of each section to the sections around it.

    A voxel is a node: the patch in the middle of a square of ``step`` pixels. Channels are
    (x [nm], y [nm], trust) for each of the sections -distance to -1 and 1 to distance, and
    then two that are 1 where a tear lies between the node and the next along x, and along
    y. A patch holds only what hangs together with its middle, and its window only what is
    far from tears, so that both sides of a crack or a fold are followed.

    Parameters
    ----------
    image : str
        Volume of uint8 intensities, roughly aligned; 0 where there is no tissue.
    defects : str
        Volume of uint8 in the voxels of the image; 0 where a section is whole. Empty for
        none.
    embedding : str
        Volume of uint8 in the voxels of the image, as `embeddings` writes it, that patches
        are compared by beside local contrast. Empty for local contrast alone.
    step : int
        Distance of patches [pixel].
    patch : int
        Extent of a patch [pixel].
    search : int
        Greatest shift along either axis [pixel].
    distance : int
        To how many sections before and after.
    contrast : (float, float)
        Sizes between which details are compared: the two deviations of `local_contrast`
        [pixel].
    voxel_size_nm : (x, y, z)
        Of the image.
    """

    name: ClassVar[str] = "flows"

    image: Layer
    defects: Layer = ""
    embedding: Layer = ""
    step: int = Field(default=16, ge=2)
    patch: int = Field(default=64, ge=8)
    search: int = Field(default=20, ge=2)
    distance: int = Field(default=3, ge=1, le=8)
    contrast: tuple[float, float] = (1.0, 8.0)
    voxel_size_nm: tuple[float, float, float]

    @property
    def offsets(self) -> list[int]:
        """Sections that each is compared with, relative to it."""
        return [k for k in range(-self.distance, self.distance + 1) if k]

    @property
    def channels(self) -> int:
        """Values of a node."""
        return _PER_NEIGHBOUR * len(self.offsets) + _TEARS

    @property
    def _margin(self) -> int:
        from pipeline.kernels.contrast import contrast_halo

        halo = contrast_halo(self.contrast[1])
        # One step more, as far as the next node.
        return self.patch // 2 + self.search + halo + self.step

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the pixels of the nodes, what is around them, and the sections around."""
        pixels = task.box.finer(Vec3(self.step, self.step, 1))
        around = Vec3(self._margin, self._margin, self.distance)
        box = Bbox(pixels.start - around, pixels.stop + around).intersection(
            self.bounds.finer(Vec3(self.step, self.step, 1))
        )
        reads: dict[str, Read] = {"image": Region(self.image, box)}
        if self.defects:
            reads["defects"] = Region(self.defects, box)
        if self.embedding:
            reads["embedding"] = Region(self.embedding, box)
        return reads

    def process(
        self,
        task: Task,
        image: NDArray[np.uint8],
        defects: NDArray[np.uint8] | None = None,
        embedding: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.float32]:
        """Match the patches of every section of the chunk."""
        from scipy.ndimage import maximum_filter

        from pipeline.kernels.patch_match import (
            PatchGrid,
            match_patches,
            patches_of,
            windows_of,
        )

        start = self._box(task).start
        grid = PatchGrid(self.step, self.patch, self.search)
        middles = self._middles(task, start) + grid.reach
        result = np.zeros((*task.box.shape, self.channels), np.float32, order="F")
        edge = ((grid.reach, grid.reach),) * 2
        padded, shown, torn = [], [], []
        for i in range(image.shape[2]):
            section = image[..., i]
            tears = np.zeros(section.shape, bool)
            if defects is not None:
                tears = np.asarray(defects[..., i] > 0)
            there = (section > 0) & ~tears
            seen = None if embedding is None else embedding[:, :, i]
            padded.append(np.pad(self._known_by(section, there, seen), (*edge, (0, 0))))
            shown.append(np.pad(there, edge))
            torn.append(np.pad(tears, edge))
        windows = {}
        nodes = task.box.shape.astuple()[:2]
        for z in range(task.box.start.z, task.box.stop.z):
            here = z - start.z
            if torn[here].any():
                tears = self._tears(torn[here], middles)
                result[:, :, z - task.box.start.z, -_TEARS:] = tears.reshape(*nodes, _TEARS)
            if not shown[here].any():
                continue
            patches = patches_of(padded[here], shown[here], torn[here], middles, grid)
            for place, k in enumerate(self.offsets):
                other = here + k
                if not (0 <= other < image.shape[2]) or not shown[other].any():
                    continue
                if other not in windows:
                    near = maximum_filter(torn[other], size=9, mode="constant")
                    windows[other] = windows_of(
                        padded[other], shown[other] & ~near, middles, grid
                    )
                shift, trust = match_patches(patches, windows[other])
                first = _PER_NEIGHBOUR * place
                out = result[:, :, z - task.box.start.z, first : first + _PER_NEIGHBOUR]
                for axis in range(2):
                    scaled = shift[:, axis] * np.float32(self.voxel_size_nm[axis])
                    out[..., axis] = scaled.reshape(nodes)
                out[..., 2] = trust.reshape(nodes)
            windows.pop(here - self.distance, None)
        return result

    def _known_by(
        self,
        section: NDArray[np.uint8],
        there: NDArray[np.bool_],
        embedding: NDArray[np.uint8] | None,
    ) -> NDArray[np.float32]:
        """Return what patches of a section are compared by, (x, y, channel)."""
        from pipeline.kernels.contrast import local_contrast

        fine, coarse = self.contrast
        values = local_contrast(section, there, fine=fine, coarse=coarse)[..., None]
        if embedding is None:
            return values
        learnt = (embedding.astype(np.float32) - _NOTHING) / _NOTHING
        values = np.concatenate([learnt, _BESIDE * values], axis=-1)
        return np.where(there[..., None], values, np.float32(0))

    def _box(self, task: Task) -> Bbox:
        read = self.reads(task)["image"]
        assert isinstance(read, Region)
        return read.box

    def _middles(self, task: Task, start: Vec3) -> NDArray[np.int64]:
        x, y = (
            np.arange(a, b) * self.step + self.step // 2 - first
            for a, b, first in (
                (task.box.start.x, task.box.stop.x, start.x),
                (task.box.start.y, task.box.stop.y, start.y),
            )
        )
        return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)

    def _tears(
        self, torn: NDArray[np.bool_], middles: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Look along the lines from nodes to the next along x and y for tears."""
        found = np.zeros((len(middles), _TEARS), np.float32)
        along = np.arange(self.step + 1)
        for axis in range(2):
            line = [middles[:, [0]], middles[:, [1]]]
            line[axis] = line[axis] + along
            x, y = (np.clip(c, 0, n - 1) for c, n in zip(line, torn.shape, strict=True))
            found[:, axis] = torn[x, y].any(axis=1)
        return found

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write a voxel for each node."""
        x, y, z = self.voxel_size_nm
        return self.volume(
            dtype="float32",
            voxel_size_nm=(x * self.step, y * self.step, z),
            kind_of_values="image",
            channels=self.channels,
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the image and the defects."""
        faults = super().check(specs)
        for layer in filter(None, (self.image, self.defects, self.embedding)):
            faults += expect_volume(
                self.name,
                specs,
                layer,
                dtypes=("uint8",),
                channels=None if layer == self.embedding else 1,
            )
            spec = specs.get(layer)
            if isinstance(spec, VolumeSpec) and spec.voxel_size_nm != self.voxel_size_nm:
                faults.append(
                    f"{self.name}: voxels of {layer} are {spec.voxel_size_nm} nm, not "
                    f"{self.voxel_size_nm}; give those"
                )
            fine = self.bounds.finer(Vec3(self.step, self.step, 1))
            if isinstance(spec, VolumeSpec) and not spec.bounds.contains(fine):
                faults.append(
                    f"{self.name}: nodes of {self.bounds} cover {fine} of {layer}, which "
                    f"holds {spec.bounds}; give bounds within it"
                )
        return faults

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the transforms of patches and windows [byte]."""
        task = self.task(next(iter(self.keys(level))))
        size = self.patch + 2 * self.search
        spec = specs.get(self.embedding)
        channels = 1 + (spec.channels if isinstance(spec, VolumeSpec) else 0)
        # Values, weight and power, as spectra.
        spectra = (channels + 2) * 8 * size * (size // 2 + 1)
        kept = spectra * (2 * self.distance + 2)
        nodes = task.box.shape.x * task.box.shape.y
        pixels = self._box(task).volume
        return int(
            nodes * kept
            + (10 + 4 * channels) * pixels
            + 2 * 4 * self.channels * task.box.volume
        )


class Relaxation(VolumeStage):
    """The displacement that puts every node of every section in its place.

    Solved for in blocks of a fixed grid that overlap, whatever the chunks, so that the
    result does not depend on them; see `pipeline.kernels.relaxation`. What lies beyond the
    margin of a block has no say, so that many are solved for at a time. Channels are x and
    y [nm]: the node p of a section belongs at ``p + displacement``.

    Parameters
    ----------
    flows : str
        Volume written by `flows`.
    block : Vec3
        Extent of a block [node, node, section].
    margin : Vec3
        What is read and solved for beyond a block.
    distance : int
        As in `flows`.
    shifts, smooth, small, outlier_nm : float
        See `Stiffness`.
    drift_steady : float
        See `Stiffness`; how steadily tissue drifts from section to section.
    voxel_size_nm : (x, y, z)
        Of the flows.
    """

    name: ClassVar[str] = "relaxation"
    bytes_per_voxel: ClassVar[float] = 2000.0

    flows: Layer
    block: Vec3 = Vec3(48, 48, 24)
    margin: Vec3 = Vec3(8, 8, 6)
    distance: int = Field(default=3, ge=1, le=8)
    shifts: float = Field(default=4.0, gt=0)
    smooth: float = Field(default=8.0, ge=0)
    small: float = Field(default=0.01, gt=0)
    drift_steady: float = Field(default=100.0, ge=0)
    outlier_nm: float = Field(default=24.0, gt=0)
    voxel_size_nm: tuple[float, float, float]

    def _blocks(self, box: Bbox) -> list[Bbox]:
        """Return the blocks that touch a box."""
        grid = Grid(self.bounds, self.block)
        return [grid.box(key) for key in grid.touching(box)]

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the blocks that the chunk touches, with their margins."""
        blocks = self._blocks(task.box)
        start, stop = blocks[0].start, blocks[0].stop
        for block in blocks[1:]:
            start, stop = start.minimum(block.start), stop.maximum(block.stop)
        box = Bbox(start - self.margin, stop + self.margin).intersection(task.bounds)
        return {"flows": Region(self.flows, box)}

    def process(self, task: Task, flows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Solve every block, and keep what the chunk owns of it."""
        from pipeline.kernels.relaxation import Stiffness, relax

        read = self.reads(task)["flows"]
        assert isinstance(read, Region)
        stiffness = Stiffness(
            shifts=self.shifts,
            smooth=self.smooth,
            small=self.small,
            drift_steady=self.drift_steady,
            outlier=self.outlier_nm,
        )
        result = np.zeros((*task.box.shape, 2), np.float32, order="F")
        offsets = [k for k in range(-self.distance, self.distance + 1) if k]
        for block in self._blocks(task.box):
            wide = Bbox(block.start - self.margin, block.stop + self.margin).intersection(
                task.bounds
            )
            part = flows[wide.slices(read.box.start)]
            count = part.shape[2]
            shifts = {
                (z, z + k): (part[:, :, z, 3 * i : 3 * i + 2], part[:, :, z, 3 * i + 2])
                for z in range(count)
                for i, k in enumerate(offsets)
                if 0 <= z + k < count
            }
            found = relax(
                shifts,
                part[..., -_TEARS:] == 0,
                spacing=self.voxel_size_nm[0],
                stiffness=stiffness,
            )
            mine = block.intersection(task.box)
            result[mine.slices(task.box.start)] = found[mine.slices(wide.start)]
        return result

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write two channels in the voxels of the flows."""
        return self.volume(
            dtype="float32",
            voxel_size_nm=self.voxel_size_nm,
            kind_of_values="image",
            channels=2,
        )

    def check(self, specs: Specs) -> list[str]:
        """Check that the flows have the channels of that distance."""
        channels = _PER_NEIGHBOUR * 2 * self.distance + _TEARS
        return [
            *super().check(specs),
            *expect_volume(
                self.name, specs, self.flows, dtypes=("float32",), channels=channels
            ),
            *expect_bounds(self.name, specs, self.flows, self.bounds),
        ]


class _NodePixels(NamedTuple):
    """Which nodes lie in a box of voxels, and where."""

    kept: NDArray[np.bool_]
    pixels: NDArray[np.int64]


class Fields(VolumeStage):
    """Where every point of an aligned section lies in the roughly aligned one.

    Displacements of nodes are carried to pixels without crossing tears, and inverted: a
    crack closes, a fold opens. A voxel is a square of ``stride`` pixels; channels are x
    and y [nm], and 1 where a fold opened and no tissue arrived: the point q shows
    ``q + (x, y)``. Where the flows were found on sections that a field had been drawn
    through already, the two are composed into one.

    Parameters
    ----------
    relaxation : str
        Volume written by `relaxation`.
    defects : str
        Volume of uint8 in the pixels that flows were found on. Empty for none.
    first : str
        Volume that another of these stages wrote, which the sections were drawn through.
        Empty for none.
    step : int
        Pixels between nodes, as in `flows`.
    stride : int
        Pixels of a voxel of the field; divides ``step``.
    reach_nm : float
        Greatest displacement that is expected [nm]; more stops the run.
    tear_nm : float
        As of `warp`, for the first field.
    voxel_size_nm : (x, y, z)
        Of the pixels.
    """

    name: ClassVar[str] = "fields"
    bytes_per_voxel: ClassVar[float] = 160.0

    relaxation: Layer
    defects: Layer = ""
    first: Layer = ""
    step: int = Field(default=16, ge=2)
    stride: int = Field(default=2, ge=1)
    reach_nm: float = Field(default=600.0, gt=0)
    tear_nm: float = Field(default=30.0, gt=0)
    voxel_size_nm: tuple[float, float, float]

    @property
    def _spacing(self) -> float:
        return self.voxel_size_nm[0] * self.stride

    @property
    def _rounds(self) -> int:
        # Twice from node to node: to reach every pixel, and to even out.
        return 4 * self.step // self.stride

    @property
    def _margin(self) -> int:
        """What is drawn beyond a chunk [voxel]."""
        from_fill = 3 * 16
        return math.ceil(self.reach_nm / self._spacing) + from_fill + self._rounds

    def _wide(self, task: Task) -> Bbox:
        around = Vec3(self._margin, self._margin, 0)
        return Bbox(task.box.start - around, task.box.stop + around).intersection(
            task.bounds
        )

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the nodes around the chunk, and the tears."""
        wide = self._wide(task)
        per_node = self.step // self.stride
        nodes = wide.coarser(Vec3(per_node, per_node, 1))
        one = Vec3(1, 1, 0)
        limit = self.bounds.coarser(Vec3(per_node, per_node, 1))
        box = Bbox(nodes.start - one, nodes.stop + one).intersection(limit)
        reads: dict[str, Read] = {"relaxation": Region(self.relaxation, box)}
        if self.defects:
            fine = wide.finer(Vec3(self.stride, self.stride, 1))
            reads["defects"] = Region(self.defects, fine)
        if self.first:
            reads["first"] = Region(self.first, wide)
        return reads

    def process(
        self,
        task: Task,
        relaxation: NDArray[np.float32],
        defects: NDArray[np.uint8] | None = None,
        first: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Draw the field of every section of the chunk."""
        from pipeline.kernels import fields
        from pipeline.kernels.relaxation import spread

        wide = self._wide(task)
        read = self.reads(task)["relaxation"]
        assert isinstance(read, Region)
        farthest = float(np.abs(relaxation).max(initial=0))
        if farthest > self.reach_nm:
            raise DataError(
                f"{self.name}: {self.relaxation} moves tissue by {farthest:.0f} nm in "
                f"{read.box}, more than reach_nm = {self.reach_nm:.0f}; raise it, or look "
                "for sections that were matched wrongly"
            )
        spacing, node = self._spacing, self.voxel_size_nm[0] * self.step
        place = (wide.start.x, wide.start.y)
        shape = (wide.shape.x, wide.shape.y)
        points = fields.nodes(place, shape, spacing)
        corner = (read.box.start.x, read.box.start.y)
        result = np.empty((*task.box.shape, 3), np.float32, order="F")
        mine = task.box.slices(wide.start)[:2]
        around = self._node_pixels(read.box, wide)
        for z in range(task.box.shape.z):
            nodes = relaxation[:, :, z]
            smooth = fields.sample(nodes, points, node, corner)
            known = np.ones(shape, bool)
            if defects is not None and (defects[..., z] > 0).any():
                s = self.stride
                squares = defects[..., z].reshape(shape[0], s, shape[1], s)
                known = np.asarray(~(squares > 0).any(axis=(1, 3)))
                moved = spread(
                    nodes.reshape(-1, 2)[around.kept],
                    ~known,
                    around.pixels,
                    smooth,
                    rounds=self._rounds,
                )
            else:
                moved = smooth
            field, reached = fields.scattered_inverse(moved, known, spacing)
            by, lost = field[mine], ~reached[mine]
            if first is not None:
                at_first = points[mine] + by
                values = first[:, :, z]
                by = by + fields.sample(
                    values[..., :2], at_first, spacing, place, tear=self.tear_nm
                )
                opened = fields.sample(values[..., 2:], at_first, spacing, place)
                lost = lost | (opened[..., 0] >= _OPENED)
            result[:, :, z, :2] = by
            result[:, :, z, 2] = lost
        return result

    def _node_pixels(self, nodes: Bbox, wide: Bbox) -> _NodePixels:
        """Return which voxels the nodes are, and which nodes have one."""
        per_node = self.step // self.stride
        x, y = (
            np.arange(a, b) * per_node + per_node // 2 - first
            for a, b, first in (
                (nodes.start.x, nodes.stop.x, wide.start.x),
                (nodes.start.y, nodes.stop.y, wide.start.y),
            )
        )
        pixels = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
        kept = ((pixels >= 0) & (pixels < (wide.shape.x, wide.shape.y))).all(axis=1)
        return _NodePixels(np.asarray(kept), pixels[kept])

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write three channels."""
        x, y, z = self.voxel_size_nm
        return self.volume(
            dtype="float32",
            voxel_size_nm=(x * self.stride, y * self.stride, z),
            kind_of_values="image",
            channels=3,
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the displacements and that steps divide."""
        faults = [
            *super().check(specs),
            *expect_volume(
                self.name, specs, self.relaxation, dtypes=("float32",), channels=2
            ),
        ]
        if self.step % self.stride:
            faults.append(
                f"{self.name}: stride {self.stride} does not divide step {self.step}; use "
                "a divisor"
            )
        if self.defects:
            faults += expect_volume(self.name, specs, self.defects, dtypes=("uint8",))
        if self.first:
            faults += expect_volume(
                self.name, specs, self.first, dtypes=("float32",), channels=3
            )
            faults += expect_bounds(self.name, specs, self.first, self.bounds)
        return faults
