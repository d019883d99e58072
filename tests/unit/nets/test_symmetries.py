"""Turned patches, and the affinities that are found in them.

The net of these tests says what can be seen of two voxels, whichever way the patch lies: so
all that is said of turned patches must come out as said of the patch itself.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Vec3
from pipeline.nets.config import NEAREST, ModelConfig
from pipeline.nets.inference import Runner, predict
from pipeline.nets.model import Model
from pipeline.nets.patches import read_box
from pipeline.nets.symmetries import Source, symmetries

LONG = (*NEAREST, Vec3(3, 0, 0), Vec3(0, 3, 0), Vec3(0, 0, 2))
BOUNDS = Bbox.of_shape((29, 23, 9), Vec3(2, 3, 4))


class Likeness(nn.Module):
    """How alike a voxel and the one at minus each offset are; -9 beyond the patch."""

    def forward(self, x):
        said = []
        for dx, dy, dz in LONG:
            away = nn.functional.pad(x, (dx, 0, dy, 0, dz, 0))
            away = away[..., : x.shape[2], : x.shape[3], : x.shape[4]]
            like = 2 - 4 * (x - away).abs()
            like[..., :dz, :, :] = -9
            like[..., :, :dy, :] = -9
            like[..., :, :, :dx] = -9
            said.append(like)
        return torch.cat(said, dim=1)


@pytest.fixture
def model(directory):
    config = ModelConfig.load(directory)
    head = config.head[0].model_copy(update={"offsets": LONG})
    inference = config.inference.model_copy(
        update={"patch": Vec3(12, 12, 6), "overlap": Vec3(6, 6, 2)}
    )
    config = config.model_copy(update={"head": (head,), "inference": inference})
    return Model(config, Likeness())


@pytest.fixture
def image():
    rng = np.random.default_rng(5)
    return np.asfortranarray(rng.integers(1, 256, BOUNDS.shape.astuple(), dtype=np.uint8))


def truth(image):
    """Say of the whole image what the net says of a patch."""
    values = (image.astype(np.float32) - 128) / 50
    out = np.zeros((*image.shape, len(LONG)), np.float32)
    for channel, offset in enumerate(LONG):
        here = tuple(slice(n, None) for n in offset)
        there = tuple(slice(None, -n or None) for n in offset)
        like = 2 - 4 * np.abs(values[here] - values[there])
        out[(*here, channel)] = 1 / (1 + np.exp(-like))
    return out


def ask(model, image, turns, core=BOUNDS, batch=1):
    read = read_box(core, BOUNDS, model.config.inference)
    return predict(
        Runner(model, batch=batch),
        image[read.slices(BOUNDS.start)],
        read=read,
        core=core,
        bounds=BOUNDS,
        turns=turns,
    )


def far_from_faces(array):
    """Cut off where a predecessor lies outside the bounds, or a patch alone covers."""
    return array[3:-3, 3:-3, 2:-2]


def error(model, image, turns):
    said, true = ask(model, image, turns), truth(image)
    return np.abs(far_from_faces(said) - far_from_faces(true)).mean(axis=(0, 1, 2))


@pytest.mark.parametrize("turns", [8, 16])
def test_turned_patches_say_the_same(model, image, turns):
    """Up to what patches say of predecessors that they do not hold."""
    plain = error(model, image, 1)
    assert (plain < 0.05).all()
    assert (error(model, image, turns) < plain + 0.005).all()


@pytest.mark.parametrize("shift", [Vec3(1, 0, 0), Vec3(0, 1, 0), Vec3(0, 0, 1)])
def test_anchors_that_are_off_by_one_voxel_are_noticed(model, image, shift, monkeypatch):
    right = Runner.sources

    def wrong(self, symmetry):
        return [
            dataclasses.replace(s, anchor=s.anchor + shift) if any(s.anchor) else s
            for s in right(self, symmetry)
        ]

    good = error(model, image, 16)
    monkeypatch.setattr(Runner, "sources", wrong)
    assert (error(model, image, 16) > good + 0.05).all()


def test_anchors_left_out_are_noticed(model, image, monkeypatch):
    right = Runner.sources
    good = error(model, image, 16)
    monkeypatch.setattr(
        Runner,
        "sources",
        lambda self, way: [
            dataclasses.replace(s, anchor=Vec3(0, 0, 0)) for s in right(self, way)
        ],
    )
    assert (error(model, image, 16) > good + 0.05).all()


def test_chunked_equals_whole(model, image):
    whole = ask(model, image, 16)
    for core in (
        Bbox.of_shape((9, 8, 9), BOUNDS.start + Vec3(5, 7, 0)),
        Bbox.of_shape((3, 2, 1), BOUNDS.start + Vec3(20, 1, 4)),
    ):
        part = ask(model, image, 16, core, batch=5)
        np.testing.assert_array_equal(part, whole[core.slices(BOUNDS.start)])


def test_patches_that_are_not_square_are_not_turned(model, image):
    inference = model.config.inference.model_copy(update={"patch": Vec3(12, 16, 6)})
    config = model.config.model_copy(update={"inference": inference})
    with pytest.raises(DataError, match="cannot be turned"):
        ask(Model(config, model.net), image, 8)


@pytest.mark.parametrize("count", [1, 8, 16])
def test_symmetries_are_distinct_and_are_undone(count):
    image = np.arange(4 * 4 * 3 * 2).reshape(4, 4, 3, 2)
    ways = symmetries(count)
    assert len(ways) == count
    assert len({way.turn(image).tobytes() for way in ways}) == count
    np.testing.assert_array_equal(ways[0].turn(image), image)
    for way in ways:
        np.testing.assert_array_equal(way.turn_back(way.turn(image)), image)
        np.testing.assert_array_equal(way.turn(image[..., 0]), way.turn(image)[..., 0])


def test_a_symmetry_moves_voxels_as_it_moves_pairs_of_them():
    """By the definition: mark two voxels, turn, and look where they are."""
    offsets = [Vec3(1, 0, 0), Vec3(0, 1, 0), Vec3(2, 1, 0), Vec3(1, 2, 0), Vec3(0, 0, 1)]
    for way in symmetries(16):
        found = {s.channel: s for s in way.sources(offsets)}
        for channel, offset in enumerate(offsets):
            patch = np.zeros((5, 5, 5), int)
            voxel = Vec3(3, 3, 3)
            patch[voxel.astuple()], patch[(voxel - offset).astuple()] = 1, 2
            turned = way.turn(patch)
            first, second = (Vec3.of(np.argwhere(turned == n)[0]) for n in (1, 2))
            pairs = [(first, first - second), (second, second - first)]
            said = [(at, offsets.index(d)) for at, d in pairs if d in offsets]
            if not said:
                assert channel not in found
                continue
            ((at, source),) = said
            marked = np.zeros((5, 5, 5), int)
            marked[at.astuple()] = 1
            back = Vec3.of(np.argwhere(way.turn_back(marked))[0])
            assert found[channel] == Source(channel, source, voxel - back)


def test_channels_of_other_heads_stay_where_they_are(directory):
    text = (directory / "model.toml").read_text()
    config = ModelConfig.load(directory)
    assert "offsets" in text
    masks = config.head[0].model_copy(
        update={"name": "m", "kind": "masks", "offsets": (), "channels": ("a", "b")}
    )
    model = Model(config.model_copy(update={"head": (masks, *config.head)}), nn.Identity())
    for way, flip in itertools.product(symmetries(16)[:3], (Vec3(0, 0, 0),)):
        sources = Runner(model).sources(way)
        assert sources[:2] == [Source(0, 0, flip), Source(1, 1, flip)]
        assert {s.channel for s in sources} == {0, 1, 2, 3, 4}
        assert all(s.source >= 2 for s in sources[2:])
