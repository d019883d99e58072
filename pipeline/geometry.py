"""Boxes in voxels, the chunks that cut them, and the octree over the chunks.

Every box is half-open, in voxels of a stated scale, in the order x, y, z.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pipeline.errors import GeometryError


@dataclass(frozen=True, slots=True, order=True)
class Vec3:
    """Three integers in the order x, y, z.

    Arithmetic is by axis; a single integer stands for all three axes.
    In JSON and TOML it is a list of three numbers.
    """

    x: int
    y: int
    z: int

    @classmethod
    def of(cls, value: Vec3 | int | Sequence[SupportsIndex]) -> Vec3:
        """Turn an integer (for every axis) or three of them into a vector.

        Raises
        ------
        GeometryError
            If there are not three integers.
        """
        if isinstance(value, Vec3):
            return value
        if isinstance(value, int):
            return cls(value, value, value)
        try:
            numbers = [v.__index__() for v in value]
        except (AttributeError, TypeError):
            numbers = []
        if len(numbers) != 3:
            raise GeometryError(f"{value!r} is not three integers; give x, y, z")
        return cls(*numbers)

    def __iter__(self) -> Iterator[int]:
        return iter((self.x, self.y, self.z))

    def __getitem__(self, axis: int) -> int:
        return (self.x, self.y, self.z)[axis]

    def __add__(self, other: Vec3 | int) -> Vec3:
        o = Vec3.of(other)
        return Vec3(self.x + o.x, self.y + o.y, self.z + o.z)

    def __sub__(self, other: Vec3 | int) -> Vec3:
        o = Vec3.of(other)
        return Vec3(self.x - o.x, self.y - o.y, self.z - o.z)

    def __mul__(self, other: Vec3 | int) -> Vec3:
        o = Vec3.of(other)
        return Vec3(self.x * o.x, self.y * o.y, self.z * o.z)

    def __floordiv__(self, other: Vec3 | int) -> Vec3:
        o = Vec3.of(other)
        return Vec3(self.x // o.x, self.y // o.y, self.z // o.z)

    def __mod__(self, other: Vec3 | int) -> Vec3:
        o = Vec3.of(other)
        return Vec3(self.x % o.x, self.y % o.y, self.z % o.z)

    def ceil_div(self, other: Vec3 | int) -> Vec3:
        """Divide and round up, by axis."""
        o = Vec3.of(other)
        return Vec3(-(-self.x // o.x), -(-self.y // o.y), -(-self.z // o.z))

    def minimum(self, other: Vec3) -> Vec3:
        """Take the lesser by axis."""
        return Vec3(min(self.x, other.x), min(self.y, other.y), min(self.z, other.z))

    def maximum(self, other: Vec3) -> Vec3:
        """Take the greater by axis."""
        return Vec3(max(self.x, other.x), max(self.y, other.y), max(self.z, other.z))

    @property
    def product(self) -> int:
        """Product of the three."""
        return self.x * self.y * self.z

    def astuple(self) -> tuple[int, int, int]:
        """Return the bare tuple, for numpy and for libraries."""
        return (self.x, self.y, self.z)

    def __str__(self) -> str:
        return f"({self.x}, {self.y}, {self.z})"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._from_json,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda v: [v.x, v.y, v.z]
            ),
        )

    @classmethod
    def _from_json(cls, value: Any) -> Vec3:
        if isinstance(value, Vec3):
            return value
        if isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            return cls.of(value)
        raise GeometryError(f"{value!r} is not three integers; give [x, y, z]")


@dataclass(frozen=True, slots=True)
class Bbox:
    """A half-open box of voxels, ``start`` inside and ``stop`` outside.

    Raises
    ------
    GeometryError
        If an axis of ``stop`` lies before ``start``.
    """

    start: Vec3
    stop: Vec3

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise GeometryError(
                f"box from {self.start} to {self.stop} ends before it starts; "
                "give the lower corner first, x,y,z,x,y,z"
            )

    @classmethod
    def of_shape(cls, shape: Vec3 | Sequence[int], start: Vec3 | None = None) -> Bbox:
        """Make the box of a shape, at zero or at ``start``."""
        start = start or Vec3(0, 0, 0)
        return cls(start, start + Vec3.of(shape))

    @classmethod
    def parse(cls, text: str) -> Bbox:
        """Read ``x0,y0,z0,x1,y1,z1``.

        Raises
        ------
        GeometryError
            If there are not six integers, or if the corners are swapped.
        """
        try:
            numbers = [int(t) for t in re.split(r"[,\s]+", text.strip())]
        except ValueError:
            numbers = []
        if len(numbers) != 6:
            raise GeometryError(f"{text!r} is not a box; give x0,y0,z0,x1,y1,z1")
        return cls(Vec3.of(numbers[:3]), Vec3.of(numbers[3:]))

    @property
    def shape(self) -> Vec3:
        """Extent by axis [voxel]."""
        return self.stop - self.start

    @property
    def volume(self) -> int:
        """Number of voxels."""
        return self.shape.product

    @property
    def is_empty(self) -> bool:
        """Whether the box holds no voxel."""
        return self.volume == 0

    def contains(self, other: Bbox) -> bool:
        """Whether every voxel of the other box lies in this one."""
        return self.intersection(other) == other

    def intersection(self, other: Bbox) -> Bbox:
        """Return the common box, empty (but well formed) where there is none."""
        start = self.start.maximum(other.start)
        return Bbox(start, self.stop.minimum(other.stop).maximum(start))

    def hull(self, other: Bbox) -> Bbox:
        """Return the smallest box around both."""
        return Bbox(self.start.minimum(other.start), self.stop.maximum(other.stop))

    def grown(self, halo: Halo) -> Bbox:
        """Return the box with a halo around it."""
        return Bbox(self.start - halo.before, self.stop + halo.after)

    def shifted(self, by: Vec3) -> Bbox:
        """Return the box moved."""
        return Bbox(self.start + by, self.stop + by)

    def coarser(self, factor: Vec3) -> Bbox:
        """Return the box in voxels ``factor`` times as large, rounded outward."""
        return Bbox(self.start // factor, self.stop.ceil_div(factor))

    def finer(self, factor: Vec3) -> Bbox:
        """Return the box in voxels ``factor`` times as small."""
        return Bbox(self.start * factor, self.stop * factor)

    def positions(self) -> Iterator[Vec3]:
        """Yield every voxel of the box, x fastest."""
        for z in range(self.start.z, self.stop.z):
            for y in range(self.start.y, self.stop.y):
                for x in range(self.start.x, self.stop.x):
                    yield Vec3(x, y, z)

    def slices(self, origin: Vec3 | None = None) -> tuple[slice, slice, slice]:
        """Return slices into an array whose first voxel lies at ``origin``."""
        at = self if origin is None else self.shifted(Vec3(0, 0, 0) - origin)
        x, y, z = (slice(a, b) for a, b in zip(at.start, at.stop, strict=True))
        return x, y, z

    def __str__(self) -> str:
        return ",".join(str(v) for v in (*self.start, *self.stop))

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._from_json,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda b: {"start": list(b.start), "stop": list(b.stop)}
            ),
        )

    @classmethod
    def _from_json(cls, value: Any) -> Bbox:
        if isinstance(value, Bbox):
            return value
        if isinstance(value, dict) and set(value) == {"start", "stop"}:
            return cls(Vec3._from_json(value["start"]), Vec3._from_json(value["stop"]))
        raise GeometryError(f"{value!r} is not a box; give start and stop, each [x, y, z]")


@dataclass(frozen=True, slots=True)
class Halo:
    """Voxels read beyond a chunk, below and above; they may differ."""

    before: Vec3 = Vec3(0, 0, 0)
    after: Vec3 = Vec3(0, 0, 0)

    @classmethod
    def of(cls, before: int | Sequence[int] = 0, after: int | Sequence[int] = 0) -> Halo:
        """Make a halo of integers."""
        return cls(Vec3.of(before), Vec3.of(after))


ALL_FACES = 0b111111
"""Faces of a box: bit a is the lower face of axis a, bit 3 + a the upper."""


@dataclass(frozen=True, slots=True, order=True)
class ChunkKey:
    """Place of a node in the octree of chunks; level 0 is a chunk."""

    level: int
    x: int
    y: int
    z: int

    @property
    def position(self) -> Vec3:
        """Position in the grid of its level."""
        return Vec3(self.x, self.y, self.z)

    def children(self, grid: Grid) -> list[ChunkKey]:
        """List the nodes one level below that lie in the grid."""
        if self.level == 0:
            return []
        below = grid.counts(self.level - 1)
        corner = self.position * 2
        return [
            ChunkKey(self.level - 1, *(corner + Vec3(*d)))
            for d in sorted(itertools.product((0, 1), repeat=3), key=lambda d: d[::-1])
            if all(c < n for c, n in zip(corner + Vec3(*d), below, strict=True))
        ]

    @property
    def parent(self) -> ChunkKey:
        """Node one level above."""
        return ChunkKey(self.level + 1, self.x // 2, self.y // 2, self.z // 2)

    @property
    def octant(self) -> int:
        """Which child of its parent this is: bit a is set on the upper side of axis a."""
        return sum((p & 1) << axis for axis, p in enumerate(self.position))

    @property
    def outward_faces(self) -> int:
        """Faces that are not shared with the parent's other children.

        Bits are those of `ALL_FACES`. A face on the side of a child that the grid does
        not have is a face of the bounds, which is shared with nobody.
        """
        faces = 0
        for axis in range(3):
            faces |= 1 << (3 + axis if self.octant >> axis & 1 else axis)
        return faces

    @classmethod
    def parse(cls, text: str) -> ChunkKey:
        """Read ``level_x_y_z``.

        Raises
        ------
        GeometryError
            If the text is something else.
        """
        if not re.fullmatch(r"\d+(_\d+){3}", text):
            raise GeometryError(f"{text!r} is not the key of a chunk; give level_x_y_z")
        return cls(*(int(t) for t in text.split("_")))

    def __str__(self) -> str:
        return f"{self.level}_{self.x}_{self.y}_{self.z}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Bounds cut into chunks, counted from the lower corner of the bounds.

    Raises
    ------
    GeometryError
        If the bounds are empty or the chunk is not positive.
    """

    bounds: Bbox
    chunk: Vec3

    def __post_init__(self) -> None:
        if self.bounds.is_empty:
            raise GeometryError(f"bounds {self.bounds} hold no voxel; give a larger box")
        if min(self.chunk) < 1:
            raise GeometryError(f"chunk {self.chunk} is not positive; give x, y, z > 0")

    def counts(self, level: int = 0) -> Vec3:
        """Return the number of nodes along each axis at a level."""
        return self.bounds.shape.ceil_div(self.chunk * 2**level)

    @property
    def height(self) -> int:
        """Level of the single node at the top of the octree."""
        return math.ceil(math.log2(max(self.counts())))

    def box(self, key: ChunkKey) -> Bbox:
        """Return the box of a node, clipped to the bounds.

        Raises
        ------
        GeometryError
            If the node lies outside the grid.
        """
        if not all(
            0 <= p < n for p, n in zip(key.position, self.counts(key.level), strict=True)
        ):
            raise GeometryError(
                f"chunk {key} lies outside the grid, {self.counts(key.level)} at its level"
            )
        size = self.chunk * 2**key.level
        start = self.bounds.start + key.position * size
        return Bbox(start, (start + size).minimum(self.bounds.stop))

    def keys(self, level: int = 0) -> Iterator[ChunkKey]:
        """Yield the nodes of a level, x fastest, without holding them."""
        n = self.counts(level)
        for z in range(n.z):
            for y in range(n.y):
                for x in range(n.x):
                    yield ChunkKey(level, x, y, z)

    def __iter__(self) -> Iterator[ChunkKey]:
        return self.keys()

    def around(self, box: Bbox) -> Bbox:
        """Return the positions of the chunks (level 0) that share a voxel with a box."""
        inside = self.bounds.intersection(box)
        if inside.is_empty:
            return Bbox(Vec3(0, 0, 0), Vec3(0, 0, 0))
        return inside.shifted(Vec3(0, 0, 0) - self.bounds.start).coarser(self.chunk)

    def touching(self, box: Bbox) -> Iterator[ChunkKey]:
        """Yield the chunks (level 0) that share a voxel with the box, x fastest."""
        for x, y, z in self.around(box).positions():
            yield ChunkKey(0, x, y, z)
