import json
import sys

import pytest
import torch

from pipeline.cli import main
from pipeline.errors import ModelError
from pipeline.nets.model import load_model
from pipeline.training.checkpoint import read_log
from pipeline.training.export import export
from pipeline.training.pictures import draw_curves, draw_samples
from pipeline.training.sampler import training_example
from pipeline.training.trainer import Trainer

from .conftest import AFFINITIES, CLEFT, with_heads
from .test_trainer import MODEL_TOML, write_project


@pytest.fixture
def directory(tmp_path, volume, validation):
    return write_project(tmp_path, volume, validation)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_exports_the_average_and_its_checksum(
    model, config, volume, validation, directory, tmp_path
):
    trainer = Trainer(model, config, tmp_path / "run")
    trainer.run([volume], [validation])
    with pytest.raises(ModelError, match="export"):
        load_model(directory)
    said = export(directory, tmp_path / "run")
    loaded = load_model(directory)
    assert loaded.config == said
    for name, weight in trainer.average.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], weight)
    assert is_png(directory / "training.png")
    trainer.average.net.head[2].bias.add_(1)
    trainer._save()
    assert export(directory, tmp_path / "run").sha256 != said.sha256
    load_model(directory)


def test_half_the_bytes_are_the_same_to_bfloat16(
    model, config, volume, directory, tmp_path
):
    trainer = Trainer(model, config, tmp_path / "run")
    trainer.run([volume])
    export(directory, tmp_path / "run")
    size = (directory / "weights.safetensors").stat().st_size
    whole = load_model(directory).net.state_dict()
    export(directory, tmp_path / "run", half=True)
    assert (directory / "weights.safetensors").stat().st_size < 0.75 * size
    for name, weight in load_model(directory).net.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight.bfloat16(), whole[name].bfloat16())


def test_refuses_what_does_not_fit(model, config, volume, directory, tmp_path):
    with pytest.raises(ModelError, match=r"checkpoint.pt does not exist"):
        export(directory, tmp_path / "run")
    Trainer(model, config, tmp_path / "run").run([volume])
    toml = directory / "model.toml"
    toml.write_text(MODEL_TOML.replace("[6, 8]", "[6, 10]"))
    with pytest.raises(ModelError, match="does not fit the net"):
        export(directory, tmp_path / "run")
    toml.write_text(MODEL_TOML.replace('sha256 = ""', ""))
    with pytest.raises(ModelError, match="no line for the checksum"):
        export(directory, tmp_path / "run")
    assert not (directory / "weights.safetensors").exists()


def test_from_the_shell(directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EM_DATA", str(tmp_path))

    def shell(*options):
        argv = ["em", "train", str(directory), *map(str, options)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    run = tmp_path / "run"
    code, said = shell("--folder", run, "--export")
    assert code == 2
    assert said.err.startswith("em: ")
    assert "checkpoint.pt does not exist" in said.err
    code, said = shell("--folder", run, "--steps", 6)
    assert code == 0
    assert "validation" in said.out
    assert f"{run / 'training.png'}" in said.out
    assert "steps/s" in said.err
    assert "step 6 (100%)" in said.err
    assert [e["step"] for e in read_log(run)] == [4, 6]
    assert is_png(run / "training.png")
    assert is_png(run / "samples.png")
    assert shell("--folder", run, "--export")[0] == 0
    load_model(directory)
    code, said = shell("--score")
    found = json.loads(said.out)["tissue"]
    assert 0 <= found["segments"]["arand"] <= 1
    assert len(found["channels"]) == 3
    toml = directory / "train.toml"
    toml.write_text(toml.read_text().replace("validation = [0, 0, 12, 32, 32, 18]", ""))
    code, said = shell("--score")
    assert code == 2
    assert "no validation box" in said.err


def test_tensorboard_gets_the_scores(model, config, volume, validation, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra train is not installed",
    )
    from pipeline.training.board import BOARD_FOLDER, Board

    board = Board(tmp_path)
    Trainer(model, config, tmp_path).run([volume], [validation], [board])
    board.writer.close()
    events = accumulator.EventAccumulator(str(tmp_path / BOARD_FOLDER))
    events.Reload()
    said = {e.step: e.value for e in events.Scalars("validation/loss")}
    logged = {e["step"]: e["validation"]["loss"] for e in read_log(tmp_path)}
    assert said == pytest.approx(logged)


def test_pictures_of_several_heads(model, config, volume, tmp_path):
    heads = with_heads(model, AFFINITIES, CLEFT)
    trainer = Trainer(heads, config, tmp_path)
    examples = [training_example([volume], heads, config, i) for i in range(2)]
    draw_samples(trainer.average, examples, tmp_path / "samples.png")
    assert is_png(tmp_path / "samples.png")
    entry = {
        "step": 1,
        "loss": {"total": 1.0},
        "validation": {},
        "segments": {"a": {"arand": 0.5, "voi_split": 1.0, "voi_merge": 1.0}},
    }
    draw_curves([entry, {**entry, "segments": {}}], tmp_path / "curves.png")
    assert is_png(tmp_path / "curves.png")
