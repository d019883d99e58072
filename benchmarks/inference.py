"""The inference engine beside the bare net, chunkflow, and itself with other overlaps.

``python benchmarks/inference.py --json --check``

Of the model its first head is taken, as a stage takes one.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
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
    best_of,
    finish,
    in_fresh_process,
    judge,
    load_targets,
    machine,
    table,
)
from numpy.typing import NDArray
from rich.console import Console

from pipeline.geometry import Bbox, Vec3
from pipeline.nets import ModelConfig, patches_touching
from pipeline.stages import STAGES
from pipeline.stages.prediction import model_folder

ENGINE, HALF = "engine", "engine, half the extent"
TORCH = "engine by torch, half the extent"
FORWARD, BLENDED = "forward passes alone", "all of it"
CHUNKFLOW = "chunkflow"
BLOCK = "ac4.h5"
SCORED = (80, 100)
"""Sections that no net has seen."""
_CHUNKFLOW_MODEL = """
import torch
from pipeline.nets import model as ours
torch.set_num_threads(1)

def load_model(folder):
    model = ours.load_model(folder)
    low = model.config.inference.precision == "bfloat16"
    def run(image):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = model.net(ours.normalised(image * 255, model.config.normalisation))
            return logits[:, : model.config.head[0].width]
    return run

def post_process(logits):
    return torch.sigmoid(logits.float())
"""
_CHUNKFLOW_RUN = """
import json, resource, sys, time
import numpy as np
from chunkflow.chunk import Chunk
from chunkflow.flow.divid_conquer.inferencer import Inferencer

image, model, weights, patch, overlap, channels, said = json.loads(sys.argv[1])
array = np.load(image)
inferencer = Inferencer(model, weights, patch, num_output_channels=channels,
                        output_patch_overlap=overlap, framework="pytorch")
inferencer(Chunk(array[:patch[0], :patch[1], :patch[2]]))
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wall, cpu = time.perf_counter(), time.process_time()
out = inferencer(Chunk(array))
found = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
         "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
np.save(said, np.asarray(out.array))
print(json.dumps(found))
"""


# -- cases ----------------------------------------------------------------------------


def engine(path: Path, folder: str, backend: str, with_bare: bool) -> Outcome:
    """Predict a volume; before that, if asked for, run the net on the same patches."""
    from pipeline.nets.backends import open_lanes
    from pipeline.nets.inference import Runner, predict, single_thread
    from pipeline.nets.model import load_model

    image = np.load(path)
    model = load_model(folder)
    inference, box = model.config.inference, Bbox.of_shape(image.shape)
    patches = patches_touching(box, box, inference)
    head = model.config.head[0].name
    runner = Runner(model, backend, head=head)  # type: ignore[arg-type]
    first = next(iter(patches)).intersection(box)
    small = image[first.slices()]
    small_box = Bbox.of_shape(small.shape)
    predict(runner, small, read=small_box, core=small_box, bounds=small_box)
    meter = Meter()
    if with_bare:
        (lane,) = open_lanes(model, backend, runner.heads, batch=1, lanes=1)  # type: ignore[arg-type]
        inputs = [
            np.ascontiguousarray(_padded(image, patch, inference.patch).T[None, None])
            for patch in patches
        ]
        lane(inputs[0])
        meter.rebase()
        with single_thread(), meter.phase(FORWARD):
            for given in inputs:
                lane(given)
        del inputs
    meter.rebase()
    with meter.phase(BLENDED):
        said = predict(runner, image, read=box, core=box, bounds=box)
    return meter.outcome(patches=len(patches), mean=float(said.mean()))


def _padded(image: NDArray[np.uint8], patch: Bbox, extent: Vec3) -> NDArray[np.uint8]:
    held = image[patch.intersection(Bbox.of_shape(image.shape)).slices()]
    return np.pad(held, [(0, a - b) for a, b in zip(extent, held.shape, strict=True)])


def chunkflow(path: Path, folder: str, python: str) -> Outcome:
    """Predict a volume by chunkflow with the same net, patches and overlap, in torch."""
    config = ModelConfig.load(Path(folder))
    with tempfile.TemporaryDirectory() as scratch:
        model, image = Path(scratch) / "net.py", Path(scratch) / "image.npy"
        model.write_text(_CHUNKFLOW_MODEL)
        np.save(image, np.ascontiguousarray(np.load(path).T))
        arguments = [
            str(image),
            str(model),
            folder,
            config.inference.patch.astuple()[::-1],
            config.inference.overlap.astuple()[::-1],
            config.head[0].width,
            str(Path(scratch) / "said.npy"),
        ]
        done = subprocess.run(
            [python, "-c", _CHUNKFLOW_RUN, json.dumps(arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return Outcome({}, {"error": done.stderr.strip().splitlines()[-1]})
        found = json.loads(done.stdout.strip().splitlines()[-1])
        said = np.load(Path(scratch) / "said.npy")
    cost = Cost(found["cpu_s"], found["wall_s"], found["peak_bytes"], found["cpu_s"])
    facts = {"peak_rss_bytes": found["peak_bytes"], "mean": float(said.mean())}
    return Outcome({BLENDED: cost}, facts)


def overlaps(path: Path, folder: str, shares: tuple[float, ...], scored: int) -> Outcome:
    """Predict with several overlaps; compare with the widest, and with the truth."""
    from pipeline.kernels.agglomerate import Clusters, agglomerate
    from pipeline.kernels.region_graph import region_graph
    from pipeline.kernels.relabel import RemapTable, relabel
    from pipeline.kernels.watershed import watershed
    from pipeline.metrics import adapted_rand_error, contingency
    from pipeline.nets.backends import choose
    from pipeline.nets.inference import Runner, predict
    from pipeline.nets.model import Model, load_model
    from pipeline.training.targets import affinities

    with np.load(path) as held:
        image, labels = (np.asfortranarray(held[name]) for name in ("raw", "labels"))
    model = load_model(folder)
    box = Bbox.of_shape(image.shape)
    settings = {
        "low": 0.01,
        "high": 0.99,
        "size_threshold": STAGES["basins"].model_fields["size_threshold"].default,
        "dust": STAGES["basins"].model_fields["dust"].default,
    }
    threshold = STAGES["agglomeration"].model_fields["threshold"].default
    new = (slice(1, None), slice(1, None), slice(image.shape[2] - scored + 1, None))
    true = affinities(labels)[new]
    meter, found, widest = Meter(), {}, None
    for share in sorted(shares, reverse=True):
        patch = model.config.inference.patch
        overlap = Vec3.of([int(n * share) for n in patch])
        inference = model.config.inference.model_copy(update={"overlap": overlap})
        config = model.config.model_copy(update={"inference": inference})
        runner = Runner(Model(config, model.net), choose(device="cpu")[0])
        with meter.phase(f"{share:.0%}"):
            said = predict(runner, image, read=box, core=box, bounds=box)[..., :3]
        widest = said if widest is None else widest
        last = said[..., image.shape[2] - scored :, :]
        here = Bbox.of_shape(last.shape[:3])
        where = {"box": here, "read_box": here, "bounds": here}
        ids = watershed(np.asfortranarray(last), **settings, **where)
        regions = region_graph(ids, np.asfortranarray(last), **where)
        done = agglomerate([Clusters.of(regions)], threshold=threshold, floor=threshold)
        relabel(ids, RemapTable(done.outcomes.ids, done.outcomes.targets), out=ids)
        yes = said[new] >= 0.5
        rand = adapted_rand_error(contingency(ids, labels[..., -scored:]))
        found[f"{share:g}"] = {
            "computed_per_written": patch.product / inference.stride.product,
            "computed_here_per_written": len(patches_touching(box, box, inference))
            * patch.product
            / box.volume,
            "mean_difference": float(np.abs(said - widest).mean()),
            "flipped": float(((said >= 0.5) != (widest >= 0.5)).mean()),
            "balanced_accuracy": float((yes[true].mean() + (~yes)[~true].mean()) / 2),
            "arand": float(rand.error),
        }
    return meter.outcome(overlaps=found)


# -- the command ----------------------------------------------------------------------


def cut_image(data: str, shape: Vec3, path: Path) -> str:
    """Save an image to measure on; return what it is."""
    if data and (Path(data) / BLOCK).is_file():
        import h5py

        with h5py.File(Path(data) / BLOCK) as file:
            z, y, x = file["raw"].shape
            if shape.x <= x and shape.y <= y and shape.z <= z:
                raw = file["raw"][: shape.z, : shape.y, : shape.x]
                np.save(path, np.asfortranarray(raw.T))
                return BLOCK
    from pipeline.phantom import Phantom

    phantom = Phantom(voxel_size_nm=(6.0, 6.0, 30.0))
    np.save(path, phantom.image((0, 0, 0), shape.astuple()))
    return "phantom"


def cut_truth(data: str, extent: Vec3, path: Path) -> bool:
    """Save the last sections of the block with their labels, if it is there."""
    if not data or not (Path(data) / BLOCK).is_file():
        return False
    import h5py

    with h5py.File(Path(data) / BLOCK) as file:
        cut = (
            slice(SCORED[1] - extent.z, SCORED[1]),
            slice(0, extent.y),
            slice(0, extent.x),
        )
        np.savez(path, raw=file["raw"][cut].T, labels=file["labels"][cut].T)
    return True


def figures(rounds: Mapping[str, list[Outcome]], voxels: int) -> dict[str, float]:
    """Return the figures that have targets, and those beside them."""
    best = {name: outcomes[0] for name, outcomes in rounds.items() if outcomes[0].phases}
    found: dict[str, float] = {}
    if ENGINE in rounds:
        passes = [(o.of(FORWARD).cpu_s, o.of(BLENDED).cpu_s) for o in rounds[ENGINE]]
        forward, all_of_it = (min(times) for times in zip(*passes, strict=True))
        found["engine_over_forward"] = forward / all_of_it
        found["bytes_per_voxel"] = best[ENGINE].of(BLENDED).peak_bytes / voxels
        if HALF in best:
            half = best[HALF].of(BLENDED).cpu_s / best[HALF].facts["voxels"]
            found["growth"] = all_of_it / voxels / half
        if CHUNKFLOW in best:
            found["times_chunkflow"] = best[CHUNKFLOW].total.wall_s / min(
                o.of(BLENDED).wall_s for o in rounds[ENGINE]
            )
    return found


def show(console: Console, cases: Mapping[str, Any], overlapped: Mapping[str, Any]) -> None:
    """Print what was measured."""
    rows = [
        [
            name,
            f"{found['cpu_s']:.1f}",
            f"{found['wall_s']:.1f}",
            f"{found['mvox_written_per_s']:.3f}",
            f"{found['peak_rss_bytes'] / 2**20:.0f}",
        ]
        for name, found in cases.items()
        if "cpu_s" in found
    ]
    columns = ["case", "CPU s", "wall s", "Mvox written / wall s", "peak MiB"]
    console.print(table("engine", columns, rows))
    if overlapped:
        rows = [
            [f"{float(share):.1%}", *(f"{value:.4g}" for value in found.values())]
            for share, found in overlapped.items()
        ]
        names = [n.replace("_", " ") for n in next(iter(overlapped.values()))]
        console.print(table("overlap", ["overlap", *names], rows))


def main(
    size: Annotated[str, typer.Option(help="Extent of the volume, x,y,z.")] = "512,512,64",
    model: Annotated[str, typer.Option(help="Model, by name or folder.")] = "cortex-rsunet",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the best counts.")] = 2,
    data: Annotated[
        str, typer.Option(envvar="EM_DATA", help=f"Folder that holds {BLOCK}.")
    ] = "",
    chunkflow_python: Annotated[
        str, typer.Option("--chunkflow", help="Interpreter that has chunkflow and ours.")
    ] = "",
    shares: Annotated[
        str, typer.Option(help="Overlaps to compare, as shares of a patch; or empty.")
    ] = "0,0.125,0.25,0.375,0.5",
    truth_size: Annotated[
        str, typer.Option(help="Extent of the block for that, x,y,z.")
    ] = "384,384,32",
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Measure the engine."""
    from pipeline.nets.backends import choose

    console = Console(stderr=as_json, width=140)
    shape = Vec3(*map(int, size.split(",")))
    folder = str(model_folder(model))
    config = ModelConfig.load(Path(folder))
    fastest, _ = choose(device="cpu")
    skipped, overlapped = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        whole, half = Path(scratch) / "whole.npy", Path(scratch) / "half.npy"
        image = cut_image(data, shape, whole)
        smaller = Vec3.of([max(n // 2, 1) for n in shape])
        np.save(half, np.asfortranarray(np.load(whole)[Bbox.of_shape(smaller).slices()]))
        cases: dict[str, tuple[Any, ...]] = {
            ENGINE: (engine, whole, folder, fastest, True),
            HALF: (engine, half, folder, fastest, False),
            TORCH: (engine, half, folder, "torch", False),
        }
        if chunkflow_python:
            cases[CHUNKFLOW] = (chunkflow, whole, folder, chunkflow_python)
        else:
            skipped["chunkflow"] = (
                "no interpreter with it was given; make an environment with chunkflow and "
                "opencv-python-headless that sees this one, and name it with --chunkflow"
            )
        rounds = best_of(cases, repeats, console.log)
        if rounds.get(CHUNKFLOW) and "error" in rounds[CHUNKFLOW][0].facts:
            skipped["chunkflow"] = f"failed: {rounds[CHUNKFLOW][0].facts['error']}"
            del rounds[CHUNKFLOW]
        rounds[HALF][0].facts["voxels"] = smaller.product
        if shares:
            truth, extent = (
                Path(scratch) / "truth.npz",
                Vec3(*map(int, truth_size.split(","))),
            )
            if cut_truth(data, extent, truth):
                console.log("overlaps")
                wanted = tuple(float(s) for s in shares.split(","))
                sections = min(SCORED[1] - SCORED[0], extent.z)
                outcome = in_fresh_process(overlaps, truth, folder, wanted, sections)
                overlapped = outcome.facts["overlaps"]
            else:
                skipped["overlaps"] = f"there is no {BLOCK} in {data or '$EM_DATA'}"
    measured: dict[str, Any] = {}
    for name, outcomes in rounds.items():
        voxels = smaller.product if name in (HALF, TORCH) else shape.product
        for phase in outcomes[0].phases:
            cost = min((o.phases[phase] for o in outcomes), key=lambda c: c.cpu_s)
            measured[name if phase == BLENDED else f"{name}: {phase}"] = {
                "cpu_s": cost.cpu_s,
                "wall_s": cost.wall_s,
                "mvox_written_per_s": voxels / 1e6 / cost.wall_s,
                "peak_rss_bytes": outcomes[0].facts["peak_rss_bytes"],
                "wall_s_of_rounds": [o.phases[phase].wall_s for o in outcomes],
                **outcomes[0].facts,
            }
    patches = rounds[ENGINE][0].facts["patches"]
    per_written = patches * config.inference.patch.product / shape.product
    show(console, measured, overlapped)
    console.print(
        f"{image}, {size}: {patches} patches by {fastest}, {per_written:.2f} voxels "
        "computed for each that is written"
    )
    for what, why in skipped.items():
        console.print(f"skipped {what}: {why}")
    found = figures(rounds, shape.product)
    verdicts = judge({image: found}, load_targets("inference", targets))
    result = {
        "benchmark": "inference",
        "machine": machine("em-pipeline", "numpy", "torch", "openvino"),
        "settings": {
            "model": config.name,
            "patch": list(config.inference.patch),
            "overlap": list(config.inference.overlap),
            "precision": config.inference.precision,
            "backend": fastest,
            "shape": list(shape),
            "repeats": repeats,
        },
        "cases": measured,
        "voxels_computed_per_written": per_written,
        "overlaps": overlapped,
        "figures": found,
        "skipped": skipped,
    }
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    typer.run(main)
