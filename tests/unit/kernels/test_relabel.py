"""Relabelling against a dictionary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.kernels.relabel import RemapTable, relabel

TABLE = RemapTable(
    np.array([2, 3, 2**40, 2**64 - 1], np.uint64), np.array([7, 0, 2**63, 2], np.uint64)
)


def test_every_id_becomes_its_target():
    names = dict(zip([0, *TABLE.ids.tolist()], [0, *TABLE.targets.tolist()], strict=True))
    labels = np.random.default_rng(0).choice(np.array(list(names), np.uint64), (9, 8, 7))
    relabelled = relabel(labels, TABLE)
    expected = np.vectorize(lambda i: names[int(i)], otypes=[np.uint64])(labels)
    np.testing.assert_array_equal(relabelled, expected)
    assert relabelled.flags.f_contiguous


def test_missing_ids_are_kept_or_refused():
    labels = np.array([2, 5, 0], np.uint64).reshape(3, 1, 1)
    assert relabel(labels, TABLE, keep_missing=True).ravel().tolist() == [7, 5, 0]
    with pytest.raises(DataError, match="id 5 is not in the remap table"):
        relabel(labels, TABLE)


def test_input_is_left_alone_and_may_be_read_only():
    labels = np.full((2, 2, 2), 2, np.uint64)
    labels.flags.writeable = False
    assert (relabel(labels, TABLE) == 7).all()
    assert (labels == 2).all()


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(*[st.integers(0, 6)] * 3),
    dtype=st.sampled_from(["uint8", "uint16", "uint64"]),
    order=st.sampled_from("FC"),
    threads=st.integers(1, 7),
    where=st.sampled_from(["new", "out", "in place"]),
    keep_missing=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_relabelling_is_that_of_a_dictionary(
    shape, dtype, order, threads, where, keep_missing, seed
):
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(0, 12, rng.integers(0, 12)).astype(np.uint64))
    table = RemapTable(ids, rng.integers(0, 2**64, len(ids), np.uint64))
    names = dict(zip(ids.tolist(), table.targets.tolist(), strict=True)) | {0: 0}
    labels = np.array(rng.integers(0, 12, shape), dtype, order=order)
    missing = [i for i in labels.ravel("F").tolist() if i not in names]
    expected = [names.get(i, i) for i in labels.ravel("F").tolist()]
    if where == "in place":
        labels = np.asfortranarray(labels, np.uint64)
    out = {"new": None, "out": np.zeros(shape, np.uint64, order="F"), "in place": labels}
    options = {"keep_missing": keep_missing, "threads": threads, "out": out[where]}
    if missing and not keep_missing:
        # The first in scan order, whatever the threads.
        with pytest.raises(DataError, match=f"id {missing[0]} is not in"):
            relabel(labels, table, **options)
        return
    found = relabel(labels, table, **options)
    assert where == "new" or found is out[where]
    assert found.dtype == np.uint64
    assert found.flags.f_contiguous
    assert found.shape == shape
    assert found.ravel("F").tolist() == expected


def test_no_threads_are_refused():
    with pytest.raises(ValueError, match="0 threads"):
        relabel(np.zeros((1, 1, 1), np.uint64), TABLE, threads=0)


def test_out_that_cannot_take_the_ids_is_refused():
    labels = np.full((3, 4, 5), 2, np.uint64, order="F")
    read_only = np.zeros((3, 4, 5), np.uint64, order="F")
    read_only.flags.writeable = False
    for out in (
        np.zeros((3, 4, 5), np.uint64),
        np.zeros((3, 4, 6), np.uint64, order="F"),
        np.zeros((3, 4, 5), np.int64, order="F"),
        read_only,
    ):
        with pytest.raises(DataError, match="give a writable uint64 array of shape"):
            relabel(labels, TABLE, out=out)


def test_out_that_overlaps_the_labels_is_refused():
    memory = np.full(12, 2, np.uint64)
    labels, out = (memory[i : i + 10].reshape(5, 2, 1, order="F") for i in (0, 2))
    with pytest.raises(DataError, match="out lies 16 bytes from the labels"):
        relabel(labels, TABLE, out=out)
    assert (memory == 2).all()
