"""The algebra of fields keeps its identities."""

import numpy as np
import pytest

from pipeline.kernels import fields

SPACING = 4.0


@pytest.fixture
def wavy():
    """A gentle field over 40 x 30 nodes, displacements of a few spacings."""
    at = fields.nodes((0, 0), (40, 30), SPACING)
    x, y = np.moveaxis(at, -1, 0)
    return np.stack([6 * np.sin(x / 25), 5 * np.cos(y / 30) + 0.05 * x], axis=-1)


INNER = (slice(6, -6), slice(6, -6))


def test_nothing_and_a_field_are_the_field(wavy):
    nothing = np.zeros_like(wavy)
    np.testing.assert_allclose(fields.compose(nothing, wavy, SPACING), wavy, atol=1e-12)
    np.testing.assert_allclose(fields.compose(wavy, nothing, SPACING), wavy, atol=1e-12)


def test_a_field_and_its_inverse_undo_one_another(wavy):
    inverse = fields.invert(wavy, SPACING)
    for a, b in ((wavy, inverse), (inverse, wavy)):
        left = fields.compose(a, b, SPACING)[INNER]
        assert np.abs(left).max() < 0.15 < np.abs(wavy).max()


def test_composition_is_associative(wavy):
    turned = wavy[..., ::-1] * 0.7
    first = fields.compose(fields.compose(wavy, turned, SPACING), wavy, SPACING)
    second = fields.compose(wavy, fields.compose(turned, wavy, SPACING), SPACING)
    np.testing.assert_allclose(first[INNER], second[INNER], atol=0.1)


def test_shifts_add_up():
    a, b = (np.broadcast_to(v, (9, 8, 2)) for v in ((3.0, -1.0), (2.5, 4.0)))
    np.testing.assert_allclose(fields.compose(a, b, SPACING), a + b)


def test_a_box_is_looked_up_as_the_whole_is(wavy):
    points = fields.nodes((11, 9), (7, 5), SPACING) + 1.3
    whole = fields.sample(wavy, points, SPACING)
    part = fields.sample(wavy[8:25, 6:20], points, SPACING, (8, 6))
    np.testing.assert_array_equal(whole, part)


def test_another_spacing_describes_the_same_space(wavy):
    finer = fields.resample(wavy, SPACING, (80, 60), SPACING / 2)
    again = fields.resample(finer, SPACING / 2, (40, 30), SPACING)
    np.testing.assert_allclose(again[INNER], wavy[INNER], atol=0.05)


def test_two_sides_of_a_tear_are_not_mixed():
    values = np.zeros((6, 6, 2))
    values[3:, :, 0] = 40.0
    points = np.array([[10.5, 8.0], [13.5, 8.0]])
    mixed = fields.sample(values, points, SPACING)[:, 0]
    apart = fields.sample(values, points, SPACING, tear=20.0)[:, 0]
    assert 0 < mixed[0] < mixed[1] < 40
    assert apart.tolist() == [0.0, 40.0]


def test_scattered_inverse_agrees_with_the_smooth_one(wavy):
    found, reached = fields.scattered_inverse(wavy, np.ones((40, 30), bool), SPACING)
    assert reached[INNER].all()
    expected = fields.invert(wavy, SPACING)
    np.testing.assert_allclose(found[INNER], expected[INNER], atol=0.3)


def test_a_crack_closes_and_a_fold_opens():
    """Both sides move towards a crack and away from a fold, by three spacings in all."""
    x = np.arange(40)[:, None]
    side = np.where(x < 20, 1.0, -1.0) * np.ones((40, 30))
    closing = np.stack([side * 1.5 * SPACING, np.zeros_like(side)], axis=-1)
    gap = np.broadcast_to((np.abs(x - 19.5) < 1.6), (40, 30))
    field, reached = fields.scattered_inverse(closing, ~gap, SPACING)
    assert reached[5:35].all()
    assert field[10, 15, 0] == pytest.approx(-1.5 * SPACING)
    assert field[30, 15, 0] == pytest.approx(1.5 * SPACING)
    opened, reached = fields.scattered_inverse(-closing, ~gap, SPACING)
    assert not reached[18:22].any()
    assert np.isfinite(opened).all()
    assert opened[10, 15, 0] == pytest.approx(1.5 * SPACING)
