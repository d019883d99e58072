import numpy as np
import pytest
import torch
from torch import nn

from pipeline.geometry import Vec3
from pipeline.nets.model import Model
from pipeline.training.losses import loss_terms
from pipeline.training.sampler import tiles
from pipeline.training.targets import affinities
from pipeline.training.validation import (
    Tally,
    can_be_segmented,
    score_patches,
    segment,
    segment_volume,
)
from pipeline.training.volumes import Volume

from .conftest import AFFINITIES, CLEFT, DEPTH, KINDS, LONG, with_heads


def shaped(*values):
    return torch.tensor(values).reshape(1, len(values), 1, 1, -1)


def test_scores_by_hand(model):
    heads = with_heads(model, CLEFT, DEPTH, KINDS)
    tally = Tally(heads)
    said = shaped(
        [0.9, 0.2, 0.8, 0.4],
        [0.5, 0.1, 0.0, 0.9],
        [0.6, 0.1, 0.3, 0.2],
        [0.3, 0.2, 0.4, 0.5],
        [0.1, 0.7, 0.3, 0.3],
    )
    target = shaped(
        [1.0, 1.0, 0.0, 0.0],
        [0.7, 0.0, 0.0, 0.0],
        [1.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
        [0.0, 1.0, 0.0, 0.0],
    )
    known = torch.ones_like(target)
    known[:, 1, ..., 3] = 0
    tally.add(said, target, known)
    tally.add(said, target, torch.zeros_like(known))
    found = tally.scores()
    assert found["cleft.cleft"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert found["depth.cleft"]["error"] == pytest.approx(0.1)
    assert found["kinds.axon"] == {
        "precision": 1,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
    }
    assert found["kinds.dendrite"]["precision"] == 0.5
    assert found["kinds.glia"]["f1"] == 1


def test_accuracy_is_of_both_classes(model):
    tally = Tally(with_heads(model, {**AFFINITIES, "offsets": [[1, 0, 0]]}))
    tally.add(
        shaped([0.9, 0.1, 0.6, 0.7]),
        shaped([1.0, 0.0, 0.0, 0.0]),
        torch.ones(1, 1, 1, 1, 4),
    )
    assert tally.scores() == {"affinities.1,0,0": {"accuracy": pytest.approx(2 / 3)}}


def test_what_is_not_known_has_no_score(model):
    tally = Tally(with_heads(model, CLEFT))
    one = torch.ones(1, 1, 1, 1, 4)
    tally.add(one, one, torch.zeros_like(one))
    assert tally.scores() == {}


class Oracle(nn.Module):
    """Grey levels say the cell: joined where two voxels are alike and not black."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, image):
        said = [
            torch.where((image == image.roll(1, axis)) & (image > -2.5), 20.0, -20.0)
            for axis in (4, 3, 2)
        ]
        said += [torch.zeros_like(image)] * (self.channels - 3)
        return torch.cat(said, 1)


@pytest.fixture
def cells():
    """Cells whose greys tell them apart, black between them."""
    ids = np.zeros((48, 48, 12), np.uint16, order="F")
    for i, x in enumerate(range(1, 48, 12)):
        for j, y in enumerate(range(1, 48, 12)):
            ids[x : x + 10, y : y + 10, 1:] = 1 + i * 4 + j
    return Volume(
        "cells", {"image": np.asfortranarray(ids * 15, dtype=np.uint8)}, {"cells": ids}
    )


def test_segments_of_perfect_affinities_are_the_cells(cells):
    truth = cells.truth["cells"]
    perfect = np.asfortranarray(affinities(truth) * np.uint8(255))
    found = segment(perfect)
    pairs = set(zip(found.ravel().tolist(), truth.ravel().tolist(), strict=True))
    assert len(pairs) == 17


def test_segments_are_scored_by_the_kernels(model, cells):
    heads = with_heads(model, LONG, AFFINITIES)
    reordered = Model(heads, nn.Sequential(Oracle(5), Swap()))
    segments, scores = segment_volume(reordered, cells)
    assert segments.shape == cells.shape.astuple()
    assert scores.arand < 0.05
    whole = Volume("v", cells.inputs, cells.truth, known=np.zeros((48, 48, 12), bool))
    whole.known[:24] = True
    _, half = segment_volume(reordered, whole)
    assert half.n_truth == scores.n_truth // 2


class Swap(nn.Module):
    def forward(self, logits):
        return torch.cat([logits[:, 3:], logits[:, :3]], 1)


def test_what_can_be_segmented(model, cells):
    assert can_be_segmented(model, cells)
    assert not can_be_segmented(with_heads(model, LONG, CLEFT), cells)
    assert not can_be_segmented(model, Volume("v", cells.inputs, {}))
    other = Volume("v", cells.inputs, cells.truth, ratio=(1.5, 1.5, 1.0))
    assert not can_be_segmented(model, other)


def test_a_perfect_net_has_perfect_scores(model, cells):
    perfect = Model(model, Oracle(3))
    patches = tiles(cells, model, Vec3(24, 24, 6))
    found = score_patches(perfect, loss_terms(model, ()), patches)
    assert found["loss"] < 0.2
    assert min(c["accuracy"] for c in found["channels"].values()) > 0.95
    assert score_patches(perfect, loss_terms(model, ()), []) == {}
