import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from pipeline.nets.config import ModelConfig
from pipeline.training.config import TrainConfig
from pipeline.training.volumes import Volume

MODEL = {
    "name": "tiny",
    "head": [
        {
            "name": "affinities",
            "kind": "affinities",
            "offsets": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        }
    ],
    "voxel_size_nm": [6.0, 6.0, 30.0],
    "architecture": {"name": "rsunet", "widths": [6, 8], "fold": [2, 2, 1]},
    "normalisation": {"mean": 128.0, "std": 50.0},
    "inference": {"patch": [24, 24, 6], "overlap": [8, 8, 2]},
}

TRAINING = {
    "seed": 3,
    "patch": [24, 24, 6],
    "save_every": 5,
    "volume": [
        {
            "name": "tissue",
            "inputs": {"image": "tissue.h5:raw"},
            "truth": {"cells": "tissue.h5:labels"},
            "voxel_size_nm": [6.0, 6.0, 30.0],
            "train": [0, 12],
            "validation": [12, 18],
        }
    ],
    "augmentation": {
        "grey": 0.5,
        "misalign": 0.4,
        "max_shift": [2],
        "missing": 0.2,
        "warp": 0.5,
        "blur": 0.2,
    },
    "optimisation": {"steps": 10, "rate": 0.01, "warmup": 2, "average": 0.9},
    "validation": {"every": 5, "patches": 2},
}


def tissue(shape, seed, name="tissue"):
    """Cells around random points, parted by dark membranes of label 0."""
    rng = np.random.default_rng(seed)
    points = np.zeros(shape, bool)
    points[tuple(rng.integers(0, n, 14) for n in shape)] = True
    _, nearest = distance_transform_edt(~points, sampling=(1, 1, 4), return_indices=True)
    labels = np.ravel_multi_index(tuple(nearest), shape).astype(np.uint16) + 1
    membrane = np.zeros(shape, bool)
    for axis in (0, 1):
        membrane |= labels != np.roll(labels, 1, axis)
    labels[membrane] = 0
    image = np.where(membrane, 60, 180) + rng.normal(0, 8, shape)
    return Volume(
        name,
        {"image": np.asfortranarray(image.clip(0, 255).astype(np.uint8))},
        {"cells": np.asfortranarray(labels)},
    )


@pytest.fixture
def model():
    return ModelConfig.model_validate(MODEL)


@pytest.fixture
def config():
    return TrainConfig.model_validate(TRAINING)


@pytest.fixture
def volume():
    return tissue((40, 44, 12), 0)


@pytest.fixture
def validation():
    return tissue((32, 32, 6), 1)


def altered(config, **sections):
    """Return a configuration with some fields of its sections replaced."""
    update = {}
    for name, value in sections.items():
        held = getattr(config, name)
        update[name] = held.model_copy(update=value) if isinstance(value, dict) else value
    return config.model_copy(update=update)


def with_heads(model, *heads, inputs=("image",)):
    """Return a model's configuration with other heads."""
    told = model.model_dump(mode="json")
    told["head"], told["inputs"] = list(heads), list(inputs)
    return ModelConfig.model_validate(told)


AFFINITIES = MODEL["head"][0]
LONG = {"name": "long", "kind": "affinities", "offsets": [[5, 0, 0], [0, 0, 2]]}
CLEFT = {"name": "cleft", "kind": "masks", "channels": ["cleft"]}
DEPTH = {"name": "depth", "kind": "distance", "channels": ["cleft"]}
KINDS = {"name": "kinds", "kind": "classes", "channels": ["axon", "dendrite", "glia"]}
