"""Examples of the stages that align: sections of the phantom, jolted, with tears."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3
from pipeline.runtime.run import Run
from pipeline.specs import Record, Table
from pipeline.stages.seams import seam_nodes

STEP, STRIDE, BLOCK = 4, 2, 4
SINCE, UNTIL = 8, 13
"""Sections that the two alignments overlap by, ``bent`` and ``bent_again``."""

Entry = dict[str, Any]


def jolted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shift every section by a pixel or two, and leave one out."""
    moved = np.zeros_like(image)
    for z in range(image.shape[2]):
        by = ((z * 7) % 5 - 2, (z * 3) % 5 - 2)
        moved[..., z] = np.roll(image[..., z], by, axis=(0, 1))
    moved[..., image.shape[2] // 2] = 0
    return moved


def tears(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Cut every third section along a slanted line."""
    x, y, z = np.indices(shape)
    return ((np.abs(x - y // 2 - 14 - z // 3) < 2) & (z % 3 == 1)).astype(np.uint8)


def pairs(bounds: Bbox, voxel: tuple[float, float, float]) -> list[Entry]:
    """Close a crack of four pixels along a slanted line, in every third section."""
    middle = (bounds.start.x + bounds.stop.x) / 2
    ends = bounds.start.y + 3, bounds.stop.y - 3
    return [
        {
            "section": section,
            "x": (middle + lean + side * 3) * voxel[0],
            "y": y * voxel[1],
            "to_x": (middle + lean + side) * voxel[0],
            "to_y": (y + 0.5) * voxel[1],
        }
        for section in range(bounds.start.z, bounds.stop.z, 3)
        for lean, y in zip((-2, 2), ends, strict=True)
        for side in (-1, 1)
    ]


def entries(chunk: Vec3, bounds: Bbox, voxel: tuple[float, float, float]) -> list[Entry]:
    """Return every stage of an alignment, in order."""
    x, y, z = voxel
    nodes = Bbox(
        bounds.start.ceil_div(Vec3(STEP, STEP, 1)), bounds.stop // Vec3(STEP, STEP, 1)
    )
    squares = nodes.finer(Vec3(STEP // STRIDE, STEP // STRIDE, 1))

    def on(box: Bbox, factor: int) -> Entry:
        cut = (chunk // Vec3(factor, factor, 1)).maximum(Vec3(2, 2, 1))
        return {
            "bounds": {"start": list(box.start), "stop": list(box.stop)},
            "chunk": list(cut),
            "storage_chunk": list(cut),
        }

    field = {
        "use": "fields",
        "relaxation": "relaxation",
        "defects": "tears",
        "step": STEP,
        "stride": STRIDE,
        "reach_nm": 64.0,
        "voxel_size_nm": list(voxel),
        "output": "field",
        **on(squares, STRIDE),
    }
    whole = on(bounds, 1)
    records = {k: v for k, v in whole.items() if k != "storage_chunk"}
    return [
        {
            "use": "section_matches",
            "image": "jolted",
            "defects": "tears",
            "distance": 2,
            "turn_degrees": 1.0,
            "shift_nm": 96.0,
            "voxel_size_nm": list(voxel),
            "output": "section_matches",
            **records,
        },
        {
            "use": "section_poses",
            "matches": "section_matches",
            "least_significance": 0.1,
            "voxel_size_nm": list(voxel),
            "output": "section_poses",
            **records,
        },
        {
            "use": "flows",
            "image": "jolted",
            "defects": "tears",
            "step": STEP,
            "patch": 10,
            "search": 3,
            "distance": 1,
            "contrast": [0.7, 1.5],
            "voxel_size_nm": list(voxel),
            "output": "flows",
            **on(nodes, STEP),
        },
        {
            "use": "relaxation",
            "flows": "flows",
            "distance": 1,
            "block": [4, 3, 5],
            "margin": [2, 2, 2],
            "outlier_nm": 64.0,
            "voxel_size_nm": [x * STEP, y * STEP, z],
            "output": "relaxation",
            **on(nodes, STEP),
        },
        field,
        {**field, "first": "field", "output": "second_field"},
        {
            "use": "warp",
            "image": "jolted",
            "poses": "section_poses",
            "field": "field",
            "interpolation": "lanczos",
            "voxel_size_nm": list(voxel),
            "field_voxel_nm": [x * STRIDE, y * STRIDE, z],
            "output": "aligned",
            **on(squares.finer(Vec3(STRIDE, STRIDE, 1)), 1),
        },
        {
            "use": "closures",
            "pairs": pairs(bounds, voxel),
            "guides": 4,
            "accuracy_nm": 1.0,
            "voxel_size_nm": list(voxel),
            "output": "closures",
            **records,
        },
        {
            "use": "warp",
            "image": "jolted",
            "closures": "closures",
            "voxel_size_nm": list(voxel),
            "field_voxel_nm": [x * STRIDE, y * STRIDE, z],
            "output": "closed",
            **whole,
        },
        {
            "use": "misalignments",
            "image": "jolted",
            "block": BLOCK,
            "around": 3,
            "distance": 2,
            "least": 0.5,
            "voxel_size_nm": list(voxel),
            "output": "misalignments",
            **on(nodes, BLOCK),
        },
        {
            "use": "chatter",
            "image": "jolted",
            "orientation_degrees": 30.0,
            "shortest_nm": 32.0,
            "longest_nm": 64.0,
            "block": 13,
            "voxel_size_nm": list(voxel),
            "output": "damped",
            **whole,
        },
        {
            "use": "left_out",
            "image": "jolted",
            "defects": "tears",
            "sections": [3, 4, 11],
            "output": "left_out",
            **whole,
        },
        {
            "use": "segmentation_masks",
            "image": "jolted",
            "kind": "output",
            "defects": "classes",
            "misalignments": "misalignments",
            "block": BLOCK,
            "output": "output_mask",
            **on(nodes.finer(Vec3(BLOCK, BLOCK, 1)), 1),
        },
    ]


def bent(shape: tuple[int, int, int], by: float) -> NDArray[np.float32]:
    """Return a field that bends every section in its own way, with a fold that opened."""
    x, y, z = np.indices(shape).astype(np.float32)
    waves = [np.sin(x / 7 + by * z), np.cos(y / 6 - by * z)]
    opened = (np.abs(x - y / 2 - 14 - z / 3) < 1) & (z % 3 == 1)
    return np.stack([20 * waves[0], 15 * waves[1], opened], axis=-1, dtype=np.float32)


def laid(sections: range, by: float) -> Table:
    """Return poses, as `section_poses` writes them; one section is left out."""
    z = np.array(sections, np.int64)
    return {
        "z": z,
        "angle": np.deg2rad(by * np.sin(z)),
        "x": 30 * by * np.cos(z),
        "y": 20 * by * np.sin(2 * z),
        "placed": (z != SINCE + 1).astype(np.uint8),
        "mirrored": np.zeros(len(z), np.uint8),
        "middle": np.array([400.0 + 50 * by, 300.0]),
        "section": z[1:],
        "other": z[:-1],
        "weight": np.linspace(0.1, 1.0, len(z) - 1),
        "misfit_nm": np.zeros(len(z) - 1),
    }


def joining(chunk: Vec3, bounds: Bbox, voxel: tuple[float, float, float]) -> list[Entry]:
    """Return the stages that join two alignments, in order."""
    stride = 4
    later = Bbox(Vec3(bounds.start.x, bounds.start.y, SINCE), bounds.stop)
    x, y, z = voxel

    def on(box: Bbox, factor: int = 1) -> Entry:
        cut = list((chunk // Vec3(factor, factor, 1)).maximum(Vec3(2, 2, 1)))
        limits = {"start": list(box.start), "stop": list(box.stop)}
        return {"bounds": limits, "chunk": cut, "storage_chunk": cut}

    overlap = on(seam_nodes(later, stride, UNTIL), stride)
    return [
        {
            "use": "seam_shifts",
            "poses": "laid",
            "field": "bent",
            "other_poses": "laid_again",
            "other_field": "bent_again",
            "stride": stride,
            "reach_nm": 64.0,
            "voxel_size_nm": list(voxel),
            "output": "seam_shifts",
            **overlap,
        },
        {
            "use": "seam",
            "shifts": "seam_shifts",
            "least_known": 0.0,
            "voxel_size_nm": [x * stride, y * stride, z],
            "output": "seam",
            **{k: v for k, v in overlap.items() if k != "storage_chunk"},
        },
        {
            "use": "seam_fields",
            "shifts": "seam_shifts",
            "seam": "seam",
            "field": "bent_again",
            "until": UNTIL,
            "stride": stride,
            "smooth_nm": 96.0,
            "decay": 3.0,
            "voxel_size_nm": list(voxel),
            "output": "later_field",
            **on(later),
        },
        {
            "use": "joined",
            "first": "bent",
            "second": "later_field",
            "since": SINCE,
            "output": "joined_field",
            **on(bounds),
        },
    ]


def joined_poses(chunk: Vec3) -> list[Entry]:
    """Return the stage that joins poses."""
    return [
        {
            "use": "joined_poses",
            "first": "laid",
            "second": "laid_again",
            "since": SINCE,
            "output": "joined_poses",
        }
    ]


def matches(run: Run) -> Table:
    """Read the records of all sections, one after the other."""
    keys = run.recipe.stage("section_matches").plan()[0]
    tables = [run.store.read(Record("section_matches", str(key))) for key in keys]
    names = ("other", "angle", "x", "y", "correlation", "significance")
    return {name: np.concatenate([t[name] for t in tables]) for name in names}


def seam(run: Run) -> Table:
    """Read how two alignments stand to one another."""
    table: Table = run.store.read(Record("seam", "0_0_0_0"))
    return table


def corners(run: Run) -> Table:
    """Read the corners of all sections, one after the other."""
    keys = run.recipe.stage("closures").plan()[0]
    tables = [run.store.read(Record("closures", str(key))) for key in keys]
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}


def poses(run: Run) -> Table:
    """Read where sections lie, and what became of the matches."""
    output = run.recipe.stages[-1].output
    table: Table = run.store.read(Record(output, "0_0_0_0"))
    return {name: table[name] for name in ("z", "x", "y", "angle", "weight", "placed")}
