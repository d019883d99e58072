"""Residuals are what is wrong, and not how a whole stack is slanted."""

import numpy as np
import pytest

from pipeline.metrics.alignment import AlignedSection, residuals

SHAPE = (30, 20)


def section(offset, shown=None, near=None):
    x, y = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return AlignedSection(
        tissue=np.stack([x, y], axis=-1) + np.asarray(offset, np.float64),
        shown=np.ones(SHAPE, bool) if shown is None else shown,
        near_defect=np.zeros(SHAPE, bool) if near is None else near,
        available=1.0,
    )


def test_a_slant_of_the_whole_stack_is_nobodys_fault():
    found = residuals({z: section((3.0 * z, -z)) for z in range(8)})
    assert found.neighbours == pytest.approx(0, abs=1e-9)
    assert found.drift == pytest.approx(0, abs=1e-9)


def test_jumps_are_measured_where_they_are():
    """Every second section lies two pixels off; the trend of the stack is next to none."""
    found = residuals({z: section((2.0 * (z % 2), 0)) for z in range(41)})
    assert found.neighbours == pytest.approx(2.0, abs=0.05)
    assert found.five_apart == pytest.approx(2.0, abs=0.1)
    assert found.drift == pytest.approx(0, abs=0.1)
    assert np.isnan(found.near_defects)


def test_pixels_near_defects_are_counted_by_themselves():
    near = np.zeros(SHAPE, bool)
    near[:10] = True
    off = np.zeros((*SHAPE, 2))
    off[:10, :, 0] = 9.0
    sections = {z: section(off * (z % 2), near=near) for z in range(40)}
    found = residuals(sections)
    assert found.near_defects > 0.95
    assert found.elsewhere < 0.05


def test_coverage_is_of_what_there_is():
    half = np.zeros(SHAPE, bool)
    half[:15] = True
    whole = {z: section((0, 0)) for z in range(6)}
    assert residuals(whole).coverage == 1.0
    assert residuals({z: section((0, 0), shown=half) for z in range(6)}).coverage == 0.5
