"""Ids replaced by a table."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.specs import Record, Region, VolumeSpec
from pipeline.stages.relabel import Relabel


def relabel():
    return Relabel(
        labels="a",
        table="t",
        output="b",
        bounds=Bbox.of_shape((4, 2, 1)),
        chunk=Vec3(2, 2, 1),
    )


def test_a_chunk_reads_its_ids_and_its_table():
    stage = relabel()
    assert stage.reads(stage.task(ChunkKey(0, 1, 0, 0))) == {
        "labels": Region("a", Bbox(Vec3(2, 0, 0), Vec3(4, 2, 1))),
        "table": Record("t", "0_1_0_0"),
    }


def process(table, labels):
    stage = relabel()
    array = np.array(labels, np.uint64).reshape(2, 2, 1, order="F")
    return stage.process(stage.task(ChunkKey(0, 0, 0, 0)), labels=array, table=table)


def table(**columns):
    return {k: np.array(v, np.uint64) for k, v in columns.items()}


def test_ids_are_replaced_and_background_stays():
    found = process(table(ids=[3, 8], targets=[8, 0]), [3, 8, 0, 3])
    assert found.ravel("F").tolist() == [8, 0, 0, 8]
    assert found.dtype == np.uint64


def test_a_chunk_of_background_needs_no_rows():
    assert not process(table(ids=[], targets=[]), [0, 0, 0, 0]).any()


def test_another_table_is_refused():
    with pytest.raises(DataError, match="not those of RemapTable"):
        process(table(ids=[3], segments=[8]), [3, 3, 0, 3])


def test_an_id_that_the_table_lacks_is_told():
    with pytest.raises(DataError, match="5"):
        process(table(ids=[3], targets=[8]), [3, 5, 0, 3])


def test_a_volume_is_no_table():
    volume = VolumeSpec(
        dtype="uint64",
        bounds=Bbox.of_shape((4, 2, 1)),
        voxel_size_nm=(8.0, 8.0, 40.0),
        kind_of_values="segmentation",
    )
    faults = relabel().check({"a": volume, "t": volume})
    assert "relabel: t holds volume, not a table" in faults
