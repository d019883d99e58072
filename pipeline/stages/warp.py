"""Draws sections where poses and a field put them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.draw import REACH, Interpolation, draw
from pipeline.specs import Read, Record, RecordsSpec, Region, Table, VolumeSpec
from pipeline.stages.base import Layer, Specs, Task
from pipeline.stages.volume import VolumeStage, expect_volume, missing_mip

Shown: TypeAlias = tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None]
"""What the pixels of a section show, see `Warp.shown`."""
_WHOLE = "0_0_0_0"
"""Key of the one record of poses."""


class Warp(VolumeStage):
    """An aligned image, or a mask that goes with it, at any mip.

    What a point shows is looked up in the field, turned and shifted back by the pose of its
    section, and then looked up in what a person put together, so that the image is drawn
    once; only the window of it that a chunk needs is read. Sections that no pose places,
    and places that a fold hides, are 0.

    Parameters
    ----------
    image : str
        Volume of uint8, of loose sections.
    mip : int
        Mip of it that is drawn; ``bounds`` are in its voxels.
    image_bounds : Bbox or None
        What the image holds at that mip along x and y; as ``bounds`` if None.
    poses : str
        Record of `section_poses`. Empty for none.
    field : str
        Volume written by `fields`. Empty for none.
    closures : str
        Records of `closures`. Empty for none.
    interpolation : {"nearest", "linear", "lanczos"}
        Nearest for masks.
    tear_nm : float
        Displacements that differ by more than this from one voxel of the field to the next
        are of two sides of a crack, and are not mixed [nm].
    voxel_size_nm : (x, y, z)
        Of the image at that mip.
    field_voxel_nm : (x, y, z)
        Of the field.
    """

    name: ClassVar[str] = "warp"
    bytes_per_voxel: ClassVar[float] = 16.0
    late: ClassVar[frozenset[str]] = frozenset({"image"})

    image: Layer
    mip: int = Field(default=0, ge=0)
    image_bounds: Bbox | None = None
    poses: Layer = ""
    field: Layer = ""
    closures: Layer = ""
    interpolation: Interpolation = "linear"
    tear_nm: float = Field(default=30.0, gt=0)
    voxel_size_nm: tuple[float, float, float]
    field_voxel_nm: tuple[float, float, float] | None = None

    @model_serializer(mode="wrap")
    def _as_json(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not used: such a stage is what it always was."""
        form: dict[str, Any] = plain(self)
        for name in ("closures", "image_bounds"):
            if not getattr(self, name):
                form.pop(name, None)
        return form

    @property
    def _held(self) -> Bbox:
        """Box whose x and y are those of the image."""
        return self.image_bounds or self.bounds

    @property
    def read_mip(self) -> int:
        """Mip of the image."""
        return self.mip

    def reads(self, task: Task) -> dict[str, Read]:
        """Read poses and field; of the image, at the most the whole sections."""
        bounds, box = self._held, task.box
        sections = Bbox(
            Vec3(bounds.start.x, bounds.start.y, box.start.z),
            Vec3(bounds.stop.x, bounds.stop.y, box.stop.z),
        )
        reads: dict[str, Read] = {"image": Region(self.image, sections, self.mip)}
        if self.poses:
            reads["poses"] = Record(self.poses, _WHOLE)
        if self.field:
            reads["field"] = Region(self.field, self._field_box(task))
        if self.closures:
            first = self.bounds.start.z
            numbers = range(box.start.z - first, box.stop.z - first)
            reads["closures"] = [Record(self.closures, f"0_0_0_{i}") for i in numbers]
        return reads

    def _field_box(self, task: Task) -> Bbox:
        """Return the voxels of the field around a chunk, within those of the bounds."""
        per_voxel = self.voxel_size_nm[0] / self._spacing

        def cut(first: int, last: int, least: int, most: int) -> tuple[int, int]:
            low = max(math.floor(first * per_voxel) - 1, math.floor(least * per_voxel))
            high = min(math.ceil(last * per_voxel) + 1, math.ceil(most * per_voxel))
            return low, high

        box, bounds = task.box, self.bounds
        x = cut(box.start.x, box.stop.x, bounds.start.x, bounds.stop.x)
        y = cut(box.start.y, box.stop.y, bounds.start.y, bounds.stop.y)
        return Bbox(Vec3(x[0], y[0], box.start.z), Vec3(x[1], y[1], box.stop.z))

    @property
    def _spacing(self) -> float:
        return self.field_voxel_nm[0] if self.field_voxel_nm else self.voxel_size_nm[0]

    def narrowed(self, task: Task, **inputs: Any) -> dict[str, Region]:
        """Read what the pixels of the chunk show, and as much around as mixing takes."""
        window = self._window(task, self.shown(task, **inputs))
        return {} if window is None else {"image": Region(self.image, window, self.mip)}

    def _window(self, task: Task, shown: Sequence[Shown]) -> Bbox | None:
        found = [points for points, _ in shown if points is not None]
        if not found:
            return None
        around = REACH[self.interpolation] + 1
        ends = np.array([[p.min(axis=(0, 1)), p.max(axis=(0, 1))] for p in found])
        low = np.floor(ends[:, 0].min(axis=0)).astype(int) - around
        high = np.ceil(ends[:, 1].max(axis=0)).astype(int) + around + 1
        box, bounds = task.box, self._held
        x0, y0 = max(low[0], bounds.start.x), max(low[1], bounds.start.y)
        x1, y1 = min(high[0], bounds.stop.x), min(high[1], bounds.stop.y)
        if x0 >= x1 or y0 >= y1:
            return None
        start = Vec3(int(x0), int(y0), box.start.z)
        return Bbox(start, Vec3(int(x1), int(y1), box.stop.z))

    def shown(
        self,
        task: Task,
        poses: Table | None = None,
        field: NDArray[np.float32] | None = None,
        closures: Sequence[Table] | None = None,
    ) -> list[Shown]:
        """Say what each pixel of a chunk shows.

        Returns
        -------
        list of (float64 array, (x, y, 2) or None, bool array, (x, y) or None)
            By section: places of the loose section [pixel], None if it is not placed; and
            whether they show anything, None if all do.
        """
        from pipeline.kernels import fields
        from pipeline.kernels.piecewise_affine import pull

        size = np.array(self.voxel_size_nm[:2])
        box = task.box
        corner = (box.start.x, box.start.y)
        aligned = fields.nodes(corner, (box.shape.x, box.shape.y), 1.0) * size
        result: list[Shown] = []
        start = self._field_box(task).start
        for z in range(box.start.z, box.stop.z):
            points, reached = aligned, None
            if field is not None:
                values = field[:, :, z - box.start.z]
                place = (start.x, start.y)
                by = fields.sample(
                    values[..., :2], points, self._spacing, place, tear=self.tear_nm
                )
                lost = fields.sample(values[..., 2:], points, self._spacing, place)
                points, reached = points + by, lost[..., 0] < 0.5
            if poses is not None:
                row = z - int(poses["z"][0])
                if not (0 <= row < len(poses["z"]) and poses["placed"][row]):
                    result.append((None, None))
                    continue
                angle = float(poses["angle"][row])
                shift = np.array([poses["x"][row], poses["y"][row]])
                middle = poses["middle"]
                x, y = np.moveaxis(points - middle - shift, -1, 0)
                cos, sin = math.cos(angle), math.sin(angle)
                turned = np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1)
                points = turned + middle
            if closures is not None:
                closure = self._of_section(closures[z - box.start.z], z)
                if len(closure["loose"]):
                    points = pull(points, closure["loose"], closure["closed"])
            result.append((points / size - 0.5, reached))
        return result

    def _of_section(self, closure: Table, z: int) -> Table:
        found = int(closure["z"][0])
        if found != z:
            raise DataError(
                f"{self.name}: what {self.closures} has in the place of section {z} is of "
                f"section {found}; give both stages bounds of the same sections"
            )
        return closure

    def process(
        self,
        task: Task,
        image: NDArray[np.uint8] | None = None,
        poses: Table | None = None,
        field: NDArray[np.float32] | None = None,
        closures: Sequence[Table] | None = None,
    ) -> NDArray[np.uint8]:
        """Draw the sections of the chunk."""
        result = np.zeros(task.box.shape.astuple(), np.uint8, order="F")
        if image is None:
            return result
        shown = self.shown(task, poses, field, closures)
        window = self._window(task, shown)
        assert window is not None
        start = (window.start.x, window.start.y)
        for i, (points, reached) in enumerate(shown):
            if points is None or not image[..., i].any():
                continue
            drawn = draw(image[..., i], points, start, self.interpolation)
            result[..., i] = drawn if reached is None else np.where(reached, drawn, 0)
        return result

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write the voxels of the image."""
        return self.volume(
            dtype="uint8", voxel_size_nm=self.voxel_size_nm, kind_of_values="image"
        )

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the chunk; the window of the image is not much wider [byte]."""
        task = self.task(next(iter(self.keys(level))))
        plane = task.box.shape.x * task.box.shape.y
        field = self._field_box(task).volume * 12 if self.field else 0
        return int(4 * task.box.volume + 400 * plane + 2 * field)

    def check(self, specs: Specs) -> list[str]:
        """Check the image, the poses and the field."""
        faults = [
            *super().check(specs),
            *expect_volume(self.name, specs, self.image, dtypes=("uint8",)),
        ]
        spec = specs.get(self.image)
        if isinstance(spec, VolumeSpec):
            if self.mip >= len(spec.factors):
                return [*faults, missing_mip(self.name, self.image, spec, self.mip)]
            if spec.voxel_size_at(self.mip) != self.voxel_size_nm:
                faults.append(
                    f"{self.name}: voxels of {self.image} at mip {self.mip} are "
                    f"{spec.voxel_size_at(self.mip)} nm, not {self.voxel_size_nm}; give "
                    "those"
                )
        if self.poses and not isinstance(specs.get(self.poses), RecordsSpec | None):
            faults.append(f"{self.name}: {self.poses} is a volume; give records of poses")
        if self.closures and not isinstance(specs.get(self.closures), RecordsSpec | None):
            faults.append(
                f"{self.name}: {self.closures} is a volume; give records of closures"
            )
        if self.field:
            faults += expect_volume(
                self.name, specs, self.field, dtypes=("float32",), channels=3
            )
            flow = specs.get(self.field)
            if isinstance(flow, VolumeSpec) and flow.voxel_size_nm != self.field_voxel_nm:
                faults.append(
                    f"{self.name}: voxels of {self.field} are {flow.voxel_size_nm} nm, not "
                    f"field_voxel_nm = {self.field_voxel_nm}; give those"
                )
        return faults
