"""Whole sections are laid on one another, and a stack is placed by its pairs."""

import cv2
import numpy as np
import pytest
from numpy.random import default_rng

from pipeline.kernels.contrast import contrast_halo, local_contrast
from pipeline.kernels.section_match import match_sections
from pipeline.kernels.section_poses import Pair, solve_poses


def texture(seed, shape=(150, 130)):
    noise = default_rng(seed).normal(size=shape).astype(np.float32)
    grey = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.clip(128 + 300 * grey, 1, 255).astype(np.uint8)


def moved(image, degrees, shift):
    """Turn about the middle and shift; 0 comes in."""
    middle = (np.array(image.shape) - 1) / 2
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    at = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
    back = (at - middle - shift) @ turn + middle
    return cv2.remap(
        image, back[..., 1].astype(np.float32), back[..., 0].astype(np.float32), 1
    )


def contrast(image):
    return local_contrast(image, image > 0, fine=1.0, coarse=5.0), image > 0


ANGLES = np.deg2rad(np.linspace(-4, 4, 17))


@pytest.mark.parametrize(
    ("degrees", "shift"), [(0, (0, 0)), (2.6, (9, -14)), (-3.2, (-20, 5))]
)
def test_turn_and_shift_are_found(degrees, shift):
    image = texture(1)
    found = match_sections(
        *contrast(image), *contrast(moved(image, degrees, shift)), angles=ANGLES, reach=30
    )
    assert np.rad2deg(found.angle) == pytest.approx(degrees, abs=0.3)
    assert found.shift == pytest.approx(shift, abs=0.5)
    assert found.significance > 10


def test_what_is_hidden_does_not_count():
    image = texture(2)
    other = moved(image, 0, (6, 4))
    other[:, 60:] = texture(3)[:, 60:]
    shown = np.zeros(other.shape, bool)
    shown[:, :60] = True
    values = local_contrast(other, shown, fine=1.0, coarse=5.0)
    found = match_sections(*contrast(image), values, shown, angles=np.zeros(1), reach=30)
    assert found.shift == pytest.approx((6, 4), abs=0.5)
    assert found.correlation > 0.5


def test_strangers_are_not_significant():
    found = match_sections(
        *contrast(texture(4)), *contrast(texture(5)), angles=ANGLES, reach=30
    )
    assert found.significance < 2


def test_a_blank_section_matches_nothing():
    blank = np.zeros((150, 130), np.uint8)
    assert (
        match_sections(*contrast(blank), *contrast(texture(1)), angles=ANGLES, reach=9)
        is None
    )


def test_contrast_does_not_depend_on_exposure_or_the_box():
    image = texture(6)
    whole, _ = contrast(image)
    darker, _ = contrast((image // 2 + 20).astype(np.uint8))
    assert np.corrcoef(whole.ravel(), darker.ravel())[0, 1] > 0.98
    halo = contrast_halo(5.0)
    part, _ = contrast(image[10:, 20:])
    inside = (slice(10 + halo, -halo), slice(20 + halo, -halo))
    np.testing.assert_array_equal(part[halo:-halo, halo:-halo], whole[inside])


# -- poses ----------------------------------------------------------------------------


def pairs_of(angles, shifts, wrong=()):
    """Say exactly how sections lie on those one and two before, but for some."""
    pairs = []
    for a in range(len(angles)):
        for b in (a - 1, a - 2):
            if b < 0:
                continue
            turn = angles[a] - angles[b]
            c, s = np.cos(-angles[b]), np.sin(-angles[b])
            x, y = np.array(shifts[a]) - shifts[b]
            shift = (c * x - s * y, s * x + c * y)
            if (a, b) in wrong:
                shift = (shift[0] + 900.0, shift[1])
            pairs.append(Pair(a, b, turn, shift, 8.0))
    return pairs


def test_poses_are_those_of_the_pairs():
    rng = default_rng(0)
    angles, shifts = rng.normal(0, 0.03, 12), rng.normal(0, 200, (12, 2))
    found = solve_poses(12, pairs_of(angles, shifts), scale_nm=50)
    assert found.placed.all()
    np.testing.assert_allclose(found.angle, angles - angles.mean(), atol=1e-4)
    assert found.misfit_nm.max() < 1.0
    assert found.weight.min() > 0.9


def test_a_pair_that_contradicts_the_others_is_an_outlier():
    rng = default_rng(1)
    angles, shifts = np.zeros(12), rng.normal(0, 200, (12, 2))
    pairs = pairs_of(angles, shifts, wrong={(4, 2), (9, 7)})
    found = solve_poses(12, pairs, scale_nm=50)
    wrong = np.array([(p.section, p.other) in {(4, 2), (9, 7)} for p in pairs])
    assert found.weight[wrong].max() < 0.1 < 0.8 < found.weight[~wrong].min()
    off = found.shift - found.shift.mean(axis=0) - (shifts - shifts.mean(axis=0))
    assert np.abs(off).max() < 5


def test_a_section_that_nothing_ties_is_not_placed():
    angles, shifts = np.zeros(6), np.zeros((6, 2))
    pairs = [p for p in pairs_of(angles, shifts) if 3 not in (p.section, p.other)]
    found = solve_poses(6, pairs, scale_nm=50)
    assert found.placed.tolist() == [True, True, True, False, True, True]
