"""How many threads a kernel may use."""

from __future__ import annotations


def require_threads(threads: int) -> None:
    """Check a number of threads.

    Raises
    ------
    ValueError
        If there is none.
    """
    if threads < 1:
        raise ValueError(f"{threads} threads cannot work; give 1 or more")
