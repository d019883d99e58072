"""The criteria against their definitions, written pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.kernels.image_quality import (
    IMAGE_QUALITY_HALO,
    SectionSums,
    image_quality,
    merge_section_sums,
)


def random_image(shape, seed=0):
    rng = np.random.default_rng(seed)
    return np.asfortranarray(rng.integers(0, 256, shape, dtype=np.uint8))


def whole(image, start=None):
    box = Bbox.of_shape(image.shape, start)
    return image_quality(image, box=box, read_box=box, bounds=box)


def slowly(section):
    """Formulas 3 to 6 of the paper, in exact integers and, at last, one division."""
    f = section.astype(object)
    nx, ny = f.shape
    pixels = [(x, y) for x in range(nx) for y in range(ny)]
    total = sum(f[p] for p in pixels)
    brenner = sum((f[x + 2, y] - f[x, y]) ** 2 for x, y in pixels if x + 2 < nx)
    smd2 = sum(
        abs(f[x, y] - f[x + 1, y]) * abs(f[x, y] - f[x, y + 1])
        for x, y in pixels
        if x + 1 < nx and y + 1 < ny
    )
    # Each squared deviation times n², so that all is whole.
    n = len(pixels)
    variance = sum((n * f[p] - total) ** 2 for p in pixels) / n**2
    products = sum(f[x, y] * f[x + 1, y] for x, y in pixels if x + 1 < nx)
    return brenner, smd2, variance, (products * n - total**2) / n


@pytest.mark.parametrize("shape", [(7, 6, 3), (1, 5, 1), (2, 1, 2), (3, 2, 1)])
def test_criteria_are_their_definitions(shape):
    image = random_image(shape)
    sums = whole(image, Vec3(4, -3, 10))
    assert sums.z.tolist() == list(range(10, 10 + shape[2]))
    for k in range(shape[2]):
        brenner, smd2, variance, vollath = slowly(image[..., k])
        assert sums.brenner[k] == brenner
        assert sums.smd2[k] == smd2
        assert sums.variance[k] == pytest.approx(variance, rel=1e-12)
        assert sums.vollath[k] == pytest.approx(vollath, rel=1e-12)


def test_variance_is_numpys():
    image = random_image((40, 30, 2))
    expected = image.var(axis=(0, 1)) * 1200
    np.testing.assert_allclose(whole(image).variance, expected, rtol=1e-10)


@given(
    chunk=st.tuples(*[st.integers(1, 8)] * 3),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_chunks_add_up_to_the_whole(chunk, shape, seed):
    image = random_image(shape, seed)
    bounds = Bbox.of_shape(shape, Vec3(-2, 5, 9))
    grid, parts = Grid(bounds, Vec3(*chunk)), []
    for key in Grid.keys(grid):
        box = grid.box(key)
        read = bounds.intersection(box.grown(IMAGE_QUALITY_HALO))
        pixels = image[read.slices(bounds.start)]
        parts.append(image_quality(pixels, box=box, read_box=read, bounds=bounds))
    order = np.random.default_rng(seed).permutation(len(parts))
    added = merge_section_sums([parts[i] for i in order])
    for name, column in whole(image, bounds.start).to_table().items():
        np.testing.assert_array_equal(added.to_table()[name], column)
        assert added.to_table()[name].dtype == column.dtype


def test_a_blurred_section_is_worse_by_every_criterion():
    image = random_image((64, 64, 1)).astype(np.float64)
    blurred = (image + np.roll(image, 1, 0) + np.roll(image, 2, 0)) / 3
    sharp, soft = whole(image.astype(np.uint8)), whole(blurred.astype(np.uint8))
    for name in ("brenner", "smd2", "variance"):
        assert getattr(sharp, name)[0] > getattr(soft, name)[0]
    # What is left of Vollath's is the covariance of neighbours, and noise has none.
    assert abs(sharp.vollath[0]) < soft.vollath[0]


def test_sums_beyond_64_bits_are_right():
    """A section of 2^36 pixels: the square of its sum needs 85 bits."""
    n, grey = 1 << 36, 200
    row = dict.fromkeys(("brenner", "smd2"), 0)
    columns = {"pixels": n, "sum": n * grey, "squares": n * grey**2 + 5, "products": 0}
    arrays = {k: np.array([v], np.uint64) for k, v in {**row, **columns}.items()}
    sums = SectionSums(z=np.array([0]), **arrays)
    assert sums.variance[0] == 5
    assert sums.vollath[0] == -float(n * grey**2)


def test_a_box_without_its_partners_is_refused():
    image = random_image((6, 6, 1))
    bounds, box = Bbox.of_shape((6, 6, 1)), Bbox.of_shape((3, 3, 1))
    with pytest.raises(DataError, match="needs an image of 0,0,0,5,4,1"):
        image_quality(
            image[:4, :4], box=box, read_box=Bbox.of_shape((4, 4, 1)), bounds=bounds
        )
    with pytest.raises(DataError, match="give uint8"):
        image_quality(image.astype(np.uint16), box=bounds, read_box=bounds, bounds=bounds)


def test_a_table_comes_back():
    sums = whole(random_image((5, 4, 3)))
    again = SectionSums.from_table(sums.to_table())
    np.testing.assert_array_equal(again.vollath, sums.vollath)
