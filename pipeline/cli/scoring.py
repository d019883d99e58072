"""Scores of a run, kept beside it and printed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pipeline.geometry import Bbox
    from pipeline.runtime.run import Run


def score_run(run: Run) -> dict[str, Any]:
    """Score a run by its truth, and keep the scores in its root."""
    from pipeline.runtime.evaluate import evaluate as score

    scores = score(run).model_dump(mode="json")
    run.store.put_json("scores.json", scores)
    return scores


def print_scores(scores: dict[str, Any]) -> None:
    """Print the scores of a segmentation."""
    typer.echo(
        f"VOI split {scores['voi_split']:.3f} + merge {scores['voi_merge']:.3f} = "
        f"{scores['voi_sum']:.3f} bits; adapted Rand error {scores['arand']:.4f} "
        f"(precision {scores['rand_precision']:.3f}, recall {scores['rand_recall']:.3f})"
    )
    if scores["erl_nm"] is not None:
        typer.echo(
            f"ERL {scores['erl_nm'] / 1000:.2f} um of "
            f"{scores['truth_erl_nm'] / 1000:.2f} um (NERL {scores['nerl']:.3f})"
        )
    typer.echo(
        f"{scores['n_segments']} segments over {scores['n_truth']} objects of the truth"
    )


def score_synapses(
    run: Run, path: Path, tolerance_nm: float, within: Bbox | None
) -> dict[str, Any]:
    """Score the synapses of a run by a table of true ones."""
    from pipeline.runtime.evaluate_synapses import TrueSynapses, evaluate_synapses

    found = evaluate_synapses(
        run, TrueSynapses.load(path), tolerance_nm=tolerance_nm, within=within
    )
    d = found.detection
    rates = {"precision": d.precision, "recall": d.recall, "f1": d.f1}
    told: dict[str, Any] = {"run": run.recipe.name, "detection": {**asdict(d), **rates}}
    if found.compared is not None:
        told["partners"] = {
            "found": found.compared,
            "right": found.right,
            "accuracy": found.accuracy,
        }
    return told


def print_synapse_scores(scores: dict[str, Any]) -> None:
    """Print the scores of synapses."""
    d = scores["detection"]
    typer.echo(
        f"synapses: precision {d['precision']:.3f}, recall {d['recall']:.3f}, "
        f"F1 {d['f1']:.3f}; {d['hits']} found, {d['false_positives']} wrong, "
        f"{d['false_negatives']} missed, {d['ignored']} where nothing is known"
    )
    if "partners" in scores:
        p = scores["partners"]
        typer.echo(
            f"partners: both right and in order of {p['right']} of {p['found']} found "
            f"({p['accuracy']:.3f})"
        )
