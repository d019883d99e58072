"""From affinities or raw tissue to neurons, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from pipeline.geometry import Bbox, Vec3
from pipeline.layers.store import Store
from pipeline.phantom import Phantom
from pipeline.reconstruction import Block, block_recipe
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec

SHAPE = Vec3(128, 128, 32)
VOXEL_NM = (12.0, 12.0, 30.0)
OFFSET = Vec3(100, -20, 7)


def em(*arguments, status=0, folder=None):
    executable = Path(sys.executable).parent / "em"
    done = subprocess.run(
        [executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=folder,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def require_as_tensorstore_reads(run):
    """Compare every mip of every volume with what an independent reader sees."""
    compared = []
    for layer, spec in run.specs.items():
        ours = layer in {s.output for s in run.recipe.stages}
        if not ours or not isinstance(spec, VolumeSpec) or layer.endswith("/pyramid"):
            continue
        for mip in range(len(spec.factors)):
            other = tensorstore.open(
                {
                    "driver": "neuroglancer_precomputed",
                    "kvstore": f"{run.store.location(layer)}/",
                    "scale_index": mip,
                },
                read=True,
            ).result()
            box = spec.bounds_at(mip)
            assert other.domain.inclusive_min[:3] == tuple(box.start)
            assert other.domain.exclusive_max[:3] == tuple(box.stop)
            values = run.store.read(Region(layer, box, mip))
            theirs = np.asarray(other.read().result())
            assert np.array_equal(values.reshape(theirs.shape), theirs), (layer, mip)
            assert values.any(), (layer, mip)
            compared.append((layer, mip))
    return compared


def require_shapes(run):
    """See that large segments have a mesh and a skeleton within the bounds."""
    spec = run.specs["segmentation"]
    low = np.array(spec.bounds.start.astuple()) * spec.voxel_size_nm
    high = np.array(spec.bounds.stop.astuple()) * spec.voxel_size_nm
    ids = set(np.unique(run.store.read(Region("segmentation", spec.bounds))).tolist())
    slack = 2 * np.array(spec.voxel_size_at(len(spec.factors) - 1))
    for layer, read in (
        ("segmentation/meshes", run.store.read_mesh),
        ("segmentation/skeletons", run.store.read_skeleton),
    ):
        segments = run.store.segments(layer)
        assert segments
        assert set(segments) <= ids - {0}
        for segment in segments:
            found = read(layer, segment)
            assert len(found.vertices) > 1
            assert (found.vertices >= low - slack).all()
            assert (found.vertices <= high + slack).all()
            rows = found.faces if layer.endswith("meshes") else found.edges
            assert rows.max() < len(found.vertices)


def toml(document):
    """Write a recipe; JSON is TOML but for tables."""
    lines = [f"name = {json.dumps(document['name'])}"]
    for table in ("grid", "layers"):
        lines.append(f"[{table}]")
        lines += [f"{k} = {_value(v)}" for k, v in document[table].items()]
    for stage in document["stage"]:
        lines.append("[[stage]]")
        lines += [f"{k} = {_value(v)}" for k, v in stage.items()]
    return "\n".join(lines) + "\n"


def _value(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture(scope="module")
def phantom_run(tmp_path_factory):
    """A run over noisy affinities of a phantom, in eight chunks, away from zero."""
    folder = tmp_path_factory.mktemp("phantom")
    phantom = Phantom(seed=11, voxel_size_nm=VOXEL_NM, spacing_nm=300, membrane_nm=24)
    bounds = Bbox.of_shape(SHAPE, OFFSET)
    corners = (bounds.start.astuple(), bounds.stop.astuple())
    store = Store(str(folder / "given"))
    spec = VolumeSpec(
        dtype="uint8",
        channels=3,
        bounds=bounds,
        voxel_size_nm=VOXEL_NM,
        kind_of_values="image",
    )
    store.create("affinities", spec)
    values = phantom.affinities(*corners, blur=1.0, noise=0.15)
    store.write(Region("affinities", bounds), spec, values)
    np.save(folder / "truth.npy", phantom.labels(*corners).T)

    block = Block(
        source=str(folder / "absent"),
        bounds=bounds,
        voxel_size_nm=VOXEL_NM,
        truth=str(folder / "truth.npy"),
        truth_shift=OFFSET,
    )
    document = block_recipe("phantom", block)
    document["stage"] = [
        s for s in document["stage"] if not {"image", "affinities"} & {s["output"]}
    ]
    document["stage"] = [s for s in document["stage"] if s["output"] != "image/pyramid"]
    document["grid"]["chunk"] = [64, 64, 16]
    for stage in document["stage"]:
        if "storage_chunk" in stage:
            stage["storage_chunk"] = [32, 32, 16]
    document["layers"] = {
        "affinities": str(folder / "given" / "affinities"),
        "truth_source": str(folder / "truth.npy"),
    }
    path = folder / "phantom.toml"
    path.write_text(toml(document))
    em("run", path, "--root", folder / "root", "--workers", 2, "--quiet")
    return folder / "root"


def test_neurons_of_a_phantom_are_found(phantom_run):
    scores = json.loads(em("eval", "--root", phantom_run, "--json"))
    assert scores["n_truth"] > 10
    assert scores["arand"] < 0.1
    assert scores["voi_split"] < 0.4
    assert scores["voi_merge"] < 0.4
    assert scores["nerl"] > 0.8
    assert scores["erl_nm"] == pytest.approx(scores["nerl"] * scores["truth_erl_nm"])
    assert scores == json.loads((phantom_run / "scores.json").read_text())


def test_every_chunk_of_a_phantom_is_proved(phantom_run):
    verified = json.loads(em("verify", "--root", phantom_run, "--json"))
    assert verified["complete"]
    assert sum(s["tasks"] for s in verified["runs"][0]["stages"]) > 60


def test_another_reader_sees_the_same_phantom(phantom_run, tmp_path):
    run = Run.open(str(phantom_run), "phantom")
    compared = require_as_tensorstore_reads(run)
    assert {layer for layer, _ in compared} == {
        *("basins", "supervoxels", "segmentation", "truth"),
    }
    assert ("segmentation", 2) in compared


def test_neurons_of_a_phantom_have_shapes(phantom_run):
    require_shapes(Run.open(str(phantom_run), "phantom"))


@pytest.fixture
def data():
    folder = Path(os.environ.get("EM_DATA", "../shared/data"))
    if not (folder / "ac4.h5").exists():
        pytest.skip(f"no ac4.h5 in {folder}; set EM_DATA")
    return folder


def test_real_tissue_is_reconstructed(data, tmp_path):
    root = tmp_path / "root"
    report = json.loads(
        em(
            *("reconstruct", data / "ac4.h5:raw", "--truth", data / "ac4.h5:labels"),
            *("--bbox", "300,400,80,492,592,100", "--voxel-size", "6,6,30"),
            *("--root", root, "--workers", 1, "--json"),
        )
    )
    assert report["scores"]["arand"] < 0.5
    assert report["scores"]["n_truth"] > 10
    stages = {s["output"]: s for s in report["stages"]}
    assert stages["affinities"]["voxels"] == 192 * 192 * 20
    assert all(s["failed"] == 0 for s in stages.values())
    assert Path(report["contact_sheet"]).read_bytes().startswith(b"\x89PNG")
    assert json.loads(em("verify", "--root", root, "--json"))["complete"]
    run = Run.open(str(root), "reconstruct")
    compared = require_as_tensorstore_reads(run)
    assert {"image", "affinities", "segmentation", "truth"} <= {
        layer for layer, _ in compared
    }
    require_shapes(run)


def test_a_folder_of_the_name_of_a_run_is_not_its_recipe(phantom_run, tmp_path):
    (recipe,) = (phantom_run / "runs").glob("*.json")
    (tmp_path / recipe.stem).mkdir()
    shown = em("status", recipe.stem, "--root", phantom_run, "--json", folder=tmp_path)
    assert json.loads(shown)


def test_a_sweep_scores_what_a_run_would_give(phantom_run):
    found = json.loads(em("sweep", "--root", phantom_run, "--json"))["thresholds"]
    scored = json.loads(em("eval", "--root", phantom_run, "--json"))
    (recipe,) = (phantom_run / "runs").glob("*.json")
    stages = json.loads(recipe.read_text())["recipe"]["stage"]
    (chosen,) = [s["threshold"] for s in stages if s["use"] == "agglomeration"]
    (same,) = [f for f in found if f["threshold"] == pytest.approx(chosen)]
    assert {k: same[k] for k in scored} == scored
    merges = [f["voi_merge"] for f in found]
    assert merges == sorted(merges, reverse=True)
    assert merges[0] > merges[-1]
    assert (phantom_run / "sweep.png").stat().st_size > 10_000
