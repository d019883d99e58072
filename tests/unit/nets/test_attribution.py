"""Integrated gradients add up, find what matters, and are measured as in the paper."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import DataError, GeometryError
from pipeline.geometry import Bbox, Vec3
from pipeline.nets.attribution import AttributionField, attribute, patch_around
from pipeline.nets.config import ModelConfig
from pipeline.nets.model import Model, build_net

SHAPE = (16, 12, 6)


def config_of(**changes):
    return ModelConfig.model_validate(
        {
            "name": "tiny",
            "head": [{"name": "m", "kind": "masks", "channels": ["a", "b"]}],
            "voxel_size_nm": [4.0, 5.0, 30.0],
            "architecture": {"widths": [4, 6], "activation": "elu", "convolutions": 3},
            "normalisation": {"mean": 128.0, "std": 50.0},
            "inference": {"patch": SHAPE, "overlap": [0, 0, 0], "precision": "bfloat16"},
            **changes,
        }
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = config_of()
    return Model(config, build_net(config).eval())


@pytest.fixture
def image():
    rng = np.random.default_rng(1)
    return rng.uniform(0, 255, SHAPE).astype(np.float32)


def test_contributions_add_up_to_the_difference(model, image):
    """The axiom of completeness."""
    voxel = Vec3(9, 5, 2)
    fine = attribute(model, image, voxel, 1, steps=100)
    difference = fine.said - fine.reference
    assert abs(difference) > 0.05
    assert fine.values.sum() == pytest.approx(difference, rel=0.02)
    assert fine.error == pytest.approx(fine.values.sum() - difference, abs=1e-5)
    assert abs(fine.error) < abs(attribute(model, image, voxel, 1, steps=2).error)
    float32 = model.config.inference.model_copy(update={"precision": "float32"})
    exact = Model(model.config.model_copy(update={"inference": float32}), model.net)
    assert fine.said == pytest.approx(exact.probabilities(image)[9, 5, 2, 1], rel=1e-5)


def test_of_a_linear_net_they_are_weight_times_difference():
    """What is said of a voxel then is known, and so is each contribution."""

    class Linear(nn.Module):
        def forward(self, x):
            left = torch.roll(x, 1, dims=4)
            return torch.cat([2 * x - 0.5 * left, x], dim=1) * 1e-3

    image = np.random.default_rng(2).uniform(0, 255, SHAPE).astype(np.float32)
    voxel = Vec3(9, 5, 2)
    field = attribute(Model(config_of(), Linear()), image, voxel, 0, seed=4)
    noise = np.random.default_rng(4).uniform(0, 255, SHAPE)
    expected = np.zeros(SHAPE)
    # A sigmoid near 0 rises by a quarter.
    for x, weight in ((9, 2.0), (8, -0.5)):
        expected[x, 5, 2] = weight * 1e-3 / 4 / 50 * (image[x, 5, 2] - noise[x, 5, 2])
    np.testing.assert_allclose(field.values, expected, rtol=1e-3, atol=1e-9)


def test_one_seed_gives_one_field(model, image):
    fields = [
        attribute(model, image, Vec3(9, 5, 2), 0, steps=3, seed=s).values for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(fields[0], fields[1])
    assert not np.allclose(fields[0], fields[2])


def test_other_inputs_stay_what_they_are(image):
    """Only the image moves from noise; with a cleft, the sum is still the difference."""
    torch.manual_seed(0)
    config = config_of(inputs=["image", "cleft"])
    model = Model(config, build_net(config).eval())
    both = np.stack([image, image > 100], axis=-1).astype(np.float32)
    field = attribute(model, both, Vec3(9, 5, 2), 1, steps=100)
    assert field.values.shape == SHAPE
    assert field.values.sum() == pytest.approx(field.said - field.reference, rel=0.02)


def test_the_area_is_that_of_the_paper():
    values = np.zeros((4, 4, 2), np.float32)
    values[0, 0, 1], values[1, 0, 1], values[2, 0, 1], values[3, 3, 0] = 8, 0.1, -4, 8
    field = AttributionField(values, Vec3(0, 0, 1), 1, 0)
    assert field.relative.max() == 1
    assert field.relative.min() == -0.5
    assert field.area_nm2(0.01, (4, 5, 30)) == 2 * 20
    assert field.area_nm2(0.5, (4, 5, 30)) == 1 * 20
    nothing = AttributionField(np.zeros_like(values), Vec3(0, 0, 0), 0, 0)
    assert nothing.area_nm2(0.01, (4, 5, 30)) == 0


def test_what_is_not_in_the_patch_is_refused(model, image):
    with pytest.raises(GeometryError, match=r"voxel \(16, 5, 2\) is not in the patch"):
        attribute(model, image, Vec3(16, 5, 2), 0)
    with pytest.raises(DataError, match="does not divide by"):
        attribute(model, image[:15], Vec3(9, 5, 2), 0)


@pytest.mark.parametrize(
    ("voxel", "bounds", "expected"),
    [
        ((50, 50, 50), "0,0,0,99,99,99", "42,44,47,58,56,53"),
        ((0, 98, 50), "0,0,0,99,99,99", "0,87,47,16,99,53"),
        ((-3, 1, 9), "-5,0,8,10,9,10", "-5,0,8,9,8,10"),
    ],
)
def test_a_patch_lies_around_the_voxel_and_inside(voxel, bounds, expected):
    found = patch_around(Vec3(*voxel), Bbox.parse(bounds), config_of())
    assert found == Bbox.parse(expected)


def test_an_image_too_small_is_refused():
    with pytest.raises(GeometryError, match=r"smaller than \(2, 2, 1\)"):
        patch_around(Vec3(0, 0, 0), Bbox.of_shape((1, 9, 9)), config_of())
    fixed = config_of(
        architecture={"name": "cleftnet", "widths": [4, 6], "pool": [[2, 2, 2]]}
    )
    with pytest.raises(GeometryError, match=r"smaller than \(16, 12, 6\)"):
        patch_around(Vec3(0, 0, 0), Bbox.of_shape((14, 12, 6)), fixed)
    with pytest.raises(GeometryError, match="is not in the image"):
        patch_around(Vec3(20, 0, 0), Bbox.of_shape(SHAPE), fixed)
