"""A small configured example of every stage, and what no chunking of it may change.

An example is a recipe whose last stage is the one in question; what that stage reads is
either a layer of the `World` or written by the stages before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.region_graph import RegionGraph, merge_region_graphs
from pipeline.layers.store import Store
from pipeline.phantom import Phantom
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.run import Run
from pipeline.runtime.sweep import history_of
from pipeline.specs import Record, RecordsSpec, Region, Table, VolumeSpec
from pipeline.stages.agglomeration import REFUSALS
from pipeline.stages.base import Stage
from pipeline.stages.shards import unpack

from . import alignment, synapses

START = Vec3(5, 3, 2)
SHAPE = Vec3(42, 34, 17)
BOUNDS = Bbox.of_shape(SHAPE, START)
SECTIONS = range(BOUNDS.start.z, BOUNDS.stop.z)
VOXEL = (16.0, 16.0, 40.0)
COARSE_VOXEL = (32.0, 32.0, 40.0)

Entry: TypeAlias = dict[str, Any]

MODEL_TOML = """
name = "tiny"
voxel_size_nm = [24.0, 24.0, 40.0]
sha256 = "{sha256}"

[architecture]
widths = [2, 3]
fold = [2, 2, 1]

[normalisation]
mean = 128.0
std = 50.0

[inference]
patch = [20, 20, 10]
overlap = [8, 8, 4]

[[head]]
name = "affinities"
kind = "affinities"
offsets = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

[[head]]
name = "wrappings"
kind = "masks"
channels = ["vessel wall", "myelin"]

[[head]]
name = "defects"
kind = "masks"
channels = ["fold", "crack", "resin"]

[[head]]
name = "semantic"
kind = "classes"
channels = ["glia", "axon", "unknown", "soma"]

[[head]]
name = "embedding"
kind = "embedding"
channels = ["a", "b"]
"""


# -- the world ------------------------------------------------------------------------


PARTNERS_TOML = """
name = "tiny-partners"
inputs = ["image", "cleft"]
voxel_size_nm = [16.0, 16.0, 40.0]
sha256 = "{sha256}"

[architecture]
widths = [2, 3]

[normalisation]
mean = 128.0
std = 50.0

[inference]
patch = [12, 12, 6]
overlap = [0, 0, 0]

[[head]]
name = "partners"
kind = "masks"
channels = ["pre", "post"]
"""


@dataclass(frozen=True)
class World:
    """Layers that nobody in an example writes, and models.

    ``raw`` lies at zero and is uint16; all others have `BOUNDS`: ``image``, ``labels``
    (the truth), ``parts`` (the truth, cut slantwise into slabs), ``classes`` (semantic
    labels of uint8), ``mask`` (0 in a corner), and affinities: float32 with next to no two
    alike (``affinities``), and five values of uint8 (``ties``).
    """

    root: str
    model: str
    partners: str = ""

    @property
    def layers(self) -> dict[str, str]:
        names = (
            *("raw", "image", "labels", "parts", "classes", "mask", "affinities", "ties"),
            *("jolted", "tears", "twofold"),
            *("bent", "bent_again", "laid", "laid_again"),
        )
        return {name: f"{self.root}/{name}" for name in names}

    @classmethod
    def make(cls, folder: Path) -> World:
        """Fill a folder with tissue of the phantom, and make a model."""
        models = make_model(folder / "tiny"), make_model(folder / "two", PARTNERS_TOML)
        return cls.of(tissue(), folder / "world", *map(str, models))

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, NDArray[Any] | Table],
        folder: Path,
        model: str = "",
        partners: str = "",
    ) -> World:
        """Fill a folder with given arrays."""
        store = Store(str(folder))
        for layer, array in arrays.items():
            _put(store, layer, array, Vec3(0, 0, 0) if layer == "raw" else START)
        return cls(store.root, model, partners)


def tissue() -> dict[str, NDArray[Any] | Table]:
    """Return the layers of the phantom, and two alignments of nothing in particular."""
    box = (BOUNDS.start.astuple(), BOUNDS.stop.astuple())
    phantom = Phantom(seed=4, voxel_size_nm=VOXEL)
    image, labels = phantom.image(*box), phantom.labels(*box)
    soft = phantom.affinities(*box, blur=0.8, noise=0.15, dtype="float32")
    rough = phantom.affinities(*box, blur=0.8, noise=0.5, dtype="float32")
    slab = np.indices(SHAPE.astuple(), np.uint64).sum(axis=0) // np.uint64(12)
    return {
        "raw": image.astype(np.uint16) * 257,
        "image": image,
        "labels": labels,
        "parts": np.where(labels == 0, 0, labels * np.uint64(16) + slab),
        "classes": (labels % np.uint64(6)).astype(np.uint8),
        "mask": (slab > 2).astype(np.uint8),
        "affinities": soft,
        "ties": np.rint(rough * 4).astype(np.uint8) * np.uint8(63),
        "jolted": alignment.jolted(image),
        "tears": alignment.tears(SHAPE.astuple()),
        "twofold": np.stack([image, image // 2 + 90], axis=-1),
        "bent": alignment.bent(SHAPE.astuple(), 0.7),
        "bent_again": alignment.bent(SHAPE.astuple(), 0.5),
        "laid": alignment.laid(SECTIONS, 1.0),
        "laid_again": alignment.laid(SECTIONS, 0.6),
    }


def _put(store: Store, layer: str, array: NDArray[Any] | Table, start: Vec3) -> None:
    if isinstance(array, dict):
        store.create(layer, RecordsSpec())
        store.write(Record(layer, "0_0_0_0"), RecordsSpec(), array)
        return
    spec = VolumeSpec(
        dtype=array.dtype.name,
        channels=array.shape[3] if array.ndim == 4 else 1,
        bounds=Bbox.of_shape(SHAPE, start),
        voxel_size_nm=VOXEL,
        kind_of_values="segmentation" if array.dtype == np.uint64 else "image",
        storage_chunk=SHAPE,
    )
    store.create(layer, spec)
    store.write(Region(layer, spec.bounds), spec, np.asfortranarray(array))


def make_model(folder: Path, toml: str = MODEL_TOML) -> Path:
    """Make a model of few weights, drawn by chance."""
    import torch

    from pipeline.nets import ModelConfig
    from pipeline.nets.model import build_net, pack_weights

    folder.mkdir()
    (folder / "model.toml").write_text(toml.format(sha256=""))
    torch.manual_seed(7)
    content = pack_weights(build_net(ModelConfig.load(folder)).state_dict())
    (folder / "weights.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "model.toml").write_text(toml.format(sha256=sha256))
    return folder


# -- the table of examples ------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A stage at work.

    Parameters
    ----------
    entries : function of chunk and world
        Entries of the recipe; the last is the stage in question.
    result : function of a finished run
        What no chunking may change.
    joined_by : function of chunk
        Entries of stages after it that the result is looked at through, where the
        output itself is cut at the faces of chunks.
    """

    entries: Callable[[Vec3, World], list[Entry]]
    result: Callable[[Run], Any]
    joined_by: Callable[[Vec3], list[Entry]] = field(default=lambda chunk: [])

    def recipe(self, chunk: Vec3, world: World, *, joined: bool = False) -> Recipe:
        """Return the recipe, for chunks of an extent."""
        entries = self.entries(chunk, world)
        return parse([*entries, *(self.joined_by(chunk) if joined else [])], chunk, world)

    def stage(self, chunk: Vec3, world: World) -> Stage:
        """Return the stage in question."""
        return self.recipe(chunk, world).stage(self.output(chunk, world))

    def output(self, chunk: Vec3, world: World) -> str:
        """Return the name of its layer."""
        return str(self.entries(chunk, world)[-1]["output"])


def parse(entries: Sequence[Entry], chunk: Vec3, world: World) -> Recipe:
    """Make a recipe over `BOUNDS` with the world's layers."""
    bounds = {"start": list(BOUNDS.start), "stop": list(BOUNDS.stop)}
    return Recipe.parse(
        {
            "name": "example",
            "grid": {"bounds": bounds, "chunk": list(chunk)},
            "layers": world.layers,
            "stage": list(entries),
        }
    )


def finished(recipe: Recipe, root: str | Path) -> Run:
    """Run a recipe to its end in this process."""
    run = Run.start(recipe, str(root))
    run_to_end(run, serial, quiet=True)
    return run


def _ingest(chunk: Vec3, world: World, **fields: Any) -> Entry:
    return {
        "use": "ingest",
        "source": "image",
        "output": "copy",
        "voxel_size_nm": list(VOXEL),
        "storage_chunk": list(chunk),
        **fields,
    }


def _rescaled(chunk: Vec3, world: World) -> list[Entry]:
    moved = {"source": "raw", "shift": list(START), "intensity_range": [1000.0, 50000.0]}
    return [_ingest(chunk, world, **moved)]


def _labels(chunk: Vec3, world: World) -> list[Entry]:
    ids = {"source": "labels", "kind_of_values": "segmentation"}
    return [_ingest(chunk, world, **ids, encoding="compressed_segmentation")]


def _sharded(chunk: Vec3, world: World) -> list[Entry]:
    half = chunk.ceil_div(2)
    whole = {"chunk": list(half * 2), "storage_chunk": list(half), "sharded": True}
    return [{**entry, **whole} for entry in _labels(chunk, world)]


def _affinities(dtype: str) -> Callable[[Vec3, World], list[Entry]]:
    def entries(chunk: Vec3, world: World) -> list[Entry]:
        return [
            {
                "use": "affinities",
                "image": "image",
                "output": "predicted",
                "model": world.model,
                "dtype": dtype,
                "storage_chunk": list(chunk),
            }
        ]

    return entries


def _predicted(use: str, **fields: Any) -> Callable[[Vec3, World], list[Entry]]:
    def entries(chunk: Vec3, world: World) -> list[Entry]:
        (entry,) = _affinities("uint8")(chunk, world)
        del entry["dtype"]
        return [{**entry, "use": use, **fields}]

    return entries


def _turned(chunk: Vec3, world: World) -> list[Entry]:
    (entry,) = _affinities("uint8")(chunk, world)
    return [{**entry, "turns": 8, "batch": 3}]


def _coarse_affinities(chunk: Vec3, world: World) -> list[Entry]:
    """Predict at mip 1 of an image; that is the finest mip of the affinities."""
    bounds = BOUNDS.coarser(Vec3(2, 2, 1))
    coarse = {
        "image": "copy",
        "mip": 1,
        "bounds": {"start": list(bounds.start), "stop": list(bounds.stop)},
    }
    (entry,) = _affinities("uint8")(chunk, world)
    return [*_pyramid(_rescaled)(chunk, world), {**entry, **coarse}]


def supervoxels(chunk: Vec3, affinities: str, **masks: Any) -> list[Entry]:
    """Return the entries from affinities to supervoxels."""
    settings = {
        "affinities": affinities,
        "low": 0.2,
        "high": 0.995,
        "size_threshold": 20,
        "dust": 8,
        **masks,
    }
    form = {"storage_chunk": list(chunk)}
    return [
        {"use": "basins", "output": "basins", **settings, **form},
        {"use": "basin_graph", "basins": "basins", "output": "basin_graph", **settings},
        {
            "use": "supervoxel_table",
            "decisions": "basin_graph",
            "output": "supervoxel_table",
        },
        {
            "use": "relabel",
            "labels": "basins",
            "table": "supervoxel_table",
            "output": "supervoxels",
            **form,
        },
    ]


def segments(chunk: Vec3, labels: str, affinities: str) -> list[Entry]:
    """Return the entries from supervoxels to segments."""
    return [
        {
            "use": "region_graph",
            "supervoxels": labels,
            "affinities": affinities,
            "semantics": "classes",
            "output": "region_graph",
        },
        {
            "use": "agglomeration",
            "graph": "region_graph",
            "output": "agglomeration",
            "threshold": 0.6,
            "constraints": {
                "activation": 0.8,
                "labelled_size": 30,
                "both_members": 1,
                "one_member": 2,
            },
        },
        {"use": "segment_table", "decisions": "agglomeration", "output": "segment_table"},
        {
            "use": "relabel",
            "labels": labels,
            "table": "segment_table",
            "output": "segments",
            "storage_chunk": list(chunk),
        },
    ]


def _to_supervoxels(n: int) -> dict[str, Any]:
    """Return the first n stages to supervoxels, seen through those that are left."""
    return {
        "entries": lambda chunk, world: supervoxels(chunk, "ties")[:n],
        "joined_by": lambda chunk: supervoxels(chunk, "ties")[n:],
        "result": lambda run: volume(run, "supervoxels"),
    }


def _masked(chunk: Vec3, world: World) -> list[Entry]:
    """Take the image for a map of myelin: its brightest voxels are masked out."""
    masks = {"mask": "mask", "myelin": "image", "myelin_threshold": 0.8}
    return supervoxels(chunk, "affinities", **masks)


def _to_segments(n: int) -> Callable[[Vec3, World], list[Entry]]:
    return lambda chunk, world: segments(chunk, "parts", "affinities")[:n]


def _to_segment_table() -> dict[str, Any]:
    """Return the stages to the table of segments, seen through the last one."""
    return {
        "entries": _to_segments(3),
        "joined_by": lambda chunk: segments(chunk, "parts", "affinities")[3:],
        "result": lambda run: volume(run, "segments"),
    }


def _pyramid(
    below: Callable[[Vec3, World], list[Entry]],
) -> Callable[[Vec3, World], list[Entry]]:
    def entries(chunk: Vec3, world: World) -> list[Entry]:
        pyramid = {
            "use": "downsample",
            "layer": "copy",
            "output": "copy/pyramid",
            "mips": 2,
            "storage_chunk": list(chunk),
        }
        return [*below(chunk, world), pyramid]

    return entries


_SHARDING = {"shard_bits": 1, "minishard_bits": 2}


def _surfaces(
    *stages: str, segmentation: str = "labels", mip: int = 0, **fields: Any
) -> Callable[[Vec3, World], list[Entry]]:
    def entries(chunk: Vec3, world: World) -> list[Entry]:
        bounds = BOUNDS.coarser(Vec3(2**mip, 2**mip, 1))
        at = {
            "bounds": {"start": list(bounds.start), "stop": list(bounds.stop)},
            "voxel_size_nm": list(COARSE_VOXEL if mip else VOXEL),
            "sharding": _SHARDING,
        }
        pieces = {
            "use": "mesh_fragments",
            "segmentation": segmentation,
            "mip": mip,
            "output": "fragments",
            **at,
        }
        joined = {
            "use": "meshes",
            "fragments": "fragments",
            "output": "meshes",
            "dust_um3": 0.001,
            **at,
            **fields,
        }
        before = _pyramid(_labels)(chunk, world) if mip else []
        return [*before, *(e for e in (pieces, joined) if e["use"] in stages)]

    return entries


def _centerlines(*stages: str) -> Callable[[Vec3, World], list[Entry]]:
    pieces = {
        "use": "skeleton_fragments",
        "segmentation": "labels",
        "voxel_size_nm": list(VOXEL),
        "output": "fragments",
        "const_nm": 50.0,
        "dust_voxels": 0,
        "sharding": _SHARDING,
    }
    joined = {
        "use": "skeletons",
        "fragments": "fragments",
        "output": "skeletons",
        "dust_nm": 0.0,
        "tick_nm": 0.0,
        "sharding": _SHARDING,
    }
    return lambda chunk, world: [e for e in (pieces, joined) if e["use"] in stages]


def _overlaps(chunk: Vec3, world: World) -> list[Entry]:
    pair = {"segmentation": "parts", "truth": "labels"}
    return [{"use": "overlaps", "output": "overlaps", **pair}]


def _aligning(name: str, **fields: Any) -> Callable[[Vec3, World], list[Entry]]:
    """Return the stages of an alignment up to one, and of those what it rests on.

    It is named by its stage or by what it writes.
    """

    def entries(chunk: Vec3, world: World) -> list[Entry]:
        every = alignment.entries(chunk, BOUNDS, VOXEL)
        last = next(i for i, e in enumerate(every) if name in (e["use"], e["output"]))
        wanted, kept = {every[last]["output"]}, []
        for entry in reversed(every[: last + 1]):
            if entry["output"] in wanted:
                kept.append(entry)
                wanted |= {v for v in entry.values() if isinstance(v, str)}
        kept[0] = {**kept[0], **fields}
        return kept[::-1]

    return entries


def _joining(n: int) -> Callable[[Vec3, World], list[Entry]]:
    """Return the first n stages that join two alignments."""
    return lambda chunk, world: alignment.joining(chunk, BOUNDS, VOXEL)[:n]


def _image_quality(chunk: Vec3, world: World) -> list[Entry]:
    return [{"use": "image_quality", "output": "quality", "image": "image"}]


# -- what is compared -----------------------------------------------------------------


def volume(run: Run, layer: str) -> list[NDArray[Any]]:
    """Read a volume whole, at every mip."""
    spec = run.specs[layer]
    assert isinstance(spec, VolumeSpec)
    return [
        run.store.read(Region(layer, spec.bounds_at(mip), mip))
        for mip in range(len(spec.factors))
    ]


def agglomerated(run: Run) -> dict[str, Any]:
    """Return the merges of all nodes in their order, and the refusals by their keys."""
    stage: Any = run.recipe.stage("agglomeration")
    tables = [
        run.store.read(Record(stage.output, str(key), REFUSALS))
        for wave in stage.plan()
        for key in wave
    ]
    tables = [t for t in tables if t]
    order = np.argsort(np.concatenate([t["key"] for t in tables]))
    refusals = {
        name: np.concatenate([t[name] for t in tables])[order]
        for name in tables[0]
        if tables[0][name].ndim
    }
    return {"history": history_of(run, stage).to_table(), "refusals": refusals}


def overlaps(run: Run) -> Table:
    """Read the record at the top of the octree."""
    return _top(run, "overlaps")


def qualities(run: Run) -> Table:
    """Read what every section is like, but for its pixels, as many in one as in another."""
    table = _top(run, "quality")
    assert (table["pixels"] == SHAPE.x * SHAPE.y).all()
    return {name: column for name, column in table.items() if name != "pixels"}


def _top(run: Run, output: str) -> Table:
    stage: Any = run.recipe.stage(output)
    table: Table = run.store.read(stage.root)
    return table


def region_graphs(run: Run) -> Table:
    """Add up the region graphs of all chunks."""
    keys = run.recipe.stage("region_graph").plan()[0]
    tables = [run.store.read(Record("region_graph", str(key))) for key in keys]
    merged = merge_region_graphs([RegionGraph.from_table(t) for t in tables]).to_table()
    del merged["faces"]  # those of the chunks
    return merged


def surfaces(run: Run) -> dict[int, list[NDArray[Any]]]:
    """Weld the pieces of every segment from all chunks and shards."""
    from pipeline.kernels.surface_mesh import weld

    return {
        segment: list(weld([(p["vertices"], p["faces"]) for p in pieces]))
        for segment, pieces in unpack(_fragments(run))
    }


def _fragments(run: Run) -> list[Table]:
    stage = run.recipe.stage("fragments")
    tables = []
    for key in stage.plan()[0]:
        partitioned = run.store.read(Record("fragments", str(key)))
        tables += [partitioned.parts[shard] for shard in sorted(partitioned.parts)]
    return tables


def objects(run: Run) -> dict[str, str]:
    """Return the checksums of everything that the last stage wrote."""
    records = run.done_records(run.recipe.stages[-1])
    return {path: sum_ for done in records for path, sum_ in done.objects.items()}


def components(run: Run) -> dict[int, int]:
    """Count the connected parts of every skeleton, joined from its pieces."""
    from pipeline.kernels.centerline import Centerline, join

    found = {}
    for segment, pieces in unpack(_fragments(run)):
        parts = [Centerline(p["vertices"], p["edges"], p["radius"]) for p in pieces]
        whole = join(parts, dust_nm=0, tick_nm=0)
        if whole is not None:
            found[segment] = n_components(len(whole.vertices), whole.edges)
    return found


def written_components(run: Run) -> dict[int, int]:
    """Count the connected parts of every skeleton as written."""
    found = {}
    for segment in run.store.segments("skeletons"):
        skeleton = run.store.read_skeleton("skeletons", segment)
        found[segment] = n_components(len(skeleton.vertices), skeleton.edges)
    return found


def n_components(n: int, edges: NDArray[Any]) -> int:
    """Count the connected parts of a graph."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    return int(connected_components(graph, directed=False)[0])


def _components(n: int, **fields: Any) -> Callable[[Vec3, World], list[Entry]]:
    """Return the first n stages from a map to components; the image serves for a map."""
    return lambda chunk, world: synapses.components(chunk, "image", **fields)[:n]


def _to_components(n: int) -> dict[str, Any]:
    """Return the first n stages to a volume of components, seen through those left."""
    return {
        "entries": _components(n),
        "joined_by": lambda chunk: synapses.components(chunk, "image")[n:4],
        "result": lambda run: volume(run, "clefts"),
    }


def _wiring(output: str, **fields: Any) -> Callable[[Vec3, World], list[Entry]]:
    """Return the stages from a map of clefts up to the one that writes a layer."""

    def entries(chunk: Vec3, world: World) -> list[Entry]:
        made = synapses.wiring(chunk, "image", segments="labels", **fields)
        outputs = [entry["output"] for entry in made]
        return made[: outputs.index(output) + 1]

    return entries


def _by_net(pair: str) -> Callable[[Vec3, World], list[Entry]]:
    """Take a net that sees an image and a cleft."""

    def recipe(chunk: Vec3, world: World) -> list[Entry]:
        fields = {"model": world.partners, "image": "image", "pair": pair}
        return _wiring("partners", **fields)(chunk, world)

    return recipe


def _rows_of(layer: str, parts: str = "") -> Callable[[Run], Any]:
    return lambda run: synapses.rows(run, layer, parts)


def _volume_of(layer: str) -> Callable[[Run], Any]:
    return lambda run: volume(run, layer)


EXAMPLES: dict[str, Example] = {
    "ingest": Example(_rescaled, _volume_of("copy")),
    "ingest ids": Example(_labels, _volume_of("copy")),
    "ingest sharded": Example(_sharded, _volume_of("copy")),
    "affinities": Example(_affinities("uint8"), _volume_of("predicted")),
    "affinities float32": Example(_affinities("float32"), _volume_of("predicted")),
    "affinities masked": Example(
        _predicted("affinities", image_mask="mask", output_mask="classes"),
        _volume_of("predicted"),
    ),
    "affinities turned": Example(_turned, _volume_of("predicted")),
    "masks": Example(
        _predicted("masks", head="wrappings", channel="myelin"), _volume_of("predicted")
    ),
    "semantic": Example(_predicted("semantic", least=0.3), _volume_of("predicted")),
    "affinities of a mip": Example(_coarse_affinities, _volume_of("predicted")),
    "basins": Example(**_to_supervoxels(1)),
    "basin_graph": Example(**_to_supervoxels(2)),
    "supervoxel_table": Example(**_to_supervoxels(3)),
    "relabel": Example(**_to_supervoxels(4)),
    "relabel masked": Example(_masked, _volume_of("supervoxels")),
    "region_graph": Example(_to_segments(1), region_graphs),
    "agglomeration": Example(_to_segments(2), agglomerated),
    "segment_table": Example(**_to_segment_table()),
    "relabel to segments": Example(_to_segments(4), _volume_of("segments")),
    "downsample": Example(_pyramid(_rescaled), _volume_of("copy")),
    "downsample ids": Example(_pyramid(_labels), _volume_of("copy")),
    "mesh_fragments": Example(_surfaces("mesh_fragments"), surfaces),
    "mesh_fragments of a mip": Example(
        _surfaces("mesh_fragments", segmentation="copy", mip=1), surfaces
    ),
    "meshes": Example(_surfaces("mesh_fragments", "meshes"), objects),
    "meshes legacy": Example(
        _surfaces("mesh_fragments", "meshes", form="legacy", sharded=False), objects
    ),
    "skeleton_fragments": Example(_centerlines("skeleton_fragments"), components),
    "skeletons": Example(
        _centerlines("skeleton_fragments", "skeletons"), written_components
    ),
    "overlaps": Example(_overlaps, overlaps),
    "image_quality": Example(_image_quality, qualities),
    "component_pieces": Example(**_to_components(1)),
    "component_graph": Example(**_to_components(2)),
    "component_table": Example(**_to_components(3)),
    "components by faces": Example(_components(4, connectivity=6), _volume_of("clefts")),
    "component_extents": Example(_components(5), synapses.extents),
    "components": Example(_components(6), _rows_of("cleft_list")),
    "contact_partners": Example(
        _wiring("partners", supervoxels="parts"), _rows_of("partners")
    ),
    "net_partners": Example(_by_net("net"), _rows_of("partners")),
    "net_partners by contact": Example(_by_net("contact"), _rows_of("partners")),
    "synapse_segments": Example(_wiring("synapse_segments"), _rows_of("synapse_segments")),
    "synapses": Example(_wiring("synapses"), _rows_of("synapses", "id:")),
    "synapse_cells": Example(_wiring("synapse_cells"), synapses.cells),
    "connectome": Example(_wiring("connectome"), synapses.tables),
    "annotations": Example(_wiring("annotations"), synapses.lines),
    "defects": Example(_predicted("defects", threshold=0.45), _volume_of("predicted")),
    "section_matches": Example(_aligning("section_matches"), alignment.matches),
    "section_poses": Example(_aligning("section_poses"), alignment.poses),
    "embeddings": Example(_predicted("embeddings"), _volume_of("predicted")),
    "flows": Example(_aligning("flows"), _volume_of("flows")),
    "flows by an embedding": Example(
        _aligning("flows", embedding="twofold"), _volume_of("flows")
    ),
    "relaxation": Example(_aligning("relaxation"), _volume_of("relaxation")),
    "fields": Example(_aligning("fields"), _volume_of("field")),
    "fields of a second pass": Example(
        _aligning("second_field"), _volume_of("second_field")
    ),
    "warp": Example(_aligning("warp"), _volume_of("aligned")),
    "closures": Example(_aligning("closures"), alignment.corners),
    "warp closed by hand": Example(_aligning("closed"), _volume_of("closed")),
    "misalignments": Example(_aligning("misalignments"), _volume_of("misalignments")),
    "chatter": Example(_aligning("chatter"), _volume_of("damped")),
    "left_out": Example(_aligning("left_out"), _volume_of("left_out")),
    "segmentation_masks": Example(
        _aligning("segmentation_masks"), _volume_of("output_mask")
    ),
    "seam_shifts": Example(_joining(1), _volume_of("seam_shifts")),
    "seam": Example(_joining(2), alignment.seam),
    "seam_fields": Example(_joining(3), _volume_of("later_field")),
    "joined": Example(_joining(4), _volume_of("joined_field")),
    "joined_poses": Example(
        lambda chunk, world: alignment.joined_poses(chunk), alignment.poses
    ),
}
"""Examples by name: that of the stage, and what is special about it."""
