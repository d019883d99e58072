"""Scores of a run, kept beside it and printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
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
