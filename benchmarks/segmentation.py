"""Watershed, region graph and agglomeration beside waterz, cc3d and the memory.

``python benchmarks/segmentation.py --picture segmentation.png --check``
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from harness import (
    TARGETS,
    AsJson,
    Check,
    Cost,
    Meter,
    Outcome,
    Targets,
    at_once,
    begin,
    best_of,
    finish,
    installed,
    judge,
    load_targets,
    machine,
    table,
)
from in_memory import Layers, Memory, run, segmentation_stages
from inputs import BLOCK, BLUR, NAMES, NOISE, Input, open_input
from numpy.typing import NDArray
from rich.console import Console

from pipeline.geometry import Bbox, Vec3
from pipeline.stages import STAGES

SETTINGS = {
    name: STAGES[stage].model_fields[name].default
    for stage, names in {
        "basins": ("low", "high", "size_threshold", "dust"),
        "agglomeration": ("threshold", "floor"),
    }.items()
    for name in names
}
"""Those of the stages by default."""
LOW, HIGH, THRESHOLD = (SETTINGS[name] for name in ("low", "high", "threshold"))
KERNELS = ("watershed", "region graph", "agglomeration")
OURS, TWO_THREADS, TWICE = "ours", "ours, two threads", "ours, twice at once"
CHUNKED, STAGES = "ours, stages in chunks", "ours, stages in one chunk"
WATERZ, WATERZ_MEAN = "waterz", "waterz, mean on our supervoxels"
CC3D, MEMORY = "cc3d", "memory"


# -- cases ----------------------------------------------------------------------------


def ours(path: Path, threads: int, folder: Path | None) -> Outcome:
    """Segment the volume as one chunk; keep supervoxels and segments in a folder."""
    _segment(_cropped(path), threads, Meter(), None)
    affinities = np.load(path)
    meter = Meter()
    begin()
    segments, facts = _segment(affinities, threads, meter, folder)
    if folder is not None:
        np.save(folder / "segments.npy", segments)
    return meter.outcome(**facts, **_checksums(segments))


def _segment(
    affinities: NDArray[Any], threads: int, meter: Meter, folder: Path | None
) -> tuple[NDArray[np.uint64], dict[str, Any]]:
    """Run the kernels over a volume that is one chunk; segments take the place of ids."""
    from pipeline.kernels.agglomerate import Clusters, agglomerate
    from pipeline.kernels.region_graph import region_graph
    from pipeline.kernels.relabel import RemapTable, relabel
    from pipeline.kernels.watershed import watershed

    bounds = Bbox.of_shape(affinities.shape[:3])
    where = {"box": bounds, "read_box": bounds, "bounds": bounds}
    with meter.phase("watershed"):
        ids = watershed(
            affinities,
            low=LOW,
            high=HIGH,
            size_threshold=SETTINGS["size_threshold"],
            dust=SETTINGS["dust"],
            threads=threads,
            **where,
        )
    with meter.phase("region graph"):
        regions = region_graph(ids, affinities, threads=threads, **where)
    with meter.phase("agglomeration"):
        done = agglomerate(
            [Clusters.of(regions)], threshold=THRESHOLD, floor=SETTINGS["floor"]
        )
    if folder is not None:
        np.save(folder / "supervoxels.npy", ids)
    remap = RemapTable(done.outcomes.ids, done.outcomes.targets)
    with meter.phase("relabel"):
        relabel(ids, remap, out=ids, threads=threads)
    return ids, {
        "supervoxels": len(regions.ids),
        "contacts": len(regions.pairs),
        "merges": len(done.merges.pairs),
        "segments": len(np.unique(remap.targets)),
    }


def stages(path: Path, chunk: Vec3) -> Outcome:
    """Segment the volume in chunks, by the stages and with all that joins chunks.

    Time is that of a worker, which keeps its memory from task to task; memory is measured
    in a second pass.
    """
    cropped = _cropped(path)
    _by_stages(cropped, Vec3.of(cropped.shape[:3]).ceil_div(2), Meter())
    affinities = np.load(path)
    time, memory = Meter(), Meter()
    facts = _checksums(_by_stages(affinities, chunk, time))
    _by_stages(affinities, chunk, memory, counting=Memory.BEYOND_INPUTS)
    peaks = memory.outcome(voxels_of_chunk=chunk.product, **facts)
    phases = {
        name: replace(cost, peak_bytes=peaks.phases[name].peak_bytes)
        for name, cost in time.phases.items()
    }
    return Outcome(phases, peaks.facts)


def _by_stages(
    affinities: NDArray[Any],
    chunk: Vec3,
    meter: Meter,
    *,
    counting: Memory = Memory.OF_PROCESS,
) -> NDArray[np.uint64]:
    bounds = Bbox.of_shape(affinities.shape[:3])
    layers = Layers(bounds, {"affinities": affinities})
    run(segmentation_stages(bounds, chunk), layers, meter, memory=counting)
    return layers.volumes["segmentation"]


def waterz(path: Path) -> Outcome:
    """Watershed and mean-affinity agglomeration, as waterz has them."""
    list(_waterz(_as_waterz_takes_it(_cropped(path)), [1 - THRESHOLD]))
    affinities = _as_waterz_takes_it(np.load(path))
    meter = Meter()
    # No score lies below the first threshold: there nothing is merged yet.
    made = _waterz(affinities, [-1.0, 1 - THRESHOLD])
    with meter.phase("watershed, region graph"):
        next(made)
    with meter.phase("agglomeration"):
        segments = next(made)
    return meter.outcome(segments=len(np.unique(segments)))


def waterz_mean(path: Path, folder: Path) -> Outcome:
    """Agglomerate our supervoxels by waterz, and count what it groups otherwise."""
    import fastremap

    list(_waterz(_as_waterz_takes_it(_cropped(path)), [1 - THRESHOLD]))
    affinities = _as_waterz_takes_it(np.load(path))
    fragments, _ = fastremap.renumber(np.load(folder / "supervoxels.npy"), in_place=True)
    fragments = np.ascontiguousarray(fragments.T, np.uint64)
    mine = np.load(folder / "segments.npy").T
    ours_by_fragment = _by_fragment(fragments, mine)
    del mine
    given = fragments.copy()
    meter = Meter()
    with meter.phase("region graph, agglomeration"):
        (segments,) = _waterz(affinities, [1 - THRESHOLD], fragments)
    theirs = _by_fragment(given, segments)
    others = int((_first_of_each(ours_by_fragment) != _first_of_each(theirs)).sum())
    return meter.outcome(supervoxels=len(theirs) - 1, supervoxels_grouped_otherwise=others)


def cc3d(path: Path) -> Outcome:
    """Label the components of the voxels that are joined along all three axes."""
    from cc3d import connected_components

    cropped = _cropped(path)
    connected_components(cropped.min(axis=3) > 0, connectivity=6, binary_image=True)
    affinities = np.load(path)
    half = 0.5 if affinities.dtype == np.float32 else 128
    inside = np.asfortranarray(affinities.min(axis=3) >= half)
    del affinities
    meter = Meter()
    with meter.phase("components"):
        labels = connected_components(
            inside, connectivity=6, binary_image=True, out_dtype=np.uint32
        )
    return meter.outcome(components=int(labels.max()))


def memory(path: Path) -> Outcome:
    """Read every affinity once and write an id for every voxel: the physical limit."""
    affinities = np.load(path)
    flat = affinities.reshape(-1, order="F")
    words = flat[: flat.nbytes // 8 * 8 // flat.itemsize].view(np.uint64)
    meter = Meter()
    with meter.phase("read affinities"):
        np.bitwise_or.reduce(words)
    with meter.phase("write ids"):
        np.empty(affinities.shape[:3], np.uint64, order="F").fill(1)
    return meter.outcome()


def _cropped(path: Path) -> NDArray[Any]:
    """Return a little of a volume, to load code with before anything is measured."""
    return np.array(np.load(path, mmap_mode="r")[:24, :24, :8], order="F")


def _as_waterz_takes_it(affinities: NDArray[Any]) -> NDArray[np.float32]:
    """Return float32, z y x, and the channels in that order too."""
    if affinities.dtype == np.uint8:
        affinities = affinities.astype(np.float32) / 255
    return np.ascontiguousarray(affinities[..., ::-1].T)


def _waterz(
    affinities: NDArray[np.float32],
    thresholds: list[float],
    fragments: NDArray[np.uint64] | None = None,
) -> Any:
    from waterz import agglomerate

    return agglomerate(
        affinities,
        thresholds,
        fragments=fragments,
        aff_threshold_low=LOW,
        aff_threshold_high=HIGH,
    )


def _by_fragment(fragments: NDArray[Any], segments: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the segment of each fragment; a fragment lies in one."""
    found = np.zeros(int(fragments.max()) + 1, np.uint64)
    found[fragments.reshape(-1)] = segments.reshape(-1)
    return found


def _first_of_each(names: NDArray[Any]) -> NDArray[np.int64]:
    """Name groups after their first member."""
    _, first, group = np.unique(names, return_index=True, return_inverse=True)
    named: NDArray[np.int64] = first[group]
    return named


def _checksums(ids: NDArray[np.uint64]) -> dict[str, str]:
    """Return checksums of a segmentation and of its partition, whatever the names."""
    import fastremap

    numbered, _ = fastremap.renumber(ids, preserve_zero=True)
    return {"ids": _sha256(ids), "partition": _sha256(numbered)}


def _sha256(ids: NDArray[Any]) -> str:
    return hashlib.sha256(np.asfortranarray(ids).T.data.cast("B")).hexdigest()


# -- figures --------------------------------------------------------------------------


def measure(
    given: Input, chunk: Vec3, repeats: int, folder: Path, say: Any
) -> dict[str, Any]:
    """Run every case on an input, and compare.

    Raises
    ------
    RuntimeError
        If ours is not the same in chunks, or with two threads.
    """
    kept = folder / given.name
    kept.mkdir()
    cases: dict[str, tuple[Any, ...]] = {
        OURS: (ours, given.path, 1, kept),
        TWO_THREADS: (ours, given.path, 2, None),
        TWICE: (at_once, ours, 2, given.path, 1, None),
        CHUNKED: (stages, given.path, chunk),
        STAGES: (stages, given.path, given.shape),
        CC3D: (cc3d, given.path),
        MEMORY: (memory, given.path),
    }
    if installed("waterz"):
        cases[WATERZ] = (waterz, given.path)
        cases[WATERZ_MEAN] = (waterz_mean, given.path, kept)
    rounds = best_of(cases, repeats, lambda what: say(f"{given.name}: {what}"))
    require_same(rounds, "ids", (CHUNKED, STAGES))
    require_same(rounds, "partition", (OURS, TWO_THREADS, CHUNKED, STAGES))
    best = {name: outcomes[0] for name, outcomes in rounds.items()}
    voxels = given.shape.product
    return {
        "shape": list(given.shape),
        "voxels": voxels,
        "cases": {name: described(outcomes, voxels) for name, outcomes in rounds.items()},
        "ours_over": {
            name: best[OURS].total.cpu_s / other.total.cpu_s for name, other in best.items()
        },
        "figures": figures(rounds, voxels),
    }


def described(outcomes: list[Outcome], voxels: int) -> dict[str, Any]:
    """Return the best outcome of a case with its rates, and how the others spread.

    Memory is that of a task, so it counts for the voxels of one.
    """
    best = outcomes[0]
    at_once = best.facts.get("voxels_of_chunk", voxels)
    return {
        **best.to_json(),
        "mvox_per_cpu_s": voxels / 1e6 / best.total.cpu_s,
        "bytes_per_voxel": best.total.peak_bytes / at_once,
        "bytes_per_voxel_by_phase": {
            name: cost.peak_bytes / at_once for name, cost in best.phases.items()
        },
        "cpu_s_of_rounds": [o.total.cpu_s for o in outcomes],
        "wall_s_of_rounds": [o.total.wall_s for o in outcomes],
    }


def require_same(
    rounds: Mapping[str, list[Outcome]], what: str, cases: tuple[str, ...]
) -> None:
    """Check that cases gave the same segmentation, whatever the chunks and threads.

    Raises
    ------
    RuntimeError
        If they did not.
    """
    found = {str(o.facts[what]): name for name in cases for o in rounds[name]}
    if len(found) != 1:
        raise RuntimeError(
            f"the {what} of the segmentations are not the same, byte for byte: "
            f"{' and '.join(found.values())} differ, or rounds of {cases[0]} do"
        )


def figures(rounds: Mapping[str, list[Outcome]], voxels: int) -> dict[str, float]:
    """Return the figures that have targets."""
    best = {name: outcomes[0] for name, outcomes in rounds.items()}
    kernels, all_of_it = best[OURS].of(*KERNELS), best[OURS].total
    walls, busiest = (
        {
            name: min(of(o.of(*KERNELS)) for o in rounds[name])
            for name in (OURS, TWO_THREADS, TWICE)
        }
        for of in (lambda cost: cost.wall_s, _busiest_of_two)
    )
    found = {
        "mvox_per_cpu_s": voxels / 1e6 / kernels.cpu_s,
        "bytes_per_voxel": all_of_it.peak_bytes / voxels,
        "chunked_over_whole": best[CHUNKED].total.cpu_s / all_of_it.cpu_s,
        "two_threads_speedup": walls[OURS] / walls[TWO_THREADS],
        "two_threads_speedup_if_idle": busiest[OURS] / busiest[TWO_THREADS],
        "two_processes_gain": 2 * walls[OURS] / walls[TWICE],
    }
    if WATERZ in best:
        found["times_waterz"] = best[WATERZ].total.cpu_s / all_of_it.cpu_s
    return found


def _busiest_of_two(cost: Cost) -> float:
    """Return the CPU-seconds of the busier of two threads: wall time if both may run."""
    return max(cost.calling_s, cost.cpu_s - cost.calling_s)


# -- what is shown --------------------------------------------------------------------


def show(console: Console, name: str, result: Mapping[str, Any]) -> None:
    """Print a table of cases and one of where the time goes."""
    rows, phases = [], []
    for case, found in result["cases"].items():
        total = Cost(**found["total"])
        rows.append(
            [
                case,
                f"{total.cpu_s:.2f}",
                f"{found['mvox_per_cpu_s']:.2f}",
                f"{total.wall_s:.2f}",
                f"{found['facts']['peak_rss_bytes'] / 2**20:.0f}",
                f"{found['bytes_per_voxel']:.1f}",
                f"{1 / result['ours_over'][case]:.2f}",
            ]
        )
        phases += [
            [
                case if i == 0 else "",
                phase,
                f"{cost['cpu_s']:.3f}",
                f"{1e9 * cost['cpu_s'] / result['voxels']:.1f}",
                f"{found['bytes_per_voxel_by_phase'][phase]:.1f}",
            ]
            for i, (phase, cost) in enumerate(found["phases"].items())
        ]
    columns = [
        "case",
        "CPU s",
        "Mvox / CPU s",
        "wall s",
        "peak MiB",
        "byte / voxel beyond input",
        "CPU s / ours",
    ]
    console.print(table(f"{name}, {result['voxels'] / 1e6:.1f} Mvox", columns, rows))
    console.print(
        "two threads: {two_threads_speedup:.2f} x one by wall time, "
        "{two_threads_speedup_if_idle:.2f} x by the busier thread's CPU time; two "
        "processes at once do {two_processes_gain:.2f} x the work of one".format(
            **result["figures"]
        )
    )
    columns = ["case", "part", "CPU s", "CPU ns / voxel", "byte / voxel"]
    console.print(table(f"{name}: where the time goes", columns, phases))


def draw(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw rates beside peers, and where the time goes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(results),
        2,
        figsize=(13, 3.4 * len(results)),
        squeeze=False,
        layout="constrained",
    )
    for (rates, parts), (name, result) in zip(axes, results.items(), strict=True):
        cases = result["cases"]
        for row, (case, found) in enumerate(cases.items()):
            color = "tab:blue" if case.startswith("ours") else "tab:gray"
            rates.barh(row, found["mvox_per_cpu_s"], color=color)
            ratio = result["ours_over"][case]
            rates.text(
                found["mvox_per_cpu_s"] * 1.05,
                row,
                f"{found['mvox_per_cpu_s']:.1f}"
                + ("" if case == OURS else f"   {1 / ratio:.2f} x the time of ours"),
                va="center",
                fontsize=8,
            )
        most = max(found["mvox_per_cpu_s"] for found in cases.values())
        rates.set(
            xscale="log",
            xlim=(0.5, 200 * most),
            xlabel="Mvox per CPU-second",
            title=f"{name}, {result['voxels'] / 1e6:.1f} Mvox",
        )
        rates.set_yticks(range(len(cases)), list(cases), fontsize=8)
        rates.invert_yaxis()
        shown = [OURS, STAGES, CHUNKED]
        ns = 1e9 / result["voxels"]
        longest = max(ns * cases[case]["total"]["cpu_s"] for case in shown)
        for row, case in enumerate(shown):
            left = 0.0
            for i, (phase, cost) in enumerate(cases[case]["phases"].items()):
                width = ns * cost["cpu_s"]
                parts.barh(row, width, left=left, color=f"C{i % 10}", edgecolor="white")
                if width > 0.1 * longest:
                    text = f"{phase.replace(' ', chr(10))}\n{width:.0f}"
                    middle = left + width / 2
                    parts.text(middle, row, text, ha="center", va="center", fontsize=7)
                left += width
        parts.set(xlabel="CPU ns per voxel", title="where the time goes")
        parts.set_yticks(range(len(shown)), shown, fontsize=8)
        parts.invert_yaxis()
    figure.savefig(path, dpi=110)


# -- the command ----------------------------------------------------------------------


def main(
    size: Annotated[
        str, typer.Option(help="Extent of the phantom, x,y,z.")
    ] = "512,512,128",
    chunks: Annotated[str, typer.Option(help="Chunks along x,y,z.")] = "2,2,2",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the best counts.")] = 3,
    inputs: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(NAMES),
    data: Annotated[
        str, typer.Option(envvar="EM_DATA", help=f"Folder that holds {BLOCK}.")
    ] = "",
    cache: Annotated[
        str, typer.Option(help="Folder to keep inputs in; otherwise they are made anew.")
    ] = "",
    picture: Annotated[str, typer.Option(help="PNG to draw.")] = "",
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Measure ours beside its peers."""
    console = Console(stderr=as_json, width=140)
    wanted = inputs.split(",")
    unknown = sorted(set(wanted) - set(NAMES))
    if unknown:
        raise typer.BadParameter(f"{unknown} are not inputs; there are {', '.join(NAMES)}")
    shape = Vec3(*map(int, size.split(",")))
    cut = Vec3(*map(int, chunks.split(",")))
    skipped = {}
    if not installed("waterz"):
        skipped["waterz"] = "is not installed; pip install -e '.[bench]'"
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(cache or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            given = open_input(name, folder, shape, data, console.log)
            if given is None:
                skipped[name] = f"there is no {BLOCK} in {data or '$EM_DATA'}"
                continue
            results[name] = measure(
                given, given.shape.ceil_div(cut), repeats, Path(scratch), console.log
            )
            show(console, name, results[name])
    for what, why in skipped.items():
        console.print(f"skipped {what}: {why}")
    if picture:
        draw(Path(picture), results)
    verdicts = judge(
        {name: r["figures"] for name, r in results.items()},
        load_targets("segmentation", targets),
    )
    packages = ("em-pipeline", "numpy", "waterz", "connected-components-3d")
    result = {
        "benchmark": "segmentation",
        "machine": machine(*packages),
        "settings": {
            **SETTINGS,
            "chunks": list(cut),
            "repeats": repeats,
            "blur": BLUR,
            "noise": NOISE,
        },
        "inputs": results,
        "skipped": skipped,
    }
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    typer.run(main)
