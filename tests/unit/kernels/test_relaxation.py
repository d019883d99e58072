"""Patches find their shift, tears keep sides apart, tissue is told from distortion."""

import numpy as np
import pytest
from numpy.random import default_rng

from pipeline.kernels.contrast import local_contrast
from pipeline.kernels.patch_match import PatchGrid, match_patches, patches_of, windows_of
from pipeline.kernels.relaxation import Stiffness, relax, spread

from .test_sections import texture

GRID = PatchGrid(step=16, patch=32, search=8)


def matched(section, other, torn=None):
    """Match patches around a grid of points well within the border."""
    x = np.arange(40, 110, 16)
    middles = np.stack(np.meshgrid(x, x[:4], indexing="ij"), axis=-1).reshape(-1, 2)
    torn = np.zeros(section.shape, bool) if torn is None else torn
    shown = (section > 0) & ~torn
    values = local_contrast(section, shown, fine=1.0, coarse=5.0)[..., None]
    target = local_contrast(other, other > 0, fine=1.0, coarse=5.0)[..., None]
    patches = patches_of(values, shown, torn, middles, GRID)
    return middles, *match_patches(patches, windows_of(target, other > 0, middles, GRID))


def test_patches_find_their_shift():
    image = texture(1)
    _, shift, trust = matched(image, np.roll(image, (3, -5), axis=(0, 1)))
    np.testing.assert_allclose(shift, np.broadcast_to((3, -5), shift.shape), atol=0.1)
    assert trust.min() > 0.3


def test_both_sides_of_a_crack_are_followed():
    """The right half lies four pixels further; a crack parts the halves."""
    image = texture(2)
    other = image.copy()
    other[76:] = np.roll(image, 4, axis=0)[76:]
    torn = np.zeros(image.shape, bool)
    torn[70:76] = True
    middles, shift, trust = matched(image, other, torn)
    near = np.abs(middles[:, 0] - 73) < 24
    left, right = near & (middles[:, 0] < 70), near & (middles[:, 0] > 76)
    assert left.any()
    assert right.any()
    assert np.abs(shift[left & (trust > 0.1), 0]).max() < 0.5
    assert np.abs(shift[right & (trust > 0.1), 0] - 4).max() < 0.5


def test_strange_tissue_is_not_trusted():
    _, _, alike = matched(texture(3), texture(3))
    _, _, trust = matched(texture(3), texture(4))
    assert np.median(trust) < 0.2 * np.median(alike)


def test_channels_that_say_the_same_change_nothing_and_others_help():
    """Two channels of which one is strange: the shift is that of the one that agrees."""
    image, other = texture(5), np.roll(texture(5), (2, 3), axis=(0, 1))
    x = np.arange(40, 110, 16)
    middles = np.stack(np.meshgrid(x, x[:4], indexing="ij"), axis=-1).reshape(-1, 2)
    whole, torn = np.ones(image.shape, bool), np.zeros(image.shape, bool)

    def contrasts(*images):
        return np.stack(
            [local_contrast(i, whole, fine=1.0, coarse=5.0) for i in images], -1
        )

    def found(here, there):
        patches = patches_of(here, whole, torn, middles, GRID)
        return match_patches(patches, windows_of(there, whole, middles, GRID))

    one = found(contrasts(image), contrasts(other))
    twice = found(contrasts(image, image), contrasts(other, other))
    np.testing.assert_allclose(one[0], twice[0], atol=1 / 64)
    mixed, _ = found(contrasts(image, texture(6)), contrasts(other, texture(7)))
    np.testing.assert_allclose(mixed, np.broadcast_to((2, 3), mixed.shape), atol=1.5)
    strange, _ = found(contrasts(image), contrasts(texture(7)))
    assert np.abs(strange - (2, 3)).max() > 3


# -- relaxation -----------------------------------------------------------------------

SECTIONS, NODES = 14, (7, 6)


def shifts_of(displacement, drift=None, wrong=()):
    """Say exactly how nodes lie on sections near; tissue drifts from section to section."""
    drift = np.zeros((*NODES, SECTIONS, 2)) if drift is None else drift
    found = {}
    for a in range(SECTIONS):
        for b in (a - 2, a - 1, a + 1, a + 2):
            if 0 <= b < SECTIONS:
                shift = displacement[:, :, a] - displacement[:, :, b]
                low, high = sorted((a, b))
                moved = drift[:, :, low:high].sum(axis=2)
                shift = shift + (moved if a > b else -moved)
                found[a, b] = (shift, np.full(NODES, 0.3))
    for pair in wrong:
        found[pair] = (found[pair][0] + 30.0, found[pair][1])
    return found


JOINED = np.ones((*NODES, SECTIONS, 2), bool)


@pytest.fixture
def jitter():
    """Independent of one another, and the same all over a section, but for a slope."""
    rng = default_rng(5)
    level = rng.normal(0, 4, (1, 1, SECTIONS, 2))
    slope = rng.normal(0, 0.3, (1, 1, SECTIONS, 2))
    found = level + slope * np.arange(NODES[0])[:, None, None, None]
    return np.broadcast_to(found, (*NODES, SECTIONS, 2)).copy()


def rest(found, wanted):
    """What is left between sections that follow one another."""
    return np.diff(found - wanted, axis=2)


def test_jitter_is_undone(jitter):
    found = relax(shifts_of(jitter), JOINED, spacing=64.0, stiffness=Stiffness())
    assert np.abs(rest(found, jitter)).mean() < 0.12 * np.abs(rest(0, jitter)).mean()


def test_a_steady_drift_of_tissue_is_left_alone(jitter):
    drift = np.zeros((*NODES, SECTIONS, 2))
    drift[2:5, :, :, 0] = 3.0
    shifts = shifts_of(jitter, drift)
    found = relax(shifts, JOINED, spacing=64.0, stiffness=Stiffness())
    upright = relax(shifts, JOINED, spacing=64.0, stiffness=Stiffness(drift_small=1e6))
    ends = (slice(2, 5), slice(None), [0, -1], 0)

    def pulled(displacement):
        off = (displacement - jitter)[ends]
        return np.abs(off[..., 1] - off[..., 0]).mean()

    assert pulled(found) < 0.4 * pulled(upright)


def test_matches_that_contradict_the_others_lose(jitter):
    honest = relax(shifts_of(jitter), JOINED, spacing=64.0, stiffness=Stiffness())
    fooled = relax(
        shifts_of(jitter, wrong={(6, 5), (5, 6)}),
        JOINED,
        spacing=64.0,
        stiffness=Stiffness(),
    )
    assert np.abs(fooled - honest).max() < 1.0


def test_a_tear_lets_sides_go_their_ways(jitter):
    torn = jitter.copy()
    torn[4:, :, 7, 0] += 12.0
    joined = JOINED.copy()
    joined[3, :, 7, 0] = False
    held = relax(shifts_of(torn), JOINED, spacing=64.0, stiffness=Stiffness(shifts=0.5))
    free = relax(shifts_of(torn), joined, spacing=64.0, stiffness=Stiffness(shifts=0.5))

    def jump(found):
        return np.abs((found - torn)[4, :, 7, 0] - (found - torn)[3, :, 7, 0]).mean()

    assert jump(free) < 0.5 * jump(held)


def test_spreading_does_not_cross_a_tear():
    torn = np.zeros((64, 48), bool)
    torn[30:33] = True
    at = np.stack(
        np.meshgrid(np.arange(8, 64, 16), np.arange(8, 48, 16), indexing="ij"), -1
    )
    at = at.reshape(-1, 2)
    displacement = np.where(at[:, :1] < 30, -5.0, 5.0) * np.ones((1, 2))
    smooth = np.zeros((64, 48, 2))
    found = spread(displacement, torn, at, smooth, rounds=64)
    assert np.allclose(found[20:30], -5.0)
    assert np.allclose(found[33:44], 5.0)
