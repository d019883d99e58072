"""Watershed against its definition, edge by edge."""

import numpy as np
import pytest

from pipeline.errors import DataError, GeometryError
from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.watershed import watershed

SHAPE = (6, 5, 4)


def whole(affinities, low, high, **changes):
    box = Bbox.of_shape(affinities.shape[:3])
    boxes = {"box": box, "read_box": box, "bounds": box} | changes
    return watershed(affinities, low=low, high=high, **boxes)


def oracle(affinities, low, high):
    """Label by the definition: dictionaries of edges, no thought of speed."""
    scale = 255 if affinities.dtype == np.uint8 else 1
    shape = affinities.shape[:3]
    edges = {}  # (v, lower neighbour) -> place in the total order
    for v in np.ndindex(shape):
        for axis in range(3):
            if v[axis] > 0:
                below = tuple(c - (a == axis) for a, c in enumerate(v))
                edges[v, below] = (float(affinities[(*v, axis)]) / scale, v[::-1], axis)
    on = {e for e, (affinity, *_) in edges.items() if affinity >= high}
    foreground = set()
    for v in np.ndindex(shape):
        incident = [e for e in edges if v in e]
        greatest = max(incident, key=edges.__getitem__, default=None)
        if greatest is not None and edges[greatest][0] > low:
            on.add(greatest)
            foreground.add(v)
    group = {v: {v} for v in foreground}
    for v, w in on:
        union = group[v] | group[w]
        for member in union:
            group[member] = union
    labels = np.zeros(shape, np.uint64)
    for z, y, x in np.ndindex(shape[::-1]):
        if (x, y, z) in foreground and labels[x, y, z] == 0:
            label = 1 + x + shape[0] * (y + shape[1] * z)
            for member in group[x, y, z]:
                labels[member] = label
    return labels


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("levels", [2, 3, 6, 256])
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (0.45, 0.9), (0.3, 0.7)])
def test_basins_are_those_of_the_definition(make_affinities, dtype, levels, low, high):
    affinities = make_affinities(SHAPE, dtype, seed=levels, levels=levels)
    basins = whole(affinities, low, high)
    np.testing.assert_array_equal(basins, oracle(affinities, low, high))


def test_two_peaks_are_two_basins():
    affinities = np.zeros((6, 1, 1, 3), np.uint8)
    affinities[1:, 0, 0, 0] = [200, 100, 50, 100, 200]
    basins = whole(affinities, 0.01, 0.99)
    assert basins.ravel().tolist() == [1, 1, 1, 4, 4, 4]
    assert basins.dtype == np.uint64
    assert basins.flags.f_contiguous


def test_high_affinity_joins_peaks():
    affinities = np.zeros((6, 1, 1, 3), np.uint8)
    affinities[1:, 0, 0, 0] = [255, 254, 253, 254, 255]
    assert whole(affinities, 0.01, 0.99).max() == 1
    assert whole(affinities, 0.01, 0.999).max() > 1


def test_low_is_strict():
    affinities = np.full((2, 1, 1, 3), 51, np.uint8)  # 51 / 255 = 0.2
    assert whole(affinities, 0.2, 1).ravel().tolist() == [0, 0]
    assert whole(affinities, 0.199, 1).ravel().tolist() == [1, 1]


def test_base_shifts_labels_but_not_background(make_affinities):
    affinities = make_affinities(SHAPE, "uint8", seed=0)
    plain = whole(affinities, 0.7, 0.9)
    shifted = whole(affinities, 0.7, 0.9, base=1 << 40)
    assert (plain == 0).any()
    np.testing.assert_array_equal(
        shifted, np.where(plain > 0, plain + np.uint64(1 << 40), plain)
    )


def test_edges_across_the_bounds_do_not_exist():
    """What the net says there is never looked at."""
    affinities = np.zeros((3, 3, 3, 3), np.float32)
    for axis in range(3):
        affinities[(*[0 if a == axis else slice(None) for a in range(3)], axis)] = 1
    assert not whole(affinities, 0.1, 0.9).any()


def test_takes_read_only_and_c_ordered_arrays(make_affinities):
    affinities = make_affinities(SHAPE, "uint8", seed=3)
    expected = whole(affinities, 0.1, 0.9)
    affinities.flags.writeable = False
    np.testing.assert_array_equal(whole(affinities, 0.1, 0.9), expected)
    c_ordered = np.ascontiguousarray(affinities)
    np.testing.assert_array_equal(whole(c_ordered, 0.1, 0.9), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1, 255.0])
def test_rejects_what_is_no_affinity(bad):
    affinities = np.zeros((*SHAPE, 3), np.float32)
    affinities[3, 2, 1, 0] = bad
    with pytest.raises(DataError, match=r"affinities hold .* \[0, 1\]"):
        whole(affinities, 0.1, 0.9)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float64", ">f4"])
def test_rejects_other_dtypes(dtype):
    with pytest.raises(DataError, match=dtype):
        whole(np.zeros((*SHAPE, 3), dtype), 0.1, 0.9)


def test_rejects_another_shape():
    with pytest.raises(DataError, match=r"\(5, 5, 5, 2\)"):
        whole(np.zeros((5, 5, 5, 2), np.uint8), 0.1, 0.9)


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.5), (np.nan, 1)]
)
def test_rejects_thresholds_out_of_order(low, high):
    with pytest.raises(ValueError, match="0 <= low < high"):
        whole(np.zeros((*SHAPE, 3), np.uint8), low, high)


def test_rejects_a_missing_halo():
    affinities = np.zeros((*SHAPE, 3), np.uint8)
    box = Bbox.of_shape(SHAPE)
    with pytest.raises(GeometryError, match="lack part of the halo"):
        whole(affinities, 0.1, 0.9, bounds=Bbox(box.start, box.stop + 1))


def test_rejects_arrays_beyond_the_bounds():
    affinities = np.zeros((*SHAPE, 3), np.uint8)
    with pytest.raises(GeometryError, match="clip boxes to the bounds"):
        whole(affinities, 0.1, 0.9, bounds=Bbox(Vec3(1, 0, 0), Vec3(9, 9, 9)))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("z", [0, 3])
def test_what_one_thread_refuses_is_refused(threads, z):
    affinities = np.zeros((*SHAPE, 3), np.float32)
    affinities[3, 2, z, 2] = np.nan
    with pytest.raises(DataError, match="affinities hold nan"):
        whole(affinities, 0.1, 0.9, threads=threads)


def test_rejects_sizes_and_threads_below_what_they_count():
    affinities = np.zeros((*SHAPE, 3), np.uint8)
    with pytest.raises(ValueError, match="size threshold -1"):
        whole(affinities, 0.1, 0.9, size_threshold=-1)
    with pytest.raises(ValueError, match="dust -1"):
        whole(affinities, 0.1, 0.9, dust=-1)
    with pytest.raises(ValueError, match="0 threads"):
        whole(affinities, 0.1, 0.9, threads=0)


def test_a_mask_needs_a_wider_halo():
    affinities = np.zeros((*SHAPE, 3), np.uint8)
    box = Bbox.of_shape(SHAPE)
    bounds = Bbox(box.start - 1, box.stop)
    assert not whole(affinities, 0.1, 0.9, bounds=bounds).any()
    with pytest.raises(GeometryError, match="lack part of the halo"):
        whole(affinities, 0.1, 0.9, bounds=bounds, mask=np.ones(SHAPE, bool))
