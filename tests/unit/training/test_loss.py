import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.training.loss import balanced_loss, mean_score, score


def test_classes_weigh_the_same():
    logits = torch.randn(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    target = torch.zeros_like(logits)
    target[:, 0, 0] = 1
    target[:, 1, :, 0, 0] = 1
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = np.mean(
        [
            (each[0, c][target[0, c] == k]).mean().item() / 2 * 2
            for c in range(2)
            for k in (0, 1)
        ]
    )
    assert balanced_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_alone_counts_as_it_is(value):
    logits = torch.randn(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    target = torch.full_like(logits, value)
    plain = functional.binary_cross_entropy_with_logits(logits, target)
    assert balanced_loss(logits, target).item() == pytest.approx(plain.item(), rel=1e-5)


def test_scores_by_hand():
    target = torch.zeros(1, 1, 1, 1, 4)
    target[..., 0] = 1
    logits = torch.tensor([2.0, -1.0, -1.0, 1.0]).reshape(target.shape)
    found = score(logits, target)
    assert found.accuracy == pytest.approx((5 / 6,))
    said = np.log1p(np.exp([-2, -1, -1, 1]))
    assert found.cross_entropy == pytest.approx(said.mean(), rel=1e-5)
    assert found.balanced == pytest.approx((said[0] + said[1:].mean()) / 2, rel=1e-5)
    right = score(10 * (target - 0.5), target)
    both = mean_score([found, right])
    assert both.accuracy == pytest.approx((11 / 12,))
