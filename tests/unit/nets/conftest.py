import hashlib

import pytest
import torch

from pipeline.nets.config import ModelConfig
from pipeline.nets.model import build_net, load_model, pack_weights

MODEL_TOML = """
name = "tiny"
voxel_size_nm = [6.0, 6.0, 30.0]
sha256 = ""

[architecture]
widths = [4, 6]
fold = [2, 2, 1]

[normalisation]
mean = 128.0
std = 50.0

[inference]
patch = [16, 12, 6]
overlap = [6, 4, 2]
precision = "float32"

[[head]]
name = "affinities"
kind = "affinities"
offsets = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
"""


@pytest.fixture
def model_toml():
    return MODEL_TOML


@pytest.fixture
def directory(tmp_path):
    """A whole model's folder."""
    (tmp_path / "model.toml").write_text(MODEL_TOML)
    torch.manual_seed(7)
    content = pack_weights(build_net(ModelConfig.load(tmp_path)).state_dict())
    (tmp_path / "weights.safetensors").write_bytes(content)
    sha = hashlib.sha256(content).hexdigest()
    (tmp_path / "model.toml").write_text(
        MODEL_TOML.replace('sha256 = ""', f'sha256 = "{sha}"')
    )
    return tmp_path


@pytest.fixture
def model(directory):
    return load_model(directory)
