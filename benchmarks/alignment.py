"""How right the alignment is, on sections that were made loose with the truth kept.

``python benchmarks/alignment.py --json --check``

Real aligned sections are shifted, turned, bent, torn and folded (`em simulate`), aligned
again by `em align` and by peers, and scored by the place of the tissue that each pixel
truly shows. Peers align each section to the one before it and chain what they find: by the
turn and shift of greatest phase correlation, and by OpenCV's dense flow (DIS) on top of it.
``clean`` is left as it was: the right answer is to do nothing.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from harness import (
    TARGETS,
    AsJson,
    Check,
    Targets,
    finish,
    judge,
    load_targets,
    machine,
    table,
)
from numpy.typing import NDArray
from rich.console import Console

from pipeline.geometry import Bbox
from pipeline.layers.sources import open_source
from pipeline.metrics.alignment import Residuals
from pipeline.phantom.loose import Loosening, loosen
from pipeline.runtime.alignment_truth import Truth, look_up, scored, shown_by
from pipeline.runtime.run import Run
from pipeline.runtime.simulate import simulate_stack

VOXEL = (6.0, 6.0, 30.0)
STILL: dict[str, Any] = {
    "shift": 0.0,
    "rotation": 0.0,
    "elastic": (),
    "defects": 0.0,
    "missing": 0,
    "grey": 0.0,
    "blurred": 0.0,
}


@dataclass(frozen=True)
class Stack:
    """Sections that are made loose."""

    file: str
    bbox: str
    seed: int
    still: bool = False

    @property
    def settings(self) -> Loosening:
        """What becomes of them."""
        return Loosening(seed=self.seed, **(STILL if self.still else {}))


STACKS = {
    "20x512": Stack("ac3_x0_512.h5", "0,0,20,512,512,40", 11),
    "60x1024": Stack("ac4.h5", "0,0,0,1024,1024,60", 12),
    "clean": Stack("ac3_x0_512.h5", "0,0,20,512,512,40", 11, still=True),
}
"""Settings were chosen on AC4, sections 20 to 59, and other seeds."""


# -- what is true ---------------------------------------------------------------------


def truth_of(stack: Stack, data: str) -> Truth:
    """Make the sections of a stack loose."""
    box = Bbox.parse(stack.bbox)
    settings = stack.settings
    missing = settings.missing_of(box.shape.z)
    sections = {}
    with open_source(f"{data}/{stack.file}:raw") as source:
        volume = source.read(box).reshape(box.shape.astuple())
    for z in range(box.shape.z):
        if z not in missing:
            sections[z] = loosen(np.asfortranarray(volume[..., z]), z, settings)
    return Truth(sections, (box.shape.x, box.shape.y))


# -- ours -----------------------------------------------------------------------------


def ours(
    stack: Stack, truth: Truth, data: str, options: tuple[str, ...], known: bool
) -> tuple[Residuals, float]:
    """Align a stack as a user would; return scores and CPU-seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loose.h5"
        with open_source(f"{data}/{stack.file}:raw") as source:
            simulate_stack(
                source,
                path,
                stack.settings,
                box=Bbox.parse(stack.bbox),
                voxel_size_nm=VOXEL,
            )
        root = f"{folder}/root"
        command = [
            *(Path(sys.executable).with_name("em"), "align", f"{path}:image"),
            *("--voxel-size", ",".join(map(str, VOXEL)), "--root", root, "--quiet"),
            *(("--defects", f"{path}:defects") if known else ()),
            *("--workers", "1", *options),
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=sys.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = sum(
            getattr(after, name) - getattr(before, name)
            for name in ("ru_utime", "ru_stime")
        )
        return scored(truth, shown_by(Run.open(root, "align"), truth)), cpu


# -- peers ----------------------------------------------------------------------------


def pixels(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the places of all pixels."""
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    return np.stack([x, y], axis=-1)


def turned(image: NDArray[np.uint8], degrees: float) -> NDArray[np.float32]:
    """Turn an image about its middle."""
    extent = image.shape[::-1]
    middle = tuple((n - 1) / 2 for n in extent)
    matrix = cv2.getRotationMatrix2D(middle, degrees, 1.0)
    return np.asarray(
        cv2.warpAffine(np.ascontiguousarray(image, np.float32), matrix, extent)
    )


def rigid(truth: Truth) -> dict[int, NDArray[np.float32]]:
    """Chain turns and shifts of greatest phase correlation; return what pixels show."""
    window = cv2.createHanningWindow(truth.shape[::-1], cv2.CV_32F)
    here = pixels(truth.shape)
    middle = (np.array(truth.shape, np.float32) - 1) / 2
    # From an aligned pixel, from the middle, to the section: a matrix and a shift.
    matrix, shift = np.eye(2), np.zeros(2)
    before: NDArray[np.uint8] | None = None
    found = {}
    for z, loose in truth.sections.items():
        if before is not None:
            target = np.ascontiguousarray(before, np.float32)
            best = (-1.0, 0.0, 0.0, 0.0)
            for degrees in np.arange(-4, 4.1, 0.5):
                (y, x), response = cv2.phaseCorrelate(
                    target, turned(loose.image, float(degrees)), window
                )
                best = max(best, (response, float(degrees), x, y))
            _, degrees, x, y = best
            cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
            # OpenCV turns from its x (our second axis) towards minus its y.
            turn = np.array([[cos, sin], [-sin, cos]])
            matrix, shift = turn @ matrix, turn @ (shift + np.array([x, y]))
        found[z] = ((here - middle) @ matrix.T + shift + middle).astype(np.float32)
        before = loose.image
    return found


def flown(
    truth: Truth, places: Mapping[int, NDArray[np.float32]]
) -> dict[int, NDArray[np.float32]]:
    """Chain OpenCV's dense flow between sections that were laid on one another before."""
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    here = pixels(truth.shape)
    field = np.zeros_like(here)
    before: NDArray[np.uint8] | None = None
    found = {}
    for z, place in places.items():
        image = look_up(truth.sections[z].image, place, cv2.INTER_LINEAR)
        if before is not None:
            step = np.ascontiguousarray(flow.calc(before, image, None)[..., ::-1])
            field = field + _both(step, here + field)
        found[z] = _both(place, here + field)
        before = image
    return found


def _both(values: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([look_up(values[..., i].copy(), points, 1) for i in (0, 1)], axis=-1)


def peers(truth: Truth) -> dict[str, tuple[Residuals, float]]:
    """Align as peers do; return scores and CPU-seconds."""
    began = _cpu_s()
    laid = rigid(truth)
    middle = _cpu_s()
    drawn = flown(truth, laid)
    took = {"phase correlation": (laid, middle - began), "DIS": (drawn, _cpu_s() - began)}
    shown = np.ones(truth.shape, bool)
    return {
        name: (scored(truth, {z: (p, shown) for z, p in found.items()}), cpu)
        for name, (found, cpu) in took.items()
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# -- the command ----------------------------------------------------------------------


def show(console: Console, results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print the residuals."""
    names = list(Residuals.__dataclass_fields__)
    rows = [
        [stack, method, *(f"{found[n]:.2f}" for n in (*names, "cpu_s_per_mpx"))]
        for stack, methods in results.items()
        for method, found in methods.items()
    ]
    console.print(
        table("residuals [pixel]", ["stack", "method", *names, "CPU s / Mpx"], rows)
    )


def main(
    data: Annotated[
        str, typer.Option(envvar="EM_DATA", help="Folder of the real data.")
    ] = "",
    inputs: Annotated[str, typer.Option(help="Which stacks, with commas.")] = ",".join(
        STACKS
    ),
    known_defects: Annotated[
        bool, typer.Option(help="Give em align the true mask of defects, not a net's.")
    ] = False,
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Score alignments by the truth."""
    console = Console(stderr=as_json, width=170)
    wanted = inputs.split(",")
    skipped = {n: "there are no data; set EM_DATA" for n in wanted if not data}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name in wanted:
        if name in skipped:
            continue
        console.log(name)
        stack, folder = STACKS[name], os.path.abspath(data)
        truth = truth_of(stack, folder)
        megapixels = len(truth.sections) * truth.shape[0] * truth.shape[1] / 1e6
        methods = {
            "em align": ours(stack, truth, folder, (), known_defects),
            **peers(truth),
        }
        results[name] = {
            method: {**asdict(found), "cpu_s_per_mpx": cpu / megapixels}
            for method, (found, cpu) in methods.items()
        }
    show(console, results)
    for what, why in skipped.items():
        console.print(f"skipped {what}: {why}")
    result = {
        "benchmark": "alignment",
        "machine": machine("em-pipeline", "opencv-python-headless"),
        "settings": {
            "stacks": {n: asdict(STACKS[n]) for n in results},
            "known_defects": known_defects,
        },
        "results": results,
        "skipped": skipped,
    }
    figures = {
        name: (
            {"clean_neighbours": methods["em align"]["neighbours"]}
            if STACKS[name].still
            else {
                k: methods["em align"][k]
                for k in Residuals.__dataclass_fields__
                if k not in ("p95", "p99")
            }
        )
        for name, methods in results.items()
    }
    verdicts = judge(figures, load_targets("alignment", targets))
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    typer.run(main)
