"""Counts the cases, and says at the end how many there were."""

from __future__ import annotations

import pytest

_COUNT = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def count_cases(pytestconfig):
    """Return a function that adds to the number of cases compared."""

    def add(n: int) -> None:
        pytestconfig.stash[_COUNT] = pytestconfig.stash.get(_COUNT, 0) + n

    return add


def pytest_terminal_summary(terminalreporter, config):
    count = config.stash.get(_COUNT, 0)
    if count:
        terminalreporter.write_line(f"exactness: {count} cases equal to their definition")
