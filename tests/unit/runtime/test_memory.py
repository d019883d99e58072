"""Peak memory of a task is its own, and a machine is no larger than its container."""

import mmap

import psutil
import pytest

from pipeline.runtime.memory import machine_memory, peak_memory, reset_peak_memory

MIB = 2**20


def test_the_peak_is_seen_and_begun_anew():
    reset_peak_memory()
    before = peak_memory()
    # Straight from the system: what an allocator is given back it may keep.
    with mmap.mmap(-1, 64 * MIB) as block:
        for _ in range(64):
            block.write(bytes(MIB))
        during = peak_memory()
    assert during - before == pytest.approx(64 * MIB, abs=8 * MIB)
    assert peak_memory() >= during - MIB
    reset_peak_memory()
    assert peak_memory() < during - 32 * MIB


def test_a_machine_has_some():
    assert 2**28 < machine_memory() <= psutil.virtual_memory().total
