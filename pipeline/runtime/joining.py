"""What two alignments are, whether they can be joined, and how well they went together."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RecipeError, RootError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.joining import Alignment, Joint
from pipeline.runtime.run import Run
from pipeline.specs import Record, Region, VolumeSpec
from pipeline.stages.flows import Fields
from pipeline.stages.left_out import LeftOut
from pipeline.stages.warp import Warp

_NEEDED = ("image", "field", "section_poses", "input_mask", "output_mask")
_LOOKED_AT = 256
"""Pixels along each axis that are drawn to see whether sections are the same."""
_ALIKE = 0.9
"""Correlation from which on they are; neighbours in a stack have some 0.5."""
_LEAST = 1000
"""Pixels that say anything about it."""


@dataclass(frozen=True)
class SeamReport:
    """How far two alignments disagreed about a section that both hold.

    Parameters
    ----------
    z : int
        Its number.
    known : float
        Share of it that both know the place of.
    median_px, p95_px : float or None
        What is left beside an affine map [pixel]; None where nothing is known.
    """

    z: int
    known: float
    median_px: float | None
    p95_px: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def alignment_in(root: str) -> Run:
    """Open the alignment in a root, be it one of `em align` or of `em join`.

    Raises
    ------
    RootError
        If there is none, or it has not been brought to its end.
    """
    found = []
    for name in Run.names(root):
        run = Run.open(root, name)
        if {*_NEEDED} <= {s.output for s in run.recipe.stages}:
            found.append(run)
    if len(found) != 1:
        names = ", ".join(run.recipe.name for run in found)
        raise RootError(
            f"{root} holds the alignments {names}; keep one in a root"
            if found
            else f"{root} holds no alignment; give the root of em align or em join"
        )
    (run,) = found
    needed = [*_NEEDED, *(["defects"] if "defects" in run.specs else [])]
    for layer in needed:
        stage = run.recipe.stage(layer)
        missing = sum(len(wave) for wave in stage.plan()) - len(run.done_keys(stage))
        if missing:
            raise RootError(
                f"{root}: {missing} tasks of {layer} are not done; bring the run "
                f"{run.recipe.name} to its end first"
            )
    return run


def joint_of(
    first: Run, second: Run, *, limit_px: float | None = None, decay: float | None = None
) -> Joint:
    """Say how two alignments are to be joined.

    Parameters
    ----------
    first, second : Run
        The second goes on where the first ends; see `alignment_in`.
    limit_px, decay : float or None
        Greatest disagreement [pixel] and sections in which it fades; as `Joint` says if
        None.

    Raises
    ------
    RecipeError
        With everything by which they do not go together.
    """
    names = f"{first.store.root} and {second.store.root}"
    drawn = second.recipe.stage("image")
    if not isinstance(drawn, Warp):
        raise RecipeError(
            second.store.root,
            [
                "was itself joined, and holds no loose sections; give it first, or join "
                "from the first sections to the last"
            ],
        )
    faults = _faults(first, second)
    if not faults:
        faults = _other_sections(first, second, drawn)
    if faults:
        raise RecipeError(names, faults)
    one, other = _alignment(first), _alignment(second)
    options: dict[str, Any] = {
        "interpolation": drawn.interpolation,
        "loose": drawn.image,
        "held": {
            warp.output: warp.image_bounds
            for warp in second.recipe.stages
            if isinstance(warp, Warp) and warp.image_bounds
        },
        "closures": bool(drawn.closures),
        "left_out": tuple(
            sorted(
                {
                    z
                    for run in (first, second)
                    for stage in run.recipe.stages
                    if isinstance(stage, LeftOut)
                    for z in stage.sections
                }
            )
        ),
    }
    fields = [s.reach_nm for s in second.recipe.stages if isinstance(s, Fields)]
    # Passes are composed: each may move tissue as far.
    options["reach_nm"] = sum(fields)
    if one.defects is not None:
        defects = second.recipe.stage("defects")
        assert isinstance(defects, Warp)
        options["defect_mip"] = defects.mip
    if limit_px is not None:
        options["limit_nm"] = limit_px * one.image.voxel_size_nm[0]
    if decay is not None:
        options["decay"] = decay
    return Joint(one, other, **options)


def seam_report(run: Run) -> list[SeamReport]:
    """Say how far two alignments disagreed, by section, of a run that joined them."""
    table = run.store.read(Record("seam", "0_0_0_0"))
    image = run.specs["image"]
    assert isinstance(image, VolumeSpec)
    size = image.voxel_size_nm[0]

    def pixels(nm: float) -> float | None:
        return None if np.isnan(nm) else round(float(nm) / size, 2)

    return [
        SeamReport(int(z), round(float(known), 3), pixels(median), pixels(p95))
        for z, known, median, p95 in zip(
            table["z"], table["known"], table["median_nm"], table["p95_nm"], strict=True
        )
    ]


def _alignment(run: Run) -> Alignment:
    specs = {name: run.specs.get(name) for name in ("image", "field", "defects")}
    image, field, defects = specs["image"], specs["field"], specs["defects"]
    assert isinstance(image, VolumeSpec)
    assert isinstance(field, VolumeSpec)
    assert defects is None or isinstance(defects, VolumeSpec)
    # All that is joined goes into the output mask.
    identity = hashlib.sha256(run.lineage["output_mask"].encode()).hexdigest()
    return Alignment(run.store.root, identity, image, field, defects)


def _faults(first: Run, second: Run) -> list[str]:
    """Say by what two alignments do not go together, as far as their layers tell."""
    one, other = _alignment(first), _alignment(second)
    faults = []
    for layer, mine, its in (
        ("image", one.image, other.image),
        ("field", one.field, other.field),
    ):
        if mine.voxel_size_nm != its.voxel_size_nm:
            faults.append(
                f"voxels of {layer} are {mine.voxel_size_nm} nm in the one and "
                f"{its.voxel_size_nm} nm in the other; align both at the same voxel size"
            )
    a, b = one.image.bounds, other.image.bounds
    if (a.start.x, a.start.y, a.stop.x, a.stop.y) != (
        *(b.start.x, b.start.y),
        *(b.stop.x, b.stop.y),
    ):
        faults.append(
            f"sections cover {a} in the one and {b} in the other; align both with the same "
            "bounds along x and y"
        )
    if (one.defects is None) != (other.defects is None):
        faults.append(
            "the one has a mask of defects and the other has none; align both with a mask "
            "or a model of defects, or both without"
        )
    if not a.start.z < b.start.z or not a.stop.z < b.stop.z:
        faults.append(
            f"the first has sections {a.start.z} to {a.stop.z - 1} and the second "
            f"{b.start.z} to {b.stop.z - 1}; give that first which begins first and ends "
            "first"
        )
    elif b.start.z >= a.stop.z:
        faults.append(
            f"the first ends with section {a.stop.z - 1} and the second begins with "
            f"{b.start.z}: no section is in both; align the second with some sections of "
            "the first (em align --after)"
        )
    return faults


def _other_sections(first: Run, second: Run, drawn: Warp) -> list[str]:
    """Say which sections of the overlap are not the same sections in both.

    The middle of each is drawn from the loose section of the second by what the first says
    of it, which gives the image of the first.
    """
    image = first.specs["image"]
    assert isinstance(image, VolumeSpec)
    bounds = image.bounds
    poses = first.store.read(Record("section_poses", "0_0_0_0"))
    middle = (bounds.start + bounds.stop) // 2
    half = _LOOKED_AT // 2
    faults = []
    for z in range(drawn.bounds.start.z, bounds.stop.z):
        look = Bbox(
            Vec3(middle.x - half, middle.y - half, z),
            Vec3(middle.x + half, middle.y + half, z + 1),
        ).intersection(bounds)
        values = {
            **{name: getattr(drawn, name) for name in type(drawn).model_fields},
            "bounds": Bbox(
                Vec3(bounds.start.x, bounds.start.y, z),
                Vec3(bounds.stop.x, bounds.stop.y, z + 1),
            ),
        }
        stage = Warp.model_validate({**values, "chunk": Vec3(*look.shape)})
        found = _drawn_from(stage, look, first, second, poses)
        alike = _correlation(found, np.asarray(first.store.read(Region("image", look))))
        if alike is not None and alike < _ALIKE:
            faults.append(
                f"section {z} of the first is another than that of the second: drawn from "
                f"the loose section of the second it correlates with the first by "
                f"{alike:.2f}; align both from the same sections, numbered alike, with the "
                "same point pairs"
            )
    return faults


def _drawn_from(
    stage: Warp, look: Bbox, first: Run, second: Run, poses: Any
) -> NDArray[np.uint8]:
    task = stage.task(ChunkKey(0, 0, 0, 0))
    task = type(task)(task.key, look, look, task.bounds)
    region = stage.reads(task)["field"]
    assert isinstance(region, Region)
    inputs = {"poses": poses, "field": first.store.read(Region("field", region.box))}
    if stage.closures:
        # Of this one section; a stage counts them from the first of its bounds.
        place = look.start.z - second.recipe.stage("image").bounds.start.z
        inputs["closures"] = second.store.read([Record(stage.closures, f"0_0_0_{place}")])
    window = stage.narrowed(task, **inputs).get("image")
    image = None if window is None else second.store.read(window)
    return stage.process(task, image, **inputs)


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float | None:
    both = (one > 0) & (other > 0)
    if both.sum() < _LEAST:
        return None
    a, b = (v[both].astype(np.float64) for v in (one, other))
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
