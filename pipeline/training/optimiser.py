"""Steps: which way, and how far."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from pipeline.training.config import Optimisation


def optimiser_of(net: nn.Module, plan: Optimisation) -> Optimizer:
    """Make the optimiser; only the filters of convolutions decay, and only under AdamW."""
    filters = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    if plan.optimiser == "adamw":
        groups = [
            {"params": filters, "weight_decay": plan.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return AdamW(groups, lr=plan.rate, betas=plan.betas, eps=plan.eps)
    return Adam(
        [*filters, *others],
        lr=plan.rate,
        betas=plan.betas,
        eps=plan.eps,
        amsgrad=plan.optimiser == "amsgrad",
    )


def learning_rate(step: int, progress: float, plan: Optimisation) -> float:
    """Rise over the warmup, fall as the schedule says.

    Parameters
    ----------
    step : int
        Steps taken.
    progress : float
        What is done, from 0 to 1.
    plan : Optimisation
        Highest rate, warmup, schedule.

    Returns
    -------
    float
        The rate of the next step.
    """
    rise = min(1.0, (step + 1) / (plan.warmup + 1))
    match plan.schedule:
        case "cosine":
            fall = (1 + math.cos(math.pi * progress)) / 2
        case "poly":
            fall = (1 - progress) ** plan.power
        case "step":
            fall = plan.factor ** sum(progress >= m for m in plan.milestones)
        case "constant":
            fall = 1.0
    return plan.rate * rise * fall
