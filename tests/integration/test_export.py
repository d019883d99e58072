"""Exports of a run, read back by code that shares nothing with what wrote them."""

import json
import re
import struct
import sys
from dataclasses import asdict
from pathlib import Path

import cc3d
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore
import yaml
import zstandard
from scipy import sparse
from scipy.spatial import KDTree

from pipeline.cli import main
from pipeline.errors import MissingInputError, PermanentError, StaleOutputError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.layers.folder import LocalFolder
from pipeline.layers.store import Store
from pipeline.phantom import Phantom
from pipeline.recipe import Recipe
from pipeline.runtime import export_pychunkedgraph as module
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.export_pychunkedgraph import export_pychunkedgraph
from pipeline.runtime.export_tables import export_tables
from pipeline.runtime.graph_tables import GraphStages
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec

SHAPE = Vec3(96, 64, 24)
OFFSET = Vec3(100, -20, 7)
BOUNDS = Bbox.of_shape(SHAPE, OFFSET)
VOXEL_NM = (12.0, 12.0, 30.0)
UNEVEN = Vec3(40, 27, 10)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Supervoxels of a phantom and affinities, away from zero."""
    folder = tmp_path_factory.mktemp("given")
    phantom = Phantom(seed=5, voxel_size_nm=VOXEL_NM, spacing_nm=200, membrane_nm=24)
    corners = (BOUNDS.start.astuple(), BOUNDS.stop.astuple())
    store = Store(str(folder))
    rng = np.random.default_rng(1)
    volumes = {
        "semantics": rng.integers(0, 6, SHAPE.astuple(), dtype=np.uint8),
        "affinities": phantom.affinities(*corners, blur=1.0, noise=0.2),
        "supervoxels": fragments(phantom.labels(*corners)),
    }
    for layer, values in volumes.items():
        spec = VolumeSpec(
            dtype=str(values.dtype),
            channels=3 if values.ndim == 4 else 1,
            bounds=BOUNDS,
            voxel_size_nm=VOXEL_NM,
            kind_of_values="image" if layer == "affinities" else "segmentation",
        )
        store.create(layer, spec)
        store.write(Region(layer, BOUNDS), spec, values)
    return {layer: str(folder / layer) for layer in volumes}


def reconstructed(given, root, **limits):
    """Run from supervoxels to segments, in twelve chunks."""
    box = {"start": list(BOUNDS.start), "stop": list(BOUNDS.stop)}
    document = {
        "name": "phantom",
        "grid": {"bounds": box, "chunk": [32, 32, 12]},
        "layers": given,
        "stage": [
            {
                "use": "region_graph",
                "supervoxels": "supervoxels",
                "affinities": "affinities",
                "semantics": "semantics",
                "output": "region_graph",
            },
            {
                "use": "agglomeration",
                "graph": "region_graph",
                "output": "agglomeration",
                "threshold": 0.6,
                "constraints": {"activation": 0.9, "both_members": 3, "one_member": 5},
                **limits,
            },
            {
                "use": "segment_table",
                "decisions": "agglomeration",
                "output": "segment_table",
                **limits,
            },
            {
                "use": "relabel",
                "labels": "supervoxels",
                "table": "segment_table",
                "output": "segmentation",
                "encoding": "compressed_segmentation",
                "storage_chunk": [16, 32, 12],
            },
        ],
    }
    started = Run.start(Recipe.parse(document), str(root))
    run_to_end(started, serial, quiet=True)
    return started


@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
    """A run that is complete."""
    return reconstructed(given, tmp_path_factory.mktemp("run"))


def fragments(labels):
    """Cut objects into connected supervoxels, known by their first voxels."""
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0, 1, (150, 3)) * labels.shape
    places = np.stack(np.indices(labels.shape), axis=-1)
    _, nearest = KDTree(seeds).query(places)
    cut = labels.astype(np.uint64) * 1000 + nearest.astype(np.uint64) * (labels != 0)
    parts = cc3d.connected_components(np.asfortranarray(cut), connectivity=6)
    _, first = np.unique(parts.ravel(order="F"), return_index=True)
    named = (2**56 + 1 + first).astype(np.uint64)
    named[0] = named[0] if (parts != 0).all() else 0
    return np.asfortranarray(named[parts - parts.min()])


@pytest.fixture(scope="module")
def truth(run):
    """The volumes of the run, whole."""
    stages = GraphStages.of(run)
    layers = (stages.graph.supervoxels, stages.relabel.output, stages.graph.affinities)
    supervoxels, segments, affinities = (run.store.read(Region(n, BOUNDS)) for n in layers)
    assert len(np.unique(supervoxels)) > 60
    assert 10 < len(np.unique(segments)) < len(np.unique(supervoxels)) - 20
    return supervoxels, segments, affinities


# -- the format of PyChunkedGraph, from the specifications of protocol buffers ----------


def fields(message):
    """Yield number, wire type and value of each field: varints and what has a length."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, 0, varint()
        else:
            assert tag & 7 == 2, f"wire type {tag & 7}"
            length = varint()
            yield tag >> 3, 2, message[at : at + length]
            at += length
            assert at <= len(message)


def read_edges(path):
    """Return the edges of a chunk by kind: ids, ids, affinities, areas."""
    message = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    kinds = {1: "in", 2: "cross", 3: "between"}
    types = {1: "Q", 2: "Q", 3: "f", 4: "Q"}
    found = {}
    for number, wire, part in fields(message):
        assert wire == 2
        columns = {n: () for n in types}
        for column, inner, content in fields(part):
            assert inner == 2
            size = struct.calcsize("<" + types[column])
            columns[column] = struct.unpack(
                f"<{len(content) // size}{types[column]}", content
            )
        assert len({len(c) for c in columns.values()}) == 1
        found[kinds[number]] = list(columns.values())
    assert set(found) == set(kinds.values())
    return found


def read_components(path):
    """Return the components of a chunk: field 1, packed varints."""
    numbers = []
    for number, wire, content in fields(path.read_bytes()):
        assert (number, wire) == (1, 2)
        value = shift = 0
        for byte in content:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                numbers.append(value)
                value = shift = 0
    components = []
    while numbers:
        count, numbers = numbers[0], numbers[1:]
        components.append(numbers[:count])
        assert len(components[-1]) == count
        numbers = numbers[count:]
    return components


def place_of(piece, bits):
    """Return layer and chunk of an id, and the number in the chunk."""
    local = 56 - 3 * bits
    mask = (1 << bits) - 1
    place = tuple(piece >> (local + bits * n) & mask for n in (2, 1, 0))
    return piece >> 56, place, piece & ((1 << local) - 1)


def contacts(labels, affinities):
    """Return faces and exact sum of the affinities of each contact in a volume."""
    rows = []
    for axis in range(3):
        near = [slice(None)] * 3
        far = [slice(None)] * 3
        near[axis], far[axis] = slice(None, -1), slice(1, None)
        low, high = labels[tuple(near)], labels[tuple(far)]
        on = (low != high) & (low != 0) & (high != 0)
        pair = np.sort(np.stack([low[on], high[on]], axis=1), axis=1)
        rows.append((pair, affinities[..., axis][tuple(far)][on]))
    pairs = np.concatenate([p for p, _ in rows])
    values = np.concatenate([v for _, v in rows]).astype(np.int64)
    unique, inverse, areas = np.unique(
        pairs, axis=0, return_inverse=True, return_counts=True
    )
    sums = np.zeros(len(unique), np.int64)
    np.add.at(sums, inverse.ravel(), values)
    return {
        (a, b): (s, n)
        for (a, b), s, n in zip(unique.tolist(), sums.tolist(), areas.tolist(), strict=True)
    }


@pytest.fixture(scope="module", params=[None, UNEVEN], ids=["run's chunks", "others"])
def graph(request, run, tmp_path_factory):
    """An export, its chunk and what it says of itself."""
    folder = tmp_path_factory.mktemp("graph")
    summary = export_pychunkedgraph(run, str(folder), chunk=request.param, quiet=True)
    chunk = request.param or GraphStages.of(run).graph.chunk
    return folder, Grid(BOUNDS, chunk), summary


@pytest.fixture(scope="module")
def pieces(graph):
    """The volume of pieces, as another reader sees it."""
    folder, _, _ = graph
    volume = tensorstore.open(
        {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/watershed/"},
        read=True,
    ).result()
    assert volume.domain.inclusive_min[:3] == tuple(BOUNDS.start)
    assert volume.domain.exclusive_max[:3] == tuple(BOUNDS.stop)
    return np.asarray(volume.read().result())[..., 0]


@pytest.fixture(scope="module")
def chunks(graph):
    """Edges and components of every chunk, by its place."""
    folder, grid, _ = graph
    found = {}
    for key in grid:
        name = f"{key.x}_{key.y}_{key.z}"
        found[key.x, key.y, key.z] = (
            read_edges(folder / "edges" / f"edges_{name}.proto.zst"),
            read_components(folder / "components" / f"components_{name}.proto"),
        )
    assert len(list((folder / "edges").iterdir())) == len(found)
    assert len(list((folder / "components").iterdir())) == len(found)
    return found


def test_pieces_carry_the_place_of_their_chunk(graph, pieces, truth):
    folder, grid, _ = graph
    config = yaml.safe_load((folder / "dataset.yml").read_text())
    bits = config["graph_config"]["SPATIAL_BITS"]
    assert 2**bits >= max(grid.counts())
    assert ((pieces == 0) == (truth[0] == 0)).all()
    for key in grid:
        inside = pieces[grid.box(key).slices(OFFSET)]
        ids = np.unique(inside[inside != 0]).tolist()
        places = [place_of(p, bits) for p in ids]
        assert all(p[:2] == (1, (key.x, key.y, key.z)) for p in places)
        assert sorted(p[2] for p in places) == list(range(1, len(ids) + 1))


def test_edges_are_those_of_the_volume(graph, pieces, chunks, truth):
    """Every face once, areas and affinities by brute force, from both of its chunks."""
    _, _, summary = graph
    supervoxels, _, affinities = truth
    parent = dict(zip(pieces.ravel().tolist(), supervoxels.ravel().tolist(), strict=True))
    expected = contacts(pieces, affinities)
    found = {kind: [] for kind in ("in", "between", "cross")}
    here = dict.fromkeys(np.unique(pieces).tolist())
    bits = max(1, (max(graph[1].counts()) - 1).bit_length())
    for place, (edges, _) in chunks.items():
        for kind, (first, second, affinity, area) in edges.items():
            for a, b, value, faces in zip(first, second, affinity, area, strict=True):
                assert a in here
                assert b in here
                assert place_of(a, bits)[1] == place
                assert (place_of(b, bits)[1] == place) == (kind == "in")
                pair = min(a, b), max(a, b)
                found[kind].append(pair)
                if kind == "cross":
                    assert (value, faces) == (np.inf, 1)
                    assert parent[a] == parent[b]
                    continue
                assert parent[a] != parent[b]
                total, count = expected[pair]
                assert faces == count
                assert value == np.float32(total / 255)
    assert len(found["in"]) == len(set(found["in"])) == summary.in_chunk
    for kind, count in (
        ("between", summary.between_chunk),
        ("cross", summary.cross_chunk),
    ):
        assert len(found[kind]) == 2 * len(set(found[kind])) == count
        assert found[kind]
    assert set().union(*found.values()) == set(expected)
    counted = sum(
        sum(edges[kind][3]) * (2 if kind == "in" else 1)
        for edges, _ in chunks.values()
        for kind in ("in", "between")
    )
    faces = sum(
        n for pair, (_, n) in expected.items() if parent[pair[0]] != parent[pair[1]]
    )
    assert counted == 2 * faces


def groups(ids, pairs):
    """Return the connected components of a graph as a set of sets."""
    names = np.array(sorted(ids), np.uint64)
    rows = np.searchsorted(names, np.array(sorted(pairs), np.uint64).reshape(-1, 2))
    matrix = sparse.coo_matrix(
        (np.ones(len(rows)), (rows[:, 0], rows[:, 1])), shape=(len(names), len(names))
    )
    _, label = sparse.csgraph.connected_components(matrix, directed=False)
    found = {}
    for name, n in zip(names.tolist(), label.tolist(), strict=True):
        found.setdefault(n, set()).add(name)
    return {frozenset(group) for group in found.values()}


def pieces_by(pieces, labels):
    found = {}
    for piece, label in set(
        zip(pieces.ravel().tolist(), labels.ravel().tolist(), strict=True)
    ):
        if piece:
            found.setdefault(label, set()).add(piece)
    return {frozenset(group) for group in found.values()}


def test_active_edges_give_back_the_segments(pieces, chunks, truth):
    """As an ingest decides: within a component an edge is on, and cross edges always."""
    active = set()
    for edges, components in chunks.values():
        component = {p: n for n, group in enumerate(components) for p in group}
        assert len(component) == sum(map(len, components))
        for kind, (first, second, _, _) in edges.items():
            for a, b in zip(first, second, strict=True):
                if kind == "cross" or component[a] == component[b]:
                    active.add((a, b))
    ids = set(np.unique(pieces).tolist()) - {0}
    assert groups(ids, active) == pieces_by(pieces, truth[1])


def test_cross_edges_give_back_the_supervoxels(pieces, chunks, truth):
    joined = {
        pair
        for edges, _ in chunks.values()
        for pair in zip(*edges["cross"][:2], strict=True)
    }
    ids = set(np.unique(pieces).tolist()) - {0}
    assert groups(ids, joined) == pieces_by(pieces, truth[0])


def test_the_configuration_says_where_everything_is(graph):
    folder, grid, summary = graph
    config = yaml.safe_load((folder / "dataset.yml").read_text())
    assert config["graph_config"]["CHUNK_SIZE"] == list(grid.chunk)
    assert config["graph_config"]["LAYER_ID_BITS"] == 8
    for name, part in (("EDGES", "edges"), ("COMPONENTS", "components")):
        assert config["data_source"][name] == f"file://{folder}/{part}"
    assert config["data_source"]["WATERSHED"] == f"file://{folder}/watershed"
    assert config["ingest_config"]["WATERSHED"] == f"file://{folder}/watershed"
    info = json.loads((folder / "watershed" / "info").read_text())
    assert info["scales"][0]["voxel_offset"] == list(OFFSET)
    assert info["scales"][0]["resolution"] == list(VOXEL_NM)
    assert info["scales"][0]["encoding"] == "compressed_segmentation"
    assert summary.chunks == grid.counts().product


def objects(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "dataset.yml"
    }


@pytest.mark.parametrize("at", [3, 14, 29])
def test_an_export_that_is_killed_goes_on(at, run, graph, tmp_path, monkeypatch):
    """Killed at a write, then done again: the same files, and nothing twice."""
    done, grid, summary = graph
    puts, put, killed = [], LocalFolder.put, []

    def flaky(self, path, *args, **options):
        if str(self.path) == str(tmp_path) and "/" in path:
            puts.append(path)
            if len(puts) == at and not killed:
                killed.append(path)
                raise KeyboardInterrupt
        put(self, path, *args, **options)

    monkeypatch.setattr(LocalFolder, "put", flaky)
    with pytest.raises(KeyboardInterrupt):
        export_pychunkedgraph(run, str(tmp_path), chunk=grid.chunk, quiet=True)
    marked = sum(p.startswith("done/") for p in puts[:-1])
    puts.clear()
    again = export_pychunkedgraph(run, str(tmp_path), chunk=grid.chunk, quiet=True)
    assert again == summary
    assert objects(tmp_path) == objects(done)
    assert sum(p.startswith("done/") for p in puts) == 2 * summary.chunks - marked


@pytest.mark.parametrize("graph", [UNEVEN], ids=["others"], indirect=True)
def test_processes_write_the_same(run, graph, tmp_path):
    folder, grid, summary = graph
    found = export_pychunkedgraph(
        run, str(tmp_path), chunk=grid.chunk, workers=2, quiet=True
    )
    assert found == summary
    assert objects(tmp_path) == objects(folder)


def test_a_process_that_dies_is_one_clear_error(run, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *args, **options):
            pass

        def submit(self, *args):
            raise module.BrokenProcessPool

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(module, "ProcessPoolExecutor", Broken)
    with pytest.raises(PermanentError, match="fewer --workers or a smaller --chunk"):
        export_pychunkedgraph(run, str(tmp_path), workers=2, quiet=True)


# -- tables ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    export_tables(run, str(folder), limit=10**6, quiet=True)
    return folder


def rows_of(path, columns="*"):
    """Read with DuckDB, which shares no code with Arrow."""
    return duckdb.sql(f"select {columns} from '{path}'").fetchnumpy()


def test_contacts_are_those_of_the_volume(tables, truth):
    supervoxels, _, affinities = truth
    found = rows_of(
        tables / "region_graph.parquet",
        "a, b, affinity_x + affinity_y + affinity_z, area_x + area_y + area_z,"
        " mean_affinity",
    )
    a, b, affinity, area, mean = (c.tolist() for c in found.values())
    expected = contacts(supervoxels, affinities)
    assert list(zip(a, b, strict=True)) == sorted(expected)
    assert list(zip(affinity, area, strict=True)) == [expected[k] for k in sorted(expected)]
    np.testing.assert_allclose(mean, np.array(affinity) / area / 255)
    assert pq.read_schema(tables / "region_graph.parquet").metadata[b"scale"] == b"255"


def test_supervoxels_are_those_of_the_volume(tables, truth, run):
    semantics = run.store.read(Region("semantics", BOUNDS))
    found = rows_of(tables / "supervoxels.parquet")
    ids = np.unique(truth[0][truth[0] != 0])
    np.testing.assert_array_equal(found["id"], ids)
    for row, name in enumerate(ids.tolist()):
        places = np.argwhere(truth[0] == name) + np.array(OFFSET.astuple())
        assert found["size"][row] == len(places)
        classes = np.bincount(semantics[truth[0] == name], minlength=6)[1:]
        named = ("soma", "axon", "dendrite", "glia", "vessel")
        assert [found[c][row] for c in named] == classes.tolist()
        for n, axis in enumerate("xyz"):
            assert found[f"sum_{axis}"][row] == places[:, n].sum()
            assert found[f"start_{axis}"][row] == places[:, n].min()
            assert found[f"stop_{axis}"][row] == places[:, n].max() + 1
            assert found[f"centroid_{axis}"][row] == pytest.approx(places[:, n].mean())
        x, y, z = min((places - np.array(OFFSET.astuple())).tolist(), key=lambda p: p[::-1])
        assert found["anchor"][row] == x + SHAPE.x * (y + SHAPE.y * z)


def test_the_remap_table_gives_the_segments(tables, truth):
    found = rows_of(tables / "remap.parquet")
    segment = dict(zip(found["id"].tolist(), found["segment"].tolist(), strict=True))
    pairs = np.unique(np.stack([truth[0].ravel(), truth[1].ravel()], 1), axis=0)
    assert segment == {a: b for a, b in pairs.tolist() if a}


def test_the_history_down_to_the_threshold_gives_the_segments(tables, run, truth):
    found = rows_of(tables / "history.parquet")
    assert (np.diff(found["mean_affinity"]) <= 0).all()
    stage = GraphStages.of(run).agglomeration
    made = found["mean_affinity"] >= stage.threshold
    assert 0 < made.sum() < len(made)
    pairs = zip(found["loser"][made].tolist(), found["winner"][made].tolist(), strict=True)
    supervoxels = set(np.unique(truth[0]).tolist()) - {0}
    assert groups(supervoxels, set(pairs)) == pieces_by(truth[0], truth[1])


def test_nodes_add_up_to_the_whole(tables, run):
    """The files of nodes, summed by another program."""
    nodes = sorted((tables / "region_graph").iterdir())
    assert [p.stem for p in nodes] == sorted(str(k) for k in GraphStages.of(run).graph.grid)
    for path in nodes:
        assert pq.read_schema(path).metadata[b"node"].decode() == path.stem
    summed = duckdb.sql(
        "select a, b, sum(area_x), sum(area_y), sum(area_z), min(key) from "
        f"'{tables}/region_graph/*.parquet' group by a, b order by a, b"
    ).fetchall()
    columns = "a, b, area_x, area_y, area_z, key"
    merged = duckdb.sql(f"select {columns} from '{tables}/region_graph.parquet'")
    assert summed == merged.fetchall()
    shared = duckdb.sql(
        f"select count(*) - count(distinct id) from '{tables}/supervoxels/*.parquet'"
    )
    assert shared.fetchall()[0][0] > 20, "no supervoxel lies in several chunks"


def test_merges_of_nodes_are_those_of_the_history(tables):
    contacts = "affinity, area, mean_affinity"
    whole, nodes = (
        duckdb.sql(f"select {contacts} from '{tables}/{p}' order by all").fetchall()
        for p in ("history.parquet", "history/*.parquet")
    )
    assert whole == nodes
    where = duckdb.sql(f"select distinct filename from '{tables}/history/*.parquet'")
    assert len(where.fetchall()) > 3, "one node merges all"


def test_refusals_say_which_and_why(tables, truth):
    found = rows_of(tables / "refusals.parquet")
    assert len(found["a"]) > 0
    key = list(zip(found["a"].tolist(), found["b"].tolist(), strict=True))
    assert key == sorted(key)
    assert set(np.concatenate([found["a"], found["b"]])) <= set(np.unique(truth[0]))
    assert set(found["reason"].tolist()) == {2}
    assert (np.minimum(found["members_a"], found["members_b"]) > 3).all()
    assert (np.maximum(found["members_a"], found["members_b"]) > 5).all()
    assert (found["mean_affinity"] < 0.9).all()
    assert set(np.concatenate([found["class_a"], found["class_b"]])) <= {*range(5), 255}
    summed = "select sum(area) from '{}'"
    assert (
        len(
            {
                duckdb.sql(summed.format(tables / p)).fetchall()[0]
                for p in ("refusals.parquet", "refusals/*.parquet")
            }
        )
        == 1
    )


def test_partitions_export_the_same(given, run, tables, tmp_path):
    """Nodes differ, for partitions took the place of the highest; the whole does not."""
    other = reconstructed(given, tmp_path / "root", node_limit_gb=3e-4, rounds=24)
    stage = GraphStages.of(other).agglomeration
    assert len(stage.plan()) > stage.grid.height + 1
    export_tables(other, str(tmp_path / "to"), limit=100, quiet=True)
    for path in tables.glob("*.parquet"):
        ours, theirs = pq.read_table(path), pq.read_table(tmp_path / "to" / path.name)
        assert ours.equals(theirs), path.name
        assert ours.num_rows > 0


def test_the_query_of_the_page_works(tables):
    page = (Path(__file__).parents[2] / "docs/how-to/export.md").read_text()
    (query,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    rows = duckdb.sql(query.replace("'tables/", f"'{tables}/")).fetchall()
    assert 0 < len(rows) <= 20
    assert all(a < b for a, b, _, _ in rows)
    assert all(0 <= affinity <= 1 for *_, affinity in rows)


def test_a_tiny_limit_gives_the_same_bytes(tables, run, tmp_path):
    export_tables(run, str(tmp_path), limit=5, quiet=True)
    assert objects(tmp_path) == objects(tables)


# -- the command -----------------------------------------------------------------------


@pytest.mark.parametrize("graph", [UNEVEN], ids=["others"], indirect=True)
def test_the_command_exports(run, graph, tmp_path, monkeypatch, capsys):
    _, grid, summary = graph

    def em(*arguments):
        monkeypatch.setattr(sys, "argv", ["em", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)

    at = ("--root", run.store.root, "--json", "--to")
    chunk = ",".join(map(str, grid.chunk))
    found = em(
        "export", "pychunkedgraph", *at, tmp_path / "g", "--chunk", chunk, "--workers", 1
    )
    assert found == {"run": "phantom", **asdict(summary)}
    found = em("export", "tables", "phantom", *at, tmp_path / "t", "--rows", 1000)
    assert {t["table"] for t in found["tables"]} == {
        *("region_graph", "supervoxels", "remap", "history", "refusals"),
    }
    for table in found["tables"]:
        path = tmp_path / "t" / f"{table['table']}.parquet"
        assert pq.read_metadata(path).num_rows == table["rows"]


# -- what is refused -------------------------------------------------------------------


EXPORTS = {
    "tables": lambda run, to, **options: export_tables(
        run, str(to), limit=100, quiet=True, **options
    ),
    "pychunkedgraph": lambda run, to, **options: export_pychunkedgraph(
        run, str(to), quiet=True, **options
    ),
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_run_that_is_not_done_is_refused(kind, run, tmp_path):
    recipe = Recipe("phantom", run.recipe.stages, run.recipe.layers)
    begun = Run.start(recipe, str(tmp_path / "root"))
    with pytest.raises(MissingInputError) as error:
        EXPORTS[kind](begun, tmp_path / "to")
    named = "region_graph" if kind == "tables" else "segmentation"
    assert f"tasks of {named}, first 0_0_0_0" in str(error.value)
    assert f"em run phantom --root {tmp_path / 'root'}" in str(error.value)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_run_without_agglomeration_is_refused(kind, run, tmp_path):
    stages = run.recipe.stages[:1]
    begun = Run.start(Recipe("half", stages, run.recipe.layers), str(tmp_path / "root"))
    with pytest.raises(MissingInputError, match="recipe half agglomerates no region graph"):
        EXPORTS[kind](begun, tmp_path / "to")


def test_a_run_that_writes_no_segments_is_refused(run, tmp_path):
    stages = tuple(s for s in run.recipe.stages if s.output != "segmentation")
    begun = Run.start(Recipe("half", stages, run.recipe.layers), str(tmp_path / "root"))
    with pytest.raises(MissingInputError, match="does not write its segments"):
        EXPORTS["pychunkedgraph"](begun, tmp_path / "to")


def test_another_export_is_kept_until_it_may_go(run, tmp_path):
    (tmp_path / "mine").write_text("stays")
    EXPORTS["pychunkedgraph"](run, tmp_path, chunk=Vec3(96, 64, 12))
    before = objects(tmp_path)
    for kind, options in (("tables", {}), ("pychunkedgraph", {"chunk": UNEVEN})):
        with pytest.raises(StaleOutputError, match="give another --to, or --replace"):
            EXPORTS[kind](run, tmp_path, **options)
    assert objects(tmp_path) == before
    EXPORTS["pychunkedgraph"](run, tmp_path, chunk=Vec3(96, 64, 24), replace=True)
    assert (tmp_path / "mine").read_text() == "stays"
    assert len(list((tmp_path / "edges").iterdir())) == 1
