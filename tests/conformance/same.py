"""Equality of results, exact to the last bit."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def assert_same(a: Any, b: Any) -> None:
    """Compare arrays, and what is made of them, without any tolerance.

    Raises
    ------
    AssertionError
        If they differ.
    """
    if isinstance(a, Mapping):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b
