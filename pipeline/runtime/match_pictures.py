"""Pairs of sections that did not match, or that contradict the rest, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.draw import draw
from pipeline.runtime.run import Run
from pipeline.specs import Record, Region, Table
from pipeline.stages.sections import SectionMatches, SectionPoses

_MOST = 12
"""Pairs that are drawn."""
_WIDEST = 320
"""Pixels of a section that is drawn."""
_OUTLIER = 0.25
_WHOLE = "0_0_0_0"
_Kind = TypeVar("_Kind", SectionMatches, SectionPoses)


@dataclass(frozen=True)
class DoubtfulPair:
    """A pair of sections that a person should look at.

    Parameters
    ----------
    section, other : int
        Which.
    why : str
        What is wrong with it.
    angle : float
        How the section lies on the other, as far as was found [radian].
    shift_nm : (float, float)
        The same [nm].
    correlation, significance : float
        See `SectionMatch`.
    misfit_nm : float
        How far from there the poses have it [nm]; NaN where the pair counts for nothing.
    weight : float
        What is left of its weight, 0 to 1.
    is_mirrored : bool
        Whether it is its mirror image that lies so.
    """

    section: int
    other: int
    why: str
    angle: float
    shift_nm: tuple[float, float]
    correlation: float
    significance: float
    misfit_nm: float
    weight: float
    is_mirrored: bool


def doubtful_pairs(run: Run) -> list[DoubtfulPair]:
    """Return the pairs to look at, at most one for each section.

    They are the best pair of a section that is not placed; the best one across, for the
    first of sections that lie apart; and the pair with the nearest section before, where
    it contradicts the rest.

    Parameters
    ----------
    run : Run
        Of an alignment, finished.
    """
    solved = _stage(run, SectionPoses)
    poses = run.store.read(Record(solved.output, _WHOLE))
    pairs = _pairs(run, poses, solved.matches)
    numbers = poses["z"].tolist()
    groups = poses.get("group", poses["placed"].astype(np.int64) - 1).tolist()
    group = dict(zip(numbers, groups, strict=True))
    mirrored = set(poses["z"][poses["mirrored"] > 0].tolist())
    found: list[DoubtfulPair] = []
    seen: set[int] = set()
    for z in numbers:
        mine = [p for p in pairs if p.section == z]
        is_first, seen = bool(seen) and group[z] not in seen, seen | {group[z]} - {-1}
        if not mine:
            continue
        best = max(mine, key=lambda p: p.significance)
        nearest = max(mine, key=lambda p: p.other)
        contradicts = nearest.weight < _OUTLIER and (
            nearest.significance >= solved.least_significance
        )
        if z in mirrored:
            flipped = [p for p in mine if p.is_mirrored] or [best]
            best = max(flipped, key=lambda p: p.correlation)
            # Where the mirror image lies was looked for, and not kept.
            best = replace(best, angle=0.0, shift_nm=(0.0, 0.0))
            found.append(replace(best, why="matches as its mirror image alone"))
        elif group[z] < 0:
            found.append(replace(best, why="matches nothing"))
        elif is_first:
            placed = [p for p in mine if group[p.other] >= 0] or mine
            best = max(placed, key=lambda p: p.significance)
            found.append(replace(best, why="lies apart from those before"))
        elif contradicts:
            found.append(replace(nearest, why="contradicts the rest"))
    return found


def _stage(run: Run, kind: type[_Kind]) -> _Kind:
    return next(s for s in run.recipe.stages if isinstance(s, kind))


def _pairs(run: Run, poses: Table, layer: str) -> list[DoubtfulPair]:
    """Return all pairs that were compared, in the order of the poses."""
    tables = [run.store.read(Record(layer, f"0_0_0_{i}")) for i in range(len(poses["z"]))]
    columns: Table = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
    return [
        DoubtfulPair(
            section=int(poses["section"][i]),
            other=int(poses["other"][i]),
            why="",
            angle=float(columns["angle"][i]),
            shift_nm=(float(columns["x"][i]), float(columns["y"][i])),
            correlation=float(columns["correlation"][i]),
            significance=float(columns["significance"][i]),
            misfit_nm=float(poses["misfit_nm"][i]),
            weight=float(poses["weight"][i]),
            is_mirrored=bool(columns["mirrored"][i]),
        )
        for i in range(len(poses["section"]))
    ]


def draw_pairs(
    run: Run, pairs: Sequence[DoubtfulPair], names: Mapping[int, str], picture: Path
) -> None:
    """Draw pairs as they were compared: the section, the other, and one on the other.

    Parameters
    ----------
    run : Run
        That they are of.
    pairs : sequence of DoubtfulPair
        The first twelve are drawn.
    names : mapping of int to str
        What sections are called.
    picture : Path
        PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = pairs[:_MOST]
    figure = Figure(figsize=(11, 3.9 * len(drawn) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    more = f"; the first {len(drawn)} are drawn" if len(pairs) > len(drawn) else ""
    figure.suptitle(f"{len(pairs)} pairs of sections to look at{more}")
    rows = figure.subfigures(len(drawn), 1, squeeze=False)[:, 0]
    for row, pair in zip(rows, drawn, strict=True):
        panels = row.subplots(1, 3)
        section, other, turned = views(run, pair)
        both = np.stack([other, turned, turned], axis=-1)
        x, y = pair.shift_nm
        misfit = (
            "does not count"
            if math.isnan(pair.misfit_nm)
            else f"{pair.misfit_nm:.0f} nm from where the poses have it"
        )
        found = (
            "drawn as its mirror image, and not moved"
            if pair.is_mirrored
            else f"turned by {math.degrees(pair.angle):.1f} degrees, shifted by {x:.0f}, "
            f"{y:.0f} nm; correlation {pair.correlation:.2f}, significance "
            f"{pair.significance:.2f}; {misfit}"
        )
        row.suptitle(
            f"{names.get(pair.section, f'section {pair.section}')} {pair.why}: on "
            f"{names.get(pair.other, f'section {pair.other}')}\n{found}",
            fontsize=9,
        )
        last = "its mirror image" if pair.is_mirrored else "as was found"
        titles = (str(pair.section), str(pair.other), last)
        for panel, image, title in zip(panels, (section, other, both), titles, strict=True):
            panel.imshow(np.swapaxes(image, 0, 1), cmap="gray", vmin=0, vmax=255)
            panel.set_title(title, fontsize=8)
            panel.set_axis_off()
        panels[2].set_title(f"{titles[1]} red, {titles[0]} cyan: {titles[2]}", fontsize=8)
    figure.savefig(picture, dpi=80)


def views(run: Run, pair: DoubtfulPair) -> list[NDArray[np.uint8]]:
    """Return the section, the other, and the section as it was laid on the other."""
    stage = _stage(run, SectionMatches)
    bounds, size = stage.bounds, np.array(stage.voxel_size_nm[:2])

    def read(z: int) -> NDArray[np.uint8]:
        start = Vec3(bounds.start.x, bounds.start.y, z)
        box = Bbox(start, Vec3(bounds.stop.x, bounds.stop.y, z + 1))
        return np.asarray(run.store.read(Region(stage.image, box, stage.mip)))[..., 0]

    section, other = read(pair.section), read(pair.other)
    places = np.moveaxis(np.indices(section.shape).astype(np.float64), 0, -1)
    middle = (np.array(section.shape) - 1) / 2
    cos, sin = math.cos(pair.angle), math.sin(pair.angle)
    x, y = np.moveaxis(places - middle - np.array(pair.shift_nm) / size, -1, 0)
    points = np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1) + middle
    laid = section[::-1] if pair.is_mirrored else section
    turned = draw(np.ascontiguousarray(laid), points, (0, 0), "linear")
    step = -(-max(section.shape) // _WIDEST)
    return [v[::step, ::step] for v in (section, other, turned)]
