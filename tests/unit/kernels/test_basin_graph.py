"""The basin graph against its definition."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry import Bbox, Halo, Vec3
from pipeline.kernels.basin_graph import (
    BASIN_GRAPH_HALO,
    MASKED_BASIN_GRAPH_HALO,
    basin_graph,
)
from pipeline.kernels.watershed import watershed

from .watershed_oracle import codes_of, edges_of, switched_on, voxels

SHAPE = (6, 5, 4)
LOW, HIGH = 0.2, 0.95


def whole(affinities):
    box = Bbox.of_shape(affinities.shape[:3], Vec3(7, -3, 11))
    boxes = {"box": box, "read_box": box, "bounds": box}
    labels = watershed(affinities, low=LOW, high=HIGH, **boxes)
    return labels, basin_graph(labels, affinities, low=LOW, high=HIGH, **boxes)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("levels", [4, 6, 256])
def test_graph_is_that_of_the_definition(make_affinities, dtype, levels):
    affinities = make_affinities(SHAPE, dtype, seed=levels, levels=levels)
    labels, graph = whole(affinities)
    scale = 255 if dtype == "uint8" else 1 << 20
    greatest = {}
    for v in np.ndindex(SHAPE):
        for axis in range(3):
            if v[axis] == 0:
                continue
            below = tuple(c - (a == axis) for a, c in enumerate(v))
            pair = tuple(sorted((int(labels[v]), int(labels[below]))))
            steps = 1 if dtype == "uint8" else scale
            code = math.floor(float(affinities[(*v, axis)]) * steps + 0.5)
            if pair[0] in (0, pair[1]) or code <= LOW * scale:
                continue
            place = 3 * np.ravel_multi_index(v, SHAPE, order="F") + axis
            greatest[pair] = max(greatest.get(pair, (0, 0)), (code, int(place)))
    assert graph.scale == scale
    assert len(greatest) > 3
    assert (
        dict(
            zip(
                map(tuple, graph.pairs.tolist()),
                zip(graph.affinities.tolist(), graph.keys.tolist(), strict=True),
                strict=True,
            )
        )
        == greatest
    )
    assert graph.joins.shape == (0, 2)
    flat = labels.reshape(-1, order="F")
    ids, first, sizes = np.unique(flat, return_index=True, return_counts=True)
    np.testing.assert_array_equal(graph.ids, ids[ids > 0])
    np.testing.assert_array_equal(graph.sizes, sizes[ids > 0])
    np.testing.assert_array_equal(graph.anchors, first[ids > 0])


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    cuts=st.tuples(*[st.tuples(st.integers(0, 8), st.integers(0, 8))] * 3),
    dtype=st.sampled_from(["uint8", "float16", "float32"]),
    levels=st.sampled_from([2, 3, 6, 256]),
    seed=st.integers(0, 2**32),
    limits=st.sampled_from([(0.0, 2.0), (0.3, 0.97), (0.6, 0.7)]),
    is_masked=st.booleans(),
    size_threshold=st.sampled_from([0, 2, 10, 40, 10**6]),
    threads=st.integers(1, 4),
)
def test_chunk_of_a_volume(
    make_affinities,
    shape,
    cuts,
    dtype,
    levels,
    seed,
    limits,
    is_masked,
    size_threshold,
    threads,
):
    low, high = limits
    bounds = Bbox.of_shape(shape, Vec3(7, -3, 11))
    cuts = [sorted(min(c, n) for c in cut) for cut, n in zip(cuts, shape, strict=True)]
    cuts = [(a, b) if a < b else (0, n) for (a, b), n in zip(cuts, shape, strict=True)]
    start, stop = (Vec3.of(c) for c in zip(*cuts, strict=True))
    box = Bbox(start, stop).shifted(bounds.start)
    halo = MASKED_BASIN_GRAPH_HALO if is_masked else BASIN_GRAPH_HALO
    read_box = bounds.intersection(box.grown(halo))
    boxes = {"box": box, "read_box": read_box, "bounds": bounds}
    read = read_box.shape.astuple()
    affinities = make_affinities(read, dtype, seed, levels)
    rng = np.random.default_rng(seed)
    mask = rng.random(read) > 0.2 if is_masked else None
    # Few labels, in clumps, and other ones outside the chunk.
    labels = rng.integers(0, 5, read, dtype=np.uint64)
    within = box.slices(read_box.start)
    labels[within] += np.uint64(100) * (labels[within] > 0).astype(np.uint64)
    graph = basin_graph(
        labels, affinities, low=low, high=high, mask=mask, threads=threads, **boxes
    )

    scale = codes_of(affinities)[1]
    edges = edges_of(affinities, read_box=read_box, bounds=bounds, mask=mask)
    near = Halo.of(before=1)
    chosen = voxels(bounds.intersection(box.grown(near)))
    _, on = switched_on(edges, chosen, low * scale, high * scale)
    sizes, faces, joins, greatest, cross = Counter(), Counter(), set(), {}, {}
    anchors = {}
    place = {v: i for i, v in enumerate(voxels(bounds))}
    for v in voxels(box):
        label = int(labels[tuple(np.subtract(v, read_box.start.astuple()))])
        if label == 0:
            continue
        sizes[label] += 1
        anchors.setdefault(label, place[v])
        for axis in range(3):
            lower, upper = (c.astuple()[axis] for c in (box.start, box.stop))
            first, last = (c.astuple()[axis] for c in (bounds.start, bounds.stop))
            faces[label] |= (v[axis] == lower > first) << axis
            faces[label] |= (v[axis] == upper - 1 < last - 1) << 3 + axis
            below = tuple(c - (a == axis) for a, c in enumerate(v))
            code = edges.get((v, below), (0,))[0]
            if code <= math.floor(low * scale):
                continue
            other = int(labels[tuple(np.subtract(below, read_box.start.astuple()))])
            if other in (0, label):
                continue
            pair = (min(label, other), max(label, other))
            if v[axis] == lower and (v, below) in on:
                joins.add(pair)
            else:
                edge = (code, 3 * place[v] + axis)
                kept = cross if v[axis] == lower else greatest
                kept[pair] = max(kept.get(pair, edge), edge)
    assert dict(zip(graph.ids.tolist(), graph.sizes.tolist(), strict=True)) == sizes
    assert dict(zip(graph.ids.tolist(), graph.faces.tolist(), strict=True)) == faces
    assert graph.joins.tolist() == sorted(map(list, joins))
    for pair in joins:
        cross.pop(pair, None)
    assert dict(zip(graph.ids.tolist(), graph.anchors.tolist(), strict=True)) == anchors
    columns = (graph.pairs, graph.affinities, graph.keys)
    assert rows(*columns) == descending(greatest)
    columns = (graph.cross_pairs, graph.cross_affinities, graph.cross_keys)
    assert rows(*columns) == descending(cross)

    forest = basin_graph(
        labels,
        affinities,
        low=low,
        high=high,
        mask=mask,
        threads=threads,
        **boxes,
        size_threshold=size_threshold,
    )
    kept = descending(
        {
            pair: edge
            for pair, edge in greatest.items()
            if min(map(sizes.get, pair)) < size_threshold
        }
    )
    assert rows(forest.pairs, forest.affinities, forest.keys) == spanning_forest(kept)
    for name in ("ids", "sizes", "anchors", "faces", "joins", "cross_pairs", "cross_keys"):
        np.testing.assert_array_equal(getattr(forest, name), getattr(graph, name))


def rows(pairs, affinities, keys):
    """Return edges as (affinity, key, smaller id, greater id)."""
    return list(zip(affinities.tolist(), keys.tolist(), *pairs.T.tolist(), strict=True))


def descending(greatest):
    return sorted(((*edge, *pair) for pair, edge in greatest.items()), reverse=True)


def spanning_forest(edges):
    """Take edges in order, but for those that close a cycle."""
    parts, kept = {}, []
    for *edge, a, b in edges:
        one, two = parts.get(a, {a}), parts.get(b, {b})
        if one is not two and one != two:
            kept.append((*edge, a, b))
            parts |= dict.fromkeys(one | two, one | two)
    return kept


def test_a_basin_cut_by_a_face_is_joined():
    """The lower part reaches the face and drains over it."""
    affinities = np.zeros((4, 1, 1, 3), np.uint8)
    affinities[1:, 0, 0, 0] = [100, 150, 200]
    bounds = Bbox.of_shape((4, 1, 1))
    labels = np.array([5, 5, 9, 9], np.uint64).reshape(4, 1, 1)
    upper = Bbox(Vec3(2, 0, 0), Vec3(4, 1, 1))
    read = Bbox(Vec3(1, 0, 0), Vec3(4, 1, 1))
    graph = basin_graph(
        labels[1:],
        affinities[1:],
        box=upper,
        read_box=read,
        bounds=bounds,
        low=0.1,
        high=0.9,
    )
    assert graph.joins.tolist() == [[5, 9]]
    assert graph.pairs.tolist() == []
    assert graph.ids.tolist() == [9]
    assert graph.sizes.tolist() == [2]


def test_background_touches_nothing():
    affinities = np.full((4, 4, 4, 3), 255, np.uint8)
    box = Bbox.of_shape((4, 4, 4))
    labels = np.zeros((4, 4, 4), np.uint64)
    graph = basin_graph(
        labels, affinities, box=box, read_box=box, bounds=box, low=0.1, high=0.9
    )
    assert [len(c) for c in graph.to_table().values() if c.ndim] == [0] * 11
