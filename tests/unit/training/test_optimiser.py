import pytest
import torch
from torch import nn

from pipeline.training.optimiser import learning_rate, optimiser_of


@pytest.fixture
def plan(config):
    return config.optimisation.model_copy(update={"warmup": 9, "rate": 1.0})


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "poly"])
def test_every_rate_rises_first(plan, schedule):
    plan = plan.model_copy(update={"schedule": schedule})
    assert learning_rate(0, 0.0, plan) == pytest.approx(0.1)
    assert learning_rate(9, 0.0, plan) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("schedule", "half", "nine_tenths"),
    [
        ("cosine", 0.5, 0.0244717),
        ("constant", 1.0, 1.0),
        ("step", 0.1, 0.001),
        ("poly", 0.5358867, 0.1258925),
    ],
)
def test_rates_fall(plan, schedule, half, nine_tenths):
    plan = plan.model_copy(update={"schedule": schedule})
    assert learning_rate(50, 0.5, plan) == pytest.approx(half, rel=1e-4)
    assert learning_rate(90, 0.9, plan) == pytest.approx(nine_tenths, rel=1e-4)


def test_optimisers_are_what_they_are_called(plan):
    net = nn.Conv3d(1, 2, 3)
    made = {
        name: optimiser_of(net, plan.model_copy(update={"optimiser": name}))
        for name in ("adamw", "adam", "amsgrad")
    }
    assert isinstance(made["adamw"], torch.optim.AdamW)
    assert [len(g["params"]) for g in made["adamw"].param_groups] == [1, 1]
    assert [g["weight_decay"] for g in made["adamw"].param_groups] == [0.01, 0.0]
    assert not made["adam"].param_groups[0]["amsgrad"]
    assert made["amsgrad"].param_groups[0]["amsgrad"]
    assert made["adam"].param_groups[0]["weight_decay"] == 0
