"""A section torn apart far wider than patches see is put together by hand, and aligned."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cli import main
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources import open_source
from pipeline.phantom.loose import Loosening, loosen
from pipeline.runtime.run import Run
from pipeline.runtime.simulate import simulate_stack
from pipeline.specs import Region

pytestmark = pytest.mark.slow

VOXEL = (6.0, 6.0, 30.0)
SHAPE = (448, 384, 5)
TORN, CUT, HALF = 2, 224, 50
"""The section that is torn at a column of pixels, and how far each side goes away."""


def torn(values, gap):
    """Move both sides of the cut apart, along x; what leaves the section is lost."""
    result = np.full_like(values, gap)
    result[: CUT - HALF] = values[HALF:CUT]
    result[CUT + HALF :] = values[CUT:-HALF]
    return result


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Loose sections, the pairs of one of them, and what pixels truly show."""
    data = Path(os.environ.get("EM_DATA", "../shared/data"))
    if not (data / "ac4.h5").is_file():
        pytest.skip(f"no ac4.h5 in {data}; set EM_DATA")
    path = tmp_path_factory.mktemp("cracked") / "loose.h5"
    settings = Loosening(
        seed=4, shift=15.0, rotation=1.0, elastic=((4.0, 300.0),), defects=0, missing=0
    )
    box = Bbox.of_shape(SHAPE, Vec3(300, 200, 40))
    with open_source(f"{data}/ac4.h5:raw") as source:
        simulate_stack(source, path, settings, box=box, voxel_size_nm=VOXEL)
    with h5py.File(path, "r+") as file:
        image, defects = file["image"], file["defects"]
        image[TORN] = torn(image[TORN].T, 210).T
        defects[TORN] = torn(defects[TORN].T, 1).T
    rng = np.random.default_rng(0)
    rows = []
    for y in range(12, SHAPE[1], 40):
        for side in (-1, 1):
            at = np.array([CUT + side * (HALF + 8), y + side * 6])
            to = at - (side * HALF, 0) + rng.normal(0, 1.0, 2)
            rows.append(f"{TORN},{at[0]},{at[1]},{to[0]:.2f},{to[1]:.2f}")
    pairs = path.with_name("pairs.csv")
    pairs.write_text("\n".join(["section,x,y,to_x,to_y", *rows]))
    with h5py.File(path) as file:
        tissue = [loosen(a.T, z, settings).tissue for z, a in enumerate(file["aligned"])]
    tissue[TORN] = torn(tissue[TORN], np.nan)
    return path, pairs, tissue


def align(path, root, *options):
    """Run the command, as a user would."""
    command = [
        *("em", "align", f"{path}:image", "--defects", f"{path}:defects"),
        *("--voxel-size", "6,6,30", "--embedding-model", "", "--root", str(root)),
        *("--workers", "2", "--quiet", *options),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


def shown(root, truth):
    """Return the place of the tissue that each aligned pixel shows, by section.

    NaN where it shows the crack, or nothing; and where the section was lost beneath it.
    """
    run = Run.open(str(root), "align")
    stage = run.recipe.stage("image")
    found = {}
    for key in stage.keys(0):
        task = stage.task(key)
        reads = stage.reads(task)
        inputs = {name: run.store.read(r) for name, r in reads.items() if name != "image"}
        (points, reached), z = stage.shown(task, **inputs)[0], task.box.start.z
        at = np.rint(points).astype(int)
        inside = ((at >= 0) & (at < SHAPE[:2])).all(axis=-1)
        x, y = np.moveaxis(np.where(inside[..., None], at, 0), -1, 0)
        tissue = truth[z][x, y] + (points - at)
        found[z] = np.where((inside & reached)[..., None], tissue, np.nan)
        if z == TORN:
            found["crack"] = inside & np.isnan(truth[z][x, y]).any(axis=-1)
    return found


def off_by(found):
    """Return how far the torn section lies from those beside it, pixel by pixel."""
    apart = [np.linalg.norm(found[TORN] - found[TORN + k], axis=-1) for k in (-1, 1)]
    return np.concatenate([d[np.isfinite(d)] for d in apart])


def test_a_wide_crack_closes_with_pairs_and_not_without(stack, tmp_path):
    path, pairs, truth = stack
    assert align(path, tmp_path / "by_hand", "--cracks", str(pairs)) == 0
    assert align(path, tmp_path / "alone") == 0
    closed, alone = (shown(tmp_path / name, truth) for name in ("by_hand", "alone"))
    assert np.percentile(off_by(closed), 50) < 4
    assert np.percentile(off_by(closed), 97) < 6
    assert np.percentile(off_by(alone), 85) > HALF
    assert len(off_by(closed)) > 1.1 * len(off_by(alone))

    # What is left of the crack between the pairs is taken out, as its mask says.
    assert closed["crack"].sum() < 0.3 * 2 * HALF * SHAPE[1]
    run = Run.open(str(tmp_path / "by_hand"), "align")
    keep = run.store.read(Region("input_mask", run.specs["input_mask"].bounds))
    assert (keep[..., TORN][closed["crack"]] == 0).mean() > 0.95
    assert keep[..., TORN].mean() > 0.65
