"""Clefts in chunks beside cc3d, tables of millions of synapses, partners beside the net.

``python benchmarks/synapses.py --json --check``
"""

from __future__ import annotations

import hashlib
import tempfile
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
    best_of,
    finish,
    judge,
    load_targets,
    machine,
    table,
)
from in_memory import Layers, run
from numpy.typing import NDArray
from rich.console import Console

from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.recipe import Recipe
from pipeline.stages.prediction import model_folder

CHUNKED, WHOLE = "components, 512 chunks", "cc3d on the whole"
ROWS, NET = "tables", "partners by a net"
VOXEL = [8.0, 8.0, 40.0]
DUST = 40
SHARDING = {"shard_bits": 5, "minishard_bits": 0}


# -- components -----------------------------------------------------------------------


def clefts(shape: Vec3, seed: int = 0) -> NDArray[np.uint8]:
    """Make a map of discs as dense as synapses of cortex, one in a um^3, and of specks."""
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape.astuple(), np.uint8, order="F")
    x, y, z = np.ogrid[-20:21, -20:21, -3:4]
    for _ in range(shape.product // 390_625):
        u = rng.normal(size=3) * [1, 1, 0.4]
        u /= np.linalg.norm(u)
        along = u[0] * x + u[1] * y + u[2] * z * 5
        disc = (np.abs(along) < 4) & (x**2 + y**2 + (5 * z) ** 2 < rng.integers(100, 400))
        at = rng.integers([20, 20, 3], np.array(shape.astuple()) - [21, 21, 4])
        box = tuple(slice(a - h, a + h + 1) for a, h in zip(at, (20, 20, 3), strict=True))
        volume[box][disc] = 255
    specks = rng.integers(0, shape.product, shape.product // 20_000)
    volume.reshape(-1, order="F")[specks] = 200
    return volume


def component_stages(bounds: Bbox, chunk: Vec3) -> Recipe:
    """Return the stages from a map to measured components."""
    form = {"storage_chunk": list(chunk)}
    return _recipe(
        bounds,
        chunk,
        {"map": ""},
        [
            {"use": "component_pieces", "mask": "map", "output": "pieces", **form},
            {"use": "component_graph", "pieces": "pieces", "output": "graph", "dust": DUST},
            {"use": "component_table", "decisions": "graph", "output": "table"},
            {
                "use": "relabel",
                "labels": "pieces",
                "table": "table",
                "output": "clefts",
                **form,
            },
            {
                "use": "component_extents",
                "components": "clefts",
                "output": "extents",
                "sharding": SHARDING,
            },
            {
                "use": "components",
                "fragments": "extents",
                "output": "list",
                "sharding": SHARDING,
            },
        ],
    )


def chunked(path: Path, chunk: Vec3) -> Outcome:
    """Find components in chunks, and hold them against those of the whole."""
    volume = np.asfortranarray(np.load(path))
    bounds = Bbox.of_shape(volume.shape)
    recipe = component_stages(bounds, chunk)
    layers, meter = Layers(bounds, {"map": volume}), Meter()
    run(recipe.stages, layers, meter)

    found = layers.volumes["clefts"]
    expected = _of_whole(volume)
    pairs = np.unique(np.stack([found[expected != 0], expected[expected != 0]]), axis=1)
    one_to_one = pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
    same = bool(one_to_one and np.array_equal(found != 0, expected != 0))
    listed = sum(
        int(part["sizes"].sum())
        for record in layers.records["list"].values()
        for part in record.parts.values()
    )
    return meter.outcome(
        equal=same and listed == int(np.count_nonzero(expected)),
        components=pairs.shape[1],
        chunks=recipe.stages[0].grid.counts().product,
    )


def _of_whole(volume: NDArray[np.uint8]) -> NDArray[Any]:
    import cc3d

    labels = cc3d.connected_components(volume >= 128, connectivity=26)
    small = np.bincount(labels.reshape(-1, order="F")) < DUST
    small[0] = True
    return np.where(small[labels], 0, labels)


def whole(path: Path) -> Outcome:
    """Find, sift and measure components of the whole with cc3d."""
    import cc3d

    volume = np.asfortranarray(np.load(path))
    meter = Meter()
    with meter.phase("whole"):
        labels = cc3d.connected_components(volume >= 128, connectivity=26)
        statistics = cc3d.statistics(labels)
        kept = statistics["voxel_counts"] >= DUST
        kept[0] = False
        ids = np.where(kept, np.arange(len(kept)), 0).astype(np.uint64)
        clefts = ids[labels]
    return meter.outcome(components=int(kept.sum()), voxels=int(np.count_nonzero(clefts)))


# -- tables ---------------------------------------------------------------------------


def tables(count: int) -> Outcome:
    """Merge, sort and write synapses, from records of chunks to Parquet."""
    from pipeline.kernels.partners import SynapseRows
    from pipeline.layers.store import Store
    from pipeline.runtime.connectome import census, open_connectome
    from pipeline.runtime.drive import run_to_end
    from pipeline.runtime.executors import serial
    from pipeline.runtime.run import Run
    from pipeline.specs import Record, RecordsSpec, Sharding
    from pipeline.stages.synapses import pair_keys, sharded

    chunk = Vec3(1024, 1024, 256)
    bounds = Bbox.of_shape(chunk * 4)
    n_chunks = 64
    rng = np.random.default_rng(0)
    sharding = Sharding(**SHARDING)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(f"{scratch}/made")
        store.create("fragments", RecordsSpec())
        voxels = 0
        for number in range(n_chunks):
            n = count // n_chunks
            place = Vec3(number % 4, number // 4 % 4, number // 16)
            middle = (place * chunk).astuple() + rng.integers(0, chunk.astuple(), (n, 3))
            sizes = rng.integers(40, 4000, n).astype(np.uint64)
            segments = rng.integers(1, count // 40, (2, n)).astype(np.uint64) ** 2
            voxels += int(sizes.sum())
            rows = SynapseRows(
                ids=np.arange(1, n + 1, dtype=np.uint64) + np.uint64(number << 32),
                sizes=sizes,
                sums=middle * sizes.astype(np.int64)[:, None],
                clefts=np.ones(n, np.uint32),
                pre_site=middle - 3,
                post_site=middle + 3,
                pre_supervoxel=segments[0] + np.uint64(1),
                post_supervoxel=segments[1] + np.uint64(1),
                pre_segment=segments[0],
                post_segment=segments[1],
                pre_score=rng.random(n, np.float32),
                post_score=rng.random(n, np.float32),
                pre_class=np.zeros(n, np.uint8),
                post_class=np.zeros(n, np.uint8),
                flags=np.zeros(n, np.uint32),
            )
            key = str(ChunkKey(0, *place))
            value = sharded(rows, pair_keys(rows), sharding, "")
            store.write(Record("fragments", key), RecordsSpec(), value)
            del rows, value
        recipe = _recipe(
            bounds,
            chunk,
            {"fragments": f"{store.root}/fragments"},
            [
                {
                    "use": "synapses",
                    "fragments": "fragments",
                    "output": "synapses",
                    "voxel_size_nm": VOXEL,
                    "sharding": SHARDING,
                },
                {
                    "use": "connectome",
                    "synapses": "synapses",
                    "output": "connectome",
                    "voxel_size_nm": VOXEL,
                    "sharding": SHARDING,
                },
            ],
        )
        meter = Meter()
        made = Run.start(recipe, f"{scratch}/run")
        with meter.phase("tables"):
            run_to_end(made, serial, quiet=True)
        found = census(open_connectome(made))
    return meter.outcome(
        synapses=found.synapses,
        clefts=found.clefts,
        conserved=found.clefts == n_chunks * (count // n_chunks)
        and int(found.sizes.sum()) == voxels,
    )


# -- partners -------------------------------------------------------------------------


def partners(count: int) -> Outcome:
    """Assign clefts by a net of the published size, and run the net alone."""
    from pipeline.kernels.components import extents
    from pipeline.nets.backends import choose
    from pipeline.nets.inference import Runner
    from pipeline.nets.model import load_model
    from pipeline.specs import Partitioned

    shape = Vec3(512, 512, 80)
    bounds = Bbox.of_shape(shape)
    rng = np.random.default_rng(0)
    volume = np.zeros(shape.astuple(), np.uint64, order="F")
    for number in range(count):
        at = rng.integers([60, 60, 14], np.array(shape.astuple()) - [60, 60, 14])
        box = tuple(slice(a - h, a + h) for a, h in zip(at, (12, 4, 2), strict=True))
        volume[box] = number + 1
    # Cells of 40 x 40 x 16 voxels, so that clefts have some around them.
    x, y, z = (np.arange(n) // c for n, c in zip(shape, (40, 40, 16), strict=True))
    cells = 1 + x[:, None, None] + 50 * (y[:, None] + 50 * z)
    segments = np.asfortranarray(cells, np.uint64)
    image = np.asfortranarray(rng.integers(0, 255, shape.astuple(), np.uint8))
    layers = Layers(bounds, {"clefts": volume, "segmentation": segments, "image": image})
    listed = extents(volume, bounds)
    key = str(ChunkKey(0, 0, 0, 0))
    layers.records["list"] = {key: Partitioned({key: listed.to_table()})}
    backend, _ = choose(device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = _with_weights(Path(scratch))
        recipe = _recipe(
            bounds,
            shape,
            {"clefts": "", "segmentation": "", "image": "", "list": ""},
            [
                {
                    "use": "net_partners",
                    "clefts": "clefts",
                    "components": "list",
                    "segmentation": "segmentation",
                    "image": "image",
                    "output": "partners",
                    "model": str(folder),
                    "backend": backend,
                    "device": "cpu",
                    "voxel_size_nm": VOXEL,
                }
            ],
        )
        model = load_model(folder)
        runner = Runner(model, backend, head="partners")
        patch = model.config.inference.patch
        patches = [
            np.ascontiguousarray(rng.integers(0, 2, (2, *patch.astuple()[::-1]), np.uint8))
            for _ in range(len(listed.ids))
        ]
        # Once before, so that neither pays for what is loaded and made ready.
        run(recipe.stages, layers, Meter())
        for _ in runner(patches[:1]):
            pass
        meter = Meter()
        run(recipe.stages, layers, meter)
        with meter.phase("net alone"):
            for _ in runner(patches):
                pass
    assigned = layers.records["partners"][key]
    return meter.outcome(
        clefts=len(assigned["ids"]),
        backend=backend,
        assigned=int((assigned["pre_segment"] != 0).sum()),
    )


def _with_weights(folder: Path) -> Path:
    """Copy the published net, with weights drawn by chance."""
    import torch

    from pipeline.nets import ModelConfig
    from pipeline.nets.model import build_net, pack_weights

    text = (model_folder("assignment-macrina") / "model.toml").read_text()
    (folder / "model.toml").write_text(text)
    torch.manual_seed(0)
    content = pack_weights(build_net(ModelConfig.load(folder)).state_dict())
    (folder / "weights.safetensors").write_bytes(content)
    said = f'sha256 = "{hashlib.sha256(content).hexdigest()}"'
    (folder / "model.toml").write_text(text.replace('sha256 = ""', said))
    return folder


def _recipe(
    bounds: Bbox, chunk: Vec3, layers: dict[str, str], stages: list[dict[str, Any]]
) -> Recipe:
    grid = {
        "bounds": {"start": list(bounds.start), "stop": list(bounds.stop)},
        "chunk": list(chunk),
    }
    return Recipe.parse(
        {"name": "synapses", "grid": grid, "layers": layers, "stage": stages}
    )


def main(
    size: Annotated[str, typer.Option(help="Extent of the map, x,y,z.")] = "512,512,256",
    rows: Annotated[int, typer.Option(min=64, help="Synapses of the tables.")] = 2_000_000,
    assigned: Annotated[int, typer.Option(min=1, help="Clefts for the net.")] = 24,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the best counts.")] = 2,
    as_json: AsJson = False,
    check: Check = False,
    targets: Targets = TARGETS,
) -> None:
    """Measure components, tables and partners."""
    console = Console(stderr=as_json, width=140)
    shape = Vec3(*map(int, size.split(",")))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "map.npy"
        np.save(path, clefts(shape))
        cases: dict[str, tuple[Any, ...]] = {
            CHUNKED: (chunked, path, shape // 8),
            WHOLE: (whole, path),
            ROWS: (tables, rows),
            NET: (partners, assigned),
        }
        rounds = best_of(cases, repeats, console.log)
    best = {name: outcomes[0] for name, outcomes in rounds.items()}
    net = best[NET].phases
    figures = {
        "discs": {
            "chunked_over_whole": best[CHUNKED].total.cpu_s / best[WHOLE].total.cpu_s,
            "equal": float(best[CHUNKED].facts["equal"]),
        },
        f"{rows} synapses": {
            "rows_per_cpu_s": rows / best[ROWS].total.cpu_s,
            "table_bytes": float(best[ROWS].total.peak_bytes),
            "conserved": float(best[ROWS].facts["conserved"]),
        },
        f"{assigned} clefts": {
            "assignment_over_net": net["net alone"].cpu_s / net["partners"].cpu_s
        },
    }
    columns = ["case", "CPU-seconds", "seconds", "peak MiB", "facts"]
    console.print(
        table(
            "costs",
            columns,
            [
                [
                    name,
                    f"{o.total.cpu_s:.2f}",
                    f"{o.total.wall_s:.2f}",
                    f"{o.total.peak_bytes / 2**20:.0f}",
                    ", ".join(f"{k} {v}" for k, v in o.facts.items()),
                ]
                for name, o in best.items()
            ],
        )
    )
    result = {
        "machine": machine("connected-components-3d", "numpy", "pyarrow", "torch"),
        "size": list(shape),
        "cases": {name: [o.to_json() for o in found] for name, found in rounds.items()},
        "figures": figures,
    }
    verdicts = judge(figures, load_targets("synapses", targets))
    raise typer.Exit(finish(console, result, verdicts, as_json=as_json, check=check))


if __name__ == "__main__":
    typer.run(main)
