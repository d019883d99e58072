"""Stages that join two alignments: the second is put where the first has it."""

import re

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VolumeSpec
from pipeline.stages.seams import (
    Joined,
    JoinedPoses,
    Seam,
    SeamFields,
    SeamShifts,
    seam_nodes,
)
from pipeline.stages.warp import Warp

VOXEL = (24.0, 24.0, 40.0)
FIRST, UNTIL, LAST = 3, 8, 20
FIELD = Bbox(Vec3(0, 0, FIRST), Vec3(96, 80, LAST))
NODES = seam_nodes(FIELD, 8, UNTIL)
NODE = (192.0, 192.0, 40.0)


def laid(sections, turn=0.0, shift=(0.0, 0.0)):
    """Poses that turn and shift each section in its own way, and then all as one."""
    z = np.array(sections)
    angle, x, y = 0.02 * np.sin(z), 40 * np.cos(z), 30 * np.sin(3 * z)
    cos, sin = np.cos(turn), np.sin(turn)
    return {
        "z": z,
        "angle": angle + turn,
        "x": cos * x - sin * y + shift[0],
        "y": sin * x + cos * y + shift[1],
        "placed": np.ones(len(z), np.uint8),
        "mirrored": np.zeros(len(z), np.uint8),
        "middle": np.array([1152.0, 960.0]),
        "section": z[1:],
        "other": z[:-1],
        "weight": np.ones(len(z) - 1),
        "misfit_nm": np.zeros(len(z) - 1),
    }


MINE = laid(range(UNTIL))
ITS = laid(range(FIRST, LAST), turn=0.01, shift=(70.0, -130.0))


def whole_task(stage):
    return stage.task(next(iter(stage.keys(0))))


def shifts_of(field, other_field, poses=MINE, other_poses=ITS):
    stage = SeamShifts(
        output="seam_shifts",
        bounds=NODES,
        chunk=NODES.shape,
        poses="a",
        field="b",
        other_poses="c",
        other_field="d",
        reach_nm=200.0,
        voxel_size_nm=VOXEL,
    )
    task = whole_task(stage)
    inputs = {"poses": poses, "other_poses": other_poses, "field": field}
    window = stage.narrowed(task, **inputs)["other_field"].box
    part = other_field[window.slices(stage.bounds.finer(Vec3(8, 8, 1)).start)]
    return stage.process(task, **inputs, other_field=part)


def seam_of(shifts, **fields):
    stage = Seam(
        output="seam",
        bounds=NODES,
        chunk=NODES.shape,
        shifts="s",
        voxel_size_nm=NODE,
        **fields,
    )
    return stage.process(whole_task(stage), shifts)


def later(shifts, seam, field):
    """The second field as it is drawn through, over all sections of the second."""
    stage = SeamFields(
        output="later_field",
        bounds=FIELD,
        chunk=FIELD.shape,
        shifts="s",
        seam="t",
        field="f",
        until=UNTIL,
        voxel_size_nm=VOXEL,
    )
    task = whole_task(stage)
    node_box = stage.reads(task)["shifts"].box
    given = {"shifts": shifts[node_box.slices(NODES.start)], "seam": seam}
    window = stage.narrowed(task, **given)["field"].box
    return stage.process(task, **given, field=field[window.slices(FIELD.start)])


def shown(z, field, poses):
    """Places of the loose section that the pixels of a section show."""
    box = Bbox(Vec3(0, 0, z), Vec3(96, 80, z + 1))
    stage = Warp(
        output="image",
        bounds=box,
        chunk=box.shape,
        image="loose",
        poses="p",
        field="f",
        voxel_size_nm=VOXEL,
        field_voxel_nm=VOXEL,
    )
    ((points, reached),) = stage.shown(whole_task(stage), poses, field)
    return points, reached


@pytest.fixture
def still():
    return np.zeros((96, 80, LAST - FIRST, 3), np.float32, order="F")


def test_two_that_differ_as_a_whole_are_laid_on_one_another(still):
    """The second is turned and shifted: everything goes on as in the first."""
    shifts = shifts_of(still[:, :, : UNTIL - FIRST], still)
    assert shifts[..., 2].mean() > 0.7
    seam = seam_of(shifts)
    assert np.nanmax(seam["p95_nm"]) < 0.01
    field = later(shifts, seam, still)
    true = laid(range(LAST))
    for z in (FIRST, UNTIL - 1, UNTIL, LAST - 1):
        mine, _ = shown(z, still[:, :, :1], true)
        its, _ = shown(z, field[:, :, [z - FIRST]], ITS)
        np.testing.assert_allclose(its, mine, atol=1e-3)


def test_one_alignment_is_given_back(still):
    x, y = np.indices((96, 80))
    for i in range(still.shape[2]):
        still[:, :, i, 0] = 30 * np.sin(x / 9 + i)
        still[:, :, i, 1] = 30 * np.cos(y / 11 - i)
        still[40:44, :, i, 2] = i % 3 == 0
    mine = laid(range(FIRST, LAST))
    shifts = shifts_of(still[:, :, : UNTIL - FIRST], still, mine, mine)
    field = later(shifts, seam_of(shifts), still)
    np.testing.assert_allclose(field[..., :2], still[..., :2], atol=0.01)
    np.testing.assert_array_equal(field[..., 2], still[..., 2])


def test_what_they_disagree_by_fades_and_begins_where_the_first_has_it(still):
    """The second bends its sections where the first does not."""
    bent = still.copy(order="F")
    at = np.exp(-((np.arange(96) - 48) ** 2) / 600)[:, None]
    bent[..., 0] = 60 * at[:, :, None]
    shifts = shifts_of(still[:, :, : UNTIL - FIRST], bent, ITS, ITS)
    field = later(shifts, seam_of(shifts), bent)
    by = field[48, 40, :, 0]
    # The bend of the second is undone at the seam, and comes back beyond it.
    assert abs(by[0]) < 15
    assert abs(by[UNTIL - 1 - FIRST]) < 25
    assert 10 < by[-1] < 60
    assert np.diff(by[UNTIL - 1 - FIRST :]).min() > 0


def test_sections_that_one_did_not_place_are_not_known(still):
    lost = {**MINE, "placed": (MINE["z"] != FIRST + 1).astype(np.uint8)}
    shifts = shifts_of(still[:, :, : UNTIL - FIRST], still, lost)
    assert not shifts[:, :, 1].any()
    assert shifts[:, :, 0, 2].any()
    seam = seam_of(shifts)
    assert np.isnan(seam["median_nm"][1])
    field = later(shifts, seam, still)
    mine, _ = shown(FIRST + 1, still[:, :, :1], laid(range(LAST)))
    its, _ = shown(FIRST + 1, field[:, :, [1]], ITS)
    np.testing.assert_allclose(its, mine, atol=1e-3)


def test_what_is_lost_in_either_is_not_known(still):
    mine = still[:, :, : UNTIL - FIRST].copy(order="F")
    mine[:30, :, 0, 2] = 1
    shifts = shifts_of(mine, still)
    assert not shifts[:3, :, 0].any()
    assert shifts[:3, :, 1, 2].any()


def test_a_disagreement_beyond_the_limit_is_refused(still):
    rng = np.random.default_rng(0)
    shifts = np.ones((*NODES.shape, 3), np.float32)
    shifts[..., :2] = rng.normal(0, 300, shifts[..., :2].shape)
    with pytest.raises(DataError, match=r"disagree by \d+ nm about sections 3 to 7.*limit"):
        seam_of(shifts, limit_nm=90.0)
    assert np.median(seam_of(shifts, limit_nm=900.0)["median_nm"]) > 90


def test_too_little_that_both_know_is_refused(still):
    shifts = np.zeros((*NODES.shape, 3), np.float32)
    with pytest.raises(DataError, match="0% of sections 3 to 7 belong, less than 10%"):
        seam_of(shifts)


def test_poses_are_put_after_one_another_about_one_middle():
    stage = JoinedPoses(
        output="poses",
        bounds=Bbox(Vec3(0, 0, 0), Vec3(9, 9, LAST)),
        chunk=Vec3(9, 9, LAST),
        first="a",
        second="b",
        since=FIRST,
    )
    away = {**ITS, "middle": ITS["middle"] + 500}
    found = stage.process(whole_task(stage), MINE, away)
    assert found["z"].tolist() == list(range(LAST))
    assert found["section"].tolist() == [1, 2, *range(FIRST + 1, LAST)]
    still = np.zeros((96, 80, 1, 3), np.float32)
    np.testing.assert_allclose(shown(9, still, found)[0], shown(9, still, away)[0])
    np.testing.assert_allclose(shown(2, still, found)[0], shown(2, still, MINE)[0])


@pytest.mark.parametrize(
    ("since", "other", "said"),
    [
        (0, "a", "since = 0 is not inside"),
        (2, "b", "holds 0,0,4,8,8,9"),
        (5, "c", "voxel_size_nm of a is .* and that of c"),
    ],
)
def test_volumes_that_do_not_go_together_are_refused(since, other, said):
    def spec(first, size):
        return VolumeSpec(
            dtype="uint8",
            bounds=Bbox(Vec3(0, 0, first), Vec3(8, 8, 9)),
            voxel_size_nm=size,
            kind_of_values="image",
        )

    specs = {"a": spec(0, VOXEL), "b": spec(4, VOXEL), "c": spec(0, (8.0, 8.0, 40.0))}
    stage = Joined(
        output="image",
        bounds=specs["a"].bounds,
        chunk=Vec3(8, 8, 1),
        storage_chunk=Vec3(8, 8, 1),
        first="a",
        second=other,
        since=since,
    )
    assert any(re.search(said, f) for f in stage.check(specs))
