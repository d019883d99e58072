"""How far patches lie from where they are most alike, and what is too good."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.geometry import Bbox
from pipeline.kernels.residual_shift import (
    PATCH,
    REACH,
    is_too_good,
    joined,
    off_by,
    patch_shifts,
)
from pipeline.layers.sources import open_source


def texture(seed, extent=200):
    noise = np.random.default_rng(seed).standard_normal((extent, extent))
    return np.clip(128 + 150 * gaussian_filter(noise, 2), 1, 255).astype(np.uint8)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-5, 4)])
def test_a_shift_is_found_and_its_sign(shift):
    """The section lies at the shift from where it is most like the other."""
    other = texture(0)
    section = np.roll(other, shift, axis=(0, 1))
    found = patch_shifts(section, other)
    assert len(found.corner) > 20
    assert np.abs(found.shift + np.array(shift)).max() < 0.3
    assert (found.best > 0.98).all()
    assert found.sure.all()
    off, gain = off_by(found)
    assert off == pytest.approx(np.hypot(*shift), abs=0.2)
    assert gain == pytest.approx(0, abs=1e-6) if shift == (0, 0) else gain > 0.2


def test_what_one_of_them_does_not_show_is_left_out():
    section, other = texture(0), texture(0)
    section[:90] = 0
    other[:, 150:] = 0
    found = patch_shifts(section, other)
    assert len(found.corner)
    assert found.corner[:, 0].min() >= 90 - REACH
    assert found.corner[:, 1].max() + PATCH <= 150 + REACH
    nothing = patch_shifts(np.zeros_like(section), other)
    assert not len(nothing.corner)
    assert np.isnan(off_by(joined([nothing]))).all()
    assert not is_too_good(joined([]))


def test_sections_that_are_nothing_alike_are_not_too_good():
    assert not is_too_good(patch_shifts(texture(0), texture(1)))


def test_sections_that_were_bent_until_they_look_alike_are_told_from_aligned_ones():
    """Dense flow pulls each section onto the one before it; delivered ones are left."""
    data = Path(os.environ.get("EM_DATA", "../shared/data"))
    if not (data / "ac4.h5").is_file():
        pytest.skip(f"no ac4.h5 in {data}; set EM_DATA")
    with open_source(f"{data}/ac4.h5:raw") as source:
        image = source.read(Bbox.parse("0,0,20,640,640,25"))
    sections = [cv2.resize(image[..., z], None, fx=0.5, fy=0.5) for z in range(5)]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    y, x = np.indices(sections[0].shape, np.float32)
    bent = sections[:1]
    for section in sections[1:]:
        by = flow.calc(bent[-1], section, None)
        bent.append(cv2.remap(section, x + by[..., 0], y + by[..., 1], cv2.INTER_LINEAR))

    def compared(stack):
        pairs = zip(stack[1:], stack, strict=False)
        return joined([patch_shifts(a, b) for a, b in pairs])

    assert is_too_good(compared(bent))
    assert not is_too_good(compared(sections))
    assert compared(bent).here.mean() > compared(sections).here.mean() + 0.1
