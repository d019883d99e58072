"""What a run found of the wiring diagram: partners of a neuron, sums, exports."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingInputError
from pipeline.kernels.partners import FLAGS
from pipeline.kernels.tables import Groups
from pipeline.layers.connectome import SYNAPSES, ConnectomeReader
from pipeline.layers.folder import open_folder
from pipeline.layers.parquet import Rows
from pipeline.runtime.export import claim, require_done
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec, VoxelSize, grid_of
from pipeline.stages.partners import Partners
from pipeline.stages.synapses import Connectome


@dataclass(frozen=True)
class Partner:
    """A segment that a neuron has synapses with.

    Parameters
    ----------
    segment : int
        Its id; 0 stands for all synapses without a partner.
    synapses : int
        How many there are.
    flagged : int
        How many of them have a flag.
    size : int
        Voxels of all their clefts.
    score : float
        Mean score of the partner.
    """

    segment: int
    synapses: int
    flagged: int
    size: int
    score: float


@dataclass(frozen=True)
class Wiring:
    """The partners of a neuron, those with most synapses first.

    Parameters
    ----------
    segment : int
        The neuron.
    inputs, outputs : list of Partner
        Who synapses onto it, and whom it synapses onto.
    """

    segment: int
    inputs: list[Partner]
    outputs: list[Partner]


@dataclass(frozen=True)
class Census:
    """What there is of synapses.

    Parameters
    ----------
    synapses : int
        All.
    assigned : int
        Those with two partners.
    clefts : int
        Components that they were made of.
    flags : dict of str to int
        Synapses that have each flag.
    edges : int
        Pairs of segments.
    segments : int
        Segments with a synapse.
    sizes : uint64 array, (n,)
        Voxels of the cleft of each synapse.
    inputs, outputs : uint64 array, (n,)
        Synapses onto, and from, each segment that has any, in the order of ids.
    strongest : list of (int, int, int)
        Pairs with most synapses, and how many.
    """

    synapses: int
    assigned: int
    clefts: int
    flags: dict[str, int]
    edges: int
    segments: int
    sizes: NDArray[np.uint64]
    inputs: NDArray[np.uint64]
    outputs: NDArray[np.uint64]
    strongest: list[tuple[int, int, int]]


def connectome_stage(run: Run) -> Connectome:
    """Return the stage that writes a run's connectome.

    Raises
    ------
    MissingInputError
        If there is none.
    """
    stage = next((s for s in run.recipe.stages if isinstance(s, Connectome)), None)
    if stage is None:
        raise MissingInputError(
            f"recipe {run.recipe.name} has no connectome stage; see "
            "dags/recipes/connectome.toml for those that lead to one"
        )
    return stage


def open_connectome(run: Run) -> ConnectomeReader:
    """Open the tables of a run.

    Raises
    ------
    MissingInputError
        If there are none, or if they are not complete.
    """
    stage = connectome_stage(run)
    require_done(run, [stage])
    return ConnectomeReader.open(run.store.location(stage.output))


def wiring_of(reader: ConnectomeReader, segment: int) -> Wiring:
    """Return the partners of a neuron; two files are read."""
    return Wiring(
        segment,
        inputs=_partners(reader.of(segment, "post"), "pre"),
        outputs=_partners(reader.of(segment, "pre"), "post"),
    )


def _partners(rows: Rows, side: str) -> list[Partner]:
    """Count synapses by the segment of a side."""
    segments = rows[f"{side}_segment"]
    groups = Groups(segments)

    def total(values: NDArray[Any]) -> list[Any]:
        summed: list[Any] = groups.reduce(np.add, values).tolist()
        return summed

    n = total(np.ones(len(rows), np.int64))
    found = [
        Partner(int(segment), count, flagged, size, score / count)
        for segment, count, flagged, size, score in zip(
            groups.first(segments).tolist(),
            n,
            total((rows["flags"] != 0).astype(np.int64)),
            total(rows["size"].astype(np.int64)),
            total(rows[f"{side}_score"].astype(np.float64)),
            strict=True,
        )
    ]
    return sorted(found, key=lambda p: (-p.synapses, -p.size, p.segment))


def census(reader: ConnectomeReader, strongest: int = 10) -> Census:
    """Count all synapses, a file at a time."""
    flags = dict.fromkeys(FLAGS, 0)
    n = assigned = clefts = 0
    sizes: list[NDArray[np.uint64]] = []
    for rows in reader.blocks("pre"):
        n += len(rows)
        both = (rows["pre_segment"] != 0) & (rows["post_segment"] != 0)
        assigned += int(both.sum())
        clefts += int(rows["clefts"].sum())
        sizes.append(rows["size"])
        for name, bit in FLAGS.items():
            flags[name] += int(np.count_nonzero(rows["flags"] & bit))
    edges = np.concatenate(list(reader.blocks("edges")))
    if int(edges["synapses"].sum()) != assigned:
        raise DataError(
            f"{reader.location}: edges count {int(edges['synapses'].sum())} synapses and "
            f"the table {assigned}; delete it and run stage connectome again"
        )
    out, into = (
        _sums(edges[f"{side}_segment"], edges["synapses"]) for side in ("pre", "post")
    )
    order = np.argsort(-edges["synapses"].astype(np.int64), kind="stable")[:strongest]
    every = np.union1d(edges["pre_segment"], edges["post_segment"])
    return Census(
        synapses=n,
        assigned=assigned,
        clefts=clefts,
        flags=flags,
        edges=len(edges),
        segments=len(every),
        sizes=np.concatenate(sizes),
        inputs=into,
        outputs=out,
        strongest=[
            (int(e["pre_segment"]), int(e["post_segment"]), int(e["synapses"]))
            for e in edges[order]
        ],
    )


def _sums(keys: NDArray[np.uint64], values: NDArray[Any]) -> NDArray[np.uint64]:
    return Groups(keys).reduce(np.add, values.astype(np.uint64))


def matrix_of(
    reader: ConnectomeReader, count: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """Return who synapses onto whom, for the segments with most synapses.

    Returns
    -------
    pre, post : uint64 array, (n,) and (m,)
        Segments of the rows and the columns, those with most synapses first.
    synapses : int64 array, (n, m)
        How many there are.
    """
    edges = np.concatenate(list(reader.blocks("edges")))
    most = []
    for side in ("pre", "post"):
        segments = edges[f"{side}_segment"]
        groups = Groups(segments)
        total = groups.reduce(np.add, edges["synapses"].astype(np.int64))
        most.append(groups.first(segments)[np.argsort(-total, kind="stable")[:count]])
    pre, post = most
    table = np.zeros((len(pre), len(post)), np.int64)
    for row, segment in enumerate(pre):
        of = edges[edges["pre_segment"] == segment]
        for column, other in enumerate(post):
            table[row, column] = of["synapses"][of["post_segment"] == other].sum()
    return pre, post, table


def draw(run: Run, path: Path, segment: int | None = None, count: int = 40) -> None:
    """Draw the wiring diagram, or a neuron with its synapses, as a PNG.

    Parameters
    ----------
    run : Run
        Complete.
    path : Path
        File that is written.
    segment : int or None
        The neuron; None draws the matrix of the segments with most synapses, how many
        each has, and how large clefts are.
    count : int
        Segments along each side of the matrix.

    Raises
    ------
    MissingInputError
        If the neuron has no voxel.
    """
    from pipeline.connectome_picture import draw_census, draw_neuron

    reader = open_connectome(run)
    size = reader.spec.voxel_size_nm
    if segment is None:
        voxel_um3 = float(np.prod(np.array(size) / 1000))
        found = census(reader)
        draw_census(
            path,
            matrix_of(reader, count)[2],
            inputs=found.inputs,
            outputs=found.outputs,
            sizes_um3=found.sizes * voxel_um3,
            title=f"{run.recipe.name}: {found.assigned} synapses, {found.edges} edges "
            f"between {found.segments} segments",
        )
        return
    layer = next(s.segmentation for s in run.recipe.stages if isinstance(s, Partners))
    spec = run.specs[layer]
    assert isinstance(spec, VolumeSpec)
    shadows = _shadows(run, layer, spec, segment)
    meshes = f"{layer}/meshes"
    surface = None
    if meshes in run.specs and segment in run.store.segments(meshes):
        surface = run.store.read_mesh(meshes, segment)
    places = {}
    for direction, side in (("inputs", "post"), ("outputs", "pre")):
        rows = reader.of(segment, "post" if direction == "inputs" else "pre")
        places[direction] = np.stack([rows[f"{side}_{a}_nm"] for a in "xyz"], axis=1)
    draw_neuron(
        path,
        shadows,
        start_nm=np.array(spec.bounds.start.astuple()) * np.array(size),
        stop_nm=np.array(spec.bounds.stop.astuple()) * np.array(size),
        inputs_nm=places["inputs"],
        outputs_nm=places["outputs"],
        title=f"{run.recipe.name}: segment {segment}",
        surface=surface,
    )


_PIXELS = 256


def _shadows(
    run: Run, layer: str, spec: VolumeSpec, segment: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the voxels of a segment along z and along y, at a mip that fills a picture."""
    mip = max(
        (
            mip
            for mip in range(len(spec.factors))
            if max(spec.bounds_at(mip).shape) >= _PIXELS
        ),
        default=0,
    )
    grid = grid_of(spec, mip)
    shape = grid.bounds.shape
    along_z = np.zeros((shape.x, shape.y), np.int64)
    along_y = np.zeros((shape.x, shape.z), np.int64)
    for key in grid:
        box = grid.box(key)
        x, y, z = box.slices(grid.bounds.start)
        mask = run.store.read(Region(layer, box, mip)) == segment
        along_z[x, y] += mask.sum(axis=2)
        along_y[x, z] += mask.sum(axis=1)
    if not along_z.any():
        raise MissingInputError(
            f"{layer} has no voxel of segment {segment} at mip {mip}; take an id that em "
            "connectome lists"
        )
    return along_z, along_y


# -- exports --------------------------------------------------------------------------

Form = Literal["cave", "csv", "graphml"]
FORMS: tuple[Form, ...] = ("cave", "csv", "graphml")

_CAVE = {
    "id": "id",
    "pre_pt_position": "pre",
    "ctr_pt_position": "cleft",
    "post_pt_position": "post",
    "pre_pt_supervoxel_id": "pre_supervoxel",
    "pre_pt_root_id": "pre_segment",
    "post_pt_supervoxel_id": "post_supervoxel",
    "post_pt_root_id": "post_segment",
    "size": "size",
}
"""Columns of a synapse table of CAVE, and what of ours is in each."""

_EDGE_COLUMNS = ("pre_segment", "post_segment", "synapses", "flagged", "size")


@dataclass(frozen=True)
class ExportSummary:
    """What was written.

    Parameters
    ----------
    synapses, edges : int
        Rows.
    files : list of str
        Names within the folder.
    """

    synapses: int
    edges: int
    files: list[str]


def export_synapses(
    run: Run, to: str, *, forms: Sequence[Form] = FORMS, replace: bool = False
) -> ExportSummary:
    """Write synapses and edges in forms of other programs, a file of ours at a time.

    ``cave`` gives ``synapses.parquet`` and ``synapses.csv`` with the columns of a synapse
    table of CAVE, positions in voxels; ``csv`` gives ``edges.csv``; ``graphml`` gives
    ``graph.graphml``.

    Raises
    ------
    MissingInputError
        If the run has no connectome, or has not come to its end.
    StaleOutputError
        If the folder holds another export.
    """
    reader = open_connectome(run)
    stage = connectome_stage(run)
    folder = open_folder(to)
    size = reader.spec.voxel_size_nm
    document = {
        "export": "synapses",
        "run": run.recipe.name,
        "lineage": run.lineage[stage.output],
        "forms": sorted(forms),
        "voxel_size_nm": ",".join(f"{v:g}" for v in size),
    }
    names = ["synapses.parquet", "synapses.csv", "edges.csv", "graph.graphml"]
    claim(folder, document, [], replace=replace)
    folder.delete(names)
    files: list[str] = []
    synapses = 0
    n_edges = sum(len(rows) for rows in reader.blocks("edges"))
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        if "cave" in forms:
            synapses = _write_cave(reader, at, size)
            files += names[:2]
        if "csv" in forms:
            _write_edges(reader, at / names[2])
            files.append(names[2])
        if "graphml" in forms:
            _write_graphml(reader, at / names[3])
            files.append(names[3])
        for name in files:
            folder.put_file(name, at / name)
    return ExportSummary(synapses, n_edges, files)


def _write_cave(reader: ConnectomeReader, at: Path, size_nm: VoxelSize) -> int:
    """Write the synapse table, as Parquet and as CSV."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    dtype = SYNAPSES.dtype(merged=True)
    fields = []
    for name, ours in _CAVE.items():
        columns = [f"{ours}_{a}" for a in "xyz"] if name.endswith("position") else [ours]
        for column in columns:
            suffix = f"_{column[-1]}" if len(columns) > 1 else ""
            kind = pa.from_numpy_dtype(dtype[column])
            fields.append((f"{name}{suffix}", column, kind))
    metadata = {"voxel_size_nm": ",".join(f"{v:g}" for v in size_nm)}
    schema = pa.schema([(name, kind) for name, _, kind in fields], metadata=metadata)
    count = 0
    with (
        pq.ParquetWriter(at / "synapses.parquet", schema, compression="zstd") as parquet,
        pc.CSVWriter(at / "synapses.csv", schema) as csv,
    ):
        for rows in reader.blocks("pre"):
            arrays = [pa.array(np.ascontiguousarray(rows[c])) for _, c, _ in fields]
            table = pa.Table.from_arrays(arrays, schema=schema)
            parquet.write_table(table)
            csv.write_table(table)
            count += len(rows)
    return count


def _write_edges(reader: ConnectomeReader, path: Path) -> None:
    with open(path, "w") as file:
        file.write(",".join(_EDGE_COLUMNS) + "\n")
        for rows in reader.blocks("edges"):
            text = io.StringIO()
            for row in rows[list(_EDGE_COLUMNS)].tolist():
                text.write(",".join(map(str, row)) + "\n")
            file.write(text.getvalue())


def _write_graphml(reader: ConnectomeReader, path: Path) -> None:
    """Write a directed graph: a node for each segment, an edge for each pair."""
    segments = np.zeros(0, np.uint64)
    for rows in reader.blocks("edges"):
        segments = np.union1d(
            segments, np.union1d(rows["pre_segment"], rows["post_segment"])
        )
    with open(path, "w") as file:
        file.write('<?xml version="1.0" encoding="UTF-8"?>\n')
        file.write('<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n')
        for name in _EDGE_COLUMNS[2:]:
            file.write(f'<key id="{name}" for="edge" attr.name="{name}" ')
            file.write('attr.type="long"/>\n')
        file.write('<graph edgedefault="directed">\n')
        file.writelines(f'<node id="{segment}"/>\n' for segment in segments.tolist())
        file.writelines(_graphml_edges(reader))
        file.write("</graph>\n</graphml>\n")


def _graphml_edges(reader: ConnectomeReader) -> Iterator[str]:
    for rows in reader.blocks("edges"):
        for pre, post, *values in rows[list(_EDGE_COLUMNS)].tolist():
            said = "".join(
                f"<data key={quoteattr(name)}>{value}</data>"
                for name, value in zip(_EDGE_COLUMNS[2:], values, strict=True)
            )
            yield f'<edge source="{pre}" target="{post}">{said}</edge>\n'
