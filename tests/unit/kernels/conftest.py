"""Small volumes of affinities, of both dtypes, with as many ties as wished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

MakeAffinities: TypeAlias = Callable[..., NDArray[Any]]


@pytest.fixture(scope="session")
def make_affinities() -> MakeAffinities:
    """Return a maker of (x, y, z, 3) affinities with few ``levels``, hence many ties."""

    def make(shape: tuple[int, int, int], dtype: str, seed: int, levels: int = 256):
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, levels, (*shape, 3))
        if dtype == "uint8":
            return np.asfortranarray(codes * (255 // (levels - 1)), np.uint8)
        return np.asfortranarray(codes / (levels - 1), dtype)

    return make
