"""Scores of a run at many thresholds, from the history of one agglomeration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingInputError, RecipeError
from pipeline.kernels.agglomerate import MergeHistory, Merges, merge_history
from pipeline.kernels.relabel import RemapTable
from pipeline.metrics import Scores, contingency, merge, scores
from pipeline.runtime.evaluate import run_length, truth_nodes
from pipeline.runtime.run import Run
from pipeline.specs import Record, Region
from pipeline.stages.agglomeration import MERGES, Agglomeration
from pipeline.stages.region_graph import RegionGraphs


def sweep(run: Run, thresholds: Sequence[float], truth: str = "truth") -> list[Scores]:
    """Score the segmentation that each threshold would give; recompute nothing.

    Parameters
    ----------
    run : Run
        With one agglomeration, done, and a layer of truth with the same voxels.
    thresholds : sequence of float
        Not below the floor of the agglomeration.
    truth : str
        Layer of the truth.

    Raises
    ------
    MissingInputError
        If the run has no agglomeration or no such truth.
    RecipeError
        If a threshold lies below the floor.
    """
    stages = [s for s in run.recipe.stages if isinstance(s, Agglomeration)]
    if not stages or truth not in run.specs:
        raise MissingInputError(
            f"run {run.recipe.name} has "
            + (f"no layer {truth} to score against" if stages else "no agglomeration")
            + "; add it to the recipe and run that"
        )
    stage = stages[0]
    low = [t for t in thresholds if t < min(stage.floor, stage.threshold)]
    if low:
        raise RecipeError(
            run.recipe.name,
            [
                f"thresholds {low} lie below the floor {stage.floor} of {stage.output}, "
                "where its history ends; set a lower floor and run it again"
            ],
        )
    graph = next(
        s
        for s in run.recipe.stages
        if isinstance(s, RegionGraphs) and s.output == stage.graph
    )
    history = history_of(run, stage)
    table = merge(
        [
            contingency(
                run.store.read(Region(graph.supervoxels, box)),
                run.store.read(Region(truth, box)),
            )
            for box in (graph.grid.box(k) for k in graph.grid)
        ]
    )
    skeletons, nodes = truth_nodes(run, truth, graph.supervoxels)
    every = [table.segment, *nodes.values(), history.loser, history.winner]
    ids = np.unique(np.concatenate(every))
    found = []
    for threshold in thresholds:
        remap = history.at(threshold, ids)
        overlap = table.renamed(_relabelled(table.segment, remap))
        segments = {k: _relabelled(n, remap) for k, n in nodes.items()}
        found.append(scores(overlap, run_length(skeletons, segments)))
    return found


def history_of(run: Run, stage: Agglomeration) -> MergeHistory:
    """Return the merges of all nodes of an agglomeration, in the order of their scores."""
    tables = (
        run.store.read(Record(stage.output, str(key), MERGES))
        for wave in stage.plan()
        for key in wave
    )
    # A task of a round that decides nothing writes no merges.
    return merge_history([Merges.from_table(t) for t in tables if t])


def draw(
    path: Path, thresholds: Sequence[float], found: Sequence[Scores], chosen: float | None
) -> None:
    """Draw VOI and adapted Rand error against the threshold, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    axes.plot(thresholds, [s.voi_split for s in found], "o-", label="VOI split")
    axes.plot(thresholds, [s.voi_merge for s in found], "o-", label="VOI merge")
    axes.plot(thresholds, [s.voi_sum for s in found], "k-", label="VOI")
    axes.set_xlabel("threshold, mean affinity")
    axes.set_ylabel("VOI [bit]")
    axes.set_ylim(bottom=0)
    rand: Any = axes.twinx()
    rand.plot(thresholds, [s.arand for s in found], "r--", label="adapted Rand error")
    rand.set_ylabel("adapted Rand error", color="r")
    rand.set_ylim(bottom=0)
    if chosen is not None:
        axes.axvline(chosen, color="0.7", zorder=0)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path)


def _relabelled(supervoxels: NDArray[np.uint64], remap: RemapTable) -> NDArray[np.uint64]:
    """Return the segments of a list of supervoxels; background stays background."""
    rows = np.searchsorted(remap.ids, supervoxels)
    padded = np.append(remap.targets, np.uint64(0))
    return np.where(supervoxels == 0, np.uint64(0), padded[rows])
