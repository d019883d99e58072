"""Bands of one orientation are taken out, everything else is kept."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.kernels.chatter import ChatterFilter, Damping
from pipeline.kernels.contrast import local_contrast
from pipeline.kernels.section_match import match_sections
from pipeline.phantom import Phantom

CHATTER = ChatterFilter(orientation=87.0, shortest=10.0, longest=24.0)
EXTENT = 160


def bands(orientation, wavelength, extent, amplitude=1.0, phase=0.0):
    """Make a wave whose bands run at an angle from x towards y [degree]."""
    turn = np.deg2rad(orientation)
    x, y = np.indices((extent, extent))
    across = y * np.cos(turn) - x * np.sin(turn)
    return amplitude * np.cos(2 * np.pi * across / wavelength + phase)


def amplitude_of(image, orientation, wavelength):
    """Return how much of a wave an image holds."""
    n = image.shape[0]
    window = np.hanning(n)[:, None] * np.hanning(n)
    parts = [
        (bands(orientation, wavelength, n, phase=p) * window * image).sum()
        for p in (0, -np.pi / 2)
    ]
    return 2 * np.hypot(*parts) / window.sum()


@pytest.fixture(scope="module")
def tissue():
    """A section with a margin of the reach of the filter on all sides."""
    n = EXTENT + 2 * CHATTER.reach
    phantom = Phantom(seed=4, voxel_size_nm=(12.0, 12.0, 40.0))
    return np.clip(phantom.image((0, 0, 0), (n, n, 1))[..., 0], 60, 190)


@pytest.fixture(scope="module")
def damping():
    return Damping(CHATTER, (EXTENT, EXTENT))


def core(image):
    return image[CHATTER.reach : -CHATTER.reach, CHATTER.reach : -CHATTER.reach]


def left_of(wave, tissue, damping):
    """Return a wave that was added to tissue and damped with it, in grey levels."""
    with_it = np.rint(tissue + wave).astype(np.uint8)
    return damping(with_it).astype(float) - damping(tissue)


@pytest.mark.parametrize("wavelength", [10.0, 13.0, 17.0, 24.0])
@pytest.mark.parametrize("turned", [-4.0, 0.0, 4.0])
def test_bands_of_the_range_are_damped_tenfold_and_more(
    wavelength, turned, tissue, damping
):
    orientation = CHATTER.orientation + turned
    wave = bands(orientation, wavelength, tissue.shape[0], amplitude=40)
    left = amplitude_of(left_of(wave, tissue, damping), orientation, wavelength)
    assert left < 40 / 20


@pytest.mark.parametrize(
    ("orientation", "wavelength"),
    [(-3, 10), (-3, 24), (132, 12), (42, 12), (87, 5), (87, 72), (132, 72), (177, 4)],
)
def test_other_bands_are_kept(orientation, wavelength, tissue, damping):
    wave = bands(orientation, wavelength, tissue.shape[0], amplitude=40)
    left = amplitude_of(left_of(wave, tissue, damping), orientation, wavelength)
    assert left == pytest.approx(40, rel=0.03)


def test_what_is_found_is_what_the_response_says(tissue, damping):
    for orientation, wavelength in ((107.0, 16.0), (87.0, 36.0), (70.0, 24.0)):
        wave = bands(orientation, wavelength, tissue.shape[0], amplitude=40)
        left = amplitude_of(left_of(wave, tissue, damping), orientation, wavelength)
        share = 1 - CHATTER.response(wavelength, orientation)
        assert left / 40 == pytest.approx(share, abs=0.03)


def test_tissue_without_bands_is_kept(tissue, damping):
    calm = damping(tissue)
    assert np.corrcoef(calm.ravel(), core(tissue).ravel())[0, 1] > 0.95
    grey = np.full_like(tissue, 77)
    assert (damping(grey) == 77).all()


def test_weights_are_those_of_the_definition(damping, tissue):
    """A pixel is its grey less the sum of the weights times the greys around."""
    weights, reach = CHATTER.kernel(), CHATTER.reach
    calm = damping(tissue)
    grey = tissue.astype(float)
    for x, y in ((0, 0), (31, 77), (EXTENT - 1, 5)):
        around = grey[x : x + 2 * reach + 1, y : y + 2 * reach + 1]
        # A convolution turns the weights about; these are the same on both sides.
        expected = grey[x + reach, y + reach] - (around * weights[::-1, ::-1]).sum()
        assert calm[x, y] == pytest.approx(expected, abs=0.51)


def test_borders_of_tissue_stay_and_bands_beside_them_are_damped(tissue, damping):
    wave = bands(87.0, 16.0, tissue.shape[0], amplitude=40)
    image = np.rint(tissue + wave).astype(np.uint8)
    image[: CHATTER.reach + 40] = 0
    calm = damping(image)
    assert not calm[:40].any()
    assert (calm[40:] > 0).all()
    strip = slice(44, 60)
    before = (core(wave))[strip].std()
    after = (calm[strip].astype(float) - core(tissue)[strip]).std()
    plain = (damping(tissue)[strip].astype(float) - core(tissue)[strip]).std()
    assert after < 0.5 * before + plain
    assert not damping(np.zeros_like(image)).any()


def test_sections_are_matched_that_chatter_hid():
    """Both have bands, at other places, that outweigh what they share."""
    rng = np.random.default_rng(2)
    chatter = ChatterFilter(30.0, 9.0, 20.0)
    n, shift = 160 + 2 * chatter.reach, (5, -7)
    both = gaussian_filter(rng.standard_normal((n, n)), 2)
    sections = []
    for by, phase in (((0, 0), 0.3), (shift, 2.9)):
        own = gaussian_filter(rng.standard_normal((n, n)), 2)
        grey = np.roll(both, by, axis=(0, 1)) + own
        wave = bands(30.0, 13.0, n, 55.0, phase)
        sections.append(np.clip(128 + 140 * grey + wave, 1, 255).astype(np.uint8))
    damping = Damping(chatter, (160, 160))
    reach = chatter.reach
    cut = [s[reach:-reach, reach:-reach] for s in sections]
    plain, calm = matched(*cut), matched(*(damping(s) for s in sections))
    assert np.linalg.norm(np.add(calm.shift, shift)) < 1
    assert calm.significance > 3
    assert calm.significance > 1.5 * plain.significance


def matched(first, second):
    shown = np.ones(first.shape, bool)
    target, section = (
        local_contrast(s, shown, fine=1.0, coarse=4.0) for s in (first, second)
    )
    return match_sections(section, shown, target, shown, angles=np.zeros(1), reach=30.0)
