"""The layers that examples start from, made once."""

import pytest

from .examples import World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))
