import dataclasses

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.geometry import Vec3
from pipeline.training.config import Augmentation, TrainConfig
from pipeline.training.trainer import (
    CHECKPOINT_FILE,
    Trainer,
    learning_rate,
    read_log,
    score_block,
)


class Stop(Exception):
    pass


def weights(trainer):
    nets = (trainer.model.net, trainer.average.net)
    return [t.clone() for net in nets for t in net.state_dict().values()]


def test_resumed_equals_never_stopped(
    model, config, block, validation, tmp_path, monkeypatch
):
    whole = Trainer(model, config, tmp_path / "whole")
    whole.run(block, validation)

    learn = Trainer._learn

    def dies(self, *args):
        if self.step == 7:
            raise Stop
        return learn(self, *args)

    monkeypatch.setattr(Trainer, "_learn", dies)
    with pytest.raises(Stop):
        Trainer(model, config, tmp_path / "parts").run(block, validation)
    monkeypatch.undo()
    parts = Trainer(model, config, tmp_path / "parts")
    assert parts.step == 5
    parts.run(block, validation)

    for one, two in zip(weights(whole), weights(parts), strict=True):
        assert torch.equal(one, two)
    logs = [read_log(tmp_path / name) for name in ("whole", "parts")]
    for log in logs:
        for entry in log:
            del entry["seconds"]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == [5, 10]


def test_a_finished_training_stays_finished(model, config, block, validation, tmp_path):
    Trainer(model, config, tmp_path).run(block, validation)
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    Trainer(model, config, tmp_path).run(block, validation)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before


def test_learns_tissue_that_it_sees_and_tissue_that_it_does_not(
    model, config, block, validation, tmp_path
):
    plan = config.optimisation.model_copy(update={"steps": 120, "rate": 0.02})
    quiet = config.model_copy(
        update={"optimisation": plan, "augmentation": Augmentation(), "validate_every": 40}
    )
    trainer = Trainer(model, quiet, tmp_path)
    untrained = score_block(trainer.average, validation)
    trainer.run(block, validation)
    log = read_log(tmp_path)
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    trained = score_block(trainer.average, validation)
    assert trained.balanced < 0.7 * untrained.balanced
    assert min(trained.accuracy) > 0.7 > max(untrained.accuracy)


def test_the_average_lags_behind(model, config, block, validation, tmp_path):
    trainer = Trainer(model, config, tmp_path)
    first = [p.clone() for p in trainer.average.net.parameters()]
    trainer.run(block, validation)
    now = list(trainer.model.net.parameters())
    for a, b, c in zip(first, trainer.average.net.parameters(), now, strict=True):
        if a.ndim > 1:
            assert 0 < (b - a).norm() < 1.5 * (c - a).norm()
            assert not torch.equal(b, c)


def test_time_ends_a_training(model, config, block, validation, tmp_path):
    plan = config.optimisation.model_copy(update={"steps": 10**6, "seconds": 0.3})
    trainer = Trainer(model, config.model_copy(update={"optimisation": plan}), tmp_path)
    trainer.run(block, validation)
    assert 0 < trainer.step < 10**4
    assert read_log(tmp_path)[-1]["step"] == trainer.step
    assert Trainer(model, trainer.config, tmp_path).step == trainer.step


def test_another_training_does_not_go_on_from_this_one(
    model, config, block, validation, tmp_path
):
    Trainer(model, config, tmp_path).run(block, validation)
    with pytest.raises(ModelError, match="another training"):
        Trainer(model, config.model_copy(update={"seed": 4}), tmp_path)


@pytest.mark.parametrize("patch", [Vec3(24, 20, 6), Vec3(22, 22, 6)])
def test_a_patch_that_does_not_fit_is_refused(model, config, patch, tmp_path):
    with pytest.raises(ModelError, match="training patch"):
        Trainer(model, config.model_copy(update={"patch": patch}), tmp_path)


def test_the_rate_rises_and_falls(config):
    plan = config.optimisation.model_copy(update={"warmup": 9, "rate": 1.0})
    assert learning_rate(0, 0.0, plan) == pytest.approx(0.1)
    assert learning_rate(9, 0.0, plan) == pytest.approx(1.0)
    assert learning_rate(50, 0.5, plan) == pytest.approx(0.5)
    assert learning_rate(99, 1.0, plan) == pytest.approx(0.0)


def test_a_misspelt_field_is_named(tmp_path, config):
    path = tmp_path / "train.toml"
    path.write_text('patch = [24, 24, 6]\nthread = 2\n[data]\nfile = "a"\n')
    with pytest.raises(ModelError, match=r"thread: .*data\.image|data\.image.*thread") as e:
        TrainConfig.load(path)
    assert "train.toml" in str(e.value)


def test_scoring_leaves_the_weights_alone(model, config, block, validation, tmp_path):
    trainer = Trainer(model, config, tmp_path)
    before = weights(trainer)
    found = score_block(trainer.average, validation)
    assert all(np.isfinite(v) for v in dataclasses.asdict(found)["accuracy"])
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
