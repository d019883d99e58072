"""A run as the input of PyChunkedGraph: cut supervoxels, edges and components by chunk.

Two waves over the chunks of the graph: the first cuts the supervoxels and writes the
pieces as a volume, the second reads them back with a voxel of the neighbours and writes
edges and components. What a chunk is done with is written down last, so that an export
that was killed goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal, TypeAlias

from pipeline.errors import DataError, MissingInputError, PermanentError
from pipeline.geometry import ChunkKey, Grid, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.chunk_graph import CHUNK_GRAPH_HALO, chunk_graph, cut_supervoxels
from pipeline.layers import pychunkedgraph as layout_of
from pipeline.layers.folder import Folder, open_folder
from pipeline.layers.pychunkedgraph import COMPONENTS, EDGES, WATERSHED
from pipeline.layers.store import Store
from pipeline.runtime.executors import one_thread, serve_parent
from pipeline.runtime.export import claim, require_done
from pipeline.runtime.graph_tables import GraphStages
from pipeline.runtime.progress import WaveProgress
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec

Wave: TypeAlias = Literal["watershed", "edges"]

_WAVES: tuple[Wave, ...] = ("watershed", "edges")
_DONE = "done"
_AHEAD = 64
"""Chunks that processes are given at once."""

_MOST_STORED = 64
_LEAST_STORED = 16


@dataclass(frozen=True)
class GraphSummary:
    """What an export for PyChunkedGraph holds.

    Parameters
    ----------
    chunks, pieces : int
        Chunks, and pieces of supervoxels in them.
    in_chunk, between_chunk, cross_chunk : int
        Edges. Those across a face are in the files of both chunks and count twice.
    isolated : int
        Pieces without any edge, which PyChunkedGraph does not take in.
    """

    chunks: int
    pieces: int
    in_chunk: int
    between_chunk: int
    cross_chunk: int
    isolated: int


def export_pychunkedgraph(
    run: Run,
    to: str,
    *,
    chunk: Vec3 | None = None,
    workers: int = 1,
    replace: bool = False,
    quiet: bool = False,
) -> GraphSummary:
    """Write a run as the input of PyChunkedGraph's ingest.

    Parameters
    ----------
    run : Run
        Complete, with its segments as a volume.
    to : str
        Folder, on a path, ``gs://`` or ``s3://``.
    chunk : Vec3 or None
        Chunk of the graph [voxel]; None takes that of the region graph.
    workers : int
        Processes.
    replace : bool
        Whether to delete another export that is there.
    quiet : bool
        Show no progress.

    Raises
    ------
    MissingInputError
        If the run has no segments, or has not come to its end.
    StaleOutputError
        If the folder holds another export.
    GeometryError
        If the grid has more chunks, or a chunk more pieces, than ids can number.
    """
    export = _Export(run, to, chunk or GraphStages.of(run).graph.chunk)
    export.begin(replace=replace)
    count = min(workers, export.grid.counts().product)
    with _processes(export, count) as pool:
        for wave in _WAVES:
            keys = export.missing(wave)
            with WaveProgress(wave, len(keys), quiet=quiet) as progress:
                for key in _each(export, wave, keys, pool):
                    progress.add("done", export.grid.box(key).volume)
    return export.finish()


class _Export:
    """An export: a run, a folder, and a grid of chunks."""

    def __init__(self, run: Run, to: str, chunk: Vec3) -> None:
        self.run = run
        self.to = to
        self.stages = GraphStages.of(run)
        if self.stages.relabel is None:
            raise MissingInputError(
                f"recipe {run.recipe.name} does not write its segments; add a stage "
                f"relabel of {self.stages.graph.supervoxels} by a segment_table of "
                f"{self.stages.agglomeration.output}"
            )
        self.segmentation = self.stages.relabel.output
        self.grid = Grid(self.stages.graph.bounds, chunk)
        self.layout = IdLayout.of_grid(self.grid)

    @cached_property
    def folder(self) -> Folder:
        return open_folder(self.to)

    @cached_property
    def store(self) -> Store:
        return Store(self.to)

    @cached_property
    def spec(self) -> VolumeSpec:
        """The volume of pieces."""
        supervoxels = self.run.specs[self.stages.graph.supervoxels]
        assert isinstance(supervoxels, VolumeSpec)
        return VolumeSpec(
            dtype="uint64",
            bounds=self.grid.bounds,
            voxel_size_nm=supervoxels.voxel_size_nm,
            kind_of_values="segmentation",
            encoding="compressed_segmentation",
            storage_chunk=Vec3(*(_stored(n) for n in self.grid.chunk)),
        )

    def begin(self, *, replace: bool) -> None:
        """Check the run, claim the folder, and write what describes the export."""
        graph = self.stages.graph
        inputs = [graph.supervoxels, graph.affinities, self.segmentation]
        require_done(self.run, [s for s in self.run.recipe.stages if s.output in inputs])
        claim(
            self.folder,
            {
                "export": "pychunkedgraph",
                "run": self.run.recipe.name,
                "lineage": {layer: self.run.lineage[layer] for layer in inputs},
                "bounds": str(self.grid.bounds),
                "chunk": list(self.grid.chunk),
                "voxel_size_nm": list(self.spec.voxel_size_nm),
                "spatial_bits": self.layout.bits,
            },
            [WATERSHED, EDGES, COMPONENTS, _DONE],
            replace=replace,
        )
        self.store.create(WATERSHED, self.spec)
        text = layout_of.dataset(
            self.store.root,
            chunk=self.grid.chunk,
            spatial_bits=self.layout.bits,
            layer_bits=IdLayout.LAYER_BITS,
        )
        self.folder.put("dataset.yml", text.encode())

    def missing(self, wave: Wave) -> list[ChunkKey]:
        """List the chunks that a wave is not done with."""
        done = set(self.folder.paths(f"{_DONE}/{wave}/"))
        return [key for key in self.grid if self._done_path(wave, key) not in done]

    def do(self, wave: Wave, key: ChunkKey) -> None:
        """Do a chunk, and write down that it is done."""
        counts = self._cut(key) if wave == "watershed" else self._measure(key)
        content = json.dumps(counts, sort_keys=True) + "\n"
        self.folder.put(self._done_path(wave, key), content.encode())

    def finish(self) -> GraphSummary:
        """Add up what was written down of the chunks.

        Raises
        ------
        DataError
            If that of a chunk is damaged.
        """
        total = dict.fromkeys(GraphSummary.__dataclass_fields__, 0)
        for key in self.grid:
            path = self._done_path("edges", key)
            try:
                counts = json.loads(self.folder.get(path) or b"")
            except ValueError:
                raise DataError(
                    f"{self.folder.location}/{path} is damaged; delete it and export again"
                ) from None
            for name, count in counts.items():
                total[name] += count
        return GraphSummary(**{**total, "chunks": self.grid.counts().product})

    def _cut(self, key: ChunkKey) -> dict[str, int]:
        box = self.grid.box(key)
        pieces = cut_supervoxels(
            self.run.store.read(Region(self.stages.graph.supervoxels, box)),
            layout=self.layout,
            position=key.position,
        )
        self.store.write(Region(WATERSHED, box), self.spec, pieces)
        return {}

    def _measure(self, key: ChunkKey) -> dict[str, int]:
        box, bounds = self.grid.box(key), self.grid.bounds
        read_box = box.grown(CHUNK_GRAPH_HALO).intersection(bounds)
        read = self.run.store.read
        graph = chunk_graph(
            self.store.read(Region(WATERSHED, read_box)),
            read(Region(self.stages.graph.supervoxels, read_box)),
            read(Region(self.segmentation, read_box)),
            read(Region(self.stages.graph.affinities, read_box)),
            layout=self.layout,
            position=key.position,
            box=box,
            read_box=read_box,
            bounds=bounds,
        )
        self.folder.put(
            layout_of.components_path(key.position),
            layout_of.encode_components(graph.components),
        )
        self.folder.put(
            layout_of.edges_path(key.position),
            layout_of.encode_edges(graph.in_chunk, graph.between_chunk, graph.cross_chunk),
        )
        return {
            "pieces": len(graph.pieces),
            "in_chunk": len(graph.in_chunk),
            "between_chunk": len(graph.between_chunk),
            "cross_chunk": len(graph.cross_chunk),
            "isolated": graph.isolated,
        }

    def _done_path(self, wave: Wave, key: ChunkKey) -> str:
        return f"{_DONE}/{wave}/{key}.json"


def _stored(chunk: int) -> int:
    """Return the extent of storage chunks that divide a chunk."""
    fitting = [n for n in range(_LEAST_STORED, _MOST_STORED + 1) if chunk % n == 0]
    return fitting[-1] if fitting else chunk


@contextmanager
def _processes(export: _Export, workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Yield a pool that does chunks, or None where this process does them."""
    one_thread()
    if workers == 1:
        yield None
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_open,
        initargs=(
            export.run.store.root,
            export.run.recipe.name,
            export.to,
            export.grid.chunk,
        ),
    )
    try:
        yield pool
    except BrokenProcessPool:
        raise PermanentError(
            "a process of the export died (killed, or out of memory); export again with "
            "fewer --workers or a smaller --chunk, and it goes on with what is missing"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _each(
    export: _Export, wave: Wave, keys: list[ChunkKey], pool: ProcessPoolExecutor | None
) -> Iterator[ChunkKey]:
    """Do the chunks of a wave, and yield each that is done."""
    if pool is None:
        for key in keys:
            export.do(wave, key)
            yield key
        return
    waiting = iter(keys)
    under_way = {pool.submit(_do, wave, k): k for k in islice(waiting, _AHEAD)}
    while under_way:
        ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in ended:
            future.result()
            yield under_way.pop(future)
            for key in islice(waiting, 1):
                under_way[pool.submit(_do, wave, key)] = key


_opened: dict[str, _Export] = {}


def _open(root: str, name: str, to: str, chunk: Vec3) -> None:
    serve_parent()
    _opened["export"] = _Export(Run.open(root, name), to, chunk)


def _do(wave: Wave, key: ChunkKey) -> None:
    _opened["export"].do(wave, key)
