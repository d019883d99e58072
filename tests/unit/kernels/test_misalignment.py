"""Slips and steps are what the paper calls so; drawing keeps nothing from something."""

import numpy as np
import pytest

from pipeline.kernels.draw import draw
from pipeline.kernels.misalignment import (
    SLIP,
    STEP,
    aligned_blocks,
    block_correlation,
    classify,
)

from .test_sections import texture

BLOCK = 8


def stack(shifts):
    """The same tissue in every section, shifted along x."""
    image = texture(1, (96, 96))
    return np.stack([np.roll(image, s, axis=0) for s in shifts], axis=-1)


def classified(image, section, distance=3):
    def is_aligned(low, high):
        correlation = block_correlation(image[..., low], image[..., high], BLOCK)
        return aligned_blocks(correlation, least=0.3, around=3)

    shown = image[::BLOCK, ::BLOCK] > 0
    return classify(is_aligned, shown, section, distance)


@pytest.mark.parametrize("section", range(2, 6))
def test_a_section_out_of_line_is_a_slip(section):
    found = classified(stack([0, 0, 0, 0, 17, 0, 0, 0]), section)
    assert (found == (SLIP if section == 4 else 0)).all()


@pytest.mark.parametrize("section", range(2, 6))
def test_a_shift_that_stays_is_a_step(section):
    found = classified(stack([0, 0, 0, 0, 17, 17, 17, 17]), section)
    assert (found == (STEP if section == 4 else 0)).all()


def test_missing_sections_are_passed_over():
    image = stack([0, 0, 0, 0, 17, 17, 17])
    image[..., 3] = 0
    assert (classified(image, 4) == STEP).all()
    assert (classified(image, 4, distance=1) == 0).all()


def test_half_a_section_slips():
    image = stack([0] * 7)
    image[:48, :, 3] = np.roll(image, 17, axis=0)[:48, :, 3]
    found = classified(image, 3)
    assert (found[:5] == SLIP).all()
    assert (found[7:] == 0).all()


def test_correlation_is_that_of_what_is_left_without_the_mean():
    a, b = texture(2, (64, 64)), texture(3, (64, 64))
    assert block_correlation(a, a, BLOCK) == pytest.approx(1.0, abs=1e-6)
    assert abs(block_correlation(a, b, BLOCK).mean()) < 0.15
    shaded = np.clip(a.astype(int) + np.arange(64)[:, None] // 2, 1, 255).astype(np.uint8)
    assert np.median(block_correlation(a, shaded, BLOCK)) > 0.95
    hidden = a.copy()
    hidden[:8, :8] = 0
    assert block_correlation(a, hidden, BLOCK)[0, 0] == -2


# -- drawing --------------------------------------------------------------------------


def grid(shape, offset=(0.0, 0.0)):
    x, y = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.stack([x, y], axis=-1) + np.array(offset, np.float64)


@pytest.mark.parametrize("how", ["nearest", "linear", "lanczos"])
def test_pixels_are_drawn_as_they_are(how):
    image = texture(4, (20, 17))
    np.testing.assert_array_equal(draw(image, grid((20, 17)), (0, 0), how), image)


@pytest.mark.parametrize("how", ["nearest", "linear", "lanczos"])
def test_a_box_is_drawn_as_the_whole_is(how):
    image = texture(5, (40, 40))
    points = grid((8, 8), (15.3, 14.7))
    whole = draw(image, points, (0, 0), how)
    np.testing.assert_array_equal(draw(image[10:30, 9:31], points, (10, 9), how), whole)


def test_halfway_is_the_mean():
    image = np.full((4, 4), 100, np.uint8)
    image[2:] = 200
    assert draw(image, np.array([[1.5, 1.0]]), (0, 0), "linear").tolist() == [150]


def test_lanczos_keeps_more_of_what_is_fine():
    x = np.arange(64)
    image = np.repeat((128 + 90 * np.sin(x * 1.6))[:, None], 64, axis=1).astype(np.uint8)
    points = grid((40, 20), (10.5, 10.0))
    expected = 128 + 90 * np.sin((np.arange(40) + 10.5) * 1.6)
    off = [
        np.abs(draw(image, points, (0, 0), how)[:, 5] - expected).mean()
        for how in ("lanczos", "linear")
    ]
    assert off[0] < 0.4 * off[1]


@pytest.mark.parametrize("how", ["linear", "lanczos"])
def test_nothing_is_not_mixed_with_something(how):
    image = np.zeros((20, 20), np.uint8)
    image[10:] = 90
    drawn = draw(image, grid((20, 20), (0.4, 0.0)), (0, 0), how)
    assert set(np.unique(drawn)) == {0, 90}
