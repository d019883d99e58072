"""Two alignments of overlapping sections, joined into one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.specs import (
    LayerSpec,
    Read,
    Record,
    RecordsSpec,
    Region,
    Table,
    VolumeSpec,
)
from pipeline.stages.base import ChunkStage, Layer, Specs, Task
from pipeline.stages.volume import (
    VolumeStage,
    expect_bounds,
    expect_volume,
    missing_mip,
)

if TYPE_CHECKING:
    from pipeline.kernels.seams import Fading

_Pulled: TypeAlias = list[tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None]]
"""By section: where nodes lie, None if it was not placed, and whether they show tissue."""
_WHOLE = "0_0_0_0"
"""Key of the one record of poses, and of a seam."""
_OPENED = 0.5
"""Share of a point that lies in a fold which opened, from which on nothing is shown."""
_MOSTLY = 0.25
"""Share of a cell that is known, from which on it has a say."""


class SeamShifts(VolumeStage):
    """By how much the places of two alignments differ, where both hold a section.

    The point q of the first shows what ``q + shift`` of the second shows, by way of the
    loose section; nothing is matched. A voxel is a node: a square of ``stride`` voxels of
    the fields. Channels are x and y [nm], and 1 where both know what they show (else all
    are 0).

    Parameters
    ----------
    poses, field : str
        Of the first alignment: records of `section_poses`, and a volume of `fields`.
    other_poses, other_field : str
        Of the second.
    stride : int
        Voxels of the fields between nodes.
    reach_nm : float
        How far a field moves tissue at most [nm].
    tear_nm : float
        As of `warp`.
    voxel_size_nm : (x, y, z)
        Of the fields.
    of : str
        Identity of the two alignments: others than these have other shifts.
    """

    name: ClassVar[str] = "seam_shifts"
    late: ClassVar[frozenset[str]] = frozenset({"other_field"})

    poses: Layer
    field: Layer
    other_poses: Layer
    other_field: Layer
    stride: int = Field(default=8, ge=1)
    reach_nm: float = Field(default=1200.0, gt=0)
    tear_nm: float = Field(default=30.0, gt=0)
    voxel_size_nm: tuple[float, float, float]
    of: str = ""

    @property
    def _limit(self) -> Bbox:
        """Voxels of the fields that are looked at."""
        return self.bounds.finer(Vec3(self.stride, self.stride, 1))

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the first field under the nodes; of the second, whole sections at most."""
        limit, box = self._limit, task.box
        whole = Bbox(
            Vec3(limit.start.x, limit.start.y, box.start.z),
            Vec3(limit.stop.x, limit.stop.y, box.stop.z),
        )
        return {
            "poses": Record(self.poses, _WHOLE),
            "other_poses": Record(self.other_poses, _WHOLE),
            "field": Region(self.field, box.finer(Vec3(self.stride, self.stride, 1))),
            "other_field": Region(self.other_field, whole),
        }

    def narrowed(self, task: Task, **inputs: Any) -> dict[str, Region]:
        """Read the second field where it may show what the nodes do."""
        window = self._window(task, self._pulled(task, **inputs))
        return {} if window is None else {"other_field": Region(self.other_field, window)}

    def _window(self, task: Task, pulled: _Pulled) -> Bbox | None:
        found = [points for points, _ in pulled if points is not None]
        if not found:
            return None
        return _around(found, self.reach_nm, self.voxel_size_nm[0], self._limit, task.box)

    def _pulled(
        self,
        task: Task,
        poses: Table,
        other_poses: Table,
        field: NDArray[np.float32],
    ) -> _Pulled:
        """Return where the second run's poses put what the nodes show, by section."""
        from pipeline.kernels import fields, seams

        spacing = self.voxel_size_nm[0]
        nodes = self._nodes(task)
        start = task.box.finer(Vec3(self.stride, self.stride, 1)).start
        place = (start.x, start.y)
        result: _Pulled = []
        for i, z in enumerate(range(task.box.start.z, task.box.stop.z)):
            mine, others = _pose(poses, z), _pose(other_poses, z)
            if mine is None or others is None:
                result.append((None, None))
                continue
            values = field[:, :, i]
            by = fields.sample(values[..., :2], nodes, spacing, place, tear=self.tear_nm)
            lost = fields.sample(values[..., 2:], nodes, spacing, place)
            loose = seams.to_loose(nodes + by, *mine)
            result.append((seams.from_loose(loose, *others), lost[..., 0] < _OPENED))
        return result

    def _nodes(self, task: Task) -> NDArray[np.float64]:
        from pipeline.kernels import fields

        box = task.box
        spacing = self.voxel_size_nm[0] * self.stride
        return fields.nodes((box.start.x, box.start.y), (box.shape.x, box.shape.y), spacing)

    def process(
        self,
        task: Task,
        poses: Table,
        other_poses: Table,
        field: NDArray[np.float32],
        other_field: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Follow every node into the loose section, and out of it again."""
        from pipeline.kernels import fields, seams

        result = np.zeros((*task.box.shape, 3), np.float32, order="F")
        if other_field is None:
            return result
        pulled = self._pulled(task, poses, other_poses, field)
        window = self._window(task, pulled)
        assert window is not None
        place, spacing = (window.start.x, window.start.y), self.voxel_size_nm[0]
        nodes = self._nodes(task)
        low, high = (
            np.array([c.x, c.y]) * spacing for c in (self._limit.start, self._limit.stop)
        )
        for i, (points, shown) in enumerate(pulled):
            if points is None or shown is None:
                continue
            values = other_field[:, :, i]
            places, known = seams.found_again(
                points,
                values[..., :2],
                spacing,
                place,
                reach=self.reach_nm,
                tear=self.tear_nm,
            )
            lost = fields.sample(values[..., 2:], places, spacing, place)[..., 0]
            inside = ((places >= low) & (places <= high)).all(axis=-1)
            known = known & shown & inside & (lost < _OPENED)
            result[:, :, i, :2] = np.where(known[..., None], places - nodes, 0.0)
            result[:, :, i, 2] = known
        return result

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write a voxel for each node."""
        x, y, z = self.voxel_size_nm
        return self.volume(
            dtype="float32",
            voxel_size_nm=(x * self.stride, y * self.stride, z),
            kind_of_values="image",
            channels=3,
        )

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the windows of both fields [byte]."""
        box = self.task(next(iter(self.keys(level)))).box
        around = 2 * math.ceil(self.reach_nm / self.voxel_size_nm[0])
        x, y = (n * self.stride + around for n in (box.shape.x, box.shape.y))
        return int(2 * 12 * x * y * box.shape.z + 400 * box.shape.x * box.shape.y)

    def check(self, specs: Specs) -> list[str]:
        """Check the fields and the poses."""
        faults = super().check(specs)
        for layer in (self.field, self.other_field):
            faults += _expect_field(
                self.name, specs, layer, self._limit, self.voxel_size_nm
            )
        for layer in (self.poses, self.other_poses):
            faults += _expect_records(self.name, specs, layer)
        return faults


class Seam(ChunkStage):
    """How two alignments stand to one another: an affine map, and how far it is off.

    One task, one record: `affine` and `change`, (2, 3) each, with which the shifts [nm]
    that most agree with are ``(affine + t change) @ (x, y, 1)``, t sections from the middle
    of the overlap; and by section `z`, `known` (the share that both know), and `median_nm`
    and `p95_nm` of what is left of the shifts beside that.

    Parameters
    ----------
    shifts : str
        Volume of `seam_shifts`.
    mip : int
        Mip of it that is looked at as a whole; ``bounds`` are in its voxels.
    limit_nm : float
        Greatest median of what is left, over all sections [nm]; more stops the run.
    least_known : float
        Least share that both know of the sections; less stops the run.
    voxel_size_nm : (x, y, z)
        Of the shifts at that mip.
    """

    name: ClassVar[str] = "seam"

    shifts: Layer
    mip: int = Field(default=0, ge=0)
    limit_nm: float = Field(default=60.0, gt=0)
    least_known: float = Field(default=0.1, ge=0, le=1)
    voxel_size_nm: tuple[float, float, float]

    @property
    def grid(self) -> Grid:
        """The overlap is looked at as a whole."""
        return Grid(self.bounds, self.bounds.shape)

    @property
    def read_mip(self) -> int:
        """Mip of the shifts."""
        return self.mip

    def reads(self, task: Task) -> dict[str, Read]:
        """Read all shifts."""
        return {"shifts": Region(self.shifts, task.box, self.mip)}

    def process(self, task: Task, shifts: NDArray[np.float32]) -> Table:
        """Fit."""
        from pipeline.kernels import fields, seams

        box, sections = task.box, range(task.box.start.z, task.box.stop.z)
        nodes = fields.nodes(
            (box.start.x, box.start.y),
            (box.shape.x, box.shape.y),
            self.voxel_size_nm[0],
        )
        weight = np.where(shifts[..., 2] >= _MOSTLY, shifts[..., 2], 0).astype(np.float64)
        # Where a part of a cell is known, its mean is over nodes of which the rest are 0.
        by = shifts[..., :2] / np.where(weight > 0, weight, 1.0)[..., None]
        known = float(weight.mean())
        if known < self.least_known:
            raise DataError(
                f"{self.name}: the two alignments know together where {known:.0%} of "
                f"sections {sections.start} to {sections.stop - 1} belong, less than "
                f"{self.least_known:.0%}; let them overlap by sections that both placed"
            )
        at = np.broadcast_to(nodes[:, :, None], by.shape)
        trust = weight * seams.overlap_trust(len(sections))
        steps = np.arange(len(sections)) - (len(sections) - 1) / 2
        affine, change = seams.fit_affine(
            at.reshape(-1, 2),
            by.reshape(-1, 2).astype(np.float64),
            trust.ravel(),
            np.broadcast_to(steps, trust.shape).ravel(),
        )
        rest = by - np.stack(
            [seams.affine_shift(affine + t * change, nodes) for t in steps], axis=2
        )
        found = [
            seams.disagreement(rest[:, :, i], weight[:, :, i]) for i in range(len(sections))
        ]
        whole = seams.disagreement(rest, weight).median
        if whole > self.limit_nm:
            raise DataError(
                f"{self.name}: the two alignments disagree by {whole:.0f} nm about "
                f"sections {sections.start} to {sections.stop - 1} (median, beside an "
                f"affine map), more than {self.limit_nm:.0f} nm; look for sections that "
                "one of them put wrongly, let them overlap by more sections, or raise the "
                "limit"
            )
        return {
            "affine": affine,
            "change": change,
            "z": np.array(sections, np.int64),
            "known": np.array([d.known for d in found]),
            "median_nm": np.array([d.median for d in found]),
            "p95_nm": np.array([d.p95 for d in found]),
        }

    def target(self, task: Task) -> Record:
        """Write one record."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the nodes [byte]."""
        return 300 * self.bounds.volume

    def check(self, specs: Specs) -> list[str]:
        """Check the shifts."""
        faults = expect_volume(
            self.name, specs, self.shifts, dtypes=("float32",), channels=3
        )
        spec = specs.get(self.shifts)
        if not isinstance(spec, VolumeSpec):
            return faults
        if self.mip >= len(spec.factors):
            return [*faults, missing_mip(self.name, self.shifts, spec, self.mip)]
        if spec.voxel_size_at(self.mip) != self.voxel_size_nm:
            faults.append(
                f"{self.name}: voxels of {self.shifts} at mip {self.mip} are "
                f"{spec.voxel_size_at(self.mip)} nm, not {self.voxel_size_nm}; give those"
            )
        return [
            *faults,
            *expect_bounds(self.name, specs, self.shifts, self.bounds, mip=self.mip),
        ]


class SeamFields(VolumeStage):
    """The field of the second alignment, as seen from the places of the first.

    A point of the joined stack is put through the seam, and from there through the second
    field: the result takes the place of that field, with the poses that belong to it. The
    affine map of the seam holds for every section; that it changes from one to the next
    fades beyond the overlap. What the two disagree by beside it goes
    over the overlap from where the first has a section to the median of all, in which the
    middle of the overlap counts most, and fades beyond. Channels are those of `fields`.

    Parameters
    ----------
    shifts : str
        Volume of `seam_shifts`.
    seam : str
        Record of `seam`.
    field : str
        Volume of `fields`, of the second alignment.
    until : int
        The section after the last that both hold; the first is that of ``bounds``.
    decay : float
        Sections beyond the overlap in which the disagreement, and the change of the affine
        map, fade to 1/e.
    smooth_nm : float
        Deviation of the Gaussian that it is smoothed by [nm].
    stride : int
        As of `seam_shifts`.
    tear_nm : float
        As of `warp`.
    voxel_size_nm : (x, y, z)
        Of the field.
    """

    name: ClassVar[str] = "seam_fields"
    late: ClassVar[frozenset[str]] = frozenset({"field"})

    shifts: Layer
    seam: Layer
    field: Layer
    until: int
    decay: float = Field(default=8.0, gt=0)
    smooth_nm: float = Field(default=400.0, gt=0)
    stride: int = Field(default=8, ge=1)
    tear_nm: float = Field(default=30.0, gt=0)
    voxel_size_nm: tuple[float, float, float]

    @property
    def _fading(self) -> Fading:
        from pipeline.kernels.seams import Fading

        return Fading(
            first=self.bounds.start.z,
            last=self.until,
            decay=self.decay,
            smooth=self.smooth_nm / (self.voxel_size_nm[0] * self.stride),
        )

    @property
    def _nodes(self) -> Bbox:
        """Nodes of the overlap."""
        return seam_nodes(self.bounds, self.stride, self.until)

    def _node_box(self, task: Task) -> Bbox:
        """Return the nodes that have a say in a chunk, of all sections of the overlap."""
        halo = self._fading.halo + 1
        nodes = task.box.coarser(Vec3(self.stride, self.stride, 1))
        limit = self._nodes
        wide = Bbox(
            Vec3(nodes.start.x - halo, nodes.start.y - halo, limit.start.z),
            Vec3(nodes.stop.x + halo, nodes.stop.y + halo, limit.stop.z),
        )
        return wide.intersection(limit)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read the seam around the chunk; of the field, whole sections at most."""
        bounds, box = self.bounds, task.box
        whole = Bbox(
            Vec3(bounds.start.x, bounds.start.y, box.start.z),
            Vec3(bounds.stop.x, bounds.stop.y, box.stop.z),
        )
        return {
            "shifts": Region(self.shifts, self._node_box(task)),
            "seam": Record(self.seam, _WHOLE),
            "field": Region(self.field, whole),
        }

    def narrowed(self, task: Task, **inputs: Any) -> dict[str, Region]:
        """Read the field where the seam puts the chunk."""
        window = self._window(task, self._through(task, **inputs))
        return {"field": Region(self.field, window)}

    def _window(self, task: Task, places: list[NDArray[np.float64]]) -> Bbox:
        return _around(places, 0.0, self.voxel_size_nm[0], self.bounds, task.box)

    def _through(
        self, task: Task, shifts: NDArray[np.float32], seam: Table
    ) -> list[NDArray[np.float64]]:
        """Return where the voxels of the chunk lie in the second alignment, by section."""
        from pipeline.kernels import fields, seams

        box, fading = task.box, self._fading

        def straight(points: NDArray[np.float64], z: int) -> NDArray[np.float64]:
            affine = seam["affine"] + fading.steps(z) * seam["change"]
            return seams.affine_shift(affine, points)

        wide = self._node_box(task)
        place, spacing = (wide.start.x, wide.start.y), self.voxel_size_nm[0] * self.stride
        nodes = fields.nodes(place, (wide.shape.x, wide.shape.y), spacing)
        known = shifts[..., 2] > 0
        overlap = range(self.bounds.start.z, self.until)
        rest = shifts[..., :2] - np.stack([straight(nodes, z) for z in overlap], axis=2)
        voxels = fields.nodes(
            (box.start.x, box.start.y), (box.shape.x, box.shape.y), self.voxel_size_nm[0]
        )
        return [
            voxels
            + straight(voxels, z)
            + fields.sample(seams.carried(rest, known, fading, z), voxels, spacing, place)
            for z in range(box.start.z, box.stop.z)
        ]

    def process(
        self,
        task: Task,
        shifts: NDArray[np.float32],
        seam: Table,
        field: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Put every voxel through the seam and the field."""
        from pipeline.kernels import fields

        places = self._through(task, shifts, seam)
        window = self._window(task, places)
        assert field is not None
        spacing, box = self.voxel_size_nm[0], task.box
        voxels = fields.nodes(
            (box.start.x, box.start.y), (box.shape.x, box.shape.y), spacing
        )
        result = np.zeros((*box.shape, 3), np.float32, order="F")
        start = (window.start.x, window.start.y)
        for i, at in enumerate(places):
            values = field[:, :, i]
            by = fields.sample(values[..., :2], at, spacing, start, tear=self.tear_nm)
            lost = fields.sample(values[..., 2:], at, spacing, start)
            result[:, :, i, :2] = at + by - voxels
            result[:, :, i, 2] = lost[..., 0] >= _OPENED
        return result

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write the voxels of the field."""
        return self.volume(
            dtype="float32",
            voxel_size_nm=self.voxel_size_nm,
            kind_of_values="image",
            channels=3,
        )

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the chunk; the window of the field is not much wider [byte]."""
        task = self.task(next(iter(self.keys(level))))
        plane = task.box.shape.x * task.box.shape.y
        return int(
            250 * plane + 60 * task.box.volume + 60 * 2 * self._node_box(task).volume
        )

    def check(self, specs: Specs) -> list[str]:
        """Check the seam and the field."""
        faults = [
            *super().check(specs),
            *_expect_field(self.name, specs, self.field, self.bounds, self.voxel_size_nm),
            *_expect_records(self.name, specs, self.seam),
            *expect_volume(self.name, specs, self.shifts, dtypes=("float32",), channels=3),
        ]
        spec = specs.get(self.shifts)
        if isinstance(spec, VolumeSpec) and spec.bounds != self._nodes:
            faults.append(
                f"{self.name}: {self.shifts} holds {spec.bounds}, and sections up to "
                f"{self.until} of {self.bounds} in steps of {self.stride} take "
                f"{self._nodes}; give the same bounds and stride to both"
            )
        return faults


class JoinedPoses(ChunkStage):
    """Poses of two alignments, as those of one.

    One task, one record, as `section_poses` writes it: that of the first for sections
    before ``since``, that of the second from there on.

    Parameters
    ----------
    first, second : str
        Records of `section_poses`.
    since : int
        First section that is taken from the second.
    """

    name: ClassVar[str] = "joined_poses"

    first: Layer
    second: Layer
    since: int

    @property
    def grid(self) -> Grid:
        """One task."""
        return Grid(self.bounds, self.bounds.shape)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read both."""
        return {"first": Record(self.first, _WHOLE), "second": Record(self.second, _WHOLE)}

    def process(self, task: Task, first: Table, second: Table) -> Table:
        """Put the rows after one another, about one middle."""
        middle = np.asarray(first["middle"])
        x, y = middle - np.asarray(second["middle"])
        cos, sin = np.cos(second["angle"]), np.sin(second["angle"])
        # The second turns about another point: what that moves is a shift.
        second = {
            **second,
            "x": second["x"] + cos * x - sin * y - x,
            "y": second["y"] + sin * x + cos * y - y,
        }
        rows = [first["z"] < self.since, second["z"] >= self.since]
        pairs = [
            first["section"] < self.since,
            np.minimum(second["section"], second["other"]) >= self.since,
        ]
        both = (first, second)
        result = {
            name: np.concatenate(
                [t[name][keep] for t, keep in zip(both, kept, strict=True)]
            )
            for names, kept in (
                (("z", "angle", "x", "y", "placed", "mirrored"), rows),
                (("section", "other", "weight", "misfit_nm"), pairs),
            )
            for name in names
        }
        return {**result, "middle": middle}

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
        """Check that both are records."""
        return [
            fault
            for layer in (self.first, self.second)
            for fault in _expect_records(self.name, specs, layer)
        ]


class Joined(VolumeStage):
    """Two volumes of sections, as one.

    Sections before ``since`` are those of the first volume, value for value; from there on
    they are those of the second.

    Parameters
    ----------
    first, second : str
        Volumes of the same voxels.
    since : int
        First section that is taken from the second.
    """

    name: ClassVar[str] = "joined"
    bytes_per_voxel: ClassVar[float] = 1.0
    late: ClassVar[frozenset[str]] = frozenset({"first", "second"})

    first: Layer
    second: Layer
    since: int

    def _parts(self, box: Bbox) -> dict[str, Bbox]:
        """Return what is taken from each volume; one may be empty."""
        z = min(max(self.since, box.start.z), box.stop.z)
        start, stop = box.start, box.stop
        return {
            "first": Bbox(start, Vec3(stop.x, stop.y, z)),
            "second": Bbox(Vec3(start.x, start.y, z), stop),
        }

    def reads(self, task: Task) -> dict[str, Read]:
        """Name a part of each; what is not taken is not read (see `narrowed`)."""
        box, bounds = task.box, self.bounds

        def within(low: int, high: int) -> Bbox:
            # A section at the least: what a task waits for is of one form everywhere.
            first = min(max(box.start.z, low), high - 1)
            after = max(min(box.stop.z, high), low + 1, first + 1)
            return Bbox(
                Vec3(box.start.x, box.start.y, first), Vec3(box.stop.x, box.stop.y, after)
            )

        return {
            "first": Region(self.first, within(bounds.start.z, self.since)),
            "second": Region(self.second, within(self.since, bounds.stop.z)),
        }

    def narrowed(self, task: Task, **inputs: Any) -> dict[str, Region]:
        """Read what is taken."""
        layers = {"first": self.first, "second": self.second}
        return {
            name: Region(layers[name], box)
            for name, box in self._parts(task.box).items()
            if not box.is_empty
        }

    def process(
        self,
        task: Task,
        first: NDArray[Any] | None = None,
        second: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Put the parts after one another."""
        given = {"first": first, "second": second}
        kept = [
            value
            for name, box in self._parts(task.box).items()
            if not box.is_empty and (value := given[name]) is not None
        ]
        return np.asfortranarray(np.concatenate(kept, axis=2))

    def describe(self, specs: Specs) -> VolumeSpec:
        """Write what the volumes hold."""
        spec = specs[self.first]
        if not isinstance(spec, VolumeSpec):
            raise TypeError(f"{self.first} holds {spec.kind}, and a volume is needed")
        return self.volume(
            dtype=spec.dtype,
            voxel_size_nm=spec.voxel_size_nm,
            kind_of_values=spec.kind_of_values,
            channels=spec.channels,
        )

    def check(self, specs: Specs) -> list[str]:
        """Check that the volumes are alike and hold the sections that are taken."""
        faults = super().check(specs)
        parts = self._parts(self.bounds)
        if any(part.is_empty for part in parts.values()):
            faults.append(
                f"{self.name}: since = {self.since} is not inside {self.bounds}; give a "
                "section of which some come before"
            )
        found: list[VolumeSpec] = []
        for layer, box in zip((self.first, self.second), parts.values(), strict=True):
            spec = specs.get(layer)
            if isinstance(spec, VolumeSpec):
                found.append(spec)
                faults += expect_bounds(self.name, specs, layer, box)
            elif spec is not None:
                faults.append(
                    f"{self.name}: {layer} holds {spec.kind}, and a volume is needed"
                )
        if len(found) == 2:
            for what in ("dtype", "channels", "voxel_size_nm"):
                one, other = (getattr(spec, what) for spec in found)
                if one != other:
                    faults.append(
                        f"{self.name}: {what} of {self.first} is {one} and that of "
                        f"{self.second} is {other}; give volumes that are alike"
                    )
        return faults


def seam_nodes(bounds: Bbox, stride: int, until: int) -> Bbox:
    """Return the nodes that lie within fields of some bounds, of sections before one."""
    start, stop = bounds.start, bounds.stop
    step = Vec3(stride, stride, 1)
    low, high = start.ceil_div(step), stop // step
    return Bbox(low, Vec3(high.x, high.y, until))


def _pose(
    poses: Table, z: int
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]] | None:
    """Return turn, shift and middle of a section; None if it was not placed."""
    row = z - int(poses["z"][0])
    if not (0 <= row < len(poses["z"]) and poses["placed"][row]):
        return None
    shift = np.array([poses["x"][row], poses["y"][row]])
    return float(poses["angle"][row]), shift, np.asarray(poses["middle"])


def _around(
    places: list[NDArray[np.float64]], reach: float, spacing: float, limit: Bbox, box: Bbox
) -> Bbox:
    """Return the voxels of a field around places, and as many more as mixing takes."""
    ends = np.array([[p.min(axis=(0, 1)), p.max(axis=(0, 1))] for p in places])
    low = np.floor((ends[:, 0].min(axis=0) - reach) / spacing).astype(int) - 2
    high = np.ceil((ends[:, 1].max(axis=0) + reach) / spacing).astype(int) + 2
    start, stop = limit.start, limit.stop
    # Beyond its bounds a field goes on as it ends: there is always something to read.
    x0, y0 = (
        int(np.clip(n, first, last - 1))
        for n, first, last in zip(low, start, stop, strict=False)
    )
    x1, y1 = (
        int(np.clip(n, first + 1, last))
        for n, first, last in zip(high, (x0, y0), stop, strict=False)
    )
    return Bbox(Vec3(x0, y0, box.start.z), Vec3(x1, y1, box.stop.z))


def _expect_field(
    name: str,
    specs: Specs,
    layer: str,
    bounds: Bbox,
    voxel_size_nm: tuple[float, float, float],
) -> list[str]:
    faults = [
        *expect_volume(name, specs, layer, dtypes=("float32",), channels=3),
        *expect_bounds(name, specs, layer, bounds),
    ]
    spec = specs.get(layer)
    if isinstance(spec, VolumeSpec) and spec.voxel_size_nm != voxel_size_nm:
        faults.append(
            f"{name}: voxels of {layer} are {spec.voxel_size_nm} nm, not {voxel_size_nm}; "
            "give those"
        )
    return faults


def _expect_records(name: str, specs: Specs, layer: str) -> list[str]:
    spec = specs.get(layer)
    if spec is None or isinstance(spec, RecordsSpec):
        return []
    return [f"{name}: {layer} holds {spec.kind}, and records are needed"]
