"""The truth of sections that `em simulate` made loose, and how far off an alignment is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingInputError
from pipeline.metrics.alignment import AlignedSection, Residuals, residuals
from pipeline.phantom.loose import Loosening, LooseSection, loosen
from pipeline.runtime.run import Run
from pipeline.specs import Record, Region
from pipeline.stages.warp import Warp

NEAR = 100
"""Pixels around a defect that are near it."""
STEP = 4
"""Every so many pixels are scored."""


@dataclass(frozen=True)
class Truth:
    """Loose sections, by number; those that are missing are left out.

    Parameters
    ----------
    sections : dict of int to LooseSection
        With the tissue that each pixel shows.
    shape : (int, int)
        Of all of them, in x and y [pixel].
    """

    sections: dict[int, LooseSection]
    shape: tuple[int, int]

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Make the sections of a file of `em simulate` loose again.

        Raises
        ------
        MissingInputError
            If it is not there.
        DataError
            If it is another file.
        """
        try:
            with h5py.File(path) as file:
                settings = Loosening.model_validate_json(file.attrs["settings"])
                missing = set(np.asarray(file.attrs["missing"]).tolist())
                tissue = np.asarray(file["aligned"])
        except OSError as error:
            raise MissingInputError(
                f"{path} cannot be read ({error}); give a file that em simulate wrote"
            ) from error
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path} does not say how its sections were made loose ({error}); give a "
                "file that em simulate wrote"
            ) from error
        sections = {
            z: loosen(np.asfortranarray(section.T), z, settings)
            for z, section in enumerate(tissue)
            if z not in missing
        }
        return cls(sections, (tissue.shape[2], tissue.shape[1]))


def scored(
    truth: Truth, points: Mapping[int, tuple[NDArray[Any], NDArray[np.bool_]]]
) -> Residuals:
    """Score an alignment: by section, what each pixel shows, and whether it does."""
    found = {}
    for z, (whole, reached) in points.items():
        loose = truth.sections[z]
        place, shows = whole[::STEP, ::STEP], reached[::STEP, ::STEP]
        defect = np.logical_or.reduce(list(loose.masks.values()))
        away = cv2.distanceTransform((~defect).astype(np.uint8), cv2.DIST_L2, 5)
        inside = ((place >= 0) & (place <= np.array(truth.shape) - 1)).all(axis=-1)
        there = look_up(loose.image, place, cv2.INTER_NEAREST) > 0
        whole_there = look_up(defect.astype(np.uint8), place, cv2.INTER_NEAREST) == 0
        near = look_up(away, place, cv2.INTER_LINEAR) < NEAR
        found[z] = AlignedSection(
            tissue=np.stack(
                [
                    look_up(np.ascontiguousarray(loose.tissue[..., i]), place, 1)
                    for i in (0, 1)
                ],
                axis=-1,
            ),
            shown=inside & there & whole_there & shows,
            near_defect=near & bool(defect.any()),
            available=float((~loose.lost).mean()),
        )
    return residuals(found)


def look_up(values: NDArray[Any], points: NDArray[Any], how: int) -> NDArray[Any]:
    """Interpolate; OpenCV's x is the second axis of an array."""
    x, y = (np.ascontiguousarray(points[..., i], np.float32) for i in (1, 0))
    return np.asarray(cv2.remap(values, x, y, how, borderMode=cv2.BORDER_REPLICATE))


def shown_by(
    run: Run, truth: Truth
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Return what each pixel of an aligned image shows.

    Raises
    ------
    DataError
        If the run aligned other sections than those of the truth.
    """
    stage = run.recipe.stage("image")
    assert isinstance(stage, Warp)
    start, shape = stage.bounds.start, stage.bounds.shape
    last = max(truth.sections) + 1
    if (shape.x, shape.y) != truth.shape or shape.z < last:
        raise DataError(
            f"run {run.recipe.name} aligned {shape}, and the truth is of "
            f"{truth.shape} pixels and {last} sections; give the file that was aligned"
        )
    poses = run.store.read(Record(stage.poses, "0_0_0_0"))
    found: dict[int, tuple[NDArray[np.float64], NDArray[np.bool_]]] = {}
    corner = np.array([start.x, start.y])
    for key in stage.keys(0):
        task = stage.task(key)
        read = stage.reads(task)["field"]
        assert isinstance(read, Region)
        sections = stage.shown(task, poses, run.store.read(read))
        for z, (points, reached) in enumerate(sections, task.box.start.z - start.z):
            if points is None or z not in truth.sections:
                continue
            whole = found.setdefault(
                z, (np.zeros((*truth.shape, 2)), np.zeros(truth.shape, bool))
            )
            here = task.box.slices(stage.bounds.start)[:2]
            whole[0][here] = points - corner
            whole[1][here] = True if reached is None else reached
    return found


def residuals_of(run: Run, path: Path) -> dict[str, float]:
    """Score the alignment of a run by a file of `em simulate`; lengths in pixels."""
    truth = Truth.load(path)
    return asdict(scored(truth, shown_by(run, truth)))
