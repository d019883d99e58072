"""Scores of the synapses of a run against a table of true ones."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingInputError
from pipeline.geometry import Bbox
from pipeline.layers.parquet import Rows
from pipeline.metrics import DetectionScores, paired_points, point_scores
from pipeline.runtime.connectome import open_connectome
from pipeline.runtime.evaluate import segments_at
from pipeline.runtime.run import Run
from pipeline.specs import VolumeSpec
from pipeline.stages.overlaps import Overlaps

_PLACE, _CELLS = ("x", "y", "z"), ("pre", "post")


@dataclass(frozen=True)
class TrueSynapses:
    """Annotated synapses.

    Parameters
    ----------
    places_nm : float64 array, (n, 3)
        Where they are [nm].
    cells : uint64 array, (n, 2), or None
        Presynaptic and postsynaptic cell, as ids of the truth; None if that is not known.
    """

    places_nm: NDArray[np.float64]
    cells: NDArray[np.uint64] | None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a CSV with a line of names: ``x,y,z`` [nm] and, if known, ``pre,post``.

        Raises
        ------
        MissingInputError
            If it is not there.
        DataError
            If a column is missing, or a value is no number.
        """
        try:
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                names, rows = set(reader.fieldnames or ()), list(reader)
        except OSError as error:
            raise MissingInputError(
                f"{path} cannot be read ({error.strerror}); give a CSV of true synapses"
            ) from error
        missing = [n for n in _PLACE if n not in names]
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(missing)}; its first line is to name "
                "x, y, z [nm] and, if the cells are known, pre and post"
            )
        try:
            places = np.array([[float(r[a]) for a in _PLACE] for r in rows]).reshape(-1, 3)
            cells = None
            if names.issuperset(_CELLS):
                told = [[int(r[c]) for c in _CELLS] for r in rows]
                cells = np.array(told, np.uint64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{path} holds what is no number ({error}); give nm for x, y, z and whole "
                "numbers for pre and post"
            ) from error
        return cls(places, cells)


@dataclass(frozen=True)
class SynapseScores:
    """How right the synapses of a run are.

    Parameters
    ----------
    detection : DetectionScores
        Clefts paired one to one with true synapses, within a tolerance.
    compared : int or None
        Pairs whose cells could be compared; None where the truth of the cells is not known.
    right : int
        How many of these have both partners, in their order.
    """

    detection: DetectionScores
    compared: int | None = None
    right: int = 0

    @property
    def accuracy(self) -> float:
        """Share of the compared that is right; 0 if there is none."""
        return self.right / self.compared if self.compared else 0.0


def evaluate_synapses(
    run: Run,
    truth: TrueSynapses,
    *,
    tolerance_nm: float,
    within: Bbox | None = None,
) -> SynapseScores:
    """Score the synapses of a run.

    A partner is right if the truth, in the volume that the recipe's ``overlaps`` compares
    with, has the true cell at its site.

    Parameters
    ----------
    run : Run
        Complete, with a connectome.
    truth : TrueSynapses
        What is true.
    tolerance_nm : float
        Farthest that the middle of a cleft may be from a true place [nm].
    within : Bbox or None
        Where the truth is known [voxel of the sites]; a cleft elsewhere that has no pair
        counts neither way. Everywhere if None.

    Raises
    ------
    MissingInputError
        If the run has no connectome, or has not come to its end.
    """
    reader = open_connectome(run)
    rows = np.concatenate(list(reader.blocks("pre")))
    middles = _places(rows, "cleft")
    known = None
    if within is not None:
        size = np.array(reader.spec.voxel_size_nm)
        low, high = (np.array(v.astuple()) * size for v in (within.start, within.stop))
        known = ((middles >= low) & (middles < high)).all(axis=1)
    detection = point_scores(
        middles, truth.places_nm, tolerance_nm=tolerance_nm, found_known=known
    )
    labels = next((s.truth for s in run.recipe.stages if isinstance(s, Overlaps)), None)
    spec = None if labels is None else run.specs[labels]
    if truth.cells is None or labels is None or not isinstance(spec, VolumeSpec):
        return SynapseScores(detection)
    found, true = paired_points(middles, truth.places_nm, tolerance_nm=tolerance_nm)
    is_right = np.ones(len(found), bool)
    for side, cells in zip(_CELLS, truth.cells[true].T, strict=True):
        sites = _places(rows[found], side).astype(np.float32)
        there = segments_at(run.store, labels, spec, sites)
        is_right &= (there == cells) & (rows[f"{side}_segment"][found] != 0)
    return SynapseScores(detection, len(found), int(is_right.sum()))


def _places(rows: Rows, what: str) -> NDArray[np.float64]:
    return np.stack([rows[f"{what}_{axis}_nm"] for axis in "xyz"], axis=1)
