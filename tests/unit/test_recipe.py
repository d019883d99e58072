"""Recipes: what they refuse, all of it at once, and the order they put stages in."""

import hashlib
import re
import tomllib
from itertools import pairwise, permutations

import numpy as np
import pytest

from pipeline.errors import RecipeError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.store import Store
from pipeline.recipe import Recipe
from pipeline.reconstruction import Block, block_recipe
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec

VOXEL = (8.0, 8.0, 40.0)
BOUNDS = Bbox.of_shape((64, 48, 20))

TEXT = """
name = "small"

[grid]
bounds = { start = [0, 0, 0], stop = [64, 48, 20] }
chunk = [32, 16, 10]

[layers]
affinities = "{root}/affinities"

[[stage]]
use = "basins"
affinities = "affinities"
output = "basins"
low = 0.2
storage_chunk = [16, 16, 10]

[[stage]]
use = "basin_graph"
basins = "basins"
affinities = "affinities"
output = "basin_graph"
low = 0.2

[[stage]]
use = "supervoxel_table"
decisions = "basin_graph"
output = "supervoxel_table"

[[stage]]
use = "relabel"
labels = "basins"
table = "supervoxel_table"
output = "supervoxels"
storage_chunk = [16, 16, 10]
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Locations of layers that are there, by what they hold."""
    store = Store(str(tmp_path_factory.mktemp("places")))
    for name, dtype, channels in [
        ("image", "uint8", 1),
        ("deep_image", "uint16", 1),
        ("affinities", "float32", 3),
        ("labels", "uint64", 1),
    ]:
        spec = VolumeSpec(
            dtype=dtype,
            channels=channels,
            bounds=BOUNDS,
            voxel_size_nm=VOXEL,
            kind_of_values="segmentation" if name == "labels" else "image",
            storage_chunk=BOUNDS.shape,
        )
        store.create(name, spec)
        shape = BOUNDS.shape.astuple() if channels == 1 else (*BOUNDS.shape, channels)
        store.write(Region(name, BOUNDS), spec, np.ones(shape, dtype, order="F"))
    return {n: f"{store.root}/{n}" for n in ("image", "deep_image", "affinities", "labels")}


@pytest.fixture
def document(places):
    """A recipe without faults."""
    found = tomllib.loads(TEXT)
    found["layers"] = dict(places)
    return found


def faults_of(document):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(document, source="small.toml")
    assert caught.value.code == "recipe"
    assert str(caught.value).startswith("small.toml: ")
    return caught.value.faults


def faults_of_plan(document, tmp_path):
    """Return what is wrong with a recipe that reads well; nothing is written."""
    with pytest.raises(RecipeError) as caught:
        Run.start(Recipe.parse(document), str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()
    return caught.value.faults


def one(faults):
    assert len(faults) == 1, faults
    return faults[0]


def test_the_recipe_itself_is_right(document, tmp_path):
    run = Run.plan(Recipe.parse(document), str(tmp_path / "root"))
    assert [s.output for s in run.recipe.stages] == [
        "basins",
        "basin_graph",
        "supervoxel_table",
        "supervoxels",
    ]
    assert run.recipe.external == ["affinities"]
    assert run.specs["supervoxels"].dtype == "uint64"
    assert not (tmp_path / "root").exists()


# -- reading --------------------------------------------------------------------------


def test_toml_there_and_back(tmp_path):
    """What was read from the file is what its JSON says."""
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    recipe = Recipe.load(path)
    assert Recipe.parse(recipe.to_json()) == recipe
    assert recipe.stages[0].chunk == Vec3(32, 16, 10)
    assert recipe.stages[0].bounds == BOUNDS
    assert recipe.lineage() == Recipe.parse(recipe.to_json()).lineage()


def test_a_stage_may_have_a_grid_of_its_own(document):
    document["stage"][0]["chunk"] = [16, 16, 10]
    stages = Recipe.parse(document).stages
    assert [s.chunk.x for s in stages] == [16, 32, 32, 32]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere.toml: cannot be read \(No such file"):
        Recipe.load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml(content, tmp_path):
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(RecipeError, match="is not TOML"):
        Recipe.load(tmp_path / "r.toml")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", 3, None])
def test_a_name_that_cannot_name_a_file(name, document):
    assert repr(name) in one(faults_of({**document, "name": name}))


def test_a_part_that_recipes_do_not_have(document):
    fault = one(faults_of({**document, "stages": []}))
    assert "'stages' is not a part of a recipe; it has grid, layers, name, stage" in fault


def test_no_stages(document):
    assert "no [[stage]]" in one(faults_of({**document, "stage": []}))


@pytest.mark.parametrize("layers", [["image"], {"image": 3}, "image"])
def test_layers_that_are_no_locations(layers, document):
    assert (
        "[layers] is not a table of locations"
        in faults_of({**document, "layers": layers})[0]
    )


@pytest.mark.parametrize("grid", [3, [1, 2], "chunk"])
def test_a_grid_that_is_no_table(grid, document):
    assert "[grid] is not a table" in faults_of({**document, "grid": grid})[0]


@pytest.mark.parametrize("stage", [3, {"use": "basins"}, "basins"])
def test_stages_that_are_no_list_of_tables(stage, document):
    assert "[[stage]]" in one(faults_of({**document, "stage": stage}))


def test_a_part_that_grids_do_not_have(document):
    document["grid"]["chunks"] = [1, 1, 1]
    fault = one(faults_of(document))
    assert fault.startswith("[grid] has bounds, chunk, node_limit_gb, partition_limit_gb,")
    assert fault.endswith("not 'chunks'")


def test_a_stage_that_there_is_not(document):
    document["stage"][1]["use"] = "basin_grahp"
    fault = one(faults_of(document))
    assert fault.startswith("stage 2: use = 'basin_grahp' is no stage; there are ingest,")


def test_a_stage_without_use(document):
    del document["stage"][1]["use"]
    assert "stage 2: has no use" in one(faults_of(document))


def test_a_typo_in_a_field_is_told_with_the_fields_there_are(document):
    document["stage"][1]["size_treshold"] = 100
    fault = one(faults_of(document))
    assert "stage 2 (basin_graph)" in fault
    assert "'size_treshold'" in fault
    assert "did you mean 'size_threshold'?" in fault


def test_a_field_that_is_missing(document):
    del document["stage"][1]["basins"]
    assert one(faults_of(document)) == "stage 2 (basin_graph): basins: Field required"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("low", "much", "low: .*not 'much'"),
        ("low", -0.5, "low: .*not -0.5"),
        ("encoding", "jpg", "encoding.*'jpg'"),
        ("chunk", [64, 64], r"chunk: \[64, 64\] is not three integers"),
        ("bounds", {"start": [9, 0, 0], "stop": [0, 9, 9]}, "bounds: .*ends before it"),
    ],
)
def test_a_value_that_cannot_be(field, value, said, document):
    document["stage"][0][field] = value
    faults = faults_of(document)
    assert any(re.search(said, fault) for fault in faults), faults
    assert all(fault.startswith("stage 1 (basins): ") for fault in faults)


def test_bounds_that_are_swapped_in_the_grid(document):
    document["grid"]["bounds"] = {"start": [0, 0, 20], "stop": [64, 48, 0]}
    faults = faults_of(document)
    assert len(faults) == 4
    assert all("ends before it starts" in fault for fault in faults)


# -- wiring ---------------------------------------------------------------------------


def test_two_writers_of_a_layer(document):
    document["stage"][3]["output"] = "basins"
    document["stage"][3]["labels"] = "labels"
    assert one(faults_of(document)) == (
        "layer basins is written by basins and relabel; rename one"
    )


def test_a_circle_is_shown(document):
    """basins -> basin_graph -> ... -> supervoxels, and basins from supervoxels."""
    document["stage"][0]["affinities"] = "supervoxels"
    fault = one(faults_of(document))
    assert fault.startswith("layers feed one another in a circle, ")
    ring = fault.removeprefix("layers feed one another in a circle, ").split(" -> ")
    assert ring[0] == ring[-1]
    feeds = {
        ("basins", "basin_graph"),
        ("basin_graph", "supervoxel_table"),
        ("supervoxel_table", "supervoxels"),
        ("basins", "supervoxels"),
        ("supervoxels", "basins"),
    }
    assert len(ring) > 2
    assert set(pairwise(ring)) <= feeds


def test_a_stage_that_reads_what_it_writes(document):
    document["stage"][1]["basins"] = "basin_graph"
    fault = one(faults_of(document))
    assert fault.endswith("in a circle, basin_graph -> basin_graph")


def test_layers_that_wait_for_a_circle_are_not_shown_in_it(document):
    document["stage"][1]["basins"] = "basin_graph"
    document["stage"].append(
        {"use": "agglomeration", "graph": "supervoxel_table", "output": "last"}
    )
    assert "last" not in one(faults_of(document))


def test_every_fault_of_reading_is_told_at_once(document):
    document["name"] = "a b"
    document["colour"] = "red"
    document["grid"]["chunks"] = 1
    document["stage"][0]["lo"] = 0.1
    document["stage"][1]["use"] = "graph"
    document["stage"][2]["id_chunk"] = [0]
    del document["stage"][3]["labels"]
    faults = faults_of(document)
    assert len(faults) == 7
    for said in ("'a b'", "'colour'", "'chunks'", "'lo'", "'graph'", "id_chunk", "labels"):
        assert any(said in fault for fault in faults), said


# -- layer order ----------------------------------------------------------------------


def test_layer_order_does_not_depend_on_the_order_in_the_file(document):
    stages = document["stage"]
    recipes = [Recipe.parse({**document, "stage": [*p]}) for p in permutations(stages)]
    assert len({tuple(s.output for s in r.stages) for r in recipes}) == 1
    assert len({tuple(sorted(r.lineage().items())) for r in recipes}) == 1


def test_upstream_and_downstream(document):
    recipe = Recipe.parse(document)
    outputs = lambda stages: [s.output for s in stages]  # noqa: E731
    last = recipe.stage("supervoxels")
    assert outputs(recipe.upstream(last)) == ["basins", "supervoxel_table"]
    assert outputs(recipe.upstream(recipe.stage("basins"))) == []
    assert outputs(recipe.downstream(recipe.stage("basin_graph"))) == [
        "supervoxel_table",
        "supervoxels",
    ]
    assert outputs(recipe.downstream(last)) == []


def test_a_coarse_mip_waits_for_the_pyramid(document):
    document["stage"] = [
        {
            "use": "mesh_fragments",
            "segmentation": "copy",
            "mip": 1,
            "voxel_size_nm": [16.0, 16.0, 40.0],
            "output": "pieces",
        },
        {"use": "downsample", "layer": "copy", "output": "copy/pyramid", "mips": 1},
        {"use": "ingest", "source": "labels", "output": "copy", "voxel_size_nm": VOXEL},
    ]
    recipe = Recipe.parse(document)
    assert [s.output for s in recipe.stages] == ["copy", "copy/pyramid", "pieces"]
    assert [s.output for s in recipe.upstream(recipe.stages[2])] == ["copy/pyramid"]


def test_a_stage_is_found_by_its_layer_or_its_name(document):
    recipe = Recipe.parse(document)
    assert recipe.stage("supervoxels") is recipe.stage("relabel")
    with pytest.raises(RecipeError, match=r"no stage writes 'cells'.*basins, basin_graph"):
        recipe.stage("cells")


# -- lineage --------------------------------------------------------------------------


def test_lineage_changes_downstream_of_a_change_and_nowhere_else(document):
    before = Recipe.parse(document).lineage()
    document["stage"][1]["low"] = 0.3
    after = Recipe.parse(document).lineage()
    assert {k for k in before if before[k] != after[k]} == {
        "basin_graph",
        "supervoxel_table",
        "supervoxels",
    }


def test_lineage_changes_with_the_location_of_a_source(document):
    before = Recipe.parse(document).lineage()
    document["layers"]["affinities"] = "elsewhere"
    after = Recipe.parse(document).lineage()
    assert all(before[layer] != after[layer] for layer in before)


def test_lineage_of_a_layer_does_not_depend_on_other_branches(document):
    before = Recipe.parse(document).lineage()
    document["stage"].append(
        {"use": "overlaps", "segmentation": "basins", "truth": "labels", "output": "o"}
    )
    after = Recipe.parse(document).lineage()
    assert {k: after[k] for k in before} == before


# -- what the layers hold -------------------------------------------------------------


def test_a_layer_that_nobody_writes_and_that_is_nowhere(document, tmp_path):
    document["layers"].pop("affinities")
    fault = one(faults_of_plan(document, tmp_path))
    assert "layer affinities" in fault
    assert "name its place under [layers]" in fault


def test_a_chunk_that_does_not_divide_into_storage_chunks(document, tmp_path):
    document["stage"][0]["storage_chunk"] = [16, 16, 4]
    fault = one(faults_of_plan(document, tmp_path))
    assert fault.startswith(
        "basins: chunk (32, 16, 10) does not divide into storage chunks"
    )
    assert "(16, 16, 4) on z; use 8 for the chunk on z" in fault


def test_a_shard_that_is_no_power_of_two_of_storage_chunks(document, tmp_path):
    document["stage"][0] |= {"chunk": [48, 16, 10], "sharded": True}
    fault, other = faults_of_plan(document, tmp_path)
    assert "chunk of basin_graph is (32, 16, 10) and that of basins is (48" in other
    assert "a shard of (48, 16, 10) is not a power of two" in fault
    assert "on x; use 16, 32, 64" in fault


def test_a_layer_of_another_dtype(document, tmp_path):
    document["stage"] = [
        {
            "use": "affinities",
            "image": "deep_image",
            "output": "a",
            "model": "cortex-rsunet",
        }
    ]
    document["grid"]["chunk"] = [64, 64, 20]
    assert one(faults_of_plan(document, tmp_path)) == (
        "affinities: deep_image is uint16; it takes uint8"
    )


def test_a_layer_with_other_channels(document, tmp_path):
    document["layers"]["affinities"] = document["layers"]["image"]
    faults = faults_of_plan(document, tmp_path)
    assert faults == [
        f"{s}: affinities has 1 channels; it takes 3" for s in ("basins", "basin_graph")
    ]


def test_a_layer_of_another_kind(document, tmp_path):
    document["stage"][3]["labels"] = "basin_graph"
    fault = one(faults_of_plan(document, tmp_path))
    assert fault == "relabel: basin_graph holds records, and a volume is needed"


def test_an_encoding_that_cannot_hold_the_dtype(document, tmp_path):
    document["stage"][0]["encoding"] = "jpeg"
    faults = faults_of_plan(document, tmp_path)
    assert "basins: encoding jpeg cannot hold uint64 of basins; it holds uint8" in faults


def test_bounds_outside_the_layer(document, tmp_path):
    document["stage"][0]["bounds"] = {"start": [0, 0, 0], "stop": [64, 48, 30]}
    fault, other = faults_of_plan(document, tmp_path)
    assert "bounds of basin_graph is 0,0,0,64,48,20 and that of basins is" in other
    assert "basins: bounds 0,0,0,64,48,30 are not inside affinities" in fault
    assert "0,0,0,64,48,20" in fault


def test_a_mip_that_there_is_not(document, tmp_path):
    document["stage"] = [
        {
            "use": "mesh_fragments",
            "segmentation": "labels",
            "mip": 2,
            "voxel_size_nm": [32.0, 32.0, 40.0],
            "output": "pieces",
        }
    ]
    fault = one(faults_of_plan(document, tmp_path))
    assert fault.startswith(
        "mesh_fragments: labels has mips 0 to 0, not 2; add a downsample"
    )


def test_a_model_that_there_is_not(document, tmp_path):
    document["stage"] = [
        {"use": "affinities", "image": "image", "output": "a", "model": "nobody"}
    ]
    document["grid"]["chunk"] = [64, 64, 20]
    fault = one(faults_of_plan(document, tmp_path))
    assert fault.startswith("affinities: there is no model nobody (looked in nobody, ")


MODEL_TOML = """
name = "tiny"
voxel_size_nm = [8.0, 8.0, 40.0]
sha256 = "{sha256}"
architecture = {{ widths = [2], fold = [2, 2, 1] }}
normalisation = {{ mean = 128.0, std = 50.0 }}
inference = {{ patch = [16, 16, 8], overlap = [4, 4, 2] }}

[[head]]
name = "affinities"
kind = "affinities"
offsets = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
"""


@pytest.fixture
def model(tmp_path):
    """A model whose folder is whole, as far as a plan looks."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    content = b"weights"
    (folder / "weights.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "model.toml").write_text(MODEL_TOML.format(sha256=sha256))
    return folder


def with_model(document, model, **fields):
    stage = {"use": "affinities", "image": "image", "output": "a", "model": str(model)}
    grid = {**document["grid"], "chunk": [64, 64, 20]}
    return {**document, "grid": grid, "stage": [{**stage, **fields}]}


def test_a_model_with_its_weights(document, model, tmp_path):
    run = Run.plan(Recipe.parse(with_model(document, model)), str(tmp_path / "root"))
    assert len(run.recipe.stages[0].weights) == 64


def test_weights_that_are_missing(document, model, tmp_path):
    (model / "weights.safetensors").unlink()
    fault = one(faults_of_plan(with_model(document, model), tmp_path))
    assert "has no weights at" in fault
    assert str(model / "weights.safetensors") in fault


def test_weights_that_are_others(document, model, tmp_path):
    fault = one(faults_of_plan(with_model(document, model, weights="0" * 64), tmp_path))
    assert f"not {'0' * 64}; restore it" in fault


def test_where_the_model_is_does_not_count(document, model, tmp_path):
    other = tmp_path / "copy"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    a, b = (Recipe.parse(with_model(document, m)).pinned() for m in (model, other))
    assert a.lineage() == b.lineage()
    assert a.lineage() != Recipe.parse(with_model(document, model)).lineage()


def test_every_fault_of_layers_and_models_is_told_at_once(document, tmp_path):
    """Also those of stages that wait for a layer that there is not."""
    document["layers"].pop("affinities")
    document["stage"][0]["storage_chunk"] = [16, 16, 4]
    document["stage"][3]["storage_chunk"] = [5, 16, 10]
    document["stage"] += [
        {
            "use": "affinities",
            "image": "deep_image",
            "output": "a",
            "model": "nobody",
            "storage_chunk": [16, 16, 3],
        },
        {"use": "overlaps", "segmentation": "labels", "truth": "image2", "output": "o"},
        {
            "use": "mesh_fragments",
            "segmentation": "labels",
            "mip": 2,
            "voxel_size_nm": [32.0, 32.0, 40.0],
            "output": "pieces",
        },
    ]
    faults = faults_of_plan(document, tmp_path)
    expected = [
        "layer affinities: ",
        "layer image2: ",
        "basins: chunk (32, 16, 10) does not divide into storage chunks of (16, 16, 4)",
        "relabel: chunk (32, 16, 10) does not divide into storage chunks of (5, 16, 10)",
        "affinities: chunk (32, 16, 10) does not divide into storage chunks of (16, 16, 3)",
        "affinities: deep_image is uint16",
        "affinities: there is no model nobody",
        "mesh_fragments: labels has mips 0 to 0, not 2",
    ]
    for said in expected:
        assert sum(fault.startswith(said) for fault in faults) == 1, (said, faults)
    assert len(faults) == len(expected), faults


def block(change):
    """Return the recipe of a block with fields of some stages set, by output."""
    document = block_recipe(
        "block",
        Block(
            source="a.h5:raw",
            bounds=Bbox.of_shape((512, 512, 100)),
            voxel_size_nm=(6.0, 6.0, 30.0),
        ),
    )
    for output, fields in change.items():
        (stage,) = [s for s in document["stage"] if s["output"] == output]
        stage.update(fields)
    return document


@pytest.mark.parametrize(
    ("output", "fields", "source"),
    [
        ("basin_graph", {"high": 0.9}, "basins"),
        ("basin_graph", {"low": 0.1}, "basins"),
        ("basin_graph", {"size_threshold": 300}, "basins"),
        ("basin_graph", {"dust": 100}, "basins"),
        ("basin_graph", {"affinities": "image"}, "basins"),
        ("basin_graph", {"chunk": [128, 256, 50]}, "basins"),
        ("supervoxel_table", {"chunk": [300, 256, 50]}, "basin_graph"),
        ("agglomeration", {"chunk": [64, 64, 50]}, "region_graph"),
        ("segment_table", {"chunk": [128, 128, 50]}, "agglomeration"),
        ("segmentation", {"chunk": [128, 128, 50]}, "segment_table"),
        (
            "segmentation/meshes",
            {"sharding": {"shard_bits": 2, "minishard_bits": 4}},
            "segmentation_mesh_fragments",
        ),
        (
            "segmentation/skeletons",
            {"chunk": [64, 64, 50]},
            "segmentation_skeleton_fragments",
        ),
    ],
)
def test_stages_that_must_agree_are_held_to_it(output, fields, source):
    """Else ids, joins or shards would be misread, and nothing would say so."""
    (field,) = fields

    def describe(layer, location):
        return VolumeSpec(
            dtype="uint8",
            bounds=Bbox.of_shape((512, 512, 100)),
            voxel_size_nm=(6.0, 6.0, 30.0),
            kind_of_values="image",
        )

    Recipe.parse(block({})).specs(describe)
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(block({output: fields})).specs(describe)
    told = [f for f in caught.value.faults if f"{field} of {output} is" in f]
    assert len(told) == 1
    assert f"that of {source} is" in told[0]
