"""Synapses of cortex: found by nets that saw the other part of the block, and assigned.

``python benchmarks/detection.py --json --check``

The block is cut in two. What is found in a part, and who is before and behind it, is said
by nets that learnt from the other part alone. A cleft is found at a probability of a half,
and is dropped below `DUST` voxels; both were fixed before anything was scored. As in the
tables of a run, a synapse is a cleft with both partners, and clefts of one pair that lie
close together are one; what clefts by themselves would score is printed beside it.
A found synapse and an annotated one may be a pair if the middle of one is near the point
of the other; pairs are one to one. What has no pair is wrong, unless it lies where nothing
was annotated, or so near to a face of the block that its point may lie beyond.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from derived_clefts import coverage, region_of
from harness import (
    TARGETS,
    AsJson,
    Check,
    Meter,
    Outcome,
    Targets,
    finish,
    in_fresh_process,
    judge,
    load_targets,
    machine,
    table,
)
from numpy.typing import NDArray
from partners import REACH_NM, VOXEL, Block, outputs_of, place_of
from rich.console import Console

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.partners import (
    Assignment,
    SynapseRows,
    by_contact,
    by_means,
    by_order,
    merge_duplicates,
    surroundings,
)
from pipeline.metrics import DetectionScores, paired_points, point_scores

MODELS = Path(__file__).parents[1] / "models"
LEARNT = ("a", "b")
"""Which models learnt from region 0, and which from region 1."""
THRESHOLD = 128
DUST = 300
"""About a disc of 100 nm, 40 nm thick [voxel]."""
OTHER_DUST = (100, 600, 950, 2000)
"""What the score would be with these is printed beside it. Half of the smallest derived
cleft has 950 voxels."""
TOLERANCE_NM = 300.0
"""Farthest that the middle of a cleft may be from the annotated point."""
WITHIN_NM = 700.0
"""Clefts of a pair that are no farther apart are one synapse, as by the stage."""
WAYS = {"order": "contact, in the net's order", "net": "net", "contact": "contact"}
NEAR = Vec3(110, 110, 24)


@dataclass(frozen=True)
class Found:
    """A cleft that was found, and who is said to be before and behind it.

    Parameters
    ----------
    middle : (x, y, z)
        Its centroid [voxel].
    size : int
        Its voxels.
    contact, net, order : Assignment
        Its partners: by contact, by a net, and by contact in the order of the net.
    """

    middle: tuple[float, float, float]
    size: int
    contact: Assignment
    net: Assignment
    order: Assignment


def cleft_map(block: Block) -> NDArray[np.uint8]:
    """Predict clefts of each region by the net that learnt from the other."""
    from pipeline.nets.inference import predict, quantise
    from pipeline.nets.model import load_model
    from pipeline.nets.patches import read_box

    bounds = Bbox.of_shape(block.image.shape)
    said = np.zeros(block.image.shape, np.uint8, order="F")
    for region, other in enumerate(reversed(LEARNT)):
        net = load_model(MODELS / f"cortex-cleft-{other}")
        core = region_of(bounds, region)
        read = read_box(core, bounds, net.config.inference)
        image = np.asfortranarray(block.image[read.slices()])
        found = predict(net, image, read=read, core=core, bounds=bounds)
        said[core.slices()] = quantise(found[..., 0])
    return said


def components(
    said: NDArray[np.uint8], dust: int
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Name what hangs together in a map of clefts and is large enough, from 1 on.

    Parameters
    ----------
    said : uint8 array, (x, y, z)
        Probabilities, 255 for 1.
    dust : int
        Fewest voxels.

    Returns
    -------
    clefts : uint64 array, (x, y, z)
        Names; 0 is none.
    middles : float64 array, (n, 3)
        Their centroids [voxel].
    """
    import cc3d

    parts = cc3d.connected_components(said >= THRESHOLD, connectivity=26)
    measured = cc3d.statistics(parts)
    kept = measured["voxel_counts"] >= dust
    kept[0] = False
    names = np.where(kept, np.cumsum(kept), 0).astype(np.uint64)
    return np.asfortranarray(names[parts]), measured["centroids"][kept]


def paired(
    middles_nm: NDArray[np.float64], truth_nm: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Pair clefts with synapses; -1 for those left over."""
    pairs = np.full(len(middles_nm), -1, np.intp)
    rows, columns = paired_points(middles_nm, truth_nm, tolerance_nm=TOLERANCE_NM)
    pairs[rows] = columns
    return pairs


def assigned(
    block: Block, clefts: NDArray[np.uint64], middles: NDArray[np.float64]
) -> list[Found]:
    """Assign the partners of every cleft, by contact and by net."""
    from pipeline.nets.model import load_model

    nets = [load_model(MODELS / f"assignment-cortex-{k}") for k in reversed(LEARNT)]
    bounds, result = Bbox.of_shape(clefts.shape), []
    for number, middle in enumerate(middles, 1):
        at = Vec3.of([int(m) for m in middle])
        box = Bbox(at - NEAR, at + NEAR + 1).intersection(bounds)
        here = Block(
            np.asfortranarray(block.image[box.slices()]),
            np.asfortranarray(block.labels[box.slices()]),
            [],
        )
        cleft = np.asfortranarray(clefts[box.slices()] == number)
        window = Bbox.of_shape(cleft.shape)
        seen = surroundings(
            cleft.astype(np.uint64),
            here.labels,
            1,
            window=window,
            origin=Vec3(0, 0, 0),
            extent=window,
            reach_nm=REACH_NM,
            voxel_size_nm=VOXEL,
        )
        assert seen is not None
        is_second = not region_of(bounds, 0).contains(Bbox(at, at + 1))
        outputs = outputs_of(nets[is_second], here, seen)
        result.append(
            Found(
                (float(middle[0]), float(middle[1]), float(middle[2])),
                int(cleft.sum()),
                by_contact(seen),
                by_means(seen.candidates, outputs),
                by_order(seen, outputs),
            )
        )
    return result


def scored(
    block: Block,
    middles: NDArray[np.float64],
    known: NDArray[np.bool_],
    *,
    faces: bool = True,
) -> DetectionScores:
    """Score places of clefts.

    Parameters
    ----------
    block : Block
        The annotated block.
    middles : float64 array, (n, 3)
        Centroids of what was found [voxel].
    known : bool array, (x, y, z)
        Where synapses were annotated.
    faces : bool
        Whether what lies near a face of the block, and has no pair, is left out.
    """
    inside = known[tuple(middles.astype(int).T)]
    places = middles * np.array(VOXEL)
    if faces:
        inside &= is_inner(places, known.shape)
    return point_scores(
        places, truth_nm(block), tolerance_nm=TOLERANCE_NM, found_known=inside
    )


def inner_scores(
    block: Block, middles: NDArray[np.float64], known: NDArray[np.bool_]
) -> DetectionScores:
    """Score what lies far from the faces of the block, and nothing else, true or found."""
    places, truth = middles * np.array(VOXEL), truth_nm(block)
    pairs = paired(places, truth)
    counts = is_inner(truth, known.shape)
    found = np.isin(np.arange(len(truth)), pairs)
    lone = (pairs < 0) & known[tuple(middles.astype(int).T)]
    wrong = int((lone & is_inner(places, known.shape)).sum())
    hits = int((counts & found).sum())
    return DetectionScores(
        hits=hits,
        false_positives=wrong,
        found_truths=hits,
        false_negatives=int((counts & ~found).sum()),
        ignored=len(pairs) - hits - wrong,
    )


def is_inner(places_nm: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Say whether places are farther than the tolerance from every face of the block."""
    far = np.array(shape) * np.array(VOXEL) - TOLERANCE_NM
    within = np.asarray((places_nm >= TOLERANCE_NM) & (places_nm <= far))
    inner: NDArray[np.bool_] = within.all(axis=1)
    return inner


def truth_nm(block: Block) -> NDArray[np.float64]:
    """Return the annotated points [nm]."""
    places = np.array([place_of(s).astuple() for s in block.synapses])
    nm: NDArray[np.float64] = places * np.array(VOXEL)
    return nm


def detected(data: str) -> Outcome:
    """Find the synapses of the block and assign them; return what is right."""
    block, meter = Block.load(Path(data)), Meter()
    with meter.phase("predict"):
        said = cleft_map(block)
    known = coverage(Path(data), said.shape)
    clefts, middles = components(said, DUST)
    with meter.phase("assign"):
        found = assigned(block, clefts, middles)
    rows = synapses_of(found, "order")
    at = middles_of(rows)
    pairs = paired(at * np.array(VOXEL), truth_nm(block))
    others = {
        f"clefts of {dust} voxels or more": scored(block, components(said, dust)[1], known)
        for dust in (DUST, *OTHER_DUST)
    }
    return meter.outcome(
        detection=_told(scored(block, at, known)),
        near_faces_too=_told(scored(block, at, known, faces=False)),
        inner=_told(inner_scores(block, at, known)),
        clefts={name: _told(one) for name, one in others.items()},
        partners={way: partners_of(block, synapses_of(found, way)) for way in WAYS},
        found=[asdict(f) for f in found],
        missed=[
            {"at": place_of(s).astuple(), "check": s["visual_check"]}
            for n, s in enumerate(block.synapses)
            if n not in pairs
        ],
    )


def synapses_of(found: list[Found], way: str) -> SynapseRows:
    """Return the synapses that clefts are: with both partners, each pair's made one."""
    rows = []
    for number, one in enumerate(found, 1):
        said: Assignment = getattr(one, way)
        if not said.pre or not said.post:
            continue
        sums = [round(m * one.size) for m in one.middle]
        sites, names = [(0, 0, 0)] * 2, (said.pre, said.post)
        scores, classes = (said.pre_score, said.post_score), (0, 0)
        rows.append(
            (number, one.size, sums, 1, *sites, *names, *names, *scores, *classes, 0)
        )
    return merge_duplicates(SynapseRows.of(rows), within_nm=WITHIN_NM, voxel_size_nm=VOXEL)


def middles_of(rows: SynapseRows) -> NDArray[np.float64]:
    """Return the centroids of synapses, (n, 3) [voxel]."""
    return np.asarray(rows.sums / rows.sizes[:, None], np.float64)


def partners_of(block: Block, rows: SynapseRows) -> dict[str, Any]:
    """Count how many synapses that were found have the right partners."""
    pairs = paired(middles_of(rows) * np.array(VOXEL), truth_nm(block))
    right = pair = 0
    for row in np.flatnonzero(pairs >= 0):
        truth = block.synapses[pairs[row]]
        wanted = (truth["pre_label"], truth["post_label"])
        said = (int(rows.pre_segment[row]), int(rows.post_segment[row]))
        right += said == wanted
        pair += set(said) == set(wanted)
    n = int((pairs >= 0).sum())
    return {"n": n, "right": right, "pair": pair, "accuracy": right / max(n, 1)}


def _told(scores: DetectionScores) -> dict[str, Any]:
    derived = {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
    return {**asdict(scores), **derived}


def show(console: Console, facts: dict[str, Any]) -> None:
    """Print what was found."""
    counts = ("hits", "false_positives", "false_negatives", "ignored")
    rates = ("precision", "recall", "f1")
    cases = {
        "synapses": facts["detection"],
        "synapses, near faces too": facts["near_faces_too"],
        "synapses, far from faces alone": facts["inner"],
        **facts["clefts"],
    }
    rows = [
        [name, *(str(d[c]) for c in counts), *(f"{d[r]:.3f}" for r in rates)]
        for name, d in cases.items()
    ]
    console.print(table("found", ["what", *counts, *rates], rows))
    rows = [
        [WAYS[way], str(p["n"]), str(p["right"]), str(p["pair"]), f"{p['accuracy']:.3f}"]
        for way, p in facts["partners"].items()
    ]
    columns = ["by", "found synapses", "right", "right but for the order", "accuracy"]
    console.print(table("their partners", columns, rows))


def main(
    data: Annotated[
        str, typer.Option(envvar="EM_DATA", help="Folder of the real data.")
    ] = "",
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Score synapses that were found, and their partners, where no net has learnt."""
    console = Console(stderr=as_json, width=120)
    result: dict[str, Any] = {
        "benchmark": "detection",
        "machine": machine("em-pipeline", "torch"),
        "settings": {
            "threshold": THRESHOLD,
            "dust": DUST,
            "tolerance_nm": TOLERANCE_NM,
            "reach_nm": REACH_NM,
        },
    }
    figures: dict[str, dict[str, float]] = {}
    if data:
        outcome = in_fresh_process(detected, str(Path(data).resolve()))
        result |= outcome.to_json()
        facts = outcome.facts
        figures["ac3"] = {
            "f1": facts["detection"]["f1"],
            "partner_accuracy": facts["partners"]["order"]["accuracy"],
        }
        show(console, facts)
    else:
        console.print("skipped ac3: there are no data; set EM_DATA")
    verdicts = judge(figures, load_targets("detection", targets))
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    typer.run(main)
