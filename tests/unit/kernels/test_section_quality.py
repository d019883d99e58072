"""Which sections are out of focus or of poor contrast, beside those around them."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.kernels.section_quality import (
    NO_TILES,
    TILE,
    beside_neighbours,
    is_of_poor_contrast,
    is_out_of_focus,
    median_criteria,
    section_criteria,
)

COUNT, ODD = 12, 6


@pytest.fixture(scope="module")
def sections():
    rng = np.random.default_rng(0)
    return [texture(rng) for _ in range(COUNT)]


def texture(rng):
    """Make grey levels about as correlated as those of tissue at 12 nm."""
    fine = gaussian_filter(rng.standard_normal((200, 170)), 1.2)
    return np.clip(128 + 120 * fine, 1, 255)


def measured(images):
    criteria = [median_criteria(section_criteria(i.astype(np.uint8))) for i in images]
    return beside_neighbours(np.array(criteria))


def with_odd(sections, image):
    return [image if z == ODD else s for z, s in enumerate(sections)]


def test_like_sections_are_not_complained_about(sections):
    ratios = measured(sections)
    assert np.abs(ratios - 1).max() < 0.2
    assert not is_out_of_focus(ratios).any()
    assert not is_of_poor_contrast(ratios).any()


def test_one_that_is_blurred_is_found_whatever_its_contrast(sections):
    blurred = gaussian_filter(sections[ODD], 1.0)
    stretched = 128 + (blurred - 128) * sections[ODD].std() / blurred.std()
    for image in (blurred, np.clip(stretched, 1, 255)):
        assert np.flatnonzero(is_out_of_focus(measured(with_odd(sections, image)))) == [ODD]


def test_one_of_poor_contrast_is_found_and_is_not_out_of_focus(sections):
    ratios = measured(with_odd(sections, 90 + (sections[ODD] - 128) * 0.5))
    assert np.flatnonzero(is_of_poor_contrast(ratios)) == [ODD]
    assert not is_out_of_focus(ratios).any()


def test_borders_and_holes_do_not_count(sections):
    """Half of a section is empty, and a line of it torn: it is as sharp as the others."""
    cut = sections[ODD].copy()
    cut[:100] = 0
    cut[:, 75:77] = 0
    ratios = measured(with_odd(sections, cut))
    assert np.abs(ratios[ODD] - 1).max() < 0.25


def test_a_blank_section_is_not_known_and_spoils_no_other(sections):
    ratios = measured(with_odd(sections, np.zeros_like(sections[ODD])))
    assert np.isnan(ratios[ODD]).all()
    others = np.delete(ratios, ODD, axis=0)
    assert np.isfinite(others).all()
    assert not is_out_of_focus(ratios)[ODD]


def test_too_few_tiles_say_nothing(sections):
    assert np.isnan(median_criteria(NO_TILES)).all()
    assert np.isnan(
        median_criteria(section_criteria(sections[0][: 2 * TILE, :TILE].astype(np.uint8)))
    ).all()
