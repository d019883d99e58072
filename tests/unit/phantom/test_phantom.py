"""The phantom is the same from wherever one looks, and its truth is the truth."""

import hashlib
import subprocess
import sys

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import find_objects

from pipeline.phantom import Phantom

START, STOP = (-70, -45, -9), (90, 85, 14)


@pytest.fixture(scope="module")
def phantom():
    return Phantom(seed=3, missing_sections=0.1)


@pytest.fixture(scope="module")
def whole(phantom):
    return {
        "labels": phantom.labels(START, STOP),
        "image": phantom.image(START, STOP),
        "affinities": phantom.affinities(START, STOP, blur=1.2, noise=0.1),
    }


@pytest.fixture(scope="module")
def block():
    return Phantom(seed=1).labels((0, 0, 0), (320, 320, 48))


def boxes():
    def one(axis):
        return st.tuples(
            st.integers(START[axis], STOP[axis]), st.integers(START[axis], STOP[axis])
        ).map(sorted)

    return st.tuples(one(0), one(1), one(2))


@settings(max_examples=40, deadline=None)
@given(box=boxes())
def test_a_chunk_is_the_crop_of_the_whole(phantom, whole, box):
    start, stop = zip(*box, strict=True)
    crop = tuple(slice(a - s, b - s) for (a, b), s in zip(box, START, strict=True))
    found = {
        "labels": phantom.labels(start, stop),
        "image": phantom.image(start, stop),
        "affinities": phantom.affinities(start, stop, blur=1.2, noise=0.1),
    }
    for name, array in found.items():
        np.testing.assert_array_equal(array, whole[name][crop], err_msg=name)


@pytest.mark.parametrize(
    "voxel_size_nm",
    [(8.0, 8.0, 8.0), (4.0, 4.0, 50.0), (24.0, 24.0, 30.0), (7.5, 9.1, 200.0)],
)
def test_a_chunk_is_the_crop_at_any_voxel_size_and_far_away(voxel_size_nm):
    phantom = Phantom(seed=5, voxel_size_nm=voxel_size_nm)
    size = np.array([40, 36, 12])
    far = np.array([1_000_003, -2_000_001, 40_007])
    whole = phantom.image(far, far + size), phantom.labels(far, far + size)
    low, high = np.array([11, 3, 5]), np.array([31, 36, 7])
    crop = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    np.testing.assert_array_equal(phantom.image(far + low, far + high), whole[0][crop])
    np.testing.assert_array_equal(phantom.labels(far + low, far + high), whole[1][crop])


def test_another_process_that_starts_elsewhere_agrees(phantom, whole):
    """What a process has worked out before must not matter."""
    program = (
        "import hashlib\n"
        "from pipeline.phantom import Phantom\n"
        "labels = Phantom(seed=3).labels((20, 10, 2), (90, 85, 14))\n"
        "print(hashlib.sha256(labels.tobytes('F')).hexdigest())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    crop = np.asfortranarray(whole["labels"][90:, 55:, 11:])
    assert run.stdout.strip() == hashlib.sha256(crop.tobytes("F")).hexdigest()


def test_dtypes_orders_and_ranges(phantom, whole):
    labels, image, affinities = whole["labels"], whole["image"], whole["affinities"]
    assert labels.dtype == np.uint64
    assert image.dtype == np.uint8
    assert affinities.dtype == np.uint8
    assert affinities.shape == (*labels.shape, 3)
    assert all(a.flags.f_contiguous for a in (labels, image, affinities))
    assert labels.max() < 2**53
    exact = phantom.affinities((0, 0, 0), (90, 90, 4), dtype="float32")
    assert exact.dtype == np.float32
    assert set(np.unique(exact)) == {0.0, 1.0}


def test_seeds_differ_and_a_seed_does_not(phantom):
    box = (0, 0, 0), (64, 64, 8)
    first = phantom.labels(*box)
    np.testing.assert_array_equal(Phantom(seed=3).labels(*box), first)
    other = Phantom(seed=4).labels(*box)
    assert (first != other).mean() > 0.5


def test_membranes_keep_objects_apart_within_sections(block):
    for axis in (0, 1):
        moved = np.moveaxis(block, axis, 0)
        pair = moved[1:], moved[:-1]
        touching = (pair[0] != pair[1]) & (pair[0] != 0) & (pair[1] != 0)
        assert not touching.any()


def test_neuropil_is_dense_and_of_many_objects(block):
    assert 0.05 < (block == 0).mean() < 0.25
    assert len(np.unique(block)) > 40


def test_each_object_is_one_piece_but_where_the_block_cuts_it(block):
    pieces = cc3d.connected_components(block, connectivity=6)
    size = np.bincount(pieces.ravel("K"))
    label = np.zeros(len(size), dtype=np.uint64)
    label[pieces.ravel("K")] = block.ravel("K")
    at_border = np.zeros(len(size), dtype=bool)
    for axis in range(3):
        faces = np.moveaxis(pieces, axis, 0)
        at_border[faces[0]] = at_border[faces[-1]] = True

    largest = {}
    for piece in range(1, len(size)):
        largest[label[piece]] = max(size[piece], largest.get(label[piece], 0))
    assert sum(largest.values()) / size[1:].sum() >= 0.95
    crumbs = sum(
        size[i]
        for i in range(1, len(size))
        if not at_border[i] and size[i] < largest[label[i]]
    )
    assert crumbs / size[1:].sum() < 1e-5


def test_neurites_are_long():
    """Many go on for hundreds of voxels of 6 nm, far beyond the cells they grow from."""
    size_nm = np.array([24.0, 24.0, 30.0])
    labels = Phantom(seed=1, voxel_size_nm=tuple(size_nm)).labels(
        (0, 0, 0), (160, 160, 128)
    )
    _, small = np.unique(labels, return_inverse=True)
    boxes = find_objects(small.reshape(labels.shape))
    extents = [
        max((s.stop - s.start) * v for s, v in zip(b, size_nm, strict=True)) for b in boxes
    ]
    assert sum(extent > 2500 for extent in extents) >= 10


def test_tissue_is_the_same_at_every_voxel_size():
    fine = Phantom(seed=2, voxel_size_nm=(6, 6, 30)).labels((0, 0, 0), (96, 96, 9))
    coarse = Phantom(seed=2, voxel_size_nm=(18, 18, 90)).labels((0, 0, 0), (32, 32, 3))
    same = fine[1::3, 1::3, 1::3] == coarse
    assert same.mean() > 0.95


def test_membranes_are_darker_than_cytoplasm(block):
    image = Phantom(seed=1).image((0, 0, 0), (320, 320, 12))
    inside = block[:, :, :12] > 0
    assert image[~inside].mean() + 30 < image[inside].mean()
    assert 20 < image.std() < 60


def test_missing_sections_are_black_and_others_are_not():
    phantom = Phantom(seed=1, missing_sections=0.3)
    image = phantom.image((0, 0, 0), (16, 16, 60))
    blank = (image == 0).all(axis=(0, 1))
    assert 5 < blank.sum() < 35
    assert (image[:, :, ~blank] > 0).all()


def test_section_noise_changes_sections_and_0_leaves_them_alike():
    box = (0, 0, 0), (96, 96, 16)
    even = Phantom(section_noise=0.0).image(*box).mean(axis=(0, 1))
    uneven = Phantom(section_noise=2.0).image(*box).mean(axis=(0, 1))
    assert uneven.std() > 2 * even.std()


def test_affinities_of_the_truth_are_the_truth():
    phantom = Phantom(seed=6)
    start, stop = (-5, 3, 0), (90, 80, 10)
    affinities = phantom.affinities(start, stop)
    labels = phantom.labels([v - 1 for v in start], stop)
    here = labels[1:, 1:, 1:]
    before = labels[:-1, 1:, 1:], labels[1:, :-1, 1:], labels[1:, 1:, :-1]
    for axis in range(3):
        joined = (here == before[axis]) & (here != 0)
        np.testing.assert_array_equal(affinities[..., axis], 255 * joined)


def test_blur_and_noise_do_what_they_say():
    phantom = Phantom(seed=6)
    box = (0, 0, 0), (120, 120, 8)
    exact = phantom.affinities(*box, dtype="float32")
    blurred = phantom.affinities(*box, blur=2.0, dtype="float32")
    assert abs(blurred.mean() - exact.mean()) < 0.01
    assert blurred.std() < exact.std()
    # at half way nothing is clipped, so the noise shows in full
    half = np.abs(blurred - 0.5) < 0.1
    noisy = phantom.affinities(*box, blur=2.0, noise=0.1, dtype="float32")
    assert (noisy - blurred)[half].std() == pytest.approx(0.1, rel=0.15)
    quantised = phantom.affinities(*box, blur=2.0, noise=0.1)
    np.testing.assert_array_equal(quantised, np.rint(255 * noisy))


@pytest.mark.parametrize("method", ["labels", "image", "affinities"])
def test_an_empty_box_is_an_empty_array(phantom, method):
    shape = getattr(phantom, method)((4, 4, 4), (9, 4, 6)).shape
    assert shape[:3] == (5, 0, 2)


@pytest.mark.parametrize("method", ["labels", "image", "affinities"])
@pytest.mark.parametrize("stop", [(9, 3, 6), (9, 9)])
def test_a_swapped_or_flat_box_is_refused(phantom, method, stop):
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) to \(9"):
        getattr(phantom, method)((4, 4, 4), stop)


def test_negative_noise_is_refused(phantom):
    with pytest.raises(ValueError, match=r"noise is -1"):
        phantom.affinities((0, 0, 0), (4, 4, 4), noise=-1.0)


@pytest.mark.parametrize(
    "field",
    [
        {"voxel_size_nm": (0, 6, 30)},
        {"missing_sections": 2},
        {"membrane": 3},
        {"spacing_nm": np.inf},
    ],
)
def test_a_phantom_that_cannot_be_is_refused(field):
    with pytest.raises(ValidationError):
        Phantom(**field)


def test_json_round_trip(phantom):
    assert Phantom.model_validate_json(phantom.model_dump_json()) == phantom
