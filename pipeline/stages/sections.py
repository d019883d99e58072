"""Rough alignment: where whole sections lie on one another, and on the stack."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.specs import LayerSpec, Read, Record, RecordsSpec, Region, Table, VolumeSpec
from pipeline.stages.base import ChunkStage, Layer, Specs, Task
from pipeline.stages.volume import expect_bounds, expect_volume, missing_mip

_LARGEST = 4096
"""Pixels along an axis that are still compared as a whole."""
_BYTES_PER_PIXEL = 160
_FAINT = 2.0


class SectionMatches(ChunkStage):
    """How every section lies on those before it, found at a coarse mip.

    A task is a section, and its record has a row for each earlier section that it was
    compared with: `other`, `angle` [radian], `x` and `y` [nm], `correlation`,
    `significance`, and `mirrored`, which is 1 where the section matched only as its mirror
    image. A section that shows nothing has no rows.

    Parameters
    ----------
    image : str
        Volume of uint8 intensities; 0 where there is no tissue.
    defects : str
        Volume of uint8, 0 where a section is whole; at the same mips. Empty for none.
    mip : int
        Mip that is compared; a section should have a few hundred pixels there.
    distance : int
        How many earlier sections each is compared with.
    turn_degrees : float
        Greatest turn that is tried.
    step_degrees : float
        Between turns that are tried.
    shift_nm : float
        Greatest shift along either axis [nm].
    voxel_size_nm : (x, y, z)
        Of the image at that mip.
    """

    name: ClassVar[str] = "section_matches"

    image: Layer
    defects: Layer = ""
    mip: int = Field(default=0, ge=0)
    distance: int = Field(default=3, ge=1, le=16)
    turn_degrees: float = Field(default=4.0, ge=0, le=180)
    step_degrees: float = Field(default=0.5, gt=0)
    shift_nm: float = Field(gt=0)
    voxel_size_nm: tuple[float, float, float]

    @property
    def grid(self) -> Grid:
        """A task is a section, whatever other stages are cut into."""
        shape = self.bounds.shape
        return Grid(self.bounds, Vec3(shape.x, shape.y, 1))

    def _compared(self, task: Task) -> Iterator[int]:
        first = task.bounds.start.z
        yield from range(max(first, task.box.start.z - self.distance), task.box.start.z)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the section and those that it is compared with."""
        z = task.box.start.z
        first = max(task.bounds.start.z, z - self.distance)
        box = Bbox(Vec3(*task.box.start.astuple()[:2], first), task.box.stop)
        reads: dict[str, Read] = {"image": Region(self.image, box, self.mip)}
        if self.defects:
            reads["defects"] = Region(self.defects, box, self.mip)
        return reads

    @property
    def read_mip(self) -> int:
        """Mip that is compared."""
        return self.mip

    def process(
        self,
        task: Task,
        image: NDArray[np.uint8],
        defects: NDArray[np.uint8] | None = None,
    ) -> Table:
        """Compare the section with each before it."""
        from pipeline.kernels.contrast import local_contrast
        from pipeline.kernels.section_match import match_sections

        shown = image > 0
        if defects is not None:
            shown &= defects == 0
        coarse = min(6.0, min(image.shape[:2]) / 40)
        contrast = [
            local_contrast(image[..., i], shown[..., i], fine=1.0, coarse=coarse)
            for i in range(image.shape[2])
        ]
        turn = math.radians(self.turn_degrees)
        count = 2 * math.ceil(self.turn_degrees / self.step_degrees) + 1
        settings: dict[str, Any] = {
            "angles": np.linspace(-turn, turn, count) if count > 1 else np.zeros(1),
            "reach": self.shift_nm / self.voxel_size_nm[0],
        }
        rows = []
        for i, other in enumerate(self._compared(task)):
            target = (contrast[i], shown[..., i])
            found = match_sections(contrast[-1], shown[..., -1], *target, **settings)
            if found is None:
                continue
            mirrored = 0
            if found.significance < _FAINT:
                flipped = match_sections(
                    contrast[-1][::-1], shown[::-1, :, -1], *target, **settings
                )
                if flipped is not None and flipped.significance > 2 * _FAINT:
                    mirrored = 1
            x, y = (s * v for s, v in zip(found.shift, self.voxel_size_nm, strict=False))
            rows.append(
                (other, found.angle, x, y, found.correlation, found.significance, mirrored)
            )
        columns = list(zip(*rows, strict=True)) or [()] * 7
        names = ("other", "angle", "x", "y", "correlation", "significance", "mirrored")
        kinds = (np.int64, *[np.float64] * 5, np.uint8)
        return {
            name: np.array(column, kind)
            for name, column, kind in zip(names, columns, kinds, strict=True)
        }

    def target(self, task: Task) -> Record:
        """Write a record for the section."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the transforms of a section [byte]."""
        pixels = self.bounds.shape.x * self.bounds.shape.y
        return int(_BYTES_PER_PIXEL * pixels + 8 * pixels * (self.distance + 1))

    def check(self, specs: Specs) -> list[str]:
        """Check the image, and that a section is small enough at the mip."""
        faults = expect_volume(self.name, specs, self.image, dtypes=("uint8",))
        for layer in filter(None, (self.image, self.defects)):
            spec = specs.get(layer)
            if not isinstance(spec, VolumeSpec):
                continue
            if self.mip >= len(spec.factors):
                faults.append(missing_mip(self.name, layer, spec, self.mip))
                continue
            faults += expect_bounds(self.name, specs, layer, self.bounds, mip=self.mip)
            if spec.voxel_size_at(self.mip) != self.voxel_size_nm:
                faults.append(
                    f"{self.name}: voxels of {layer} at mip {self.mip} are "
                    f"{spec.voxel_size_at(self.mip)} nm, not {self.voxel_size_nm}; give "
                    "those"
                )
        widest = max(self.bounds.shape.x, self.bounds.shape.y)
        if widest > _LARGEST:
            faults.append(
                f"{self.name}: sections are {widest} pixels wide at mip {self.mip}, more "
                f"than {_LARGEST}; read a coarser mip"
            )
        return faults


class SectionPoses(ChunkStage):
    """Turn and shift of every section, solved for over the whole stack.

    One task, one record. By section: `z`, `angle` [radian], `x` and `y` [nm], `placed` (0
    where nothing ties a section to any other), `group` (0 for the greatest of those that
    pairs tie together, -1 if not placed), `mirrored` (1 where it matches others as
    its mirror image alone). The point p of a section [nm] belongs at ``turn (p - c) + c +
    (x, y)`` with c in `middle`. By pair: `section`, `other`, `weight` (near 0 is an
    outlier) and `misfit_nm`.

    Parameters
    ----------
    matches : str
        Records of `section_matches`.
    least_significance : float
        What is less significant counts for nothing.
    scale_nm : float
        Misfit at which a pair begins to count for less [nm].
    voxel_size_nm : (x, y, z)
        Of the sections that were compared.
    """

    name: ClassVar[str] = "section_poses"

    matches: Layer
    least_significance: float = Field(default=1.5, ge=0)
    scale_nm: float = Field(default=50.0, gt=0)
    voxel_size_nm: tuple[float, float, float]

    @property
    def grid(self) -> Grid:
        """The stack is solved for as a whole."""
        return Grid(self.bounds, self.bounds.shape)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the matches of all sections."""
        count = task.box.shape.z
        return {"matches": [Record(self.matches, f"0_0_0_{i}") for i in range(count)]}

    def process(self, task: Task, matches: list[Table]) -> Table:
        """Solve."""
        from pipeline.kernels.section_poses import Pair, solve_poses

        first = task.box.start.z
        pairs = []
        upright, mirrored = np.zeros((2, len(matches)), bool)
        for section, table in enumerate(matches):
            for row in range(len(table["other"])):
                significance = float(table["significance"][row])
                is_mirrored = bool(table["mirrored"][row])
                # Where a section lies as its mirror image says nothing of where it lies.
                counts = significance >= self.least_significance and not is_mirrored
                both = [section, int(table["other"][row]) - first]
                upright[both] |= counts
                mirrored[both] |= is_mirrored
                pairs.append(
                    Pair(
                        section,
                        int(table["other"][row]) - first,
                        float(table["angle"][row]),
                        (float(table["x"][row]), float(table["y"][row])),
                        significance if counts else 0.0,
                    )
                )
        poses = solve_poses(len(matches), pairs, scale_nm=self.scale_nm)
        ends = zip(self.bounds.start, self.bounds.stop, self.voxel_size_nm, strict=True)
        middle = [(a + b) / 2 * size for a, b, size in ends]
        return {
            "z": np.arange(first, first + len(matches), dtype=np.int64),
            "angle": poses.angle,
            "x": poses.shift[:, 0],
            "y": poses.shift[:, 1],
            "placed": poses.placed.astype(np.uint8),
            "group": poses.group,
            "mirrored": (mirrored & ~upright).astype(np.uint8),
            "middle": np.array(middle[:2]),
            "section": np.array([p.section + first for p in pairs], np.int64),
            "other": np.array([p.other + first for p in pairs], np.int64),
            "weight": poses.weight,
            "misfit_nm": poses.misfit_nm,
        }

    def target(self, task: Task) -> Record:
        """Write one record."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the sections [byte]."""
        return 20_000 * self.bounds.shape.z

    def check(self, specs: Specs) -> list[str]:
        """Check that the matches are records."""
        spec = specs.get(self.matches)
        if spec is None or isinstance(spec, RecordsSpec):
            return []
        return [f"{self.name}: {self.matches} holds {spec.kind}, and records are needed"]
