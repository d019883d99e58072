"""Loose sections: what is put back by the true field is the tissue again."""

from dataclasses import replace

import cv2
import h5py
import numpy as np
import pytest

from pipeline.errors import DataError, StaleOutputError
from pipeline.geometry import Bbox
from pipeline.layers.sources import open_source
from pipeline.phantom.loose import Loosening, _pixels, _Smooth, _Tear, loosen
from pipeline.runtime.simulate import simulate_stack

SHAPE = (256, 192)
STILL = {"shift": 0, "rotation": 0, "elastic": (), "grey": 0, "blurred": 0, "missing": 0}


@pytest.fixture(scope="module")
def tissue():
    noise = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.asfortranarray(np.clip(128 + 400 * smooth, 5, 250).astype(np.uint8))


def put_back(found):
    """Look the tissue up through the field."""
    at = found.field + _pixels(found.image.shape)
    x, y = np.ascontiguousarray(at[..., 1]), np.ascontiguousarray(at[..., 0])
    return cv2.remap(found.image.astype(np.float32), x, y, cv2.INTER_LINEAR)


def test_nothing_is_done_to_a_section_that_nothing_happens_to(tissue):
    found = loosen(tissue, 0, Loosening(defects=0, **STILL))
    assert np.array_equal(found.image, tissue)
    assert not found.field.any()
    assert not found.lost.any()


@pytest.mark.parametrize("defects", [0.0, 1.0])
@pytest.mark.parametrize("section", range(6))
def test_the_true_field_puts_the_tissue_back(tissue, section, defects):
    settings = Loosening(
        seed=4, shift=12, defects=defects, grey=0, blurred=0, width=(6, 14)
    )
    found = loosen(tissue, section, settings)
    kept = cv2.erode((~found.lost).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    # At the border of the tissue the canvas shows half of it and half of nothing.
    kept[[0, -1]] = kept[:, [0, -1]] = False
    # Beside a crack or a fold the picture is shaded.
    marked = found.masks["fold"] | found.masks["crack"]
    shaded = cv2.dilate(marked.astype(np.uint8), np.ones((13, 13), np.uint8))
    seen = put_back(replace(found, image=shaded)) == 0
    assert (kept & seen).mean() > 0.5
    wrong = np.abs(put_back(found) - tissue)[kept & seen]
    assert np.percentile(wrong, 99) < 4
    assert marked.any() == (defects > 0)


def test_a_crack_parts_the_tissue_by_its_width():
    tear = _Tear(
        kind="crack",
        through=np.array([50.0, 0.0]),
        along=np.array([0.0, 1.0]),
        normal=np.array([1.0, 0.0]),
        curve=np.zeros(400),
        width=np.full(400, 10.0),
        ridge=0.5,
    )
    points = np.array([[[49.0, 7.0], [50.0, 7.0]]], np.float32)
    assert tear.opened(points)[0, :, 0].tolist() == [44.0, 55.0]
    assert not tear.hides(points).any()
    assert tear.inside(tear.opened(points) + np.float32([[2, 0], [-2, 0]])).all()
    assert not tear.inside(tear.opened(points)).any()


def test_a_fold_hides_what_it_is_wide():
    tear = _Tear(
        kind="fold",
        through=np.array([50.0, 0.0]),
        along=np.array([0.0, 1.0]),
        normal=np.array([1.0, 0.0]),
        curve=np.zeros(400),
        width=np.full(400, 20.0),
        ridge=0.5,
    )
    points = np.array([[[20.0, 0.0], [50.0, 0.0], [80.0, 0.0]]], np.float32)
    # Both sides come nearer by half of what is hidden.
    assert tear.opened(points)[0, :, 0].tolist() == [30.0, 50.0, 70.0]
    assert tear.hides(points)[0].tolist() == [False, True, False]
    assert tear.inside(np.float32([[[45.5, 0], [44.5, 0]]]))[0].tolist() == [True, False]


@pytest.mark.parametrize("seed", range(8))
def test_opening_undoes_closing(seed):
    tear = _Tear.drawn(np.random.default_rng(seed), SHAPE, (6, 20))
    points = _pixels(SHAPE)
    tissue = tear.closed(points)
    shown = ~tear.inside(points) | (tear.kind == "fold")
    assert np.abs(tear.opened(tissue) - points)[shown].max() < 0.02


def test_the_inverse_of_the_smooth_map():
    moved = _Smooth.drawn(np.random.default_rng(1), SHAPE, Loosening())
    points = _pixels(SHAPE)
    assert np.abs(moved(moved.inverse(points)) - points).max() < 0.1


def test_a_section_does_not_depend_on_others(tissue):
    settings = Loosening(seed=9, defects=0.5)
    one = loosen(tissue, 5, settings)
    loosen(tissue, 4, settings)
    two = loosen(tissue, 5, settings)
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.field, two.field)
    other = loosen(tissue, 6, settings)
    assert not np.array_equal(one.field, other.field)


def test_missing_sections_are_inner_ones():
    gone = Loosening(seed=2, missing=3).missing_of(8)
    assert len(gone) == 3
    assert gone <= set(range(1, 7))
    assert Loosening(missing=3).missing_of(2) == frozenset()


def test_tissue_folded_over_itself_is_refused(tissue):
    with pytest.raises(ValueError, match="folds the tissue over itself"):
        loosen(tissue, 0, Loosening(elastic=((200.0, 20.0),)))


def test_a_stack_is_written_with_its_truth(tmp_path, tissue):
    with h5py.File(tmp_path / "aligned.h5", "w") as file:
        file["raw"] = np.stack([tissue.T] * 6)
    settings = Loosening(seed=1, defects=1.0, missing=1, shift=8)
    with open_source(f"{tmp_path / 'aligned.h5'}:raw") as source:
        box = Bbox.of_shape((200, 160, 5))
        given = {"box": box, "voxel_size_nm": (6.0, 6.0, 30.0), "with_fields": True}
        gone = simulate_stack(source, tmp_path / "loose.h5", settings, **given)
        with pytest.raises(StaleOutputError, match=r"loose\.h5 is there"):
            simulate_stack(source, tmp_path / "loose.h5", settings, **given)
        far = {**given, "box": Bbox.of_shape((300, 160, 5))}
        with pytest.raises(DataError, match="choose a box inside"):
            simulate_stack(source, tmp_path / "far.h5", settings, **far)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["aligned.h5", "loose.h5"]
    with h5py.File(tmp_path / "loose.h5") as file:
        assert file["image"].shape == (5, 160, 200)
        (z,) = gone
        assert not file["image"][z].any()
        assert file["lost"][z].all()
        found = loosen(np.asfortranarray(tissue[:200, :160]), 2, settings)
        assert np.array_equal(file["image"][2], found.image.T)
        assert np.array_equal(file["field"][2][..., 0], found.field[..., 0].T)
        assert np.array_equal(file["crack"][2], found.masks["crack"].T)
