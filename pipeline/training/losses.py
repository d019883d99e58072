"""How wrong a net is.

Every loss takes what the net said, what is true and where that is known, tensors of
(batch, channel, z, y, x), and returns a scalar: the mean over patches and channels of the
mean over known voxels. Where nothing is known of a channel it adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ModelError
from pipeline.nets.config import Head, ModelConfig
from pipeline.training.config import LossTerm
from pipeline.training.matching import matching

_VOXELS = (2, 3, 4)
_LEAST = 1e-6
_USUAL: dict[str, Literal["squared", "matching"]] = {
    "distance": "squared",
    "embedding": "matching",
}


def total_loss(
    model: ModelConfig,
    terms: Sequence[LossTerm],
    logits: Tensor,
    target: Tensor,
    known: Tensor,
) -> dict[str, Tensor]:
    """Evaluate all terms.

    Parameters
    ----------
    model : ModelConfig
        Says which channels are which head's.
    terms : sequence of LossTerm
        As `loss_terms` completes them.
    logits, target, known : Tensor, (batch, channel, z, y, x)
        Of all heads.

    Returns
    -------
    dict of str to Tensor
        Each term by `head.kind`, times its weight; `total` is their sum.
    """
    parts: dict[str, Tensor] = {}
    for term in terms:
        own = model.channels_of(term.head)
        said, true, where = logits[:, own], target[:, own], known[:, own]
        if term.kind == "coherence":
            value = coherence(said, logits[:, model.channels_of(term.distance)])
        elif term.kind == "focal":
            value = focal(said, true, where, term.gamma)
        elif term.kind == "dice":
            value = dice(said, true, where)
        elif term.kind == "matching":
            value = matching(
                said,
                true[:, :2],
                where[:, :2],
                patch=term.patch,
                search=term.search,
                distance=term.sections,
            )
        elif term.kind == "squared":
            value = squared(said, true, where, balance=term.balance)
        elif _head(model, term.head).kind == "classes":
            value = class_cross_entropy(said, true, where, balance=term.balance)
        else:
            value = cross_entropy(
                said, true, where, balance=term.balance, margin=term.margin
            )
        parts[f"{term.head}.{term.kind}"] = term.weight * value
    parts["total"] = torch.stack(list(parts.values())).sum()
    return parts


def loss_terms(model: ModelConfig, terms: Sequence[LossTerm]) -> tuple[LossTerm, ...]:
    """Give each head that has no term its usual one, and refuse terms that cannot be.

    Raises
    ------
    ModelError
        If a term names no head of the model, or one of another kind.
    """
    for term in terms:
        kind, second = _head(model, term.head).kind, term.distance
        fits = {
            "squared": kind == "distance",
            "coherence": kind == "masks"
            and bool(second)
            and _head(model, second).kind == "distance"
            and _head(model, second).width == _head(model, term.head).width,
            "cross_entropy": kind not in ("distance", "embedding"),
            "matching": kind == "embedding",
        }.get(term.kind, kind in ("affinities", "masks"))
        if not fits:
            raise ModelError(
                f"loss {term.kind} is not for head {term.head} of {kind}"
                + (f" with {second}" if second else "")
                + "; squared is for distances, focal and dice are for affinities and "
                "masks, coherence is for masks with as many distances, matching is for "
                "embeddings, cross_entropy is for all others"
            )
    named = {term.head for term in terms}
    usual = tuple(
        LossTerm(head=head.name, kind=_USUAL.get(head.kind, "cross_entropy"))
        for head in model.head
        if head.name not in named
    )
    return (*terms, *usual)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    known: Tensor,
    *,
    balance: bool = True,
    margin: float = 0.0,
) -> Tensor:
    """Binary cross entropy.

    Parameters
    ----------
    logits, target, known : Tensor, (batch, channel, z, y, x)
        What the net said, 0 or 1, and where that is known.
    balance : bool
        Whether voxels weigh inversely to how common their class is in the patch (Lee et
        al. 2017). A channel of one class alone has nothing to balance.
    margin : float
        Targets are so far from 0 and 1 ("inverse margin", Huang and Jain 2013).

    Returns
    -------
    Tensor, scalar
        [nat].
    """
    soft = target * (1 - 2 * margin) + margin if margin else target
    each = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    return _mean(each, _weights(target > 0.5, known, balance=balance))


def class_cross_entropy(
    logits: Tensor, target: Tensor, known: Tensor, *, balance: bool = True
) -> Tensor:
    """Cross entropy of classes of which one is true, a channel each.

    Parameters
    ----------
    logits, target, known : Tensor, (batch, class, z, y, x)
        What the net said, 0 or 1, and where that is known.
    balance : bool
        Whether all classes that occur in a patch weigh the same.

    Returns
    -------
    Tensor, scalar
        [nat].
    """
    true = target * known
    each = -(functional.log_softmax(logits.float(), dim=1) * true).sum(1, keepdim=True)
    if not balance:
        return _mean(each, known[:, :1].to(each.dtype))
    count = true.sum(_VOXELS, keepdim=True)
    weight = (true / count.clamp(min=1)).sum(1, keepdim=True)
    return _mean(each, weight)


def focal(logits: Tensor, target: Tensor, known: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross entropy in which what is told well weighs little (Lin et al. 2017).

    Parameters
    ----------
    logits, target, known : Tensor, (batch, channel, z, y, x)
        What the net said, 0 or 1, and where that is known.
    gamma : float
        0 is plain cross entropy.

    Returns
    -------
    Tensor, scalar
        [nat].
    """
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # exp(-cross entropy) is the probability that was given to what is true.
    return _mean((1 - torch.exp(-each)) ** gamma * each, known.to(each.dtype))


def dice(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """1 - (2 y ŷ + 1) / (y + ŷ + 1), sums over the known voxels of each channel.

    Parameters
    ----------
    logits, target, known : Tensor, (batch, channel, z, y, x)
        What the net said, 0 or 1, and where that is known.

    Returns
    -------
    Tensor, scalar
        From 0 to 1.
    """
    said, true = torch.sigmoid(logits) * known, target * known
    both, either = (said * true).sum(_VOXELS), (said + true).sum(_VOXELS)
    return (1 - (2 * both + 1) / (either + 1)).mean()


def squared(
    logits: Tensor, target: Tensor, known: Tensor, *, balance: bool = True
) -> Tensor:
    """Squared error of tanh distances: the boundary loss of CleftNet.

    Parameters
    ----------
    logits, target, known : Tensor, (batch, channel, z, y, x)
        What the net said before its tanh, the distance, and where that is known.
    balance : bool
        Whether voxels inside objects and outside weigh the same in a patch. The paper's
        equation 8, as printed, lets the rarer ones weigh less; its equation 7, followed
        here, more.

    Returns
    -------
    Tensor, scalar
        Mean squared error.
    """
    each = (torch.tanh(logits) - target) ** 2
    return _mean(each, _weights(target > 0, known, balance=balance))


def coherence(logits: Tensor, distance: Tensor) -> Tensor:
    """How far a mask and its distance contradict one another (CleftNet, equation 9).

    Parameters
    ----------
    logits, distance : Tensor, (batch, channel, z, y, x)
        Of the mask, and of the distance before its tanh.

    Returns
    -------
    Tensor, scalar
        Mean over voxels [nat]. Where the distance is positive, -(1 - P) log d; elsewhere
        -(1 - d) log(1 - P), where the equation has log P: as printed it would punish the
        agreement that the text asks for.
    """
    inside, depth = torch.sigmoid(logits), torch.tanh(distance)
    deep = -(1 - inside) * torch.log(depth.clamp(min=_LEAST))
    outside = (1 - depth) * functional.softplus(logits)
    return torch.where(depth > 0, deep, outside).mean()


def _head(model: ModelConfig, name: str) -> Head:
    model.channels_of(name)
    return next(head for head in model.head if head.name == name)


def _weights(inside: Tensor, known: Tensor, *, balance: bool) -> Tensor:
    counted = known.float()
    if not balance:
        return counted
    total = counted.sum(_VOXELS, keepdim=True).clamp(min=1)
    share = (inside * counted).sum(_VOXELS, keepdim=True) / total
    one_class = (share == 0) | (share == 1)
    rarity = torch.where(inside, 1 - share, share)
    return torch.where(one_class, torch.ones_like(share), rarity) * counted


def _mean(each: Tensor, weight: Tensor) -> Tensor:
    """Average over voxels by weight, then over what has any weight."""
    total = weight.sum(_VOXELS)
    means = (each * weight).sum(_VOXELS) / total.clamp(min=_LEAST)
    return means.sum() / (total > 0).sum().clamp(min=1)
