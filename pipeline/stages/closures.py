"""Large cracks that a person closed: where point pairs put the pieces of a section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.specs import LayerSpec, Read, Record, RecordsSpec, Table, VoxelSize
from pipeline.stages.base import ChunkStage, Specs, Task

_BYTES_PER_CORNER = 4000


class PointPair(BaseModel):
    """Tissue of one section, and where it belongs.

    Parameters
    ----------
    section : int
        Number of the section.
    x, y : float
        Where the loose section has it [nm].
    to_x, to_y : float
        Where it belongs [nm].
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    section: int
    x: float
    y: float
    to_x: float
    to_y: float


class Closures(ChunkStage):
    """Where sections that were put together by hand have what they show.

    A task is a section, and its record holds the corners of triangles: `loose`, where a
    corner lies, and `closed`, where it belongs, (n, 2) [nm]; `z` is the section. The pairs
    come first, and after them guides that take along what lies around the pairs, see
    `pipeline.kernels.piecewise_affine`. A section without pairs has no corners, and stays
    as it is.

    Parameters
    ----------
    pairs : tuple of PointPair
        Tissue at ``x, y`` of a section, and ``to_x, to_y`` where it belongs [nm]. A section
        has none, or at least three that are not on one line; they lie on both sides of each
        crack. Those of sections beyond the bounds have no say.
    guides : int
        Guides along the longer side of a section.
    accuracy_nm : float
        How far off a pair may be [nm]. What that explains is not taken for a crack, a fold
        or a turn.
    voxel_size_nm : (x, y, z)
        Of the sections, at the mip that ``bounds`` are in; any will do.
    """

    name: ClassVar[str] = "closures"

    pairs: tuple[PointPair, ...]
    guides: int = Field(default=16, ge=2, le=64)
    accuracy_nm: float = Field(default=16.0, gt=0)
    voxel_size_nm: tuple[float, float, float]

    @property
    def grid(self) -> Grid:
        """A task is a section, whatever other stages are cut into."""
        shape = self.bounds.shape
        return Grid(self.bounds, Vec3(shape.x, shape.y, 1))

    def reads(self, task: Task) -> dict[str, Read]:
        """Read nothing: the recipe has the pairs."""
        return {}

    def process(self, task: Task) -> Table:
        """Add guides to the pairs of the section."""
        from pipeline.kernels.piecewise_affine import anchored

        z = task.box.start.z
        loose, closed = _points([p for p in self.pairs if p.section == z])
        if len(loose):
            found = anchored(
                loose,
                closed,
                *_ends(self.bounds, self.voxel_size_nm),
                guides=self.guides,
                accuracy=self.accuracy_nm,
            )
            loose, closed = found.loose, found.closed
        return {"z": np.array([z], np.int64), "loose": loose, "closed": closed}

    def target(self, task: Task) -> Record:
        """Write a record for the section."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate from the corners, and the ways between them and pairs [byte]."""
        corners = (self.guides + 8) ** 2 + len(self.pairs)
        return _BYTES_PER_CORNER * corners + 16 * corners * len(self.pairs)

    def check(self, specs: Specs) -> list[str]:
        """Check that every section with pairs can be put together by them."""
        names = [f"pair {i} of section {p.section}" for i, p in enumerate(self.pairs, 1)]
        found = closure_faults(
            self.pairs,
            names,
            self.bounds,
            self.voxel_size_nm,
            guides=self.guides,
            accuracy_nm=self.accuracy_nm,
        )
        return [f"{self.name}: {fault}" for fault in found]


def closure_faults(
    pairs: Sequence[PointPair],
    names: Sequence[str],
    bounds: Bbox,
    voxel_size_nm: VoxelSize,
    *,
    guides: int = Closures.model_fields["guides"].default,
    accuracy_nm: float = Closures.model_fields["accuracy_nm"].default,
) -> list[str]:
    """Say which pairs cannot put a section together, and why.

    Parameters
    ----------
    pairs : sequence of PointPair
        Of all sections.
    names : sequence of str
        What each is called where it was given.
    bounds : Bbox
        Of the stack [voxel].
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    guides, accuracy_nm
        As in `Closures`.
    """
    from pipeline.kernels.piecewise_affine import anchored, pair_faults

    faults = []
    low, high = _ends(bounds, voxel_size_nm)
    inside = range(bounds.start.z, bounds.stop.z)
    for z in sorted({p.section for p in pairs if p.section in inside}):
        rows = [i for i, p in enumerate(pairs) if p.section == z]

        def called(which: Sequence[int], rows: Sequence[int] = rows) -> str:
            return _listed([names[rows[i]] for i in which])

        loose, closed = _points([pairs[i] for i in rows])
        wrong = pair_faults(loose, closed)
        faults += [f"{called(which)}: pairs of section {z} {how}" for which, how in wrong]
        if wrong:
            continue
        found = anchored(loose, closed, low, high, guides=guides, accuracy=accuracy_nm)
        folded = sorted({i for triangle in found.folded for i in triangle})
        if folded:
            faults.append(
                f"{called(folded)}: the map of section {z} folds over between these pairs; "
                "see that none are swapped or mirrored, and move or remove what is wrong"
            )
    return faults


def _points(
    pairs: Sequence[PointPair],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    loose = np.array([(p.x, p.y) for p in pairs], np.float64).reshape(-1, 2)
    closed = np.array([(p.to_x, p.to_y) for p in pairs], np.float64).reshape(-1, 2)
    return loose, closed


def _ends(
    bounds: Bbox, voxel_size_nm: VoxelSize
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    size = np.array(voxel_size_nm[:2])
    start, stop = (np.array(p.astuple()[:2]) for p in (bounds.start, bounds.stop))
    return start * size, stop * size


_SHOWN = 8


def _listed(names: Sequence[str]) -> str:
    if len(names) > _SHOWN:
        return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
