import dataclasses
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ModelError, TrainingError
from pipeline.geometry import Vec3
from pipeline.nets.config import ModelConfig
from pipeline.nets.model import build_net
from pipeline.training.checkpoint import CHECKPOINT_FILE, read_checkpoint, read_log
from pipeline.training.config import Augmentation, LossTerm, TrainConfig
from pipeline.training.run import train
from pipeline.training.sampler import Example
from pipeline.training.trainer import Trainer, begin_with
from pipeline.training.volumes import Volume

from .conftest import (
    AFFINITIES,
    CLEFT,
    DEPTH,
    KINDS,
    LONG,
    altered,
    with_heads,
)


class Stop(Exception):
    pass


def weights(trainer):
    nets = (trainer.model.net, trainer.average.net)
    return [t.clone() for net in nets for t in net.state_dict().values()]


def same(one, two):
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))


def timeless(folder):
    log = read_log(folder)
    for entry in log:
        del entry["seconds"]
    return log


@pytest.mark.parametrize("loaders", [0, 2])
def test_resumed_equals_never_stopped(
    model, config, volume, validation, tmp_path, monkeypatch, loaders
):
    whole = Trainer(model, config, tmp_path / "whole")
    whole.run([volume], [validation])

    learn = Trainer._learn

    def dies(self, *args):
        if self.step == 7:
            raise Stop
        return learn(self, *args)

    ahead = config.model_copy(update={"loaders": loaders})
    monkeypatch.setattr(Trainer, "_learn", dies)
    with pytest.raises(Stop):
        Trainer(model, ahead, tmp_path / "parts").run([volume], [validation])
    monkeypatch.undo()
    parts = Trainer(model, ahead, tmp_path / "parts")
    assert parts.step == 5
    parts.run([volume], [validation])

    same(whole, parts)
    logs = timeless(tmp_path / "whole"), timeless(tmp_path / "parts")
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == [5, 10]


KILLED = """
import sys
from pathlib import Path
from pipeline.training.run import train
train(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_killed_and_run_again_equals_never_killed(tmp_path, volume, validation):
    """A process killed by the system between two checkpoints, then run again."""
    directory = write_project(tmp_path, volume, validation)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    toml = directory / "train.toml"
    first = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(toml), str(parts), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(read_log(parts)) < 2 and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    _, said = first.communicate()
    assert first.returncode == -signal.SIGKILL, said
    assert 0 < read_checkpoint(parts)["step"] < 30
    for folder in (parts, whole):
        train(toml, folder, tmp_path, quiet=True)

    states = [read_checkpoint(folder) for folder in (whole, parts)]
    for state in states:
        del state["seconds"]
    assert_equal(*states)
    assert timeless(whole) == timeless(parts)
    assert read_log(parts)[-1]["step"] == 30


def assert_equal(one, two):
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    else:
        assert one == two


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
save_every = 3
[[volume]]
name = "tissue"
inputs = { image = "tissue.h5:raw" }
truth = { cells = "tissue.h5:labels" }
voxel_size_nm = [6, 6, 30]
train = [0, 12]
validation = [0, 0, 12, 32, 32, 18]
[augmentation]
warp = 0.5
grey = 0.5
missing = 0.3
[optimisation]
steps = 30
[validation]
every = 4
patches = 1
"""


def write_project(folder, volume, validation):
    """A model's folder, and the data that it is trained on beside it."""
    directory = folder / "tiny"
    directory.mkdir()
    (directory / "model.toml").write_text(MODEL_TOML)
    (directory / "train.toml").write_text(TRAIN_TOML)
    with h5py.File(folder / "tissue.h5", "w") as file:
        for name, arrays in (
            ("raw", [v.inputs["image"] for v in (volume, validation)]),
            ("labels", [v.truth["cells"] for v in (volume, validation)]),
        ):
            wide = [
                np.pad(a, [(0, 40 - a.shape[0]), (0, 44 - a.shape[1]), (0, 0)])
                for a in arrays
            ]
            file[name] = np.concatenate(wide, axis=2).T
    return directory


def test_a_finished_training_stays_finished(model, config, volume, validation, tmp_path):
    Trainer(model, config, tmp_path).run([volume], [validation])
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    Trainer(model, config, tmp_path).run([volume], [validation])
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before


def test_a_training_can_be_made_longer(model, config, volume, tmp_path):
    Trainer(model, config, tmp_path).run([volume])
    longer = altered(config, optimisation={"steps": 12})
    trainer = Trainer(model, longer, tmp_path)
    assert trainer.step == 10
    trainer.run([volume])
    assert read_checkpoint(tmp_path)["step"] == 12


def test_learns_tissue_that_it_sees_and_tissue_that_it_does_not(
    model, config, volume, validation, tmp_path
):
    plain = altered(
        config,
        optimisation={"steps": 120, "rate": 0.005},
        augmentation=Augmentation(),
        validation={"every": 40},
    )
    trainer = Trainer(model, plain, tmp_path)
    untrained = trainer.validate([validation])
    trainer.run([volume], [validation])
    log = read_log(tmp_path)
    assert log[-1]["loss"]["total"] < 0.8 * log[0]["loss"]["total"]
    trained = log[-1]["validation"]
    assert trained["loss"] < 0.85 * untrained["loss"]
    first, last = (
        [c["accuracy"] for c in scores["channels"].values()]
        for scores in (untrained, trained)
    )
    assert min(last) > max(first) + 0.1
    assert trained == trainer.validate([validation])
    assert "segments" not in log[0]
    assert 0 <= log[-1]["segments"]["tissue"]["arand"] <= 1


def test_all_heads_are_learnt_at_once(model, config, volume, tmp_path):
    """Affinities near and far, masks, distances and classes, each from its own truth."""
    heads = with_heads(model, AFFINITIES, LONG, CLEFT, DEPTH, KINDS)
    labels = volume.truth["cells"]
    truth = {
        "cells": labels,
        "cleft": (labels == 0).astype(np.uint8),
        "axon": (labels % 3 == 0).astype(np.uint8),
        "dendrite": (labels % 3 == 1).astype(np.uint8),
        "glia": (labels % 3 == 2).astype(np.uint8),
    }
    truth = {k: np.asfortranarray(v) for k, v in truth.items()}
    both = Volume("both", volume.inputs, truth)
    told = altered(
        config,
        optimisation={"steps": 60, "rate": 0.02},
        augmentation=Augmentation(),
        loss=(
            LossTerm(head="cleft", kind="focal", weight=4),
            LossTerm(head="cleft", kind="dice"),
            LossTerm(head="cleft", kind="coherence", distance="depth", weight=0.1),
        ),
    )
    Trainer(heads, told, tmp_path).run([both], [both])
    log = read_log(tmp_path)
    for name in ("affinities.cross_entropy", "long.cross_entropy", "cleft.dice"):
        assert log[-1]["loss"][name] < log[0]["loss"][name], name
    channels = log[-1]["validation"]["channels"]
    assert channels["affinities.1,0,0"]["accuracy"] > 0.5
    assert channels["depth.cleft"]["error"] < 0.5
    assert set(channels["cleft.cleft"]) == {"precision", "recall", "f1"}
    assert set(channels["kinds.glia"]) == {"precision", "recall", "f1"}


def test_planar_nets_share_the_trainer(model, config, volume, tmp_path):
    told = with_heads(model, {**CLEFT, "channels": ["membrane"]}).model_dump(mode="json")
    told["architecture"] = {"name": "unet2d", "widths": [4, 8], "convolutions": 1}
    told["inference"] = {"patch": [24, 24, 1], "overlap": [0, 0, 0]}
    flat = ModelConfig.model_validate(told)
    membrane = np.asfortranarray(volume.truth["cells"] == 0, dtype=np.uint8)
    sections = Volume("sections", volume.inputs, {"membrane": membrane})
    plan = altered(
        config,
        patch=Vec3(24, 24, 1),
        batch=4,
        optimisation={"steps": 60, "rate": 0.01},
    )
    Trainer(flat, plan, tmp_path).run([sections], [sections])
    found = read_log(tmp_path)[-1]["validation"]["channels"]["cleft.membrane"]
    assert found["f1"] > 0.8


def test_a_batch_is_the_mean_of_its_patches(model, config, volume, tmp_path):
    plain = altered(config, augmentation=Augmentation(), batch=2)
    trainer = Trainer(model, plain, tmp_path / "both")
    assert list(trainer._indices()) == [0, 1]
    trainer.step = 3
    assert list(trainer._indices()) == [6, 7]


def test_the_average_lags_behind(model, config, volume, tmp_path):
    trainer = Trainer(model, config, tmp_path)
    first = [p.clone() for p in trainer.average.net.parameters()]
    trainer.run([volume])
    now = list(trainer.model.net.parameters())
    for a, b, c in zip(first, trainer.average.net.parameters(), now, strict=True):
        if a.ndim > 1:
            assert 0 < (b - a).norm() < 1.5 * (c - a).norm()
            assert not torch.equal(b, c)


def test_time_ends_a_training(model, config, volume, tmp_path):
    plan = altered(config, optimisation={"steps": 10**6, "seconds": 0.3})
    trainer = Trainer(model, plan, tmp_path)
    trainer.run([volume])
    assert 0 < trainer.step < 10**4
    assert read_log(tmp_path)[-1]["step"] == trainer.step
    assert Trainer(model, plan, tmp_path).step == trainer.step


def test_no_number_stops_and_names_the_patch(model, config, volume, tmp_path, monkeypatch):
    from pipeline.training import trainer as module

    drawn = module.training_example

    def spoilt(volumes, model, config, index):
        example = drawn(volumes, model, config, index)
        if index != 7:
            return example
        inputs = example.inputs.copy()
        inputs[3, 3, 3] = np.nan
        return Example(
            inputs, *(getattr(example, f.name) for f in dataclasses.fields(example)[1:])
        )

    monkeypatch.setattr(module, "training_example", spoilt)
    trainer = Trainer(model, config, tmp_path)
    box = drawn([volume], model, config, 7).box
    with pytest.raises(TrainingError, match=rf"step 7: .*nan.*volume tissue, box {box};"):
        trainer.run([volume])
    assert all(torch.isfinite(w).all() for w in weights(trainer))
    assert read_checkpoint(tmp_path)["step"] == 5
    monkeypatch.undo()
    Trainer(model, config, tmp_path).run([volume])
    assert read_checkpoint(tmp_path)["step"] == 10


def test_another_training_does_not_go_on_from_this_one(model, config, volume, tmp_path):
    Trainer(model, config, tmp_path).run([volume])
    with pytest.raises(ModelError, match="another training"):
        Trainer(model, config.model_copy(update={"seed": 4}), tmp_path)
    with pytest.raises(ModelError, match="another net"):
        Trainer(with_heads(model, AFFINITIES, LONG), config, tmp_path)


def test_a_patch_that_does_not_fit_is_refused(model, config, tmp_path):
    with pytest.raises(ModelError, match="training patch"):
        Trainer(model, config.model_copy(update={"patch": Vec3(22, 22, 6)}), tmp_path)


def test_a_wider_net_begins_where_a_narrower_one_ended(model, tmp_path):
    """More channels at every depth, and more of the output: the old ones say the same."""
    torch.manual_seed(1)
    small = build_net(model)
    with torch.no_grad():
        for p in small.parameters():
            if p.ndim == 1:
                p.add_(torch.rand_like(p) * 0.1)
    save_file(
        {k: v.contiguous() for k, v in small.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    told = with_heads(model, AFFINITIES, LONG).model_dump(mode="json")
    told["architecture"]["widths"] = [9, 14]
    wide = build_net(ModelConfig.model_validate(told))
    image = torch.randn(1, 1, 6, 24, 24)
    before = wide(image)[:, :3]
    begin_with(wide, tmp_path / "w.safetensors")
    after = wide(image)[:, :3]
    torch.testing.assert_close(after, small(image), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)
    told["architecture"]["widths"] = [6, 6]
    narrow = build_net(ModelConfig.model_validate(told))
    with pytest.raises(ModelError, match="no wider"):
        begin_with(narrow, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="clear start"):
        begin_with(wide, tmp_path / "nothing.safetensors")


def test_a_net_begins_without_the_head_of_another(model, tmp_path):
    held = build_net(model)
    save_file(
        {k: v.contiguous() for k, v in held.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    fresh = build_net(model)
    own = {k: v.clone() for k, v in fresh.state_dict().items()}
    begin_with(fresh, tmp_path / "w.safetensors", without=["head"])
    for name, tensor in fresh.state_dict().items():
        taken = own[name] if name.startswith("head.") else held.state_dict()[name]
        assert torch.equal(tensor, taken), name
    fewer = with_heads(model, CLEFT)
    with pytest.raises(ModelError, match="no wider"):
        begin_with(build_net(fewer), tmp_path / "w.safetensors")
    begin_with(build_net(fewer), tmp_path / "w.safetensors", without=["head"])
    with pytest.raises(ModelError, match="no heads to begin without; its parts are first"):
        begin_with(fresh, tmp_path / "w.safetensors", without=["heads"])


def test_a_training_begins_with_weights(model, config, volume, tmp_path):
    Trainer(model, config, tmp_path / "one").run([volume])
    state = read_checkpoint(tmp_path / "one")["average"]
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    two = Trainer(model, config, tmp_path / "two", start=tmp_path / "w.safetensors")
    for name, value in two.model.net.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_misspelt_field_is_named(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text('patch = [24, 24, 6]\nthread = 2\n[[volume]]\nname = "a"\n')
    with pytest.raises(ModelError, match=r"thread: .*inputs|inputs.*thread") as e:
        TrainConfig.load(path)
    assert "train.toml" in str(e.value)


def test_the_cortex_training_reads_its_data():
    from pathlib import Path

    from pipeline.training.sampler import training_example
    from pipeline.training.volumes import load_volumes

    folder = Path(os.environ.get("EM_DATA", "../shared/data"))
    if not (folder / "ac4.h5").is_file():
        pytest.skip(f"no ac4.h5 in {folder}; set EM_DATA")
    home = Path("models/cortex-rsunet")
    config, model = TrainConfig.load(home / "train.toml"), ModelConfig.load(home)
    (volume,) = load_volumes(folder, config, model, "validation")
    example = training_example([volume], model, config, 0)
    assert example.inputs.shape == (*config.patch.astuple(), 1)
    said, target = example.inputs[..., 0], example.target.value
    joined = [said[target[..., a] == 1].mean() for a in range(3)]
    parted = [said[target[..., a] == 0].mean() for a in range(3)]
    assert all(j > p for j, p in zip(joined, parted, strict=True))
