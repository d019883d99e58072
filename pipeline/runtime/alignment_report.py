"""What became of an alignment: section by section, and as one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, RootError
from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.misalignment import SLIP, STEP, block_correlation
from pipeline.kernels.section_quality import (
    NO_TILES,
    beside_neighbours,
    is_of_poor_contrast,
    is_out_of_focus,
    median_criteria,
    section_criteria,
)
from pipeline.layers.sources import SectionOrigin, open_source
from pipeline.runtime.run import Run
from pipeline.specs import Record, Region, VolumeSpec
from pipeline.stages.ingest import Ingest
from pipeline.stages.sections import SectionPoses
from pipeline.stages.warp import Warp

_WIDEST = 512
"""Pixels along an axis that sections are compared and drawn at."""
_PIECE = 256
"""Pixels of the pieces of a section that is too wide to be measured as a whole."""
_MANY_DEFECTS = 0.2
_UNLIKE = 0.1
_BLOCK = 8
_WORST = 3
_DRAWN_FINE = 500
"""Sections of a stack that is drawn in all detail."""
_UNKNOWN = SectionOrigin(None, "", (0, 0))


@dataclass(frozen=True)
class SectionReport:
    """One section of an alignment.

    Parameters
    ----------
    z : int
        Which, in voxels of the output.
    state : {"placed", "apart", "missing", "blank", "mirrored", "matches nothing"}
        Anything but placed is to be looked at by a person. Apart is what is tied to some
        sections, and these not to most others.
    file : str
        What it was read from; empty where it is missing, or where the source is one file.
    number : int or None
        That it goes by in the source.
    faults : tuple of str
        What is bad about a section that shows something: out of focus, of poor contrast,
        many defects, lies on neither neighbour.
    focus, contrast : float
        Sharpness (SMD2 over variance) and variance of it at the scale of the matching, as
        shares of what sections around have; NaN where that is not known.
    defects : float
        Share of what it shows that a defect covers.
    turn_degrees, x_nm, y_nm : float
        Its pose.
    outliers : int
        Matches to other sections that contradict the rest.
    before, after : float
        Median correlation of blocks with the section before that shows something, in the
        loose sections and in the aligned ones; NaN without one.
    slips, steps : int
        Blocks that are still misaligned.
    """

    z: int
    state: str
    turn_degrees: float
    x_nm: float
    y_nm: float
    outliers: int
    before: float
    after: float
    slips: int
    steps: int
    file: str = ""
    number: int | None = None
    faults: tuple[str, ...] = ()
    focus: float = math.nan
    contrast: float = math.nan
    defects: float = math.nan

    @property
    def name(self) -> str:
        """How a message calls it."""
        said = [self.file] if self.file else []
        if self.number is not None and not self.file:
            said.append(f"number {self.number}")
        return f"section {self.z}" + (f" ({', '.join(said)})" if said else "")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; what is not known is null."""
        return {
            k: None if isinstance(v, float) and math.isnan(v) else v
            for k, v in asdict(self).items()
        }


_SAID = {
    "missing": "is missing; it is blank, and bridged by the sections around it",
    "blank": "shows nothing; it is bridged by the sections around it",
    "mirrored": (
        "matches as its mirror image alone; it is left blank, and bridged by the sections "
        "around it; mirror the source"
    ),
    "matches nothing": (
        "matches nothing; it is left blank, and bridged by the sections around it; look at "
        "the source"
    ),
}


def complaints(sections: Sequence[SectionReport]) -> list[str]:
    """Say what a person should know of the sections of an alignment, a line for each."""
    lines = [f"{s.name} {_SAID[s.state]}" for s in sections if s.state in _SAID]
    bad = [s for s in sections if s.faults]
    lines += [f"{s.name}: {', '.join(s.faults)}" for s in bad]
    if bad:
        numbers = ",".join(str(s.z) for s in bad)
        lines.append(
            f"to leave these out of the masks: the same command with --leave-out {numbers} "
            "--replace"
        )
    apart = [s for s in sections if s.state == "apart"]
    if apart:
        lines.append(
            f"{len(apart)} sections, {apart[0].name} to {apart[-1].name}, match one "
            "another and not most of the others; they are placed among themselves, and a "
            "step parts them from the rest; give a larger --distance or --shift"
        )
    return lines


def alignment_report(run: Run, picture: Path | None = None) -> list[SectionReport]:
    """Say what became of every section, and draw it.

    Parameters
    ----------
    run : Run
        Of a recipe with the layers of `alignment_stages`, finished.
    picture : Path or None
        PNG to write.

    Raises
    ------
    RootError
        If the run aligns nothing.
    """
    if not any(isinstance(s, SectionPoses) for s in run.recipe.stages):
        raise RootError(
            f"run {run.recipe.name} aligns nothing; give a run that em align started"
        )
    poses = run.store.read(Record("section_poses", "0_0_0_0"))
    compared = next(s for s in run.recipe.stages if s.output == "coarse_misalignments")
    loose, aligned = (_coarse(run, name, compared.read_mip) for name in ("loose", "image"))
    maps = _maps(run)
    reports = []
    pairs = {"loose": loose, "aligned": aligned}
    origins = _origins(run)
    for i, z in enumerate(poses["z"].tolist()):
        said = {name: _correlation(stack, i) for name, stack in pairs.items()}
        mine = poses["section"] == z
        state = "placed"
        origin = origins.get(z, _UNKNOWN)
        if origin.number is not None and not origin.file:
            state = "missing"
        elif not loose[..., i].any():
            state = "blank"
        elif poses["mirrored"][i]:
            state = "mirrored"
        elif not poses["placed"][i]:
            state = "matches nothing"
        elif "group" in poses and poses["group"][i] > 0:
            state = "apart"
        reports.append(
            SectionReport(
                z=z,
                state=state,
                turn_degrees=round(math.degrees(poses["angle"][i]), 3),
                x_nm=round(float(poses["x"][i]), 1),
                y_nm=round(float(poses["y"][i]), 1),
                outliers=int((poses["weight"][mine] < 0.25).sum()),
                before=said["loose"],
                after=said["aligned"],
                slips=int(((maps[..., i] & SLIP) > 0).sum()),
                steps=int(((maps[..., i] & STEP) > 0).sum()),
                file=origin.file,
                number=origin.number,
            )
        )
    reports = _with_quality(run, reports)
    if picture is not None:
        # A long stack is drawn as coarse as it was compared, for the sake of memory.
        least = 0 if len(reports) <= _DRAWN_FINE else compared.read_mip
        _draw(reports, _coarse(run, "loose", least), _coarse(run, "image", least), picture)
    return reports


def _with_quality(run: Run, reports: list[SectionReport]) -> list[SectionReport]:
    """Add to sections what is bad about them."""
    drawn = [s for s in run.recipe.stages if isinstance(s, Warp)]
    spec = run.specs["loose"]
    assert isinstance(spec, VolumeSpec)
    size = next(s.voxel_size_nm for s in drawn if s.output == "rough")
    mip = next(m for m in range(len(spec.factors)) if spec.voxel_size_at(m) == size)
    masks = {s.mip for s in drawn if s.image == "loose_defects"}
    criteria, covered = [], []
    for report in reports:
        tiles, marked, shown = [], 0, 0
        for box in pieces(run, "loose", mip, report.z):
            image = np.asarray(run.store.read(Region("loose", box, mip)))[..., 0]
            if not image.any():
                continue
            tiles.append(section_criteria(image))
            if masks:
                place = Region("loose_defects", box, next(iter(masks)))
                there = np.asarray(run.store.read(place))[..., 0] > 0
                # A crack may show nothing, and a mask says nothing beyond the tissue.
                marked += int(there.sum())
                shown += int((there | (image > 0)).sum())
        criteria.append(median_criteria(np.concatenate(tiles) if tiles else NO_TILES))
        covered.append(marked / shown if shown else math.nan)
    ratios = beside_neighbours(np.array(criteria))
    blurred, faint = is_out_of_focus(ratios), is_of_poor_contrast(ratios)
    result = []
    for i, report in enumerate(reports):
        found = {
            "out of focus": blurred[i],
            "of poor contrast": faint[i] and not blurred[i],
            f"defects on {covered[i]:.0%} of it": covered[i] > _MANY_DEFECTS,
            "lies on neither neighbour": _lies_on_neither(reports, i),
        }
        result.append(
            replace(
                report,
                faults=tuple(name for name, is_so in found.items() if is_so),
                focus=round(float(ratios[i, 1]), 3),
                contrast=round(float(ratios[i, 2]), 3),
                defects=round(covered[i], 4),
            )
        )
    return result


def _lies_on_neither(reports: Sequence[SectionReport], i: int) -> bool:
    """Whether a section that is placed is like neither the one before nor the next."""
    if reports[i].state not in ("placed", "apart"):
        return False
    after = (r.after for r in reports[i + 1 :] if not math.isnan(r.after))
    known = [v for v in (reports[i].after, next(after, math.nan)) if not math.isnan(v)]
    return bool(known) and max(known) < _UNLIKE


def pieces(run: Run, layer: str, mip: int, z: int) -> list[Bbox]:
    """Return a section as a whole, or nine pieces spread over a large one."""
    spec = run.specs[layer]
    assert isinstance(spec, VolumeSpec)
    bounds = spec.bounds_at(mip)
    ends = []
    for start, extent in (
        (bounds.start.x, bounds.shape.x),
        (bounds.start.y, bounds.shape.y),
    ):
        if extent <= _WIDEST:
            ends.append([(start, start + extent)])
            continue
        firsts = (start + round(k * (extent - _PIECE) / 2) for k in range(3))
        ends.append([(first, first + _PIECE) for first in firsts])
    return [
        Bbox(Vec3(x[0], y[0], z), Vec3(x[1], y[1], z + 1)) for x in ends[0] for y in ends[1]
    ]


def _origins(run: Run) -> Mapping[int, SectionOrigin]:
    """Return what files the sections of a run come from, if its source is still there."""
    stage = run.recipe.stage("loose")
    assert isinstance(stage, Ingest)
    try:
        with open_source(run.recipe.layers[stage.source]) as source:
            origins = source.origins
    except PipelineError:
        return {}
    return {z + stage.shift.z: origin for z, origin in origins.items()}


def _coarse(run: Run, layer: str, least: int) -> NDArray[np.uint8]:
    """Read a volume at a mip, or at a coarser one that can be looked at as a whole."""
    spec = run.specs[layer]
    assert isinstance(spec, VolumeSpec)
    fits = [
        mip
        for mip in range(min(least, len(spec.factors) - 1), len(spec.factors))
        if max(*spec.bounds_at(mip).shape.astuple()[:2]) <= _WIDEST
    ]
    mip = fits[0] if fits else len(spec.factors) - 1
    bounds = spec.bounds_at(mip)
    width = Vec3(min(bounds.shape.x, _WIDEST), min(bounds.shape.y, _WIDEST), bounds.shape.z)
    start = bounds.start + (bounds.shape - width) // 2
    return np.asarray(run.store.read(Region(layer, Bbox(start, start + width), mip)))


def _maps(run: Run) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] | None = None
    for layer in ("misalignments", "coarse_misalignments"):
        spec = run.specs[layer]
        assert isinstance(spec, VolumeSpec)
        values = np.asarray(run.store.read(Region(layer, spec.bounds)))
        found = values if found is None else found | values
    assert found is not None
    return found


def _correlation(stack: NDArray[np.uint8], section: int) -> float:
    """Compare a section with the last one before it that shows something."""
    for other in range(section - 1, -1, -1):
        if stack[..., other].any():
            x, y = (n // _BLOCK * _BLOCK for n in stack.shape[:2])
            values = block_correlation(stack[:x, :y, other], stack[:x, :y, section], _BLOCK)
            known = values[values > -1.5]
            return round(float(np.median(known)), 3) if known.size else math.nan
    return math.nan


def _draw(
    reports: list[SectionReport],
    loose: NDArray[np.uint8],
    aligned: NDArray[np.uint8],
    picture: Path,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 11), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 6, height_ratios=(1.2, 1, 1.9))
    for column, (name, stack) in enumerate((("loose", loose), ("aligned", aligned))):
        panel = figure.add_subplot(grid[0, 3 * column : 3 * column + 3])
        panel.imshow(stack[:, stack.shape[1] // 2].T, cmap="gray", aspect="auto")
        panel.set_title(f"{name}: x and z, in the middle of y")
        panel.set_ylabel("section")
        panel.set_xticks([])
    z = [r.z for r in reports]
    panel = figure.add_subplot(grid[1, :3])
    panel.plot(z, [r.before for r in reports], ".-", label="loose", color="0.6")
    panel.plot(z, [r.after for r in reports], ".-", label="aligned", color="tab:blue")
    panel.set_title("correlation with the section before")
    panel.set_xlabel("section")
    panel.legend(frameon=False)
    panel = figure.add_subplot(grid[1, 3:])
    panel.bar(z, [r.steps for r in reports], label="steps", color="tab:orange")
    panel.bar(z, [r.slips for r in reports], label="slips", color="tab:red")
    panel.set_title("blocks that are still misaligned")
    panel.set_xlabel("section")
    panel.legend(frameon=False)
    order = sorted(
        (i for i, r in enumerate(reports) if not math.isnan(r.after)),
        key=lambda i: reports[i].after,
    )
    for place, i in enumerate(order[:_WORST]):
        panel = figure.add_subplot(grid[2, 2 * place : 2 * place + 2])
        other = next(k for k in range(i - 1, -1, -1) if aligned[..., k].any())
        red, cyan = aligned[..., other].T, aligned[..., i].T
        panel.imshow(np.stack([red, cyan, cyan], axis=-1))
        panel.set_title(f"{reports[other].z} red, {reports[i].z} cyan: among the worst")
        panel.set_axis_off()
    figure.savefig(picture, dpi=90)
