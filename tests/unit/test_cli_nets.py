"""Commands that look at images and nets: em attribute and em quality."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import DataError, GeometryError, ModelError, PipelineError, RootError
from pipeline.nets.config import ModelConfig
from pipeline.nets.model import build_net, pack_weights

MODEL_TOML = """
name = "tiny"
inputs = {inputs}
voxel_size_nm = [6.0, 5.0, 30.0]
sha256 = "{sha256}"
architecture = {{ name = "unet2d", widths = [4, 6], convolutions = 1 }}
normalisation = {{ mean = 128.0, std = 50.0 }}
inference = {{ patch = [16, 12, 1], overlap = [0, 0, 0] }}

[[head]]
name = "membrane"
kind = "masks"
channels = ["membrane", "vesicle"]
"""


@pytest.fixture
def em():
    """Run the command, and let an error of ours through."""

    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if isinstance(result.exception, PipelineError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


def make_model(folder, inputs='["image"]'):
    folder.mkdir()
    (folder / "model.toml").write_text(MODEL_TOML.format(inputs=inputs, sha256=""))
    torch.manual_seed(1)
    content = pack_weights(build_net(ModelConfig.load(folder)).state_dict())
    (folder / "weights.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "model.toml").write_text(MODEL_TOML.format(inputs=inputs, sha256=sha256))
    return folder


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "tiny")


@pytest.fixture
def image(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.asfortranarray(rng.integers(1, 256, (40, 30, 4), dtype=np.uint8))
    np.save(tmp_path / "image.npy", pixels.T)  # files of this kind hold z, y, x
    return tmp_path / "image.npy"


def test_attribute_writes_fields_and_pictures(em, model, image, tmp_path):
    to = tmp_path / "fields"
    places = ("--voxel", "20,15,2", "--voxel", "39,0,0", "--output", "membrane/vesicle")
    said = em("attribute", model, image, *places, "--to", to, "--steps", 8, "--json")
    fields = json.loads(said)["fields"]
    assert [f["voxel"] for f in fields] == [[20, 15, 2], [39, 0, 0]]
    assert [f["box"] for f in fields] == ["12,9,2,28,21,3", "24,0,0,40,12,1"]
    for field in fields:
        assert field["output"] == "membrane/vesicle"
        values = np.load(field["field"])
        assert values.shape == (16, 12, 1)
        difference = field["said"] - field["reference"]
        assert values.sum() == pytest.approx(difference + field["error"], abs=1e-5)
        above = int((values / np.abs(values).max() > 0.01).sum())
        assert field["area_nm2"] == above * 6 * 5
        with Image.open(field["picture"]) as picture:
            assert np.asarray(picture).std() > 10
    before = np.load(to / "20_15_2.npy")
    table = em(
        "attribute", model, image, *places[:2], *places[4:], "--to", to, "--steps", 8
    )
    np.testing.assert_array_equal(np.load(to / "20_15_2.npy"), before)
    assert "area_nm2" in table
    assert "20_15_2.png" in table


def test_attribute_refuses_what_it_cannot_explain(em, model, image, tmp_path):
    to = ("--to", tmp_path / "fields")
    with pytest.raises(GeometryError, match=r"voxel \(40, 0, 0\) is not in the image"):
        em("attribute", model, image, "--voxel", "40,0,0", *to)
    with pytest.raises(ModelError, match="has no channel axon"):
        em(
            "attribute",
            model,
            image,
            "--voxel",
            "1,1,1",
            "--output",
            "membrane/axon",
            *to,
        )
    with pytest.raises(ModelError, match="does not exist; fetch the weights"):
        em("attribute", "membrane-unet", image, "--voxel", "1,1,1", *to)
    np.save(tmp_path / "deep.npy", np.zeros((2, 20, 20), np.uint16))
    with pytest.raises(DataError, match="1 channels of uint16; give one of uint8"):
        em("attribute", model, tmp_path / "deep.npy", "--voxel", "1,1,1", *to)
    both = make_model(tmp_path / "both", '["image", "cleft"]')
    with pytest.raises(ModelError, match="takes image, cleft, and only an image"):
        em("attribute", both, image, "--voxel", "1,1,1", *to)
    assert not (tmp_path / "fields").exists()


RECIPE = """
name = "looked-at"
grid = {{ bounds = {{ start = [0, 0, 0], stop = [40, 30, 4] }}, chunk = [24, 16, 3] }}
layers = {{ source = "{image}" }}

[[stage]]
use = "ingest"
source = "source"
output = "image"
voxel_size_nm = [6, 6, 30]
storage_chunk = [8, 8, 1]
"""


def test_quality_lists_every_section(em, image, tmp_path):
    root, recipe = ("--root", tmp_path / "out"), tmp_path / "recipe.toml"
    measure = '[[stage]]\nuse = "image_quality"\nimage = "image"\noutput = "quality"\n'
    recipe.write_text(RECIPE.format(image=image))
    em("run", recipe, *root, "--quiet", "--workers", 1)
    with pytest.raises(RootError, match="add a stage image_quality"):
        em("quality", *root)
    recipe.write_text(RECIPE.format(image=image) + measure)
    em("run", recipe, *root, "--quiet", "--workers", 1)
    rows = json.loads(em("quality", *root, "--json"))["sections"]
    pixels = np.load(image).T.astype(float)
    assert [row["z"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        section = pixels[..., row["z"]]
        assert row["pixels"] == section.size
        assert row["mean"] == pytest.approx(section.mean())
        assert row["variance"] == pytest.approx(section.var())
        brenner = ((section[2:] - section[:-2]) ** 2).sum()
        assert row["brenner"] == pytest.approx(brenner / section.size)
    assert "vollath" in em("quality", *root)
