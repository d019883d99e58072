import pytest
import torch

from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.processes import World, device_of, spread
from pipeline.training.run import train
from pipeline.training.trainer import Trainer

from .test_trainer import write_project


def both(world, config, model, volume, folder):
    """Train, and keep the weights of every process."""
    trainer = Trainer(model, config, folder / "run", world=world)
    trainer.run([volume])
    torch.save(trainer.model.net.state_dict(), folder / f"{world.rank}.pt")


@pytest.mark.slow
def test_two_processes_learn_as_one_with_twice_the_batch(model, config, volume, tmp_path):
    # Adam makes whole steps of gradients that are next to nothing but rounding, and two
    # patches at once are rounded unlike each by itself.
    plan = config.optimisation.model_copy(update={"eps": 1e-4})
    config = config.model_copy(update={"optimisation": plan})
    spread(2, both, config, model, volume, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = Trainer(model, config.model_copy(update={"batch": 2}), tmp_path / "alone")
    alone.run([volume])
    expected = alone.model.net.state_dict()
    for name, weight in ranks[0].items():
        assert torch.equal(weight, ranks[1][name])
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-4)
    state = read_checkpoint(tmp_path / "run")
    assert state["step"] == 10
    assert state["world"] == 2


@pytest.mark.slow
def test_what_one_process_raises_ends_all(tmp_path, volume, validation):
    directory = write_project(tmp_path, volume, validation)
    toml = directory / "train.toml"
    toml.write_text(toml.read_text().replace("train = [0, 12]", "train = [0, 99]"))
    with pytest.raises(Exception, match=r"covers 0,0,0,40,44,18 and not|choose a box"):
        train(toml, tmp_path / "run", tmp_path, processes=2, quiet=True)


def test_one_process_is_no_group():
    world = World()
    net = torch.nn.Conv3d(1, 1, 1)
    assert world.leads
    assert world.wrapped(net, torch.device("cpu")) is net
    assert world.agreed(0.3) == 0.3
    world.wait()
    assert device_of("cpu", world) == torch.device("cpu")
