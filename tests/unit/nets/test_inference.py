import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.nets.inference import predict, quantise
from pipeline.nets.patches import bump, patches_touching, read_box

BOUNDS = Bbox.of_shape((37, 25, 11), Vec3(-5, 100, 3))


@pytest.fixture
def image():
    rng = np.random.default_rng(3)
    return np.asfortranarray(rng.integers(1, 256, BOUNDS.shape.astuple(), dtype=np.uint8))


def ask(model, image, core, bounds=BOUNDS):
    read = read_box(core, bounds, model.config.inference)
    pixels = image[read.slices(bounds.start)]
    return predict(model, pixels, read=read, core=core, bounds=bounds)


def slowly(model, image, bounds):
    """Blend by the definition: every patch of the grid, in float64."""
    weight = bump(model.config.inference.patch).astype(np.float64)[..., None]
    total = np.zeros((*bounds.shape, 3))
    weights = np.zeros((*bounds.shape, 1))
    for patch in patches_touching(bounds, bounds, model.config.inference):
        at = patch.slices(bounds.start)
        total[at] += weight * model.probabilities(image[at].astype(np.float32))
        weights[at] += weight
    return total / weights


def test_is_the_weighted_mean_of_its_patches(model, image):
    np.testing.assert_allclose(
        ask(model, image, BOUNDS), slowly(model, image, BOUNDS), rtol=1e-5
    )


@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(chunk=st.tuples(st.integers(8, 40), st.integers(8, 40), st.integers(3, 12)))
def test_chunked_equals_whole(model, image, chunk):
    whole = ask(model, image, BOUNDS)
    parts = np.full_like(whole, np.nan)
    grid = Grid(BOUNDS, Vec3(*chunk))
    for key in Grid.keys(grid):
        core = grid.box(key)
        parts[core.slices(BOUNDS.start)] = ask(model, image, core)
    np.testing.assert_array_equal(parts, whole)


def test_a_read_box_one_voxel_short_is_refused(model, image):
    core = Bbox.of_shape((8, 8, 3), Vec3(5, 105, 6))
    read = read_box(core, BOUNDS, model.config.inference)
    short = Bbox(read.start + Vec3(1, 0, 0), read.stop)
    pixels = image[short.slices(BOUNDS.start)]
    with pytest.raises(DataError, match="needs an image of"):
        predict(model, pixels, read=short, core=core, bounds=BOUNDS)


@pytest.mark.parametrize("other", [np.float32, np.uint16])
def test_another_dtype_is_refused(model, image, other):
    with pytest.raises(DataError, match="give uint8"):
        predict(model, image.astype(other), read=BOUNDS, core=BOUNDS, bounds=BOUNDS)


def test_a_wider_image_changes_nothing(model, image):
    core = Bbox.of_shape((6, 6, 3), Vec3(2, 105, 6))
    wide = predict(model, image, read=BOUNDS, core=core, bounds=BOUNDS)
    np.testing.assert_array_equal(wide, ask(model, image, core))


def test_bounds_smaller_than_a_patch_are_mirrored(model, image):
    bounds = Bbox.of_shape((5, 25, 2))
    pixels = image[:5, :, :2]
    said = ask(model, pixels, bounds, bounds)
    assert said.shape == (5, 25, 2, 3)
    padded = np.pad(pixels, ((0, 11), (0, 0), (0, 4)), mode="symmetric")
    expected = slowly(model, padded, Bbox.of_shape(padded.shape))
    np.testing.assert_allclose(said, expected[:5, :, :2], rtol=1e-5)


def test_blank_patches_give_zero_and_do_not_run(model, image):
    calls = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    assert not ask(model, np.zeros_like(image), BOUNDS).any()
    assert not calls
    image[:20] = 0
    said = ask(model, image, BOUNDS)
    assert not said[:9].any()
    assert said[30:].all()
    assert calls


def test_threads_are_one_inside_and_restored(model, image):
    seen = []
    model.net.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ask(model, image, BOUNDS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_input_is_not_written(model, image):
    image.flags.writeable = False
    ask(model, image, BOUNDS)


def test_the_model_cannot_be_changed(model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.net = None


def test_quantise_rounds():
    said = np.array([0, 0.5 / 255 + 1e-4, 0.999, 1], np.float32)
    np.testing.assert_array_equal(quantise(said), [0, 1, 255, 255])
    assert quantise(np.zeros((2, 3, 4, 3), np.float32, order="F")).flags.f_contiguous
