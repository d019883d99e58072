"""How wrong a net is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def balanced_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy in which both classes of a channel weigh the same.

    Voxels weigh inversely to how common their class is in the patch (Lee et al. 2017).
    A channel of one class alone has nothing to balance, and counts as it is.

    Parameters
    ----------
    logits, target : Tensor, (batch, channel, z, y, x)
        What the net said, and 0 or 1.

    Returns
    -------
    Tensor, scalar
        Mean over batch and channels.
    """
    axes = (2, 3, 4)
    share = target.mean(axes, keepdim=True)
    one_class = (share == 0) | (share == 1)
    rarity = torch.where(target > 0.5, 1 - share, share)
    weight = torch.where(one_class, torch.ones_like(share), rarity)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((each * weight).sum(axes) / weight.expand_as(each).sum(axes)).mean()


@dataclass(frozen=True)
class Score:
    """How well a net says affinities.

    Parameters
    ----------
    balanced : float
        `balanced_loss`.
    cross_entropy : float
        Plain binary cross entropy [nat].
    accuracy : tuple of float
        By channel, mean of the shares of joined and of parted voxels that are told right
        at a probability of 0.5; chance is 0.5.
    """

    balanced: float
    cross_entropy: float
    accuracy: tuple[float, ...]


def score(logits: Tensor, target: Tensor) -> Score:
    """Score one patch.

    Parameters
    ----------
    logits, target : Tensor, (1, channel, z, y, x)
        What the net said, and 0 or 1.

    Returns
    -------
    Score
        Of this patch.
    """
    said, true = logits > 0, target > 0.5
    axes = (0, 2, 3, 4)
    joined = (said & true).sum(axes) / true.sum(axes).clamp(min=1)
    parted = (~said & ~true).sum(axes) / (~true).sum(axes).clamp(min=1)
    plain = functional.binary_cross_entropy_with_logits(logits, target)
    accuracy = tuple(((joined + parted) / 2).tolist())
    return Score(balanced_loss(logits, target).item(), plain.item(), accuracy)


def mean_score(scores: list[Score]) -> Score:
    """Average scores of patches of one size."""
    n = len(scores)
    return Score(
        sum(s.balanced for s in scores) / n,
        sum(s.cross_entropy for s in scores) / n,
        tuple(sum(c) / n for c in zip(*(s.accuracy for s in scores), strict=True)),
    )
