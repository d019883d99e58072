import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.errors import ModelError
from pipeline.training.config import LossTerm
from pipeline.training.losses import (
    class_cross_entropy,
    coherence,
    cross_entropy,
    dice,
    focal,
    loss_terms,
    squared,
    total_loss,
)

from .conftest import AFFINITIES, CLEFT, DEPTH, KINDS, LONG, with_heads

SHAPE = (2, 3, 3, 4, 5)


def drawn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def logits():
    return drawn(0)


@pytest.fixture
def target():
    return (drawn(1) > 0.7).float()


@pytest.fixture
def known():
    return (drawn(2) > -0.5).float()


EACH = [
    cross_entropy,
    lambda *a: cross_entropy(*a, balance=False),
    focal,
    dice,
    squared,
]


def per_channel(logits, target, known):
    for b in range(SHAPE[0]):
        for c in range(SHAPE[1]):
            seen = known[b, c] > 0
            yield logits[b, c][seen].double(), target[b, c][seen].double()


def entropy(x, y):
    return functional.binary_cross_entropy_with_logits(x, y, reduction="none")


def test_classes_of_a_channel_weigh_the_same(logits, target, known):
    expected = np.mean(
        [
            (entropy(x, y)[y == 1].mean() + entropy(x, y)[y == 0].mean()).item() / 2
            for x, y in per_channel(logits, target, known)
        ]
    )
    assert cross_entropy(logits, target, known).item() == pytest.approx(expected, rel=1e-5)


def test_the_margin_moves_targets(logits, target, known):
    found = cross_entropy(logits, target, known, balance=False, margin=0.1).item()
    expected = np.mean(
        [
            entropy(x, 0.1 + 0.8 * y).mean().item()
            for x, y in per_channel(logits, target, known)
        ]
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_focal_is_its_definition(logits, target, known):
    expected = np.mean(
        [
            torch.where(
                y == 1,
                -((1 - x.sigmoid()) ** 2) * x.sigmoid().log(),
                -(x.sigmoid() ** 2) * (1 - x.sigmoid()).log(),
            )
            .mean()
            .item()
            for x, y in per_channel(logits, target, known)
        ]
    )
    assert focal(logits, target, known).item() == pytest.approx(expected, rel=1e-5)
    plain = cross_entropy(logits, target, known, balance=False).item()
    assert focal(logits, target, known, 0.0).item() == pytest.approx(plain, rel=1e-5)


def test_dice_is_its_definition(logits, target, known):
    expected = np.mean(
        [
            1
            - (2 * (x.sigmoid() * y).sum().item() + 1)
            / ((x.sigmoid() + y).sum().item() + 1)
            for x, y in per_channel(logits, target, known)
        ]
    )
    assert dice(logits, target, known).item() == pytest.approx(expected, rel=1e-5)


def test_squared_is_of_the_tanh(logits, target, known):
    depth = target * 0.8
    expected = np.mean(
        [
            np.mean([((x.tanh() - y) ** 2)[s].mean().item() for s in (y > 0, y == 0)])
            for x, y in per_channel(logits, depth, known)
        ]
    )
    assert squared(logits, depth, known).item() == pytest.approx(expected, rel=1e-5)


def test_classes_of_voxels_weigh_the_same(logits, known):
    places = drawn(3).argmax(1)
    target = functional.one_hot(places, 3).movedim(-1, 1).float()
    seen = known[:, :1].expand_as(target)
    each = functional.cross_entropy(logits, places, reduction="none")
    expected = np.mean(
        [
            np.mean(
                [
                    each[b][(places[b] == k) & (known[b, 0] > 0)].mean().item()
                    for k in range(3)
                ]
            )
            for b in range(2)
        ]
    )
    found = class_cross_entropy(logits, target, seen).item()
    assert found == pytest.approx(expected, rel=1e-5)
    plain = np.mean([each[b][known[b, 0] > 0].mean().item() for b in range(2)])
    found = class_cross_entropy(logits, target, seen, balance=False).item()
    assert found == pytest.approx(plain, rel=1e-5)


def test_coherence_falls_where_mask_and_distance_agree():
    def of(mask, distance):
        return coherence(
            torch.full((1, 1, 1, 1, 1), mask), torch.full((1, 1, 1, 1, 1), distance)
        ).item()

    assert of(9.0, 9.0) < 1e-3
    assert of(-9.0, -9.0) < 0.01
    assert of(9.0, -1.0) > 5
    assert of(-9.0, 0.01) > 4
    p, d = 1 / (1 + np.exp(-0.3)), np.tanh(0.2)
    assert of(0.3, 0.2) == pytest.approx(-(1 - p) * np.log(d), rel=1e-4)
    assert of(0.3, -0.2) == pytest.approx(-(1 + d) * np.log(1 - p), rel=1e-4)


@pytest.mark.parametrize("loss", EACH)
def test_what_is_not_known_does_not_count(loss, logits, target, known):
    other = torch.where(known > 0, logits, torch.full_like(logits, 50.0))
    assert loss(other, target, known).item() == loss(logits, target, known).item()
    held = logits.clone().requires_grad_()
    loss(held, target, torch.zeros_like(known)).backward()
    assert not held.grad.any()


@pytest.mark.parametrize("loss", EACH)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_alone_is_finite(loss, value, logits, known):
    assert torch.isfinite(loss(logits, torch.full_like(logits, value), known))


def test_a_channel_that_is_not_known_leaves_the_mean_of_the_others(logits, target):
    known = torch.ones_like(target)
    known[:, 1] = 0
    alone = cross_entropy(logits[:, ::2], target[:, ::2], known[:, ::2]).item()
    assert cross_entropy(logits, target, known).item() == pytest.approx(alone, rel=1e-6)


def test_terms_add_up_with_their_weights(model):
    model = with_heads(model, AFFINITIES, CLEFT, DEPTH, KINDS)
    shape = (1, 8, 3, 4, 5)
    logits, known = drawn(4, shape), torch.ones(shape)
    target = (drawn(5, shape) > 0).float()
    target[:, 5:] = functional.one_hot(drawn(6, (1, 3, 3, 4, 5)).argmax(1), 3).movedim(
        -1, 1
    )
    terms = loss_terms(
        model,
        (
            LossTerm(head="cleft", kind="focal"),
            LossTerm(head="cleft", kind="dice", weight=0.5),
            LossTerm(head="cleft", kind="coherence", distance="depth", weight=2),
        ),
    )
    found = total_loss(model, terms, logits, target, known)
    assert set(found) == {
        "cleft.focal",
        "cleft.dice",
        "cleft.coherence",
        "affinities.cross_entropy",
        "depth.squared",
        "kinds.cross_entropy",
        "total",
    }
    cleft = (logits[:, 3:4], target[:, 3:4], known[:, 3:4])
    assert found["cleft.dice"] == pytest.approx(0.5 * dice(*cleft).item())
    assert found["cleft.coherence"].item() == pytest.approx(
        2 * coherence(logits[:, 3:4], logits[:, 4:5]).item()
    )
    assert found["kinds.cross_entropy"].item() == pytest.approx(
        class_cross_entropy(logits[:, 5:], target[:, 5:], known[:, 5:]).item()
    )
    assert found["total"].item() == pytest.approx(
        sum(v.item() for k, v in found.items() if k != "total"), rel=1e-5
    )


@pytest.mark.parametrize(
    "term",
    [
        {"head": "affinities", "kind": "squared"},
        {"head": "depth", "kind": "dice"},
        {"head": "depth", "kind": "cross_entropy"},
        {"head": "kinds", "kind": "focal"},
        {"head": "cleft", "kind": "coherence", "distance": "long"},
        {"head": "nothing", "kind": "dice"},
    ],
)
def test_terms_that_cannot_be_are_refused(model, term):
    model = with_heads(model, AFFINITIES, LONG, CLEFT, DEPTH, KINDS)
    with pytest.raises(ModelError, match=term["head"]):
        loss_terms(model, (LossTerm(**term),))


def test_coherence_names_its_distance():
    with pytest.raises(ValueError, match="name a head of distances"):
        LossTerm(head="cleft", kind="coherence")
