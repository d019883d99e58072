"""Nets that are delivered with weights say the same whatever computes them."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.geometry import Vec3
from pipeline.nets.inference import Runner
from pipeline.nets.model import Model, load_model
from pipeline.phantom import Phantom

MODELS = Path(__file__).parents[3] / "models"
TRAINED = sorted(p.parent.name for p in MODELS.glob("*/weights.safetensors"))


def with_patch(model, patch, precision):
    inference = model.config.inference.model_copy(
        update={"patch": patch, "overlap": Vec3(0, 0, 0), "precision": precision}
    )
    return Model(model.config.model_copy(update={"inference": inference}), model.net)


@pytest.mark.parametrize("name", TRAINED)
def test_openvino_says_what_torch_says_in_float32(name):
    model = load_model(MODELS / name)
    patch = model.config.inference.patch
    if not model.config.architecture.fixed_patch:
        patch = patch.minimum(Vec3(96, 96, 32))
    phantom = Phantom(voxel_size_nm=tuple(model.config.voxel_size_nm))
    image = phantom.image((0, 0, 0), patch.astuple()).T
    masks = [image > 128] * (len(model.config.inputs) - 1)
    inputs = np.stack([image, *masks]).astype(np.uint8)

    def said(backend, precision):
        runner = Runner(with_patch(model, patch, precision), backend)
        (patch_said,) = (found.copy() for found in runner([inputs]))
        return patch_said

    exact = said("torch", "float32")
    assert np.ptp(exact) > 0.02
    np.testing.assert_allclose(said("openvino", "float32"), exact, atol=1e-4)
    low = np.abs(said("openvino", "bfloat16") - exact)
    assert low.mean() < 0.005
    assert low.max() < 0.05
