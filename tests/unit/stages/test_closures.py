"""Sections are drawn as pairs put them together, and the rest as ever."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Vec3
from pipeline.stages.closures import Closures, PointPair
from pipeline.stages.warp import Warp

SIZE, CUT, HALF = 160, 80, 20
VOXEL = (8.0, 8.0, 40.0)
BOUNDS = Bbox(Vec3(0, 0, 4), Vec3(SIZE, SIZE, 7))
TORN = 5
"""Of sections 4, 5 and 6."""


def pairs():
    """Both rims of a crack along x = 80, every 24 pixels [nm]."""
    return tuple(
        PointPair(
            section=TORN,
            x=(CUT + side * (HALF + 4)) * 8,
            y=y * 8,
            to_x=(CUT + side * 4) * 8,
            to_y=y * 8,
        )
        for y in range(2, SIZE, 24)
        for side in (-1, 1)
    )


@pytest.fixture
def tissue():
    """Smooth textures of one size, and no zeros."""
    x, y = np.meshgrid(*[np.arange(SIZE)] * 2, indexing="ij")
    waves = [np.sin(x / 7 + z) + np.cos(y / 5 - z) + np.sin((x + y) / 11) for z in range(3)]
    return np.rint(128 + 30 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture
def loose(tissue):
    """The middle section torn: both sides 20 pixels away, and what fell off is lost."""
    torn = tissue.copy()
    torn[: CUT - HALF, :, 1] = tissue[HALF:CUT, :, 1]
    torn[CUT + HALF :, :, 1] = tissue[CUT:-HALF, :, 1]
    torn[CUT - HALF : CUT + HALF, :, 1] = 255
    return torn


@pytest.fixture
def records():
    stage = Closures(
        output="closures", bounds=BOUNDS, chunk=Vec3(64, 64, 1), pairs=pairs(),
        accuracy_nm=16.0, voxel_size_nm=VOXEL,
    )  # fmt: skip
    return [stage.process(stage.task(key)) for key in stage.plan()[0]]


def drawn(image, chunk=(SIZE, SIZE, 3), **inputs):
    """Draw the stack by chunks, reading of the image what each asks for."""
    closures = inputs.pop("closures", None)
    named = {name: name for name in inputs} | ({"closures": "closures"} if closures else {})
    if "field" in named:
        named["field_voxel_nm"] = VOXEL
    stage = Warp(
        output="closed", bounds=BOUNDS, chunk=Vec3(*chunk), image="loose",
        voxel_size_nm=VOXEL, **named,
    )  # fmt: skip
    result = np.zeros_like(image)
    for key in stage.plan()[0]:
        task = stage.task(key)
        reads = stage.reads(task)
        read = dict(inputs)
        if "field" in read:
            read["field"] = read["field"][reads["field"].box.slices(BOUNDS.start)]
        if closures:
            read["closures"] = [
                closures[int(r.key.rsplit("_", 1)[1])] for r in reads["closures"]
            ]
        for region in stage.narrowed(task, **read).values():
            read["image"] = image[region.box.slices(BOUNDS.start)]
        result[task.box.slices(BOUNDS.start)] = stage.process(task, **read)
    return result


KEPT = (slice(HALF + 3, -HALF - 3), slice(3, -3))
"""Pixels that are not lost at the border."""


def test_the_crack_is_closed_and_the_pixels_are_those_of_before(loose, tissue, records):
    closed = drawn(loose, closures=records)
    off = np.abs(closed[..., 1].astype(int) - tissue[..., 1])[KEPT]
    beside = np.abs(np.arange(SIZE) - CUT)[KEPT[0]] > 6
    assert np.percentile(off[beside], 97) <= 1
    assert np.median(np.abs(loose[..., 1].astype(int) - tissue[..., 1])[KEPT]) > 20


def test_sections_without_pairs_stay_as_they_are(loose, records):
    assert not len(records[0]["loose"])
    closed, alone = drawn(loose, closures=records), drawn(loose)
    np.testing.assert_array_equal(closed[..., [0, 2]], alone[..., [0, 2]])
    assert (closed[..., 1] != alone[..., 1]).mean() > 0.5


@pytest.mark.parametrize("chunk", [(37, 61, 2), (64, 160, 1)])
def test_chunks_make_no_difference(loose, records, chunk):
    whole = drawn(loose, closures=records)
    np.testing.assert_array_equal(drawn(loose, chunk, closures=records), whole)


def test_pairs_come_after_the_pose_and_the_pose_after_the_field(loose, tissue, records):
    """What was torn is turned, shifted and bent as if it never had been."""
    angle, shift = 0.1, (120.0, -16.0)
    poses = {
        "z": np.arange(4, 7), "angle": np.full(3, angle), "x": np.full(3, shift[0]),
        "y": np.full(3, shift[1]), "placed": np.ones(3, np.uint8),
        "middle": np.full(2, SIZE * 4.0),
    }  # fmt: skip
    field = np.zeros((SIZE, SIZE, 3, 3), np.float32)
    field[..., 0] = 40.0 * np.arange(SIZE)[:, None, None] / SIZE
    once = drawn(loose, closures=records, poses=poses, field=field)
    truly = drawn(tissue, poses=poses, field=field)
    inside = (slice(40, -40), slice(20, -20))
    off = np.abs(once[..., 1].astype(int) - truly[..., 1])[inside]
    # A tenth of what is compared is the crack, and beside it.
    assert np.percentile(off, 80) <= 1


def test_records_of_other_sections_are_refused(loose, records):
    with pytest.raises(DataError, match="place of section 4 is of section 5"):
        drawn(loose, closures=[records[1], *records[1:]])
