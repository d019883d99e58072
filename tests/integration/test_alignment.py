"""Loose sections of real cortex go through em align, and come out in place."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cli import main
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources import open_source
from pipeline.phantom.loose import Loosening
from pipeline.runtime.run import Run
from pipeline.runtime.simulate import simulate_stack
from pipeline.specs import Region

VOXEL = (6.0, 6.0, 30.0)
MIRRORED, BLANK, STRANGE = 3, 5, 6


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """Eight sections, of which one is mirrored, one blank and one of no tissue."""
    data = Path(os.environ.get("EM_DATA", "../shared/data"))
    if not (data / "ac4.h5").is_file():
        pytest.skip(f"no ac4.h5 in {data}; set EM_DATA")
    path = tmp_path_factory.mktemp("loose") / "loose.h5"
    settings = Loosening(seed=3, shift=20.0, defects=0.3, missing=0)
    with open_source(f"{data}/ac4.h5:raw") as source:
        box = Bbox.of_shape((384, 384, 8), Vec3(300, 200, 40))
        simulate_stack(source, path, settings, box=box, voxel_size_nm=VOXEL)
    with h5py.File(path, "r+") as file:
        image = file["image"]
        image[MIRRORED] = image[MIRRORED][:, ::-1]
        image[BLANK] = 0
        image[STRANGE] = np.random.default_rng(0).integers(1, 255, image.shape[1:])
    return path


@pytest.fixture(scope="module")
def aligned(loose, tmp_path_factory):
    root = tmp_path_factory.mktemp("aligned")
    command = f"em align {loose}:image --defects {loose}:defects --voxel-size 6,6,30"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*command.split(), "--root", str(root), "--quiet"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return root


def test_sections_lie_on_one_another_where_they_did_not(aligned):
    sections = json.loads((aligned / "alignment.json").read_text())["sections"]
    whole = [s for s in sections if s["state"] == "placed" and s["z"] in (1, 2)]
    assert len(whole) == 2
    for section in whole:
        assert section["after"] > 0.35
        assert section["after"] > section["before"] + 0.2
    assert (aligned / "alignment.png").stat().st_size > 20_000


def test_what_is_wrong_with_a_section_is_said(aligned):
    sections = json.loads((aligned / "alignment.json").read_text())["sections"]
    assert sections[BLANK]["state"] == "blank"
    assert sections[MIRRORED]["state"] == "mirrored"
    run = Run.open(str(aligned), "align")
    bounds = run.specs["image"].bounds
    image = run.store.read(Region("image", bounds))
    assert not image[..., MIRRORED].any()
    assert image[..., 2].any()
    assert sections[STRANGE]["state"] != "placed" or sections[STRANGE]["after"] < 0.1


def test_masks_take_out_what_is_not_there(aligned):
    run = Run.open(str(aligned), "align")
    bounds = run.specs["input_mask"].bounds
    keep = run.store.read(Region("input_mask", bounds))
    assert not keep[..., BLANK].any()
    assert keep[..., 1].mean() > 0.7


def test_a_second_run_writes_nothing(aligned, loose, monkeypatch, capsys):
    before = {p: p.stat().st_mtime_ns for p in aligned.rglob("*") if p.is_file()}
    command = f"em align {loose}:image --defects {loose}:defects --voxel-size 6,6,30"
    monkeypatch.setattr("sys.argv", [*command.split(), "--root", str(aligned), "--quiet"])
    with pytest.raises(SystemExit):
        main()
    after = {p: p.stat().st_mtime_ns for p in before}
    changed = {p.name for p in before if before[p] != after[p]}
    assert changed <= {"alignment.png", "alignment.json", "matches.png"}


def evaluated(root, *words):
    command = ["em", "eval", "--alignment", "--root", str(root), *map(str, words)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


def test_it_is_scored_without_a_truth_and_by_one(aligned, loose, capsys):
    assert evaluated(aligned, "--truth", loose) == 0
    said = capsys.readouterr().out
    scores = json.loads((aligned / "alignment_scores.json").read_text())
    assert scores["correlation_after"] > scores["correlation_before"] + 0.2
    assert scores["patch_correlation"] < scores["best_patch_correlation"]
    assert 5 < scores["residual_nm"] < 50
    assert not scores["warnings"]
    curve = scores["drift_curve_nm"]
    assert curve[0] == [0, 0]
    assert curve[BLANK] == curve[MIRRORED] == [None, None]
    assert None not in curve[2]
    assert scores["truth"]["neighbours"] < 6
    assert f"neighbours {scores['truth']['neighbours']:.2f}" in said
    worst = scores["worst"]
    assert worst == sorted(worst, key=lambda w: w["correlation"])
    assert len(worst) > 2
    page = (aligned / "alignment_eval.html").read_text()
    place = ",".join(map(str, worst[0]["position"]))
    assert f"em view --root {aligned} align --position {place}" in page
    for name in ("alignment_eval.png", "alignment_worst.png"):
        assert name in page
        assert (aligned / name).stat().st_size > 20_000


def test_a_truth_of_something_else_is_refused(aligned, tmp_path, capsys):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["aligned"] = np.zeros((3, 9, 9), np.uint8)
    assert evaluated(aligned, "--truth", path) == 2
    assert "give a file that em simulate wrote" in capsys.readouterr().err
    with h5py.File(path, "r+") as file:
        file.attrs["settings"] = Loosening(
            shift=1.0, elastic=(), defects=0.0
        ).model_dump_json()
        file.attrs["missing"] = []
    assert evaluated(aligned, "--truth", path) == 2
    assert "give the file that was aligned" in capsys.readouterr().err
    assert evaluated(aligned, "--synapses", path) == 2
