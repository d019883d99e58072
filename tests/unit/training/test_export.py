import json
import sys

import h5py
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.nets.model import load_model
from pipeline.training.__main__ import main
from pipeline.training.export import draw_curves, export
from pipeline.training.trainer import Trainer

MODEL_TOML = """
name = "tiny"
voxel_size_nm = [6.0, 6.0, 30.0]
sha256 = ""

[architecture]
widths = [6, 8]
fold = [2, 2, 1]

[normalisation]
mean = 128.0
std = 50.0

[inference]
patch = [24, 24, 6]
overlap = [8, 8, 2]

[[head]]
name = "affinities"
kind = "affinities"
offsets = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
"""

TRAIN_TOML = """
patch = [24, 24, 6]
validation_patches = 1
save_every = 2
validate_every = 1

[data]
file = "tissue.h5"
image = "raw"
labels = "labels"
train = [0, 8]
validation = [6, 12]

[optimisation]
steps = 2
"""


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "tiny"
    directory.mkdir()
    (directory / "model.toml").write_text(MODEL_TOML)
    (directory / "train.toml").write_text(TRAIN_TOML)
    return directory


def test_exports_the_average_and_its_checksum(
    model, config, block, validation, directory, tmp_path
):
    trainer = Trainer(model, config, tmp_path / "run")
    trainer.run(block, validation)
    with pytest.raises(ModelError, match="export"):
        load_model(directory)
    said = export(directory, tmp_path / "run")
    loaded = load_model(directory)
    assert loaded.config == said
    for name, weight in trainer.average.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], weight)
    trainer.average.net.head[2].bias.add_(1)
    trainer._save()
    assert export(directory, tmp_path / "run").sha256 != said.sha256
    load_model(directory)
    draw_curves(tmp_path / "run", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_refuses_what_does_not_fit(model, config, block, validation, directory, tmp_path):
    with pytest.raises(ModelError, match=r"checkpoint.pt does not exist"):
        export(directory, tmp_path / "run")
    Trainer(model, config, tmp_path / "run").run(block, validation)
    toml = directory / "model.toml"
    toml.write_text(MODEL_TOML.replace("[6, 8]", "[6, 10]"))
    with pytest.raises(ModelError, match="does not fit the net"):
        export(directory, tmp_path / "run")
    toml.write_text(MODEL_TOML.replace('sha256 = ""', ""))
    with pytest.raises(ModelError, match="no line for the checksum"):
        export(directory, tmp_path / "run")
    assert not (directory / "weights.safetensors").exists()


def test_from_the_shell(block, directory, tmp_path, monkeypatch, capsys):
    with h5py.File(tmp_path / "tissue.h5", "w") as file:
        file["raw"], file["labels"] = block.image.T, block.labels.T
    monkeypatch.setenv("EM_DATA", str(tmp_path))

    def shell(command, *options):
        argv = ["training", command, str(directory / "train.toml"), *options]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    folder = ("--folder", str(tmp_path / "run"))
    code, said = shell("export", *folder)
    assert code == 2
    assert said.err.startswith("error: ")
    assert "checkpoint.pt does not exist" in said.err
    for command, options in (("train", folder), ("export", folder), ("score", ())):
        code, said = shell(command, *options)
        assert code == 0
    assert len(json.loads(said.out)["accuracy"]) == 3
    assert (directory / "training.png").exists()
    load_model(directory)
