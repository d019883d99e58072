import subprocess
import sys

import pytest

from pipeline.errors import ModelError
from pipeline.geometry import Vec3
from pipeline.nets import ModelConfig


def write(tmp_path, text):
    (tmp_path / "model.toml").write_text(text)
    return tmp_path


def test_reads_what_is_written(tmp_path, model_toml):
    config = ModelConfig.load(write(tmp_path, model_toml))
    assert config.inference.stride == Vec3(10, 8, 4)
    assert config.architecture.granule == Vec3(4, 4, 1)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "tiny"', 'name = "tiny"\ncolour = 3', "colour"),
        ("std = 50.0", "std = 0.0", "normalisation.std"),
        ("overlap = [6, 4, 2]", "overlap = [6, 12, 2]", "overlap"),
        ("patch = [16, 12, 6]", "patch = [16, 14, 6]", "divide by (4, 4, 1)"),
        ("fold = [2, 2, 1]", "fold = [2, 2]", "three integers"),
        ('sha256 = ""', 'sha256 = "abc"', "sha256"),
        ("[architecture]", "[architecture", "not TOML"),
    ],
)
def test_a_fault_is_named(tmp_path, model_toml, old, new, says):
    assert old in model_toml
    with pytest.raises(ModelError) as caught:
        ModelConfig.load(write(tmp_path, model_toml.replace(old, new)))
    assert says in str(caught.value)
    assert "model.toml" in str(caught.value)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        ModelConfig.load(tmp_path)


def test_the_digest_follows_every_field(tmp_path, model_toml):
    config = ModelConfig.load(write(tmp_path, model_toml))
    again = ModelConfig.load(write(tmp_path, model_toml))
    other = ModelConfig.load(write(tmp_path, model_toml.replace("50.0", "51.0")))
    weights = config.model_copy(update={"sha256": "0" * 64})
    assert config.digest == again.digest
    assert len({config.digest, other.digest, weights.digest}) == 3


def test_planning_does_not_load_torch():
    code = "import sys, pipeline.nets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_architecture_without_a_name_is_the_residual_net(tmp_path, model_toml):
    config = ModelConfig.load(write(tmp_path, model_toml))
    named = model_toml.replace("[architecture]", '[architecture]\nname = "rsunet"')
    assert ModelConfig.load(write(tmp_path, named)) == config
    again = ModelConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.digest == config.digest


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ('name = "transformer"', "architecture"),
        ('name = "unet2d"\nfold = [2, 2, 1]', "architecture.unet2d.fold"),
        ('name = "cleftnet"\nwidths = [4, 6]', "1 steps of pooling"),
        ("widths = [4, 6]\ntop_kernel = [2, 3, 3]", "has no middle"),
        ('name = "linknet"\nencoder = 19', "architecture.linknet.encoder"),
        ('name = "unet2d"\nwidths = [2, 2, 2, 2, 2]', "divide by (16, 16, 1)"),
    ],
)
def test_a_fault_of_an_architecture_is_named(tmp_path, model_toml, written, says):
    text = model_toml.replace("widths = [4, 6]\nfold = [2, 2, 1]", written)
    assert text != model_toml
    with pytest.raises(ModelError) as caught:
        ModelConfig.load(write(tmp_path, text))
    assert says in str(caught.value)


def test_a_patch_too_small_to_be_normalised_is_refused(tmp_path, model_toml):
    text = model_toml.replace(
        "widths = [4, 6]\nfold = [2, 2, 1]", 'name = "unet2d"\nwidths = [4, 6, 8]'
    )
    ModelConfig.load(write(tmp_path, text))
    small = text.replace("[16, 12, 6]", "[4, 4, 6]").replace("[6, 4, 2]", "[0, 0, 0]")
    assert small != text
    with pytest.raises(ModelError, match="leaves one value at the coarsest depth"):
        ModelConfig.load(write(tmp_path, small))
    batch = small.replace('name = "unet2d"', 'name = "unet2d"\nnorm = "batch"')
    ModelConfig.load(write(tmp_path, batch))


SEMANTIC = """
[[head]]
name = "semantic"
kind = "classes"
channels = ["soma", "axon"]
"""


def test_an_output_goes_by_head_and_channel(tmp_path, model_toml):
    config = ModelConfig.load(write(tmp_path, model_toml + SEMANTIC))
    assert config.channel_of(None) == (0, "affinities/1,0,0")
    assert config.channel_of("affinities/0,0,1") == (2, "affinities/0,0,1")
    assert config.channel_of("semantic") == (3, "semantic/soma")
    assert config.channel_of("semantic/axon") == (4, "semantic/axon")
    with pytest.raises(ModelError, match="has no channel glia; it has soma and axon"):
        config.channel_of("semantic/glia")
    with pytest.raises(ModelError, match="has no head myelin"):
        config.channel_of("myelin")
