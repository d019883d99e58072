import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from pipeline.training.augmentation.warp import (
    bend,
    draw,
    draw_grey,
    flip,
    plane_map,
    plane_maps,
    room,
    rotation,
    scale,
    shear,
    stretch,
    twist,
)
from pipeline.training.config import Augmentation

STILL = Augmentation(flip=False)
WILD = Augmentation(warp=1, rotation=180, scale=0.3, shear=0.2, stretch=0.2, bend=2)


def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def image():
    return np.asfortranarray(rng(0).integers(0, 256, (50, 40, 5), np.uint8))


def still(n):
    return np.arange(n), np.zeros((n, 2), int)


def test_the_still_map_shows_what_is_there(image):
    maps = plane_maps(rng(0), (20, 16, 5), STILL)
    assert all(m is maps[0] for m in maps)
    places = room(maps, (50, 40), 0)
    assert (places[:, 1] - places[:, 0]).tolist() == [31, 25]
    for corner in (0, 7, 24):
        middle = places[:, 0] + corner
        found = draw_grey(image, maps, middle, *still(5))
        box = image[corner : corner + 20, corner : corner + 16]
        np.testing.assert_allclose(found * 255, box, atol=1e-4)
        np.testing.assert_array_equal(draw(image, maps, middle, *still(5)), box)
        assert found.flags.f_contiguous


def test_flips_are_the_eight_ways():
    square = np.asfortranarray(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))
    ways = set()
    for seed in range(100):
        maps = plane_maps(rng(seed), (7, 7, 1), Augmentation())
        middle = room(maps, (8, 8), 0)[:, 0]
        ways.add(draw(square, maps, middle, *still(1)).tobytes())
    plain = square[:7, :7, 0]
    expected = {
        np.asfortranarray(np.rot90(turned, k)).tobytes("F")
        for k in range(4)
        for turned in (plain, plain.T)
    }
    assert len(ways) == 8
    assert ways == expected
    assert {tuple(np.abs(flip(rng(s))).ravel()) for s in range(30)} == {
        (1, 0, 0, 0, 1, 0, 0, 0, 1),
        (0, 1, 0, 1, 0, 0, 0, 0, 1),
    }


@pytest.mark.parametrize("seed", range(15))
def test_drawing_is_interpolation(image, seed):
    maps = plane_maps(rng(seed), (14, 12, 3), WILD)
    places = room(maps, (50, 40), 2)
    middle = rng(seed).integers(places[:, 0], places[:, 1])
    sections, shifts = np.array([3, 1, 4]), rng(seed).integers(-2, 3, (3, 2))
    grey = draw_grey(image, maps, middle, sections, shifts)
    near = draw(image, maps, middle, sections, shifts)
    for z in range(3):
        at = maps[z] + (middle + shifts[z])[:, None, None]
        assert at.min() >= 0
        assert (at.max(axis=(1, 2)) <= [49, 39]).all()
        section = image[:, :, sections[z]].astype(float)
        expected = map_coordinates(section, at, order=1)
        np.testing.assert_allclose(grey[:, :, z] * 255, expected, atol=0.02)
        whole = np.rint(maps[z]).astype(int) + (middle + shifts[z])[:, None, None]
        np.testing.assert_array_equal(near[:, :, z], image[whole[0], whole[1], sections[z]])


def test_every_place_in_the_room_is_inside_and_none_beside_it(image):
    for seed in range(10):
        maps = plane_maps(rng(seed), (20, 20, 2), WILD)
        places = room(maps, (50, 40), 3)
        if (places[:, 1] <= places[:, 0]).any():
            continue
        low = maps[0].min(axis=(1, 2)) + places[:, 0] - 3
        high = maps[0].max(axis=(1, 2)) + places[:, 1] - 1 + 3
        assert (low >= 0).all()
        assert (low < 1).all()
        assert (high <= [49, 39]).all()
        assert (high > [48, 38]).all()


def test_matrices_do_what_their_names_say():
    np.testing.assert_allclose(rotation(90) @ [1, 0, 1], [0, 1, 1], atol=1e-12)
    zooms = [scale(rng(s), 0.2)[0, 0] for s in range(200)]
    assert 1 / 1.2 <= min(zooms) < 0.87
    assert 1.15 < max(zooms) <= 1.2
    np.testing.assert_array_equal((shear(rng(0), 0.3) @ [5, 0, 1])[1:], [0, 1])
    assert (shear(rng(0), 0.3) @ [0, 5, 1])[0] != 0
    far = plane_map(stretch(rng(1), 0.3, (31, 31)), (31, 31))
    widths = far[0, -1] - far[0, 0]
    assert widths.max() / widths.min() > 1.05
    angles = [np.rad2deg(np.arctan2(m[1, 0], m[0, 0])) for m in twist(rng(2), 20, 6)]
    np.testing.assert_allclose(np.diff(angles), np.diff(angles)[0])
    assert abs(angles[0] + angles[-1]) < 1e-9
    assert 0 < abs(angles[-1] - angles[0]) <= 20


def test_a_bend_is_smooth_and_as_far_as_asked():
    fields = np.stack([bend(rng(s), 3.0, (64, 48)) for s in range(20)])
    assert fields.shape == (20, 2, 64, 48)
    assert 1.5 < fields.std() < 4
    assert np.abs(np.diff(fields, axis=2)).max() < 2


def test_a_coarser_net_sees_more():
    maps = plane_maps(rng(0), (10, 10, 1), STILL, ratio=(2.0, 1.5))
    assert np.ptp(maps[0][0]) == 18
    assert np.ptp(maps[0][1]) == 13.5
    fine = np.asfortranarray(np.arange(40, dtype=np.uint8)[:, None, None].repeat(40, 1))
    middle = room(maps, (40, 40), 0)[:, 0]
    np.testing.assert_allclose(
        draw_grey(fine, maps, middle, *still(1))[:, 0, 0] * 255,
        np.arange(10) * 2,
        atol=1e-4,
    )
