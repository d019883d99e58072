"""What stages that assign partners refuse, and that a cleft is assigned but once."""

import pytest

from pipeline.geometry import Bbox
from pipeline.specs import RecordsSpec, VolumeSpec
from pipeline.stages.partners import ContactPartners, NetPartners

BOX = Bbox.of_shape((64, 64, 16))
VOXEL = (8.0, 8.0, 40.0)


def volume(dtype="uint64", **changes):
    described = {"dtype": dtype, "bounds": BOX, "voxel_size_nm": VOXEL}
    kind = "image" if dtype == "uint8" else "segmentation"
    return VolumeSpec(**{**described, "kind_of_values": kind, **changes})


def specs(**changes):
    return {
        "clefts": volume(),
        "cleft_list": RecordsSpec(),
        "segmentation": volume(),
        "image": volume("uint8"),
        **changes,
    }


def stage(kind=ContactPartners, **fields):
    return kind(
        **{
            "output": "partners",
            "bounds": BOX,
            "chunk": [32, 32, 8],
            "clefts": "clefts",
            "components": "cleft_list",
            "segmentation": "segmentation",
            "voxel_size_nm": VOXEL,
            **fields,
        }
    )


def test_layers_that_belong_together_are_taken():
    assert stage().check(specs()) == []
    net = stage(NetPartners, image="image", model="assignment-macrina")
    assert net.check(specs()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"segmentation": volume(voxel_size_nm=(16.0, 16.0, 40.0))},
            "voxels of clefts are (8.0, 8.0, 40.0) nm and those of segmentation (16.0, "
            "16.0, 40.0) nm; give layers of the same voxels",
        ),
        ({"segmentation": volume(bounds=Bbox.of_shape((64, 64, 8)))}, "not inside"),
        ({"clefts": volume("uint32")}, "clefts is uint32; it takes uint64"),
        ({"segmentation": RecordsSpec()}, "and a volume is needed"),
        ({"cleft_list": volume()}, "cleft_list holds volume, not components"),
    ],
)
def test_others_are_refused(changes, told):
    (fault, *_) = stage().check(specs(**changes))
    assert told in fault


def test_the_voxel_must_be_that_of_the_clefts():
    (fault,) = stage(voxel_size_nm=(4.0, 4.0, 40.0)).check(specs())
    assert "voxel of clefts is (8.0, 8.0, 40.0) nm, not (4.0, 4.0, 40.0)" in fault


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("cleft-macrina", "takes image, and the stage has image and cleft"),
        ("nowhere", "there is no model nowhere"),
    ],
)
def test_a_model_of_another_kind_is_refused(model, told):
    net = stage(NetPartners, image="image", model=model)
    assert any(told in fault for fault in net.check(specs()))


def test_a_head_must_say_pre_and_post():
    net = stage(NetPartners, image="image", model="assignment-macrina", head="cleft")
    assert any("gives partners and no head cleft" in f for f in net.check(specs()))


def test_an_image_far_from_what_the_net_saw_is_refused():
    coarse = {name: spec for name, spec in specs().items() if name == "cleft_list"}
    size = (32.0, 32.0, 40.0)
    for name, dtype in (
        ("clefts", "uint64"),
        ("segmentation", "uint64"),
        ("image", "uint8"),
    ):
        coarse[name] = volume(dtype, voxel_size_nm=size)
    net = stage(NetPartners, image="image", model="assignment-macrina", voxel_size_nm=size)
    assert any("was trained at" in fault for fault in net.check(coarse))


def test_the_halo_holds_windows_and_patches():
    contact = stage(window=[9, 8, 4])
    assert contact.reach.before == contact.reach.after == contact.window
    net = stage(NetPartners, image="image", model="assignment-macrina", window=[9, 8, 4])
    assert net.reach.before.astuple() == (9 + 40, 8 + 40, 4 + 9)
