"""Point pairs put a torn section together."""

import numpy as np
import pytest

from pipeline.kernels.piecewise_affine import anchored, pair_faults, pull

SIZE, CUT, HALF = 400.0, 200.0, 50.0
LOW, HIGH = np.zeros(2), np.full(2, SIZE)


def pixels(n=int(SIZE)):
    return np.stack(np.meshgrid(*[np.arange(n) + 0.5] * 2, indexing="ij"), axis=-1)


def torn(points, half=HALF, turn=0.0):
    """Move the left side away to the left, and the right side to the right, turned."""
    sign = np.where(points[..., 0] < CUT, -1.0, 1.0)
    x, y = np.moveaxis(points - CUT, -1, 0)
    angle = turn * sign
    moved = [np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y]
    return np.stack([moved[0] + sign * half, moved[1]], axis=-1) + CUT


def rims(off=6.0, step=35.0):
    """Places on both sides of the cut, all along it."""
    y = np.arange(10.0, SIZE, step)
    sides = [np.stack([np.full(len(y), CUT + s * off), y + 4 * s], -1) for s in (-1, 1)]
    return np.concatenate(sides)


def put(loose, closed, points, **settings):
    found = anchored(
        loose, closed, LOW, HIGH, **{"guides": 12, "accuracy": 2.0, **settings}
    )
    assert found.folded == []
    return pull(points, found.loose, found.closed)


def test_each_triangle_is_the_affine_map_of_its_corners():
    """By hand: in (0,0) (8,0) (0,8) -> (1,2) (13,2) (1,6), x grows by 3/2, y by 1/2."""
    closed = np.array([(0.0, 0), (8, 0), (0, 8), (10, 10)])
    loose = np.array([(1.0, 2), (13, 2), (1, 6), (21, 10)])
    points = np.array([[(0.0, 0), (2, 4), (1, 1)], [(4, 4), (9, 5), (6, 6)]])
    found = pull(points, loose, closed)
    lower = [(1, 2), (4, 4), (2.5, 2.5), (7, 4)]  # (1 + 3/2 x, 2 + y/2)
    np.testing.assert_allclose(found.reshape(-1, 2)[:4], lower, atol=1e-12)
    # Beyond the diagonal: the middle of an edge, and of the triangle.
    np.testing.assert_allclose(found[1, 1:], [(17, 6), (35 / 3, 6)], atol=1e-12)


def test_pairs_go_exactly_where_they_were_put():
    closed = rims()
    loose = torn(closed) + np.random.default_rng(0).normal(0, 2, closed.shape)
    found = put(loose, closed, closed[None])
    np.testing.assert_allclose(found[0], loose, atol=1e-6)


@pytest.mark.parametrize("turn", [0.0, 0.02])
def test_each_side_follows_its_rim_to_the_border(turn):
    """Far from the pairs too, where the mean of all pairs is off by 50 pixels."""
    closed, points = rims(), pixels()
    off = put(torn(closed, turn=turn), closed, points) - torn(points, turn=turn)
    beside = np.abs(points[..., 0] - CUT) > 10
    inside = (points[..., 1] > 25) & (points[..., 1] < SIZE - 25)
    far = np.linalg.norm(off, axis=-1)[beside & inside]
    assert np.median(far) < 0.2
    assert np.percentile(far, 98) < 1.5


def test_a_crack_that_ends_within_keeps_its_sides_apart():
    """It opens towards y = 0, where each side is off by 25, and ends in the middle."""

    def opened(points):
        turned = torn(points, half=0.0, turn=0.125)
        return np.where(points[..., 1:] < CUT, turned, points)

    closed, points = rims(step=25.0), pixels()
    across = np.abs(put(opened(closed), closed, points) - opened(points))[..., 0]
    open_end = (points[..., 1] > 10) & (points[..., 1] < 100)
    near = np.abs(np.abs(points[..., 0] - CUT) - 60) < 50
    assert np.percentile(across[open_end & near], 95) < 8


def test_clicks_that_are_off_do_not_turn_what_is_far():
    """Three clicks side by side, each off by two: the border is not turned by them."""
    closed = np.array([(40.0, 40), (60, 40), (50, 60)])
    loose = closed + 30 + np.array([(0, -2), (0, 2), (1, 0)])
    found = put(loose, closed, pixels(), accuracy=2.0)
    off = np.linalg.norm(found - pixels() - 30, axis=-1)
    assert off.max() < 8
    trusted = put(loose, closed, pixels(), accuracy=0.01)
    assert np.linalg.norm(trusted - pixels() - 30, axis=-1).max() > 20


def test_a_turn_of_all_is_a_turn_of_all():
    closed = rims()
    angle = 0.3
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    found = put(closed @ turn + 17, closed, pixels())
    np.testing.assert_allclose(found, pixels() @ turn + 17, atol=0.05)


def test_a_part_is_the_same_as_in_the_whole():
    """To the last bit, also for points on edges and corners of triangles."""
    closed = rims()
    found = anchored(torn(closed), closed, LOW, HIGH, guides=16, accuracy=2.0)
    points = pixels() - 0.5
    whole = pull(points, found.loose, found.closed)
    for x, y in ((0, 0), (130, 70), (187, 203), (399, 0)):
        part = (slice(x, x + 61), slice(y, y + 47))
        np.testing.assert_array_equal(
            pull(points[part], found.loose, found.closed), whole[part]
        )


def test_what_is_beyond_everything_goes_on():
    closed = rims()
    points = np.array([[(-5000.0, 200), (9000, 200)]])
    assert np.abs(put(torn(closed), closed, points) - points).max() < 200


def test_guides_that_would_fold_are_left_out():
    """A fold of 150 pixels that is opened: beyond its ends guides would cross over."""
    closed = np.concatenate([rims(off=90.0, step=35.0)[3:9], rims(off=90.0)[15:21]])
    every = anchored(closed, closed, LOW, HIGH, guides=16, accuracy=2.0)
    found = anchored(torn(closed, half=-75.0), closed, LOW, HIGH, guides=16, accuracy=2.0)
    assert found.folded == []
    assert len(found.loose) < len(every.loose)


def test_pairs_that_were_swapped_are_named():
    closed = rims()
    loose = torn(closed)
    loose[[2, 4]] = loose[[4, 2]]
    folded = anchored(loose, closed, LOW, HIGH, guides=12, accuracy=2.0).folded
    assert {2, 4} & {i for triangle in folded for i in triangle}


def test_clicks_that_turn_flat_triangles_over_are_not_refused():
    """Pairs here and there along a bent crack, each off by one or two."""
    refused, exact = 0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        y = [np.sort(rng.uniform(10, SIZE - 10, 14)) for _ in range(2)]
        closed = np.concatenate(
            [
                np.stack([CUT + s * rng.uniform(8, 25, 14) + 20 * np.sin(v / 80), v], -1)
                for s, v in zip((-1, 1), y, strict=True)
            ]
        )
        away = np.repeat([-HALF, HALF], 14)
        loose = closed + np.stack([away, 0 * away], axis=-1)
        loose += rng.normal(0, 1.5, loose.shape)
        settings = {"guides": 12, "accuracy": 2.0}
        refused += bool(anchored(loose, closed, LOW, HIGH, **settings).folded)
        settings["accuracy"] = 1e-6
        exact += bool(anchored(loose, closed, LOW, HIGH, **settings).folded)
    assert refused == 0
    assert exact > 0


def test_guides_are_dense_near_pairs_only():
    """A section of 40,000 pixels and a crack of 400: its sides move apart all along it."""
    wide = np.full(2, 20_000.0)
    closed = rims()
    found = anchored(torn(closed), closed, CUT - wide, CUT + wide, guides=12, accuracy=2.0)
    assert 200 < len(found.loose) < 2000
    points = pixels()
    off = pull(points, found.loose, found.closed) - torn(points)
    beside = np.abs(points[..., 0] - CUT) > 10
    inside = (points[..., 1] > 25) & (points[..., 1] < SIZE - 25)
    assert np.percentile(np.linalg.norm(off, axis=-1)[beside & inside], 98) < 1.5
    far = CUT + np.array([[(-15_000.0, 0), (15_000, 0)]])
    np.testing.assert_allclose(pull(far, found.loose, found.closed), torn(far), atol=5)


def test_a_mirror_image_folds():
    closed = rims()
    loose = closed * (-1, 1) + (SIZE, 0)
    assert anchored(loose, closed, LOW, HIGH, guides=12, accuracy=2.0).folded


LINE = np.array([(10.0, 10), (20, 20), (70, 70), (90, 90)])
SQUARE = np.array([(10.0, 10), (90, 10), (10, 90), (90, 90)])


@pytest.mark.parametrize(
    ("loose", "closed", "pairs", "said"),
    [
        (SQUARE[:2], SQUARE[:2], (0, 1), "fewer than 3"),
        (LINE, SQUARE, (0, 1, 2, 3), "lie on one line"),
        (SQUARE, LINE, (0, 1, 2, 3), "belong on one line"),
        (SQUARE[[0, 1, 2, 1]], SQUARE, (1, 3), "lie at one point"),
        (SQUARE, SQUARE[[0, 1, 0, 3]], (0, 2), "belong at one point"),
    ],
)
def test_pairs_that_say_too_little_are_refused(loose, closed, pairs, said):
    ((which, how),) = pair_faults(loose, closed)
    assert which == pairs
    assert said in how


def test_pairs_that_will_do_have_no_faults():
    assert pair_faults(SQUARE, SQUARE + 5) == []
