"""Scores of a run, kept beside it and printed."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
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


def score_alignment(run: Run, truth: Path | None) -> dict[str, Any]:
    """Score an alignment, keep scores and pictures in its root, and return the scores."""
    from pipeline.runtime.evaluate_alignment import (
        draw_scores,
        draw_worst,
        evaluate_alignment,
        page,
    )

    found = evaluate_alignment(run)
    told: dict[str, Any] = {"run": run.recipe.name, **found.to_json()}
    if truth is not None:
        from pipeline.runtime.alignment_truth import residuals_of

        told["truth"] = {
            name: None if math.isnan(value) else round(value, 4)
            for name, value in residuals_of(run, truth).items()
        }
    with tempfile.TemporaryDirectory() as folder:
        pictures = [Path(folder) / "alignment_eval.png"]
        draw_scores(found, pictures[0])
        if found.worst:
            pictures.append(Path(folder) / "alignment_worst.png")
            draw_worst(run, found.worst, pictures[1])
        for picture in pictures:
            run.store.put_bytes(picture.name, picture.read_bytes())
    run.store.put_text("alignment_eval.html", page(run, found, [p.name for p in pictures]))
    run.store.put_json("alignment_scores.json", told)
    return told


def print_alignment_scores(scores: dict[str, Any], root: str) -> None:
    """Print the scores of an alignment."""

    def said(name: str, digits: int = 2) -> str:
        value = scores[name]
        return "-" if value is None else f"{value:.{digits}f}"

    states = Counter(s["state"] for s in scores["sections"])
    typer.echo(f"sections: {', '.join(f'{n} {state}' for state, n in states.items())}")
    typer.echo(
        f"correlation with the section before: {said('correlation_before')} loose, "
        f"{said('correlation_after')} aligned; of patches {said('patch_correlation')}, and "
        f"{said('best_patch_correlation')} where each is moved to be most alike"
    )
    typer.echo(
        f"patches lie {said('residual_nm', 0)} nm from there (median); drift from first "
        f"to last {said('drift_nm', 0)} nm; {said('misaligned_share', 3)} of blocks slip "
        "or step"
    )
    if "truth" in scores:
        t = {k: "-" if v is None else f"{v:.2f}" for k, v in scores["truth"].items()}
        typer.echo(
            f"by the truth [pixel]: neighbours {t['neighbours']} (p95 {t['p95']}, p99 "
            f"{t['p99']}), five apart {t['five_apart']}, first to last {t['drift']}; off "
            f"by more than 3: {t['near_defects']} near defects, {t['elsewhere']} "
            f"elsewhere; coverage {t['coverage']}"
        )
    for warning in scores["warnings"]:
        typer.echo(f"em: {warning}", err=True)
    typer.echo(f"pictures: {root}/alignment_eval.html".replace("file://", ""))
