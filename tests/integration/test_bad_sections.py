"""A folder of sections with all that can be wrong with one goes through em align."""

import io
import json
import os
import shlex
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.alignment import LooseStack, alignment_recipe
from pipeline.cli import main
from pipeline.cli.opening import mask_placement
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources import open_source
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.match_pictures import DoubtfulPair, doubtful_pairs, views
from pipeline.runtime.run import Run
from pipeline.specs import Region

EXTENT = 256
MISSING, BLANK, MIRRORED, SMALLER, STRANGE = 2, 4, 6, 7, 8
COUNT = 10


def align(*words):
    """Run em align, and return its status."""
    options = (
        "--voxel-size 6,6,30 --workers 1 --quiet --embedding-model '' --distance 2 "
        "--turn 1 --shift 120"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["em", "align", *map(str, words), *shlex.split(options)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


def save(folder, number, pixels):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels.T)).save(folder / f"s_{number:03d}.png")


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """Sections that lie well but for a shift; of one a mask marks a stripe."""
    data = Path(os.environ.get("EM_DATA", "../shared/data"))
    if not (data / "ac4.h5").is_file():
        pytest.skip(f"no ac4.h5 in {data}; set EM_DATA")
    folder = tmp_path_factory.mktemp("sections")
    with open_source(f"{data}/ac4.h5:raw") as source:
        image = source.read(Bbox.of_shape((EXTENT, EXTENT, COUNT), Vec3(300, 200, 40)))
    image = np.maximum(image, 1)
    mask = np.zeros((EXTENT, EXTENT, COUNT), bool)
    mask[100:112, :, 1] = True
    for z in range(COUNT):
        section = np.roll(image[..., z], (z * 7 % 9 - 4, z * 5 % 9 - 4), axis=(0, 1))
        if z == BLANK:
            section = np.zeros_like(section)
        if z == MIRRORED:
            section = section[::-1]
        if z == SMALLER:
            section = section[:230, :240]
        if z == STRANGE:
            noise = np.random.default_rng(0).integers(1, 255, section.shape)
            section = noise.astype(np.uint8)
        if z != MISSING:
            save(folder / "image", z + 1, section)
            save(folder / "mask", z + 1, mask[..., z])
            save(folder / "coarse", z + 1, mask[::2, ::2, z])
            save(folder / "short", z + 1, mask[:200, :, z])
            save(folder / "coarsest", z + 1, mask[::16, ::16, z])
            fine = mask[..., z].repeat(2, axis=0).repeat(2, axis=1)
            save(folder / "fine", z + 1, fine)
    return folder


@pytest.fixture(scope="module")
def aligned(sections, tmp_path_factory):
    root = tmp_path_factory.mktemp("aligned")
    said = io.StringIO()
    with redirect_stderr(said):
        status = align(sections / "image", "--defects", sections / "coarse", "--root", root)
    assert status == 0
    return root, said.getvalue()


def test_each_is_marked_and_the_rest_lies_in_place(aligned):
    root, _ = aligned
    found = json.loads((root / "alignment.json").read_text())["sections"]
    states = [s["state"] for s in found]
    assert len(found) == COUNT
    assert states[MISSING] == "missing"
    assert states[BLANK] == "blank"
    assert states[MIRRORED] == "mirrored"
    assert states[STRANGE] == "matches nothing"
    assert [s["number"] for s in found] == list(range(1, COUNT + 1))
    assert found[MISSING]["file"] == ""
    for z in (0, 1, 3, 5, SMALLER, 9):
        # Every other section is bad, and these are small: some hang together in pairs.
        assert states[z] in ("placed", "apart")
        assert found[z]["file"] == f"s_{z + 1:03d}.png"
        assert z == 0 or found[z]["after"] > 0.1
    run = Run.open(str(root), "align")
    image = run.store.read(Region("image", run.specs["image"].bounds))
    is_shown = image.any(axis=(0, 1)).tolist()
    assert is_shown == [s in ("placed", "apart") for s in states]


def test_pairs_that_did_not_match_are_drawn(aligned):
    root, said = aligned
    run = Run.open(str(root), "align")
    pairs = {p.section: p for p in doubtful_pairs(run)}
    assert "mirror image" in pairs[MIRRORED].why
    assert pairs[STRANGE].why == "matches nothing"
    assert not {0, MISSING, BLANK} & set(pairs)
    assert f"{len(pairs)} pairs of sections did not match" in said
    assert f"look at {root}/matches.png" in said
    with Image.open(root / "matches.png") as picture:
        assert picture.height > 200 * len(pairs)


def test_a_section_is_drawn_where_it_was_found(aligned):
    """Laid on the other as the pair says, it is more alike than as it came."""
    root, _ = aligned
    run = Run.open(str(root), "align")
    pair = DoubtfulPair(1, 0, "", 0.0, (-42.0, -30.0), 0.0, 0.0, 0.0, 1.0, False)
    section, other, turned = views(run, pair)
    core = (slice(10, -10),) * 2

    def alike(image):
        return np.corrcoef(image[core].ravel(), other[core].ravel())[0, 1]

    assert alike(turned) > alike(section) + 0.1


def test_each_is_named(aligned):
    _, said = aligned
    assert "no file has number 3 (between s_002.png and s_004.png)" in said
    assert "s_008.png (230 x 240)" in said
    assert f"section {MISSING} (number 3) is missing" in said
    assert f"section {BLANK} (s_005.png) shows nothing" in said
    assert f"section {MIRRORED} (s_007.png) matches as its mirror image alone" in said
    assert f"section {STRANGE} (s_009.png) matches nothing" in said
    assert "has the voxels of mip 1 of the sections ((128, 128, 10) to" in said


def test_bad_ones_can_be_left_out_of_the_masks(aligned, sections):
    """Nothing but the masks is made anew."""
    root, _ = aligned
    made = {p: p.stat().st_mtime_ns for p in (root / "image").rglob("done/*.json")}
    before = masks_of(root)
    words = (sections / "image", "--defects", sections / "coarse", "--root", root)
    assert align(*words, "--leave-out", "0,1", "--replace") == 0
    assert {p: p.stat().st_mtime_ns for p in made} == made
    after = masks_of(root)
    assert before["input"][..., :2].any()
    assert not after["input"][..., :2].any()
    assert (after["input"][..., 2:] == before["input"][..., 2:]).all()
    # Section 2 is missing, so three in a row are masked.
    assert not after["output"][..., :2].any()


def masks_of(root):
    run = Run.open(str(root), "align")
    return {
        kind: run.store.read(Region(f"{kind}_mask", run.specs[f"{kind}_mask"].bounds))
        for kind in ("input", "output")
    }


def test_a_section_that_is_not_there_cannot_be_left_out(sections, tmp_path, capsys):
    root = tmp_path / "root"
    assert align(sections / "image", "--root", root, "--leave-out", "3,99") == 2
    assert "there is no section 99; sections go from 0 to 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", ("(200, 256, 10)", "(256, 256, 10)", "as many sections")),
        ("coarsest", ("voxels of mip 4", "matched at mip 1", "finer one")),
    ],
)
def test_a_mask_of_something_else_is_refused(sections, tmp_path, capsys, name, words):
    root = tmp_path / "root"
    words_given = (sections / "image", "--defects", sections / name, "--root", root)
    assert align(*words_given) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert not root.exists()


def test_masks_of_all_mips_lie_in_one_place(sections, tmp_path):
    """Of the image, coarser and finer: the layer that is read is the same."""
    found = {}
    for name, mip in (("mask", 1), ("coarse", 0), ("fine", 2)):
        recipe = recipe_of(sections / "image", sections / name)
        run = Run.start(recipe, str(tmp_path / name))
        for stage in recipe.stages:
            if stage.output.startswith("loose_defects"):
                run_to_end(run, serial, only=stage.output, quiet=True)
        box = run.specs["loose_defects"].bounds_at(mip)
        found[name] = run.store.read(Region("loose_defects", box, mip)) > 0
    assert found["mask"].sum() == found["coarse"].sum() > 0
    assert (found["mask"] == found["coarse"]).all()
    assert (found["mask"] == found["fine"]).all()


def recipe_of(image, mask):
    with open_source(str(image)) as opened, open_source(str(mask)) as masked:
        mip, shift = mask_placement(masked, opened, Vec3(0, 0, 0), 1)
        stack = LooseStack(
            source=str(image),
            bounds=opened.bounds,
            voxel_size_nm=(6.0, 6.0, 30.0),
            natural_chunk=opened.natural_chunk,
            defect_source=str(mask),
            defect_mip=mip,
            defect_shift=shift,
        )
    return Recipe.parse(alignment_recipe("align", stack))
