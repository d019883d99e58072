"""What nodes of the octree leave to their parents: constants of the model of memory.

``python benchmarks/open_state.py --chunks 4,4,4``

A node's state lies on its open faces. Counted are clusters, contacts and ports for each
voxel of open face, level by level, and how many complete contacts go up beside what the
rule of ABISS would send: there an edge whose either end is frozen freezes both.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
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
from in_memory import Layers, run, segmentation_stages
from inputs import BLOCK, NAMES, open_input
from numpy.typing import NDArray
from rich.console import Console

from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.specs import Partitioned, Table

SWEEPS = {
    "basin_graph": {
        "clusters": "ids",
        "ports": "port_ids",
        "contacts": "pairs",
        "contacts outside": "cross_pairs",
        "joins outside": "joins",
    },
    "agglomeration": {"clusters": "ids", "contacts": "pairs"},
}
"""Up-sweeps, and the columns of their states that are counted."""


# -- the open state -------------------------------------------------------------------


def open_faces(box: Bbox, bounds: Bbox) -> int:
    """Return the extent of the faces of a box that are none of the bounds [voxel]."""
    shape = box.shape
    total = 0
    for axis in range(3):
        n_open = (box.start[axis] > bounds.start[axis]) + (
            box.stop[axis] < bounds.stop[axis]
        )
        total += n_open * shape.product // shape[axis]
    return total


def states(
    layers: Layers, grid: Grid, level: int, layer: str
) -> Iterator[tuple[int, Table]]:
    """Yield the open faces [voxel] and the state of each node of a level."""
    for key in grid.keys(level):
        record = layers.records[layer][str(key)]
        if not isinstance(record, Partitioned):
            raise TypeError(f"record {key} of {layer} has no parts")
        yield open_faces(grid.box(key), grid.bounds), record.parts["state"]


def per_level(layers: Layers, grid: Grid) -> list[dict[str, Any]]:
    """Count what each level leaves to the next, per voxel of open face."""
    found = []
    for layer, columns in SWEEPS.items():
        for level in range(grid.height):
            nodes = list(states(layers, grid, level, layer))
            faces = sum(area for area, _ in nodes)
            sizes = [sum(c.nbytes for c in state.values()) for _, state in nodes]
            counts = {
                name: sum(len(state[column]) for _, state in nodes)
                for name, column in columns.items()
            }
            found.append(
                {
                    "layer": layer,
                    "level": level,
                    "nodes": len(nodes),
                    "open_face_voxels": faces,
                    "counts": counts,
                    "counts_per_1000_face_voxels": {
                        name: 1000 * n / faces for name, n in counts.items()
                    },
                    "bytes_per_face_voxel": sum(sizes) / faces,
                    "most_bytes_per_face_voxel": max(
                        size / area for size, (area, _) in zip(sizes, nodes, strict=True)
                    ),
                }
            )
    return found


# -- what goes up ---------------------------------------------------------------------


def sent_up(layers: Layers, grid: Grid, threshold: float) -> dict[str, dict[str, int]]:
    """Count what all chunks hold, and what of it waits for a parent, by rule.

    A contact is complete if not both of its sides touch an open face, and closed if
    neither does: nothing outside the chunk can add to it. A closed cluster touches none.
    """
    from pipeline.kernels.agglomerate import Clusters, agglomerate
    from pipeline.kernels.region_graph import RegionGraph

    kinds = ("complete contacts", "closed contacts", "closed clusters")
    total = {
        rule: dict.fromkeys(kinds, 0)
        for rule in ("in all chunks", "ours", "ours without absorption")
    }
    frozen = 0
    for key in grid.keys(0):
        record = layers.records["region_graph"][str(key)]
        if isinstance(record, Partitioned):
            raise TypeError(f"record {key} of region_graph has parts")
        leaf = Clusters.of(RegionGraph.from_table(record))
        for rule, state in (
            ("in all chunks", leaf),
            ("ours", agglomerate([leaf], threshold=threshold).state),
            (
                "ours without absorption",
                agglomerate([leaf], threshold=threshold, absorb=False).state,
            ),
        ):
            closed = state.ids[state.faces == 0]
            found = (
                complete(state.pairs, state.ids, state.faces).sum(),
                np.isin(state.pairs, closed).all(axis=1).sum(),
                len(closed),
            )
            for kind, n in zip(kinds, found, strict=True):
                total[rule][kind] += int(n)
        is_complete = complete(leaf.pairs, leaf.ids, leaf.faces)
        frozen += frozen_up(
            leaf.ids[leaf.faces != 0],
            leaf.pairs[is_complete],
            leaf.affinity[is_complete],
            leaf.area[is_complete],
            Fraction(threshold).limit_denominator(1 << 32) * leaf.scale,
        )
    return {**total, "ABISS": {"complete contacts": frozen}}


def complete(
    pairs: NDArray[np.uint64], ids: NDArray[np.uint64], faces: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Whether both sides of a pair are listed, and not both touch an open face."""
    rows = np.minimum(np.searchsorted(ids, pairs), max(len(ids) - 1, 0))
    if len(ids) == 0:
        return np.zeros(len(pairs), bool)
    inside: NDArray[np.bool_] = (ids[rows] == pairs).all(axis=1)
    return inside & ~(faces[rows] != 0).all(axis=1)


def frozen_up(
    frozen_ids: NDArray[np.uint64],
    pairs: NDArray[np.uint64],
    affinity: NDArray[np.uint64],
    area: NDArray[np.uint64],
    limit: Fraction,
) -> int:
    """Count the contacts that the rule of ABISS sends to the parent.

    The greatest mean first: if an end is frozen, both are from now on, and the contact
    goes up; otherwise they merge. What is left between two that are frozen goes up too.

    Parameters
    ----------
    frozen_ids : uint64 array, (n,)
        What touches an open face.
    pairs : uint64 array, (m, 2)
        Complete contacts.
    affinity, area : uint64 array, (m,)
        Their sums.
    limit : Fraction
        Mean affinity, in the scale of the sums, down to which they are merged.
    """
    frozen = {int(i) for i in frozen_ids}
    around: dict[int, dict[int, tuple[int, int]]] = {}
    heap: list[tuple[Fraction, int, int, int, int]] = []
    for (a, b), total, n in zip(
        pairs.tolist(), affinity.tolist(), area.tolist(), strict=True
    ):
        around.setdefault(a, {})[b] = around.setdefault(b, {})[a] = (total, n)
        heap.append((Fraction(-total, n), a, b, total, n))
    heapq.heapify(heap)
    up = 0
    while heap and -heap[0][0] >= limit:
        _, a, b, total, n = heapq.heappop(heap)
        if around.get(a, {}).get(b) != (total, n):
            continue
        del around[a][b], around[b][a]
        if a in frozen or b in frozen:
            up += 1
            frozen |= {a, b}
            continue
        for c, (more, faces) in around.pop(b).items():
            del around[c][b]
            had, of = around[a].get(c, (0, 0))
            merged = (had + more, of + faces)
            around[a][c] = around[c][a] = merged
            heapq.heappush(heap, (Fraction(-merged[0], merged[1]), a, c, *merged))
    left = sum(b in frozen for a, others in around.items() if a in frozen for b in others)
    return up + left // 2


def measured(path: Path, chunk: Vec3, watershed: Mapping[str, float]) -> Outcome:
    """Run the stages in chunks, and count."""
    affinities = np.load(path)
    bounds = Bbox.of_shape(affinities.shape[:3])
    layers = Layers(bounds, {"affinities": affinities})
    stages = segmentation_stages(bounds, chunk, **watershed)
    meter = Meter()
    run(stages, layers, meter)
    grid = Grid(bounds, chunk)
    threshold = next(s for s in stages if s.name == "agglomeration").model_dump()[
        "threshold"
    ]
    return meter.outcome(
        threshold=threshold,
        supervoxels=len(np.unique(layers.volumes["supervoxels"])),
        levels=per_level(layers, grid),
        sent_up=sent_up(layers, grid, threshold),
    )


# -- the command ----------------------------------------------------------------------


def show(console: Console, name: str, result: Mapping[str, Any]) -> None:
    """Print the levels and what goes up."""
    rows = []
    for level in result["levels"]:
        counts = level["counts_per_1000_face_voxels"]
        rows.append(
            [
                level["layer"],
                str(level["level"]),
                str(level["nodes"]),
                ", ".join(f"{what} {n:.3g}" for what, n in counts.items()),
                f"{level['bytes_per_face_voxel']:.3g}",
                f"{level['most_bytes_per_face_voxel']:.3g}",
            ]
        )
    columns = [
        "layer",
        "level",
        "nodes",
        "per 1000 voxels of open face",
        "byte / voxel of open face",
        "most of a node",
    ]
    title = f"{name}, {result['supervoxels']} supervoxels: open state"
    console.print(table(title, columns, rows))
    every = result["sent_up"]["in all chunks"]
    rows = [
        [rule, *(f"{n} ({n / max(every[kind], 1):.3f})" for kind, n in found.items())]
        for rule, found in result["sent_up"].items()
    ]
    console.print(table(f"{name}: sent up from chunks", ["rule", *every], rows))


def main(
    size: Annotated[
        str, typer.Option(help="Extent of the phantom, x,y,z.")
    ] = "512,512,128",
    chunks: Annotated[str, typer.Option(help="Chunks along x,y,z.")] = "4,4,4",
    inputs: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(NAMES),
    data: Annotated[
        str, typer.Option(envvar="EM_DATA", help=f"Folder that holds {BLOCK}.")
    ] = "",
    cache: Annotated[
        str, typer.Option(help="Folder to keep inputs in; otherwise they are made anew.")
    ] = "",
    low: Annotated[
        float | None, typer.Option(help="Affinity that basins merge above.")
    ] = None,
    size_threshold: Annotated[
        int | None, typer.Option(help="Size that supervoxels are not merged from.")
    ] = None,
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Count what nodes of the octree leave to their parents."""
    console = Console(stderr=as_json, width=140)
    shape = Vec3(*map(int, size.split(",")))
    cut = Vec3(*map(int, chunks.split(",")))
    given_fields = {"low": low, "size_threshold": size_threshold, "dust": size_threshold}
    watershed = {name: v for name, v in given_fields.items() if v is not None}
    results: dict[str, dict[str, Any]] = {}
    skipped = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(cache or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in inputs.split(","):
            given = open_input(name, folder, shape, data, console.log)
            if given is None:
                skipped[name] = f"there is no {BLOCK} in {data or '$EM_DATA'}"
                continue
            chunk = given.shape.ceil_div(cut)
            console.log(f"{name}: chunks of {chunk}")
            results[name] = in_fresh_process(measured, given.path, chunk, watershed).facts
            show(console, name, results[name])
    for what, why in skipped.items():
        console.print(f"skipped {what}: {why}")
    figures = {
        name: {"sent_up_over_abiss": up["ours"]["complete contacts"] / frozen}
        for name, result in results.items()
        if (frozen := (up := result["sent_up"])["ABISS"]["complete contacts"])
    }
    result = {
        "benchmark": "open_state",
        "machine": machine("em-pipeline", "numpy"),
        "settings": {"chunks": list(cut), **watershed},
        "inputs": results,
        "skipped": skipped,
    }
    verdicts = judge(figures, load_targets("open_state", targets))
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    typer.run(main)
