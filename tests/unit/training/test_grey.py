import numpy as np
import pytest

from pipeline.training.augmentation.grey import alter, blank, defocus, vary
from pipeline.training.config import Augmentation

SEEDS = range(20)


def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def image():
    return np.asfortranarray(rng(9).uniform(0.2, 0.8, (16, 12, 8)).astype(np.float32))


def test_grey_keeps_order_and_range(image):
    changed = [vary(rng(seed), image, 0.3) for seed in SEEDS]
    assert any(not np.allclose(c, image) for c in changed)
    for c in changed:
        assert c.dtype == np.float32
        assert c.min() >= 0
        assert c.max() <= 1
        for z in range(8):
            order = np.argsort(image[:, :, z].ravel())
            assert (np.diff(c[:, :, z].ravel()[order]) >= 0).all()


def test_grey_is_of_all_sections_alike_or_of_each_its_own(image):
    image[:] = image[:, :, :1]
    alike = [np.ptp(vary(rng(seed), image, 0.3), axis=2).max() < 1e-6 for seed in SEEDS]
    assert 0 < sum(alike) < len(alike)


def test_blur_smooths_some_sections_whole_or_in_part(image):
    shares = []
    for seed in SEEDS:
        out = defocus(rng(seed), image, Augmentation(max_blurred=3))
        moved = (out != image).mean(axis=(0, 1))
        assert 1 <= np.count_nonzero(moved) <= 3
        for z in np.flatnonzero(moved > 0.9):
            assert out[:, :, z].std() < image[:, :, z].std()
        shares += moved[moved > 0].tolist()
    assert any(s > 0.9 for s in shares)
    assert any(s < 0.9 for s in shares)


def test_what_is_missing_is_flat_where_it_is_missing(image):
    gone = np.zeros(8, bool)
    gone[[2, 5]] = True
    shares, fills = [], set()
    for seed in SEEDS:
        out = blank(rng(seed), image, gone, 0.5)
        lost = out != image
        assert not lost[:, :, ~gone].any()
        for z in np.flatnonzero(gone):
            held = np.unique(out[:, :, z][lost[:, :, z]])
            assert len(held) <= 1
            fills |= set(held.tolist())
            shares.append(lost[:, :, z].mean())
    assert shares.count(1.0) >= 8
    assert any(0 < s < 1 for s in shares)
    assert 0.0 in fills
    assert len(fills) > 4


def test_nothing_asked_is_nothing_done(image):
    found = alter(rng(0), image, np.zeros(8, bool), Augmentation())
    assert found is image


def test_inputs_stay_as_they_were(image):
    before = image.copy()
    image.flags.writeable = False
    everything = Augmentation(grey=1, blur=1)
    for seed in SEEDS:
        one, two = (alter(rng(seed), image, np.ones(8, bool), everything) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(image, before)
