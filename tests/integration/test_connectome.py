"""From the image and the clefts of the phantom to its wiring diagram, and what reads it."""

import csv
import json
import shutil
import struct
import tomllib
from pathlib import Path

import duckdb
import networkx as nx
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import view
from pipeline.cli import app
from pipeline.errors import DataError, MissingInputError, RecipeError
from pipeline.geometry import Bbox
from pipeline.kernels.partners import VANISHED
from pipeline.layers.connectome import ConnectomeReader
from pipeline.layers.store import Store
from pipeline.phantom import Phantom
from pipeline.recipe import Recipe
from pipeline.runtime.connectome import census, open_connectome, wiring_of
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.results import view_lists, view_synapses
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec
from pipeline.view import ViewLayer, launch
from tests.deploy.browser import opened

RECIPE = Path(__file__).parents[2] / "dags" / "recipes" / "connectome.toml"
SHAPE = (192, 192, 48)
CHUNK = (128, 128, 24)
VOXEL = (12.0, 12.0, 40.0)
PHANTOM = Phantom(seed=5, synapses=0.95, voxel_size_nm=VOXEL)
SPEC = VolumeSpec(
    dtype="uint64",
    bounds=Bbox.of_shape(SHAPE),
    voxel_size_nm=VOXEL,
    kind_of_values="segmentation",
)


def put(folder, layer, ids, **changes):
    """Write ids as a layer; return its place."""
    store = Store(str(folder))
    spec = SPEC.model_copy(update=changes)
    store.create(layer, spec)
    store.write(Region(layer, spec.bounds), spec, np.asfortranarray(ids))
    return f"{store.root}/{layer}"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Where clefts and segments of the truth are."""
    folder = tmp_path_factory.mktemp("truth")
    labels = put(folder, "labels", PHANTOM.labels((0, 0, 0), SHAPE))
    clefts = put(folder, "cleft_map", PHANTOM.clefts((0, 0, 0), SHAPE))
    layers = dict.fromkeys(("segmentation", "supervoxels", "truth"), labels)
    return {"cleft_map": clefts, **layers}


def recipe(places, chunk=CHUNK):
    """The last part of the recipe that comes with the project, on clefts of the truth."""
    stages = tomllib.loads(RECIPE.read_text())["stage"]
    outputs = [stage["output"] for stage in stages]
    made = stages[outputs.index("cleft_pieces") :]
    for stage in made:
        if "storage_chunk" in stage:
            stage["storage_chunk"] = [64, 64, 24]
        if "voxel_size_nm" in stage:
            stage["voxel_size_nm"] = VOXEL
        if stage["use"] == "component_graph":
            stage["dust"] = 10
        if stage["use"] == "net_partners":
            # The phantom is of other tissue than the net.
            stage["use"] = "contact_partners"
            del stage["image"], stage["model"], stage["pair"]
    compared = {"segmentation": "segmentation", "truth": "truth", "output": "overlaps"}
    made.append({"use": "overlaps", **compared})
    return Recipe.parse(
        {
            "name": "connectome",
            "grid": {"bounds": {"start": [0, 0, 0], "stop": SHAPE}, "chunk": chunk},
            "layers": places,
            "stage": made,
        }
    )


@pytest.fixture(scope="module")
def run(places, tmp_path_factory):
    run = Run.start(recipe(places), str(tmp_path_factory.mktemp("connectome")))
    run_to_end(run, serial, quiet=True)
    return run


@pytest.fixture(scope="module")
def rows(run):
    return np.concatenate(list(open_connectome(run).blocks("pre")))


def truth():
    """Return the synapses that lie well within the block, by their id."""
    clefts = PHANTOM.clefts((0, 0, 0), SHAPE)
    return {
        s.id: s
        for s in PHANTOM.synapses_in((0, 0, 0), SHAPE)
        if (s.start >= 0).all() and (s.start + s.cleft.shape <= SHAPE).all()
    }, clefts


def test_every_synapse_of_the_phantom_has_its_partners(rows):
    synapses, clefts = truth()
    assert len(synapses) >= 5
    found = {}
    for row in rows:
        # The middle of a bent cleft may lie beside it.
        near = clefts[
            tuple(slice(row[f"cleft_{a}"] - 4, row[f"cleft_{a}"] + 5) for a in "xyz")
        ]
        if near.any():
            ids, counts = np.unique(near[near > 0], return_counts=True)
            found[int(ids[counts.argmax()])] = row
    right = [
        (found[i]["pre_segment"], found[i]["post_segment"]) == (s.pre, s.post)
        for i, s in synapses.items()
        if i in found
    ]
    assert len(right) >= len(synapses) - 1
    assert np.mean(right) >= 0.8


def test_no_voxel_of_a_cleft_is_lost(run, rows):
    clefts = run.store.read(Region("clefts", run.specs["clefts"].bounds))
    ids, sizes = np.unique(clefts[clefts > 0], return_counts=True)
    assert rows["size"].sum() == sizes.sum()
    assert rows["clefts"].sum() == len(ids)


def test_another_chunking_gives_the_same_tables(run, places, tmp_path):
    other = Run.start(recipe(places, chunk=(64, 192, 48)), str(tmp_path))
    run_to_end(other, serial, quiet=True)
    for direction in ("pre", "post", "edges"):
        for a, b in zip(
            open_connectome(run).blocks(direction),
            open_connectome(other).blocks(direction),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_both_directions_hold_the_same_synapses(run, rows):
    post = np.concatenate(list(open_connectome(run).blocks("post")))
    np.testing.assert_array_equal(np.sort(post, order="id"), np.sort(rows, order="id"))
    found = census(open_connectome(run))
    assert found.synapses == len(rows)
    assert found.inputs.sum() == found.outputs.sum() == found.assigned


def test_partners_of_a_neuron_come_from_two_files(run, rows):
    reader = open_connectome(run)
    neuron = int(rows["pre_segment"][rows["pre_segment"] > 0][0])
    wiring = wiring_of(reader, neuron)
    assert sum(p.synapses for p in wiring.outputs) == (rows["pre_segment"] == neuron).sum()
    assert sum(p.synapses for p in wiring.inputs) == (rows["post_segment"] == neuron).sum()


def test_synapses_of_a_neuron_are_listed_for_the_viewer(run, rows):
    neuron = busiest(rows)
    (listed,) = view_lists(run, [neuron])
    own = rows[(rows["pre_segment"] == neuron) | (rows["post_segment"] == neuron)]
    assert {row.id for row in listed.rows} == {*own["id"].tolist()}
    assert len(listed.rows) == len(own)
    for row in listed.rows:
        (there,) = own[own["id"] == row.id]
        onto = there["pre_segment"] == neuron
        partner = there["post_segment" if onto else "pre_segment"]
        assert row.text.startswith(f"{'onto' if onto else 'from'} {partner}, ")
        assert row.pre_nm == tuple(there[f"pre_{a}_nm"] for a in "xyz")
    assert view_lists(run, [12345])[0].rows == []


@pytest.mark.skipif(
    not any(map(shutil.which, view.BROWSERS)),
    reason=f"none of {', '.join(view.BROWSERS)} is in PATH",
)
def test_neuroglancer_lists_the_synapses_of_a_neuron(run, rows):
    neuron = busiest(rows)
    lists = view_lists(run, [neuron])
    shown = [
        ViewLayer("segmentation", run.store.location("segmentation"), SPEC),
    ]
    lines = view_synapses(run, only_selected=True)
    entries = "document.querySelectorAll('.neuroglancer-annotation-list-entry')"
    with (
        launch(shown, synapses=lines, listed=lists) as viewer,
        opened(flags=view._BROWSER_FLAGS) as page,
    ):
        page.go(viewer.url)
        page.wait(f"{entries}.length")
        texts = page.js(f"[...{entries}].map(e => e.innerText).join('|')")
    assert texts.count("voxels") == len(lists[0].rows) >= 2
    for row in lists[0].rows:
        assert row.text in texts


def busiest(rows):
    """Return the segment that has most synapses onto it."""
    ids, counts = np.unique(rows["post_segment"], return_counts=True)
    return int(ids[np.where(ids == 0, 0, counts).argmax()])


def test_duckdb_reads_the_tables(run, rows):
    at = run.store.location("connectome").removeprefix("file://")
    found = duckdb.sql(
        f"select pre_segment, post_segment, count(*)::int, sum(size)::bigint "
        f"from '{at}/post/*.parquet' where pre_segment > 0 and post_segment > 0 "
        "group by all order by all"
    ).fetchall()
    edges = np.sort(np.concatenate(list(open_connectome(run).blocks("edges"))))
    columns = ["pre_segment", "post_segment", "synapses", "size"]
    assert found == [tuple(e) for e in np.sort(edges)[columns].tolist()]


def test_em_connectome_prints_partners(run, rows, tmp_path):
    root = run.store.root.removeprefix("file://")
    neuron = int(rows["post_segment"][rows["post_segment"] > 0][0])
    told = CliRunner().invoke(app, ["connectome", "--root", root, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["synapses"] == len(rows)
    picture = tmp_path / "neuron.png"
    asked = ["connectome", "--root", root, "--neuron", str(neuron)]
    told = CliRunner().invoke(app, [*asked, "--picture", str(picture)])
    assert told.exit_code == 0, told.output
    assert "synapses onto it from" in told.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = CliRunner().invoke(
        app, ["connectome", "--root", root, "--picture", str(tmp_path / "all.png")]
    )
    assert told.exit_code == 0, told.output
    assert (tmp_path / "all.png").stat().st_size > 10_000


def test_exports_are_read_by_others(run, rows, tmp_path):
    root = run.store.root.removeprefix("file://")
    told = CliRunner().invoke(
        app, ["export", "synapses", "--root", root, "--to", str(tmp_path)]
    )
    assert told.exit_code == 0, told.output
    graph = nx.read_graphml(tmp_path / "graph.graphml", node_type=int)
    edges = np.concatenate(list(open_connectome(run).blocks("edges")))
    assert graph.is_directed()
    assert graph.number_of_edges() == len(edges)
    for edge in edges:
        data = graph.edges[int(edge["pre_segment"]), int(edge["post_segment"])]
        assert data["synapses"] == edge["synapses"]
        assert data["size"] == edge["size"]
    with open(tmp_path / "synapses.csv") as file:
        table = list(csv.DictReader(file))
    assert {int(r["id"]) for r in table} == set(rows["id"].tolist())
    cave = duckdb.sql(f"select * from '{tmp_path}/synapses.parquet'").fetchnumpy()
    order = np.argsort(cave["id"])
    by_id = np.sort(rows, order="id")
    np.testing.assert_array_equal(cave["pre_pt_root_id"][order], by_id["pre_segment"])
    np.testing.assert_array_equal(cave["ctr_pt_position_y"][order], by_id["cleft_y"])
    with open(tmp_path / "edges.csv") as file:
        assert (
            sum(int(r["synapses"]) for r in csv.DictReader(file)) == edges["synapses"].sum()
        )


# -- the annotation layer, by a decoder of its own ------------------------------------


def layer_of(run):
    at = Path(run.store.location("segmentation_synapses").removeprefix("file://"))
    return at, json.loads((at / "info").read_text())


def decoded(content):
    """Read several lines, as the format's document describes them."""
    (count,) = struct.unpack_from("<Q", content)
    line = struct.Struct("<6f i f f H B x")
    assert len(content) == 8 + count * (line.size + 8)
    ids = struct.unpack_from(f"<{count}Q", content, 8 + count * line.size)
    return dict(
        zip(
            ids,
            (line.unpack_from(content, 8 + i * line.size) for i in range(count)),
            strict=True,
        )
    )


def shards(at, index, info):
    """Read the objects of an index with tensorstore."""
    import tensorstore as ts

    kv = ts.KvStore.open(
        {
            "driver": "neuroglancer_uint64_sharded",
            "base": f"file://{at}/{index}/",
            "metadata": info,
        }
    ).result()
    found = {}
    for key in kv.list().result():
        (number,) = struct.unpack(">Q", key)
        found[number] = kv.read(key).result().value
    return found


def test_lines_are_found_by_id_by_segment_and_by_place(run, rows):
    at, info = layer_of(run)
    assert info["@type"] == "neuroglancer_annotations_v1"
    sharding = info["by_id"]["sharding"]
    by_id = shards(at, "by_id", sharding)
    assert set(by_id) == set(rows["id"].tolist())
    expected = {int(r["id"]): r for r in rows}
    for number, content in by_id.items():
        row = expected[number]
        points = np.frombuffer(content, "<f4", 6).reshape(2, 3)
        for side, point in zip(("pre", "post"), points, strict=True):
            assert point.tolist() == [row[f"{side}_{a}"] + 0.5 for a in "xyz"]
        related = content[40:]
        for side in ("pre", "post"):
            (n,) = struct.unpack_from("<I", related)
            assert n == int(row[f"{side}_segment"] != 0)
            if n:
                (segment,) = struct.unpack_from("<Q", related, 4)
                assert segment == row[f"{side}_segment"]
            related = related[4 + 8 * n :]
        assert not related
    for side in ("pre_segment", "post_segment"):
        found = shards(at, side, sharding)
        listed = {n: set(decoded(content)) for n, content in found.items()}
        segments = np.unique(rows[side][rows[side] > 0]).tolist()
        assert listed == {s: set(rows["id"][rows[side] == s].tolist()) for s in segments}
    shown = [
        number
        for level in info["spatial"]
        for path in (at / level["key"]).glob("*")
        for number in decoded(path.read_bytes())
    ]
    assert sorted(shown) == sorted(rows["id"].tolist())


def test_neuroglancers_own_writer_gives_the_same_bytes(run, rows, tmp_path):
    from neuroglancer.coordinate_space import CoordinateSpace
    from neuroglancer.viewer_state import AnnotationPropertySpec
    from neuroglancer.write_annotations import AnnotationWriter

    at, info = layer_of(run)
    writer = AnnotationWriter(
        CoordinateSpace(names=["x", "y", "z"], units="nm", scales=VOXEL),
        annotation_type="line",
        properties=[
            AnnotationPropertySpec(id=p["id"], type=p["type"]) for p in info["properties"]
        ],
        relationships=[r["id"] for r in info["relationships"]],
    )
    for row in rows:
        writer.add_line(
            [row[f"pre_{a}"] + 0.5 for a in "xyz"],
            [row[f"post_{a}"] + 0.5 for a in "xyz"],
            id=int(row["id"]),
            size=int(row["size"]),
            pre_score=float(row["pre_score"]),
            post_score=float(row["post_score"]),
            flags=int(row["flags"]),
            clefts=int(row["clefts"]),
            pre_segment=[int(row["pre_segment"])] if row["pre_segment"] else [],
            post_segment=[int(row["post_segment"])] if row["post_segment"] else [],
        )
    writer.write(tmp_path / "theirs")
    ours = shards(at, "by_id", info["by_id"]["sharding"])
    for row in rows:
        written = (tmp_path / "theirs" / "by_id" / str(row["id"])).read_bytes()
        assert written == ours[int(row["id"])]


# -- what goes wrong ------------------------------------------------------------------


def test_layers_of_other_voxels_are_refused(places, tmp_path):
    ids = np.zeros(SHAPE, np.uint64)
    larger = put(tmp_path, "larger", ids, voxel_size_nm=(16.0, 16.0, 40.0))
    with pytest.raises(RecipeError, match=r"clefts are \(12.*segmentation \(16") as error:
        Run.plan(recipe({**places, "segmentation": larger}), str(tmp_path / "root"))
    assert "give layers of the same voxels" in str(error.value)


def test_a_segmentation_with_other_bounds_is_refused(places, tmp_path):
    box = Bbox.of_shape((100, 192, 48))
    small = put(tmp_path, "small", np.zeros(box.shape.astuple(), np.uint64), bounds=box)
    with pytest.raises(RecipeError, match="not inside segmentation"):
        Run.plan(recipe({**places, "segmentation": small}), str(tmp_path / "root"))


def test_segments_are_assigned_anew_without_looking_for_partners_again(
    run, rows, places, tmp_path
):
    """Half the segments merge into one, and some vanish; sites stay where they were."""
    labels = PHANTOM.labels((0, 0, 0), SHAPE)
    segments = np.unique(rows["pre_segment"][rows["pre_segment"] > 0])
    gone, merged = segments[0], segments[1:]
    changed = labels.copy()
    changed[labels == gone] = 0
    changed[np.isin(labels, merged)] = merged[0]
    whole = recipe(places)
    first = [s.output for s in whole.stages].index("synapse_segments")
    again = Recipe(
        "connectome",
        tuple(whole.stages[first:]),
        {
            "partners": run.store.location("partners"),
            "segmentation": put(tmp_path, "segmentation", changed),
            "truth": places["truth"],
        },
    )
    assert not {"contact_partners", "net_partners"} & {s.name for s in again.stages}
    new = Run.start(again, str(tmp_path / "again"))
    run_to_end(new, serial, quiet=True)
    found = np.concatenate(list(open_connectome(new).blocks("pre")))
    assert found["size"].sum() == rows["size"].sum()
    before = {int(r["id"]): r for r in rows}
    for row in found:
        old = before[int(row["id"])]
        lost = gone in (old["pre_segment"], old["post_segment"])
        assert bool(row["flags"] & VANISHED) == lost
        expected = old["pre_segment"]
        if expected == gone:
            expected = 0
        elif expected in merged:
            expected = merged[0]
        assert row["pre_segment"] == expected
        assert row["pre_supervoxel"] == old["pre_supervoxel"]


def test_files_of_two_runs_in_one_folder_are_found_out(run, tmp_path):
    at = Path(run.store.location("connectome").removeprefix("file://"))
    mixed = tmp_path / "mixed"
    for path in ("info", *(str(p.relative_to(at)) for p in at.glob("*/*.parquet"))):
        (mixed / path).parent.mkdir(parents=True, exist_ok=True)
        (mixed / path).write_bytes((at / path).read_bytes())
    first, second = mixed / "pre/000000.parquet", mixed / "pre/000001.parquet"
    second.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match="tables of two runs are mixed"):
        list(ConnectomeReader.open(str(mixed)).blocks("pre"))
    second.unlink()
    with pytest.raises(MissingInputError, match="never written"):
        list(ConnectomeReader.open(str(mixed)).blocks("pre"))
    second.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="no Parquet file"):
        list(ConnectomeReader.open(str(mixed)).blocks("pre"))


def test_synapses_are_scored_by_a_table_of_true_ones(run, rows, tmp_path):
    synapses, _ = truth()
    inner = [s for s in synapses.values() if s.pre and s.post]
    table = tmp_path / "true.csv"
    size = np.array(VOXEL)
    lines = [
        ",".join(str(v) for v in (*(np.array(s.centre) * size), s.pre, s.post))
        for s in inner
    ]
    table.write_text("\n".join(["x,y,z,pre,post", *lines, "100000,0,0,1,2"]))
    asked = ["eval", "--root", run.store.root.removeprefix("file://")]
    asked += ["--synapses", str(table), "--json"]
    told = json.loads(CliRunner().invoke(app, asked).stdout)
    found = told["detection"]
    assert found["hits"] >= len(inner) - 1
    assert found["false_negatives"] == len(inner) + 1 - found["hits"]
    assert found["false_positives"] == len(rows) - found["hits"] > 0
    assert told["partners"]["found"] == found["hits"]
    assert told["partners"]["accuracy"] >= 0.8
    swapped = [",".join([*line.split(",")[:3], "1", "2"]) for line in lines]
    table.write_text("\n".join(["x,y,z,pre,post", *swapped]))
    told = json.loads(CliRunner().invoke(app, asked).stdout)
    assert told["partners"]["right"] == 0
    nowhere = [*asked, "--within", "0,0,0,1,1,1"]
    told = json.loads(CliRunner().invoke(app, nowhere).stdout)["detection"]
    assert (told["false_positives"], told["hits"]) == (0, found["hits"])
    table.write_text("x,y,pre\n1,2,3")
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, DataError)
    assert "has no column z" in str(refused.exception)
    table.write_text("x,y,z\n1,2,far")
    assert "no number" in str(CliRunner().invoke(app, asked).exception)


def test_a_run_says_where_its_wiring_diagram_is(run):
    root = run.store.root.removeprefix("file://")
    told = CliRunner().invoke(app, ["run", "connectome", "--root", root, "--workers", "1"])
    assert told.exit_code == 0, told.output
    assert f" connectome --root {root}\nlook: " in told.stdout


def test_what_cannot_be_asked_is_said(run, tmp_path):
    root = run.store.root.removeprefix("file://")
    asked = ["export", "synapses", "--root", root, "--to", str(tmp_path / "out")]
    told = CliRunner().invoke(app, [*asked, "--forms", "cave,dot"])
    assert isinstance(told.exception, RecipeError)
    assert "dot is no form; there are cave, csv, graphml" in str(told.exception)
    told = CliRunner().invoke(
        app,
        [
            "connectome",
            "--root",
            root,
            "--neuron",
            "1",
            "--picture",
            str(tmp_path / "1.png"),
        ],
    )
    assert isinstance(told.exception, MissingInputError)
    assert "has no voxel of segment 1" in str(told.exception)


def test_a_run_that_has_not_ended_has_no_connectome(places, tmp_path):
    begun = Run.start(recipe(places), str(tmp_path))
    with pytest.raises(MissingInputError, match="has not come to its end"):
        open_connectome(begun)


def test_records_of_two_runs_in_one_layer_are_found_out(run):
    """The same cleft twice among what is merged is counted for neither."""
    stage = run.recipe.stage("synapses")
    task = stage.task(next(iter(stage.plan()[0])))
    fragments = run.store.read(stage.reads(task)["fragments"])
    full = [f for f in fragments if f]
    with pytest.raises(DataError, match="is there 2 times, so records of several runs"):
        stage.process(task, fragments=[*full, full[0]])
