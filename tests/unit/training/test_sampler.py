import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Vec3
from pipeline.training.config import Augmentation, Rejection
from pipeline.training.sampler import (
    Ahead,
    tiles,
    training_example,
    unaltered_example,
    validation_examples,
)
from pipeline.training.targets import affinities
from pipeline.training.volumes import Volume

from .conftest import AFFINITIES, CLEFT, LONG, altered, tissue, with_heads

BUSY = {
    "grey": 1.0,
    "misalign": 0.3,
    "missing": 0.2,
    "misalign_missing": 0.2,
    "lost": 0.15,
    "lost_missing": 0.15,
    "max_shift": (3,),
    "blur": 1.0,
    "warp": 0.5,
}
MOVING = {"misalign": 0.6, "lost": 0.4, "max_shift": (3,), "interpolate": False}


@pytest.fixture
def small(config):
    plain = config.model_copy(update={"augmentation": Augmentation()})
    return plain.model_copy(update={"patch": Vec3(16, 16, 5)})


@pytest.fixture
def told():
    """Cells of one grey each, no two neighbours alike: the image tells the affinities."""
    labels = np.arange(40 * 44 * 12, dtype=np.int64).reshape((40, 44, 12)) // 3 + 1
    labels = np.asfortranarray(labels)
    return Volume(
        "told",
        {"image": np.asfortranarray((labels % 251).astype(np.uint8))},
        {"cells": labels},
    )


def test_an_example_depends_on_seed_and_number_alone(volume, model, small):
    busy = altered(small, augmentation=BUSY)
    for index in range(12):
        one = training_example([volume], model, busy, index)
        training_example([volume], model, busy, index + 1)
        two = training_example([volume], model, busy, index)
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.target.value, two.target.value)
        assert one.box == two.box
        other = training_example(
            [volume], model, busy.model_copy(update={"seed": 4}), index
        )
        assert not np.array_equal(one.inputs, other.inputs)
        assert one.inputs.shape == (16, 16, 5, 1)
        assert one.target.value.shape == (16, 16, 5, 3)
        assert 0 <= one.inputs.min() < one.inputs.max() <= 255


@pytest.mark.parametrize("augmentation", [{}, MOVING])
def test_targets_fit_the_image(told, model, small, augmentation):
    config = altered(small, augmentation=augmentation)
    for index in range(20):
        example = training_example([told], model, config, index)
        for axis in range(3):
            same = np.abs(np.diff(example.inputs[..., 0], axis=axis)) < 1e-3
            target = np.moveaxis(example.target.value[..., axis], axis, 0)[1:]
            np.testing.assert_array_equal(np.moveaxis(same, axis, 0), target)


def test_every_corner_is_shown(told, model, small):
    large = small.model_copy(update={"patch": Vec3(38, 43, 11)})
    starts = set()
    for index in range(120):
        box = training_example([told], model, large, index).box
        assert max(*box.shape.astuple()[:2]) == 43
        assert box.shape.z == 11
        if box.shape == large.patch:
            starts.add(box.start.astuple())
    assert starts == {(x, y, z) for x in range(3) for y in range(2) for z in range(2)}


def test_volumes_are_drawn_by_weight_and_from_where_they_say(model, small):
    one = tissue((40, 44, 12), 0, "one")
    two = tissue((30, 20, 9), 1, "two")
    two = Volume("two", two.inputs, two.truth, start=Vec3(100, 200, 300), weight=3)
    drawn = [training_example([one, two], model, small, i) for i in range(300)]
    share = sum(e.volume == "two" for e in drawn) / 300
    assert 0.67 < share < 0.83
    for example in drawn:
        assert (example.box.start.z >= 300) == (example.volume == "two")


def test_volumes_of_other_voxels_are_drawn_to_the_net(model, small):
    fine = tissue((60, 60, 12), 0)
    fine = Volume("fine", fine.inputs, fine.truth, ratio=(1.5, 1.5, 1.0))
    example = training_example([fine], model, small, 0)
    assert example.inputs.shape == (16, 16, 5, 1)
    assert example.box.shape.x in (23, 24)
    thin = Volume("thin", fine.inputs, fine.truth, ratio=(1.0, 1.0, 2.0))
    assert training_example([thin], model, small, 0).box.shape.z == 9


def test_where_nothing_is_known(volume, model, small):
    both = with_heads(model, AFFINITIES, LONG, CLEFT)
    known = np.zeros(volume.shape.astuple(), bool, order="F")
    known[20:] = True
    sparse = Volume("sparse", volume.inputs, volume.truth, known)
    config = altered(small, augmentation=BUSY)
    shares = []
    for index in range(20):
        target = training_example([sparse], both, config, index).target
        assert not target.known[..., 5].any()
        assert not target.known[0, ..., 0].any()
        shares.append(target.known[..., 1].mean())
    assert min(shares) < 0.2
    assert max(shares) > 0.8


def test_patches_of_little_are_thrown_back(volume, model, small):
    cleft = np.zeros(volume.shape.astuple(), np.uint8, order="F")
    cleft[30:36, 30:36, 5:7] = 1
    rare = Volume("rare", volume.inputs, {"cleft": cleft})
    masks = with_heads(model, CLEFT)

    def share(config):
        held = [
            training_example([rare], masks, config, i).target.value.sum() >= 20
            for i in range(60)
        ]
        return sum(held) / 60

    rejecting = small.model_copy(
        update={"reject": Rejection(truth="cleft", voxels=20, chance=0.95)}
    )
    assert share(rejecting) > 2 * share(small)
    never = Volume("never", volume.inputs, {"cleft": cleft * 0})
    hopeless = small.model_copy(
        update={"reject": Rejection(truth="cleft", voxels=20, chance=0.99999)}
    )
    with pytest.raises(DataError, match="100 patches"):
        training_example([never], masks, hopeless, 0)


def test_other_inputs_go_along(volume, model, small):
    two = with_heads(model, AFFINITIES, inputs=("image", "cleft"))
    bright = (volume.inputs["image"] > 120).astype(np.uint8)
    both = Volume("both", {**volume.inputs, "cleft": bright}, volume.truth)
    example = training_example([both], two, small, 3)
    assert example.inputs.shape == (16, 16, 5, 2)
    np.testing.assert_array_equal(
        example.inputs[..., 1], example.inputs[..., 0].round() > 120
    )


def test_a_patch_that_does_not_fit_turned_is_shown_as_it_lies(model, small):
    tight = tissue((17, 17, 6), 0)
    turning = altered(small, augmentation={"warp": 1.0, "rotation": 180.0})
    for index in range(10):
        box = training_example([tight], model, turning, index).box
        assert box.shape == small.patch


def test_too_small_a_volume_is_refused(volume, model, small):
    large = small.model_copy(update={"patch": Vec3(48, 48, 5)})
    with pytest.raises(
        DataError, match=r"volume tissue of .40, 44, 12. cannot give patches"
    ):
        training_example([volume], model, large, 0)
    with pytest.raises(DataError, match="smaller than a patch"):
        list(validation_examples([volume], model, Vec3(48, 48, 5), 1))


def test_planar_patches(volume, model, small):
    flat = altered(small, patch=Vec3(16, 16, 1), augmentation=BUSY)
    example = training_example([volume], model, flat, 0)
    assert example.inputs.shape == (16, 16, 1, 1)
    assert not example.target.known[..., 2].any()


def test_validation_is_unaltered_and_spread(volume, model):
    patch = Vec3(16, 16, 5)
    examples = list(validation_examples([volume], model, patch, 6))
    again = list(validation_examples([volume], model, patch, 6))
    places = set()
    for example, twin in zip(examples, again, strict=True):
        np.testing.assert_array_equal(example.inputs, twin.inputs)
        at = tuple(
            slice(a, b) for a, b in zip(example.box.start, example.box.stop, strict=True)
        )
        image = volume.inputs["image"][at].astype(np.float32)
        np.testing.assert_allclose(example.inputs[..., 0], image, atol=1e-4)
        np.testing.assert_array_equal(
            example.target.value, affinities(volume.truth["cells"][at])
        )
        places.add(example.box.start.astuple())
    assert len(places) == 6


def test_tiles_cover_everything(volume, model):
    seen = np.zeros(volume.shape.astuple(), int)
    for example in tiles(volume, model, Vec3(16, 16, 5)):
        seen[
            tuple(
                slice(a, b)
                for a, b in zip(example.box.start, example.box.stop, strict=True)
            )
        ] += 1
    assert seen.min() == 1
    whole = unaltered_example(volume, model, volume.shape, Vec3(0, 0, 0))
    np.testing.assert_allclose(whole.inputs[..., 0], volume.inputs["image"], atol=1e-4)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_is_made_ahead_comes_in_order(threads):
    ahead = Ahead(lambda i: i * i, threads)
    assert [ahead[i] for i in range(10)] == [i * i for i in range(10)]
    ahead.close()


def test_what_fails_ahead_fails_where_it_is_used():
    def make(index):
        if index == 3:
            raise DataError("three")
        return index

    ahead = Ahead(make, 2)
    assert [ahead[i] for i in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="three"):
        ahead[3]
    ahead.close()
