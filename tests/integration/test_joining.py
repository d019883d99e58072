"""Alignments of overlapping sections go together as one."""

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.errors import RecipeError, RootError
from pipeline.geometry import Bbox, Vec3
from pipeline.joining import Alignment, Joint, joining_recipe
from pipeline.layers.sources import open_source
from pipeline.layers.store import Store
from pipeline.metrics.alignment import AlignedSection, residuals
from pipeline.phantom.loose import Loosening, loosen
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.joining import alignment_in, joint_of
from pipeline.runtime.run import Run
from pipeline.runtime.simulate import simulate_stack
from pipeline.specs import Record, RecordsSpec, Region
from pipeline.stages.warp import Warp

WIDE, ALIGNED, SECTIONS, KNOWN, OVERLAP = 184, 192, 10, 7, 4
SINCE = KNOWN - OVERLAP
OPTIONS = (
    "--voxel-size 8,8,40 --workers 1 --quiet --defect-model= --embedding-model= "
    "--distance 2 --shift 240 --turn 1"
)


def em(command, monkeypatch=None):
    """Run the command here; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["em", *shlex.split(command)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Loose sections, of which the first were aligned before the others came."""
    folder = tmp_path_factory.mktemp("joining")
    settings = Loosening(
        seed=3, shift=6.0, rotation=0.4, elastic=((2.0, 120.0),), missing=0, defects=0.0
    )
    with open_source(f"phantom://{WIDE},{WIDE},{SECTIONS}/image") as source:
        simulate_stack(
            source,
            folder / "loose.h5",
            settings,
            box=source.bounds,
            voxel_size_nm=(8.0, 8.0, 40.0),
        )
    some = f"--bbox 0,0,0,{WIDE},{WIDE},{KNOWN}"
    assert em(f"align {folder}/loose.h5:image --root {folder}/first {some} {OPTIONS}") == 0
    return folder


@pytest.fixture(scope="module")
def grown(folder):
    """The root of the alignment that went on when the others had come."""
    after = f"--after {folder}/first --overlap {OVERLAP}"
    assert em(f"align {folder}/loose.h5:image --root {folder}/all {after} {OPTIONS}") == 0
    return folder / "all"


def image_files(root, before):
    """The stored image of sections before one, by name."""
    (scale,) = [p for p in (root / "image").iterdir() if p.name.startswith("8_8_40")]
    found = {}
    for path in scale.iterdir():
        stop = int(path.name.removesuffix(".gz").rsplit("_", 1)[1].split("-")[1])
        if stop <= before:
            found[path.name] = path.read_bytes()
    return found


def test_what_was_delivered_keeps_its_bytes(folder, grown):
    delivered = image_files(folder / "first", SINCE)
    assert len(delivered) >= SINCE
    assert image_files(grown, SINCE) == delivered
    assert not set(image_files(grown, SECTIONS)) <= set(delivered)


def test_only_new_sections_and_the_overlap_are_aligned(grown):
    appended = alignment_in(f"{grown}/appended").specs["image"].bounds
    assert appended == Bbox(Vec3(0, 0, SINCE), Vec3(ALIGNED, ALIGNED, SECTIONS))
    whole = Run.open(str(grown), "join")
    for layer in ("image", "field", "input_mask", "output_mask"):
        assert whole.specs[layer].bounds.stop.z == SECTIONS
        assert whole.specs[layer].bounds.start.z == 0


def test_how_far_they_disagreed_is_said(grown):
    sections = json.loads((grown / "seam.json").read_text())["sections"]
    assert [s["z"] for s in sections] == list(range(SINCE, KNOWN))
    assert all(s["known"] > 0.9 for s in sections)
    assert all(s["median_px"] <= s["p95_px"] < 12 for s in sections)


def alike(root):
    """How each section correlates with the one before, where both are wholly shown."""
    run = alignment_in(str(root))
    bounds = run.specs["image"].bounds
    image = run.store.read(Region("image", bounds)).astype(float)[30:-30, 30:-30]
    return {
        bounds.start.z + i + 1: np.corrcoef(
            image[..., i].ravel(), image[..., i + 1].ravel()
        )[0, 1]
        for i in range(image.shape[2] - 1)
    }


def test_sections_across_the_seam_lie_as_in_what_was_joined(folder, grown):
    """Up to the overlap as in the first, beyond it as in the second."""
    joined, first, second = (
        alike(root) for root in (grown, folder / "first", grown / "appended")
    )
    assert all(joined[z] == pytest.approx(first[z]) for z in range(1, SINCE))
    assert all(joined[z] > first[z] - 0.1 for z in range(SINCE, KNOWN))
    assert all(joined[z] > second[z] - 0.05 for z in range(SINCE + 1, SECTIONS))


def test_what_was_joined_can_go_on(folder, grown):
    """It has what a join needs of its first; and no loose sections of its own."""
    first = alignment_in(str(grown))
    assert first.specs["image"].bounds.stop.z == SECTIONS
    other = alignment_in(f"{folder}/first")
    with pytest.raises(RecipeError, match="was itself joined"):
        joint_of(other, first)


def test_point_pairs_of_the_second_are_drawn_through(folder, grown):
    pair = [alignment_in(f"{folder}/first"), alignment_in(f"{grown}/appended")]
    for closures in (False, True):
        recipe = joining_recipe("join", replace(joint_of(*pair), closures=closures))
        drawn = [s for s in recipe["stage"] if s["use"] == "warp"]
        assert drawn
        assert all(("closures" in s) == closures for s in drawn)
        assert ("second_closures" in recipe["layers"]) == closures


def test_a_second_run_writes_nothing(folder, grown):
    before = {p: p.stat().st_mtime_ns for p in grown.rglob("*") if p.is_file()}
    assert em(f"join {folder}/first {grown}/appended --root {grown} --quiet") == 0
    changed = {p.name for p in before if p.stat().st_mtime_ns != before[p]}
    assert changed <= {"seam.json"}


def test_another_alignment_is_not_taken_for_the_one_that_was_joined(folder, grown):
    """What a seam was found between is part of it."""
    pair = [alignment_in(f"{folder}/first"), alignment_in(f"{grown}/appended")]
    joint = joint_of(*pair)
    recipe = joining_recipe("join", joint)
    (shifts,) = [s for s in recipe["stage"] if s["use"] == "seam_shifts"]
    shifts["of"] = "another"
    other = Run.plan(Recipe.parse(recipe), str(grown))
    assert {"seam_shifts", "image", "field"} <= set(other.stale())


# -- refusals -------------------------------------------------------------------------


def test_alignments_that_do_not_go_together_are_refused(folder, grown):
    first, second = f"{folder}/first", f"{grown}/appended"
    with pytest.raises(RecipeError, match="give that first which begins first"):
        joint_of(alignment_in(second), alignment_in(first))
    with pytest.raises(RootError, match="holds no alignment"):
        alignment_in(f"{folder}/nowhere")


def test_a_limit_stops_the_join(folder, grown, tmp_path, capsys):
    command = f"join {folder}/first {grown}/appended --root {tmp_path} --quiet"
    assert em(f"{command} --limit 0.01 --workers 1") == 1
    assert "disagree by" in capsys.readouterr().err
    assert not (tmp_path / "seam.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (f"--bbox 0,0,0,{WIDE},{WIDE},{KNOWN}", "nothing to append"),
        (f"--bbox 0,0,{KNOWN},{WIDE},{WIDE},{SECTIONS}", "smaller --overlap"),
        (f"--bbox 0,0,0,{WIDE},{WIDE - 64},{SECTIONS}", "give the same --bbox"),
    ],
)
def test_sections_that_do_not_go_on_from_others_are_refused(
    options, said, folder, tmp_path, capsys
):
    after = f"--after {folder}/first --overlap {OVERLAP}"
    source = f"{folder}/loose.h5:image"
    assert em(f"align {source} --root {tmp_path} {after} {options} {OPTIONS}") == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_sections_under_the_same_numbers_are_refused(folder, grown, monkeypatch):
    """Drawn as the first says, they are not what the first shows."""
    first, second = alignment_in(f"{folder}/first"), alignment_in(f"{grown}/appended")
    read = second.store.read

    def mirrored(region):
        value = read(region)
        return value[::-1] if getattr(region, "layer", "") == "loose" else value

    monkeypatch.setattr(second.store, "read", mirrored)
    with pytest.raises(RecipeError, match="section 3 of the first is another"):
        joint_of(first, second)


# -- two halves of one ----------------------------------------------------------------


def test_two_halves_of_one_alignment_give_it_back(folder, tmp_path):
    run = alignment_in(f"{folder}/first")
    halves = [part(run, tmp_path / "a", 0, 5), part(run, tmp_path / "b", 2, KNOWN)]
    held = {"image": run.specs["loose"].bounds}
    recipe = Recipe.parse(joining_recipe("join", Joint(*halves, held=held)))
    joined = Run.start(recipe, str(tmp_path / "whole"))
    run_to_end(joined, serial, quiet=True)
    field = [
        r.store.read(Region("field", run.specs["field"].bounds)) for r in (run, joined)
    ]
    np.testing.assert_allclose(field[1][..., :2], field[0][..., :2], atol=0.05)
    np.testing.assert_array_equal(field[1][..., 2], field[0][..., 2])
    image = [
        r.store.read(Region("image", run.specs["image"].bounds)) for r in (run, joined)
    ]
    assert np.abs(image[1].astype(int) - image[0]).max() <= 1
    poses = [r.store.read(Record("section_poses", "0_0_0_0")) for r in (run, joined)]
    for name in ("z", "angle", "x", "y", "placed"):
        np.testing.assert_allclose(poses[1][name], poses[0][name], atol=1e-9)


def part(run, root, first, last):
    """Write some sections of an alignment as one of its own."""
    store = Store(str(root))
    specs = {}
    for layer in ("loose", "image", "field", "input_mask", "output_mask"):
        spec = run.specs[layer]
        box = spec.bounds
        cut = Bbox(
            Vec3(*box.start.astuple()[:2], first), Vec3(*box.stop.astuple()[:2], last)
        )
        specs[layer] = spec.model_copy(update={"bounds": cut})
        finest = specs[layer].model_copy(update={"factors": (Vec3(1, 1, 1),)})
        store.create(layer, finest)
        whole = run.store.read(Region(layer, cut))
        for z in range(first, last):
            section = Bbox(
                Vec3(*cut.start.astuple()[:2], z), Vec3(*cut.stop.astuple()[:2], z + 1)
            )
            if spec.storage_chunk.z == 1:
                store.write(
                    Region(layer, section),
                    finest,
                    np.asfortranarray(whole[:, :, [z - first]]),
                )
        if spec.storage_chunk.z > 1:
            store.write(Region(layer, cut), finest, np.asfortranarray(whole))
    poses = run.store.read(Record("section_poses", "0_0_0_0"))
    mine = (poses["z"] >= first) & (poses["z"] < last)
    rows = {n: poses[n][mine] for n in ("z", "angle", "x", "y", "placed", "mirrored")}
    none = {n: poses[n][:0] for n in ("section", "other", "weight", "misfit_nm")}
    store.create("section_poses", RecordsSpec())
    store.write(
        Record("section_poses", "0_0_0_0"),
        RecordsSpec(),
        {**rows, **none, "middle": poses["middle"]},
    )
    return Alignment(str(root), str(root), specs["image"], specs["field"], None)


# -- by the truth ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_that_were_aligned_apart_lie_as_one_that_was_aligned_whole(tmp_path):
    """Sections of cortex with cracks, folds and a missing one, scored by the truth."""
    data = Path(os.environ.get("EM_DATA", "../shared/data"))
    if not (data / "ac4.h5").is_file():
        pytest.skip(f"no ac4.h5 in {data}; set EM_DATA")
    settings, box = Loosening(seed=21, missing=1), Bbox.parse("300,200,20,684,584,38")
    with open_source(f"{data}/ac4.h5:raw") as source:
        tissue = source.read(box).reshape(box.shape.astuple())
        simulate_stack(
            source, tmp_path / "loose.h5", settings, box=box, voxel_size_nm=(6.0, 6.0, 30.0)
        )
    loose = {
        z: loosen(np.asfortranarray(tissue[..., z]), z, settings)
        for z in set(range(18)) - settings.missing_of(18)
    }
    align = (
        f"align {tmp_path}/loose.h5:image --defects {tmp_path}/loose.h5:defects "
        "--voxel-size 6,6,30 --quiet"
    )
    for root, z in (("whole", (0, 18)), ("first", (0, 13)), ("second", (7, 18))):
        some = f"--bbox 0,0,{z[0]},384,384,{z[1]}"
        assert em(f"{align} {some} --root {tmp_path}/{root}") == 0
    assert em(f"join {tmp_path}/first {tmp_path}/second --root {tmp_path}/joined") == 0
    whole, joined = (
        residuals(by_the_truth(tmp_path / root, loose)) for root in ("whole", "joined")
    )
    assert joined.neighbours < 1.1 * whole.neighbours
    assert joined.p95 < 1.1 * whole.p95
    assert joined.five_apart < 1.2 * whole.five_apart
    assert joined.coverage > 0.93


def by_the_truth(root, loose):
    """Return what every fourth pixel of an aligned image truly shows, by section."""
    run = alignment_in(str(root))
    bounds, field = run.specs["image"].bounds, run.specs["field"]
    poses = run.store.read(Record("section_poses", "0_0_0_0"))
    found = {}
    for z, section in loose.items():
        box = Bbox(
            Vec3(*bounds.start.astuple()[:2], z), Vec3(*bounds.stop.astuple()[:2], z + 1)
        )
        stage = Warp(
            output="shown",
            bounds=box,
            chunk=box.shape,
            image="loose",
            poses="section_poses",
            field="field",
            voxel_size_nm=run.specs["image"].voxel_size_nm,
            field_voxel_nm=field.voxel_size_nm,
        )
        task = stage.task(next(iter(stage.keys(0))))
        ((points, reached),) = stage.shown(
            task, poses, run.store.read(stage.reads(task)["field"])
        )
        at = np.rint(points[::4, ::4]).astype(int)
        inside = ((at >= 0) & (at < section.image.shape)).all(axis=-1)
        x, y = np.moveaxis(np.clip(at, 0, np.array(section.image.shape) - 1), -1, 0)
        whole = ~np.logical_or.reduce([m for m in section.masks.values()])
        found[z] = AlignedSection(
            tissue=section.tissue[x, y] + points[::4, ::4] - at,
            shown=inside & reached[::4, ::4] & whole[x, y] & (section.image[x, y] > 0),
            near_defect=~whole[x, y],
            available=float((~section.lost).mean()),
        )
    return found
