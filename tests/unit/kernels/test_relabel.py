"""Relabelling against a dictionary."""

import numpy as np
import pytest

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
