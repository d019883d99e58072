"""How well sections are aligned, by what they show alone; and where they are not."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PermanentError
from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.misalignment import SLIP, STEP
from pipeline.kernels.residual_shift import (
    PATCH,
    PatchShifts,
    is_too_good,
    joined,
    off_by,
    patch_shifts,
)
from pipeline.runtime.alignment_report import SectionReport, alignment_report, pieces
from pipeline.runtime.results import view_layers
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec
from pipeline.stages.warp import Warp

_WORST = 9
_WORST_OF_A_SECTION = 2
_AROUND = 1
_SHOWN = 3 * PATCH
_THICK_NM = 25.0
"""Sections that are thinner may well be as alike as they can be."""


@dataclass(frozen=True)
class WorstPlace:
    """A place where sections are least alike.

    Parameters
    ----------
    section, other : int
        Which.
    position : (int, int, int)
        x, y, z [voxel of mip 0].
    correlation : float
        Of local contrast, mean of the patches around.
    """

    section: int
    other: int
    position: tuple[int, int, int]
    correlation: float


@dataclass(frozen=True)
class AlignmentScores:
    """What an alignment is like, without a truth.

    Parameters
    ----------
    sections : list of SectionReport
        See there.
    drift_nm : float64 array, (section, 2)
        Residual shifts between neighbours, added up from the first section [nm]; NaN where
        a section is not placed.
    correlation : float
        Median correlation of patches with the section before.
    best_correlation : float
        The same, where each patch is moved to where it is most alike.
    residual_nm : float
        Median distance from one to the other [nm].
    misaligned : float64 array, (x, y)
        Share of the sections that a block shows and that slip or step there; NaN if none.
    worst : list of WorstPlace
        The least alike first.
    warnings : list of str
        What not to believe.
    """

    sections: list[SectionReport]
    drift_nm: NDArray[np.float64]
    correlation: float
    best_correlation: float
    residual_nm: float
    misaligned: NDArray[np.float64]
    worst: list[WorstPlace]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, but for the map; what is not known is null."""
        known = np.isfinite(self.drift_nm).all(axis=1)
        last = self.drift_nm[known][-1] if known.any() else np.full(2, np.nan)
        return {
            "correlation_before": _or_none(_median([s.before for s in self.sections])),
            "correlation_after": _or_none(_median([s.after for s in self.sections])),
            "patch_correlation": _or_none(self.correlation),
            "best_patch_correlation": _or_none(self.best_correlation),
            "residual_nm": _or_none(self.residual_nm),
            "drift_nm": _or_none(float(np.hypot(*last))),
            "drift_curve_nm": [
                [_or_none(v) for v in row] for row in np.round(self.drift_nm, 2).tolist()
            ],
            "misaligned_share": _or_none(_mean(self.misaligned)),
            "sections": [s.to_json() for s in self.sections],
            "worst": [asdict(w) for w in self.worst],
            "warnings": self.warnings,
        }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _median(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return float(np.median(known)) if known else math.nan


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def evaluate_alignment(run: Run) -> AlignmentScores:
    """Measure an alignment at the mip that patches were matched at.

    Parameters
    ----------
    run : Run
        Of a recipe with the layers of `alignment_stages`, finished.

    Raises
    ------
    RootError
        If the run aligns nothing.
    """
    sections = alignment_report(run)
    mip, size = _work(run)
    drift = np.full((len(sections), 2), np.nan)
    every: list[PatchShifts] = []
    places: list[WorstPlace] = []
    before = -1
    for i, section in enumerate(sections):
        if section.state not in ("placed", "apart"):
            continue
        if before < 0:
            before, drift[i] = i, 0.0
            continue
        found = _compared(run, mip, section.z, sections[before].z)
        shifts = [patches for _, patches in found]
        both = joined(shifts)
        sure = both.shift[both.sure]
        # A section is moved by the shift to lie on the one before: it lies so much off.
        by = -np.median(sure, axis=0) * size if len(sure) else np.zeros(2)
        drift[i] = drift[before] + by
        for box, patches in found:
            pair = (section.z, sections[before].z)
            places += _worst_of(patches, box, pair, _factor(run, mip))
        every += shifts
        before = i
    patches = joined(every)
    off, _ = off_by(patches)
    return AlignmentScores(
        sections=sections,
        drift_nm=drift,
        correlation=_median(patches.here.tolist()),
        best_correlation=_median(patches.best.tolist()),
        residual_nm=off * size,
        misaligned=_misaligned(run),
        worst=_spread(places),
        warnings=_too_good(run, patches),
    )


def _work(run: Run) -> tuple[int, float]:
    """Return the mip that patches were matched at, and its pixel [nm]."""
    spec = run.specs["image"]
    assert isinstance(spec, VolumeSpec)
    rough = run.recipe.stage("rough")
    assert isinstance(rough, Warp)
    wanted = rough.voxel_size_nm
    fits = [m for m in range(len(spec.factors)) if spec.voxel_size_at(m) == wanted]
    return fits[0], wanted[0]


def _factor(run: Run, mip: int) -> Vec3:
    spec = run.specs["image"]
    assert isinstance(spec, VolumeSpec)
    return spec.factors[mip]


def _compared(
    run: Run, mip: int, section: int, other: int
) -> list[tuple[Bbox, PatchShifts]]:
    """Compare a section with another, as a whole or in pieces."""
    found = []
    for box in pieces(run, "image", mip, section):
        there = box.shifted(Vec3(0, 0, other - section))
        one, two = (
            np.asarray(run.store.read(Region("image", b, mip)))[..., 0]
            for b in (box, there)
        )
        found.append((box, patch_shifts(one, two)))
    return found


def _worst_of(
    patches: PatchShifts, box: Bbox, pair: tuple[int, int], factor: Vec3
) -> list[WorstPlace]:
    """Return the places of a piece that are least alike, by the mean of patches around."""
    if not len(patches.corner):
        return []
    grid = (patches.corner - patches.corner.min(axis=0)) // PATCH
    values = np.full((*(grid.max(axis=0) + 1),), np.nan)
    values[grid[:, 0], grid[:, 1]] = patches.here
    found = []
    for (i, j), corner in zip(grid.tolist(), patches.corner.tolist(), strict=True):
        around = values[
            max(i - _AROUND, 0) : i + _AROUND + 1, max(j - _AROUND, 0) : j + _AROUND + 1
        ]
        x, y = (c + PATCH // 2 for c in corner)
        position = (
            (box.start.x + x) * factor.x,
            (box.start.y + y) * factor.y,
            box.start.z,
        )
        found.append(WorstPlace(*pair, position, round(float(np.nanmean(around)), 3)))
    return _spread(found)


def _spread(places: list[WorstPlace]) -> list[WorstPlace]:
    """Return the worst places, few of one section and not beside one another."""
    kept: list[WorstPlace] = []
    for place in sorted(places, key=lambda p: p.correlation):
        mine = [k for k in kept if k.section == place.section]
        apart = 2 * _SHOWN
        is_near = any(
            max(abs(a - b) for a, b in zip(k.position, place.position, strict=True)) < apart
            for k in mine
        )
        if len(mine) < _WORST_OF_A_SECTION and not is_near:
            kept.append(place)
        if len(kept) == _WORST:
            break
    return kept


def _misaligned(run: Run) -> NDArray[np.float64]:
    """Return how often each block slips or steps, over the sections."""
    wrong: NDArray[np.float64] | None = None
    for layer in ("misalignments", "coarse_misalignments"):
        spec = run.specs[layer]
        assert isinstance(spec, VolumeSpec)
        values = np.asarray(run.store.read(Region(layer, spec.bounds)))
        found = ((values & (SLIP | STEP)) > 0).mean(axis=2)
        wrong = found if wrong is None else np.maximum(wrong, found)
    assert wrong is not None
    return wrong


def _too_good(run: Run, patches: PatchShifts) -> list[str]:
    """Say so if patches lie where they are most alike, as tissue alone never does."""
    spec = run.specs["image"]
    assert isinstance(spec, VolumeSpec)
    thickness = spec.voxel_size_nm[2]
    if thickness < _THICK_NM or not is_too_good(patches):
        return []
    off, gain = off_by(patches)
    return [
        f"correlation is too good: half of the patches of {PATCH} pixels lie within "
        f"{off:.1f} pixels of where they are most like the section before, and could gain "
        f"{gain:.3f} of correlation by moving; between sections of {thickness:.0f} nm "
        "tissue itself moves by more. The sections may have been bent until they looked "
        "alike: look at processes that run obliquely"
    ]


# -- pictures -------------------------------------------------------------------------


def draw_scores(scores: AlignmentScores, picture: Path) -> None:
    """Draw correlations, poses, drift, and where sections are misaligned."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    z = [s.z for s in scores.sections]
    panel = panels[0, 0]
    panel.plot(z, [s.before for s in scores.sections], ".-", color="0.6", label="loose")
    panel.plot(z, [s.after for s in scores.sections], ".-", label="aligned")
    panel.set_title("correlation with the section before (median of blocks)")
    panel.legend(frameon=False)
    panel = panels[0, 1]
    placed = [s.state in ("placed", "apart") for s in scores.sections]
    for name, values in (
        ("x", [s.x_nm for s in scores.sections]),
        ("y", [s.y_nm for s in scores.sections]),
    ):
        panel.plot(z, np.where(placed, values, np.nan), ".-", label=f"{name} [nm]")
    beside = panel.twinx()
    turns = [s.turn_degrees for s in scores.sections]
    beside.plot(z, np.where(placed, turns, np.nan), ".-", color="0.6")
    beside.set_ylabel("turn [degree], grey")
    panel.set_title("poses: what was taken away")
    panel.legend(frameon=False)
    panel = panels[1, 0]
    for axis, name in enumerate("xy"):
        panel.plot(z, scores.drift_nm[:, axis], ".-", label=name)
    panel.axhline(0, color="0.8", linewidth=0.8)
    panel.set_title("drift: residual shifts of patches, added up [nm]")
    panel.legend(frameon=False)
    for panel in panels.flat[:3]:
        panel.set_xlabel("section")
        panel.xaxis.get_major_locator().set_params(integer=True)
    panel = panels[1, 1]
    shown = panel.imshow(scores.misaligned.T, cmap="magma", vmin=0)
    figure.colorbar(shown, ax=panel, shrink=0.8)
    panel.set_title("share of sections that slip or step, by block")
    figure.savefig(picture, dpi=90)


def draw_worst(run: Run, worst: Sequence[WorstPlace], picture: Path) -> None:
    """Draw the worst places: the section before in red, the section in cyan."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mip, _ = _work(run)
    rows = -(-len(worst) // 3)
    figure = Figure(figsize=(11, 3.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 3, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, place in zip(panels.flat, worst, strict=False):
        section, other = (_around(run, place, z, mip) for z in (place.section, place.other))
        panel.imshow(np.stack([other.T, section.T, section.T], axis=-1))
        x, y, z = place.position
        panel.set_title(
            f"{x}, {y}, {z}: {place.other} red, {place.section} cyan\n"
            f"correlation {place.correlation:.2f}",
            fontsize=8,
        )
    figure.savefig(picture, dpi=90)


def _around(run: Run, place: WorstPlace, z: int, mip: int) -> NDArray[np.uint8]:
    """Read what lies around a place."""
    spec = run.specs["image"]
    assert isinstance(spec, VolumeSpec)
    factor, bounds = spec.factors[mip], spec.bounds_at(mip)
    x, y = place.position[0] // factor.x, place.position[1] // factor.y
    start = Vec3(x - _SHOWN, y - _SHOWN, z).maximum(Vec3(bounds.start.x, bounds.start.y, z))
    stop = Vec3(x + _SHOWN, y + _SHOWN, z + 1)
    box = Bbox(start, stop.minimum(Vec3(bounds.stop.x, bounds.stop.y, z + 1)))
    return np.asarray(run.store.read(Region("image", box, mip)))[..., 0]


def page(run: Run, scores: AlignmentScores, pictures: Sequence[str]) -> str:
    """Write a page of the pictures, with a link to each of the worst places.

    A hosted viewer reaches what lies in a bucket; for a root on this machine the page says
    what to type.
    """
    from pipeline.view import hosted_url

    lines = []
    for place in scores.worst:
        x, y, z = place.position
        said = f"{x}, {y}, {z}: sections {place.other} and {place.section}, correlation "
        said += f"{place.correlation:.2f}"
        try:
            link = hosted_url(view_layers(run), (x, y, z))
            lines.append(f'<li><a href="{html.escape(link)}">{html.escape(said)}</a></li>')
        except PermanentError:
            root = run.store.root.removeprefix("file://")
            typed = f"em view --root {root} {run.recipe.name} --position {x},{y},{z}"
            lines.append(f"<li>{html.escape(said)}: <code>{html.escape(typed)}</code></li>")
    warned = "".join(f"<p><b>{html.escape(w)}</b></p>" for w in scores.warnings)
    shown = "".join(
        f'<p><img src="{name}" style="max-width:100%"></p>' for name in pictures
    )
    title = f"Alignment of {html.escape(run.recipe.name)}"
    return (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{title}</title></head>'
        f'<body style="font-family:sans-serif;margin:2em"><h1>{title}</h1>{warned}{shown}'
        f"<h2>Worst places</h2><ul>{''.join(lines)}</ul></body></html>\n"
    )
