"""Embeddings are learnt by which patches are found again."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.errors import ModelError
from pipeline.nets.config import Head, ModelConfig
from pipeline.training.config import LossTerm, TrainConfig
from pipeline.training.losses import loss_terms
from pipeline.training.matching import found_share, matching
from pipeline.training.sampler import training_example, validation_examples
from pipeline.training.volumes import Volume, names_of

from .conftest import MODEL, TRAINING

WAY = {"patch": 16, "search": 6, "distance": 2}
HEAD = {"name": "embedding", "kind": "embedding", "channels": ["a", "b"]}


def pattern(seed, n=64):
    """Make a pattern that is as smooth as places are certain."""
    rng = np.random.default_rng(seed).normal(size=(1, 2, 1, n, n))
    smooth = gaussian_filter(rng, (0, 0, 0, 1.2, 1.2), mode="wrap")
    return torch.from_numpy((2 * smooth / smooth.std()).astype(np.float32))


def places(shifts, n=64):
    """Say where voxels of sections lie that were shifted (x, y)."""
    x = torch.arange(float(n)).expand(n, n)
    flat = torch.stack([x, x.T])
    moved = [flat + torch.tensor([sx, sy])[:, None, None] for sx, sy in shifts]
    return torch.stack(moved, dim=1)[None]


def sections(shifts, seed=0):
    """Show one pattern, by sections that were shifted: q shows the tissue q + shift."""
    base = pattern(seed)
    shown = [torch.roll(base, (-sy, -sx), dims=(3, 4)) for sx, sy in shifts]
    return torch.cat(shown, dim=2)


SHIFTS = [(0, 0), (3, -2), (-1, 4)]


def test_patches_are_found_where_the_tissue_went():
    where = places(SHIFTS)
    found = found_share(sections(SHIFTS), where, torch.ones_like(where), **WAY)
    assert set(found) == {1, 2}
    for right, all_of_them in found.values():
        assert right == all_of_them > 0


def test_wrong_places_are_not_found():
    wrong = places([(0, 0), (-3, 2), (1, -4)])
    found = found_share(sections(SHIFTS), wrong, torch.ones_like(wrong), **WAY)
    assert found[1][0] == 0


def test_the_loss_is_less_the_better_patches_are_found():
    where, known = places(SHIFTS), torch.ones(1, 2, 3, 64, 64)
    right = matching(sections(SHIFTS), where, known, **WAY)
    wrong = matching(sections([(0, 0)] * 3), where, known, **WAY)
    noise = matching(torch.cat([pattern(s) for s in (1, 2, 3)], 2), where, known, **WAY)
    assert right < noise < wrong


def test_the_loss_can_be_descended():
    torch.manual_seed(0)
    where, known = places(SHIFTS), torch.ones(1, 2, 3, 64, 64)
    said = (sections(SHIFTS) + 6 * torch.randn(1, 2, 3, 64, 64)).requires_grad_(True)
    first = matching(said, where, known, **WAY)
    (gradient,) = torch.autograd.grad(first, said)
    second = matching(said - 200 * gradient, where, known, **WAY)
    assert second < first


def test_sections_of_which_nothing_is_known_teach_nothing():
    where, known = places(SHIFTS), torch.ones(1, 2, 3, 64, 64)
    known[:, :, 1] = 0
    assert set(found_share(sections(SHIFTS), where, known, **WAY)) == {2}
    none = matching(sections(SHIFTS), where, torch.zeros_like(known), **WAY)
    assert float(none) == 0


def test_sections_without_room_are_refused():
    where = places(SHIFTS)[..., :20, :20]
    with pytest.raises(ValueError, match=r"20 x 20 have no room .* train on squares"):
        matching(sections(SHIFTS)[..., :20, :20], where, torch.ones_like(where), **WAY)


# -- patches --------------------------------------------------------------------------


@pytest.fixture
def learner():
    image = np.random.default_rng(0).integers(1, 256, (90, 80, 9)).astype(np.uint8)
    volume = Volume("v", {"image": np.asfortranarray(image)}, {}, None)
    model = ModelConfig.model_validate(
        {**MODEL, "head": [HEAD], "architecture": {"name": "unet2d", "widths": [4, 6]}}
    )
    return volume, model


def config(**augmentation):
    return TrainConfig.model_validate(
        {**TRAINING, "patch": [24, 24, 6], "augmentation": augmentation}
    )


def test_places_say_what_each_voxel_shows(learner):
    """Looked up in the volume, they give the grey that is shown."""
    volume, model = learner
    plan = config(loose_rotation=5.0, loose_shift=4.0, loose_bend=1.0)
    example = training_example([volume], model, plan, 3)
    moved = example.target.value - example.target.value[:, :, :1]
    assert np.abs(moved).max() > 1
    assert example.target.known.all()
    still = training_example([volume], model, config(flip=False), 3)
    same = still.target.value
    assert np.ptp(same, axis=2).max() == 0
    x = np.arange(24) - 11
    np.testing.assert_array_equal(same[:, 0, 0, 0], x)
    np.testing.assert_array_equal(same[0, :, 0, 1], x)


def test_loose_sections_show_the_volume_at_their_places(learner):
    _, model = learner
    image = np.add.outer(3.0 * np.arange(60), 1.0 * np.arange(60))[..., None]
    ramp = Volume("v", {"image": np.asfortranarray(image.repeat(9, 2), np.uint8)}, {}, None)
    plan = config(flip=False, loose_rotation=5.0, loose_shift=4.0, loose_bend=1.0)
    example = training_example([ramp], model, plan, 3)
    places = example.target.value
    expected = 3 * places[..., 0] + places[..., 1]
    offset = example.inputs[..., 0] - expected
    # The ramp wraps where it leaves uint8, and its offset is that of the patch.
    offset = np.mod(offset - offset[0, 0, 0] + 128, 256) - 128
    assert np.percentile(np.abs(offset), 90) < 0.1


def test_missing_sections_have_no_place(learner):
    volume, model = learner
    plan = config(missing=1.0, max_missing=1, partial=0.0)
    example = training_example([volume], model, plan, 1)
    blank = ~example.target.known.all(axis=(0, 1, 3))
    assert blank.any()
    assert not blank.all()


def test_validation_shows_sections_as_they_lie(learner):
    volume, model = learner
    (example,) = validation_examples([volume], model, config().patch, 1)
    assert np.ptp(example.target.value, axis=2).max() == 0


# -- configuration --------------------------------------------------------------------


def test_embeddings_need_no_truth_but_two_channels(learner):
    _, model = learner
    assert names_of(model.head) == []
    with pytest.raises(ValueError, match="embedding of 1 channel; name at least 2"):
        Head.model_validate({**HEAD, "channels": ["a"]})


def test_matching_is_the_usual_loss_of_embeddings_and_of_nothing_else(learner):
    _, model = learner
    (term,) = loss_terms(model, ())
    assert term.kind == "matching"
    for kind in ("cross_entropy", "dice", "squared"):
        with pytest.raises(ModelError, match="matching is for embeddings"):
            loss_terms(model, (LossTerm(head="embedding", kind=kind),))
