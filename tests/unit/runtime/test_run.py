"""Done records, and the check of what a stage returns."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.runtime.run import Done, cut_halo
from pipeline.specs import Region
from pipeline.stages.ingest import Ingest

WHOLE = {
    "key": "0_1_2_3",
    "lineage": "abc",
    "objects": {"a": "crc32c:00000000:1"},
    "voxels": 8,
    "seconds": 0.5,
    "peak_memory": 100,
    "kind": "blank",
    "host": "more than is read",
}


def test_a_done_record_is_read():
    done = Done.from_json(WHOLE)
    assert done.key == ChunkKey(0, 1, 2, 3)
    assert done.blank
    assert done.objects == {"a": "crc32c:00000000:1"}


@pytest.mark.parametrize(
    "torn",
    [
        None,
        [],
        "text",
        *(
            {k: v for k, v in WHOLE.items() if k != gone}
            for gone in WHOLE
            if gone != "host"
        ),
        {**WHOLE, "key": "somewhere"},
    ],
)
def test_a_torn_record_is_none(torn):
    assert Done.from_json(torn) is None


@pytest.fixture
def parts():
    """A stage, the middle one of its tasks, and what its layer holds."""
    stage = Ingest(
        output="image",
        bounds=Bbox.of_shape((24, 24, 24)),
        chunk=Vec3(8, 8, 8),
        storage_chunk=Vec3(8, 8, 8),
        source="source",
        voxel_size_nm=(8, 8, 8),
    )
    task = stage.task(ChunkKey(0, 1, 1, 1))
    return stage, task, Region("image", task.box), stage.describe({})


def test_a_halo_is_cut(parts):
    stage, task, target, spec = parts
    task = type(task)(task.key, task.box, Bbox.of_shape((24, 24, 24)), task.bounds)
    value = np.arange(24**3).astype(np.uint8).reshape((24, 24, 24), order="F")
    cut = cut_halo(stage, task, target, spec, value)
    assert np.array_equal(cut, value[8:16, 8:16, 8:16])


def test_a_value_without_halo_is_taken_as_it_is(parts):
    value = np.ones((8, 8, 8), np.uint8)
    assert cut_halo(*parts, value) is not None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.ones((8, 8, 7), np.uint8), r"\(8, 8, 7\)"),
        (np.ones((8, 8, 8), np.uint16), "uint16"),
        ({"column": np.ones(3)}, "dict"),
    ],
)
def test_what_was_not_declared_is_refused(parts, value, said):
    with pytest.raises(DataError, match=said) as raised:
        cut_halo(*parts, value)
    assert "0_1_1_1" in str(raised.value)
