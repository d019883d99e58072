"""What is said of a wave while it runs."""

import re

import pytest

from pipeline.runtime.progress import Tally, WaveProgress


def shown(total, every_s, outcomes, **options):
    lines = []
    with WaveProgress(
        "image", total, line=lines.append, every_s=every_s, **options
    ) as wave:
        for outcome in outcomes:
            wave.add(outcome, 1000)
    return lines


def test_a_line_for_each_while_and_one_at_the_end():
    lines = shown(3, -1.0, ["done", "failed", "skipped"])
    assert len(lines) == 4
    assert re.fullmatch(r"image: 1/3 tasks, [\d.]+ Mvox/s, 0 failed, \d+ s left", lines[0])
    assert re.fullmatch(r"image: 3/3 tasks, [\d.]+ Mvox/s, 1 failed", lines[-1])


def test_a_short_wave_has_one_line():
    assert len(shown(3, 60.0, ["done"] * 3)) == 1


def test_quiet_says_nothing():
    assert shown(3, -1.0, ["done"] * 3, quiet=True) == []


def test_a_wave_that_is_left_by_an_error_says_how_far_it_came():
    lines = []
    wave = WaveProgress("image", 3, line=lines.append)
    wave.add("done", 1)
    with pytest.raises(RuntimeError), wave:
        raise RuntimeError
    assert lines[-1].startswith("image: 1/3 tasks")


def test_rate_counts_what_was_written_and_remaining_time_every_task():
    tally = Tally(10)
    assert tally.remaining_s is None
    tally.started -= 4.0
    tally.add("done", 8_000_000)
    tally.add("failed", 8_000_000)
    assert tally.rate == pytest.approx(2.0, rel=0.05)
    assert tally.remaining_s == pytest.approx(16.0, rel=0.05)
