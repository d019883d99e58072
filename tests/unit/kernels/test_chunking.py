"""Chunked equals whole, exactly, for any cut, any ties and any order of merging."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry import Bbox, Grid, Halo, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.agglomerate import MergeHistory, agglomerate
from pipeline.kernels.basin_graph import BASIN_GRAPH_HALO, basin_graph, merge_basin_graphs
from pipeline.kernels.merge_basins import merge_basins
from pipeline.kernels.naming import named_by_first_voxel
from pipeline.kernels.region_graph import (
    REGION_GRAPH_HALO,
    RegionGraph,
    merge_region_graphs,
    region_graph,
)
from pipeline.kernels.relabel import relabel
from pipeline.kernels.watershed import WATERSHED_HALO, watershed

START = Vec3(5, -7, 3)
ID_CHUNK = Vec3(4, 3, 5)


@dataclass
class Result:
    supervoxels: np.ndarray
    graph: RegionGraph
    history: MergeHistory
    segments: np.ndarray


def reconstruct(
    affinities, chunk, *, low, high, size_threshold, dust, threshold, order=None
):
    """Run all kernels over the chunks of a volume, as stages do."""
    bounds = Bbox.of_shape(affinities.shape[:3], START)
    grid = Grid(bounds, Vec3.of(chunk))
    layout = IdLayout.of_grid(grid)
    keys = list(grid.keys())
    if order is not None:
        order.shuffle(keys)

    def boxes(key, halo: Halo):
        box = grid.box(key)
        read_box = bounds.intersection(box.grown(halo))
        where = {"box": box, "read_box": read_box, "bounds": bounds}
        return where, box.slices(START), read_box.slices(START)

    basins = np.zeros(affinities.shape[:3], np.uint64, order="F")
    for key in keys:
        where, core, read = boxes(key, WATERSHED_HALO)
        base = layout.base(key.position)
        basins[core] = watershed(affinities[read], low=low, high=high, base=base, **where)
    parts = []
    for key in keys:
        where, _, read = boxes(key, BASIN_GRAPH_HALO)
        parts.append(
            basin_graph(basins[read], affinities[read], low=low, high=high, **where)
        )
    merged = merge_basins(
        merge_basin_graphs(parts), size_threshold=size_threshold, dust=dust
    )
    remap = named_by_first_voxel(merged, basins=grid, ids=Grid(bounds, ID_CHUNK))
    supervoxels = relabel(basins, remap)
    graphs = []
    for key in keys:
        where, _, read = boxes(key, REGION_GRAPH_HALO)
        graphs.append(region_graph(supervoxels[read], affinities[read], **where))
    graph = merge_region_graphs(graphs)
    history, remap = agglomerate(graph, threshold=threshold)
    return Result(supervoxels, graph, history, relabel(supervoxels, remap))


SETTINGS = {"low": 0.3, "high": 0.97, "size_threshold": 12, "dust": 4, "threshold": 0.45}


def assert_same(a, b):
    """Equal to the last byte, ids included."""
    np.testing.assert_array_equal(a.supervoxels, b.supervoxels)
    np.testing.assert_array_equal(a.segments, b.segments)
    for ours, theirs in ((a.graph, b.graph), (a.history, b.history)):
        table, other = ours.to_table(), theirs.to_table()
        assert table.keys() == other.keys()
        # Which faces of its chunk a supervoxel touches is a matter of the chunk.
        for column in table.keys() - {"faces"}:
            np.testing.assert_array_equal(table[column], other[column], column)


@settings(max_examples=120, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    chunk=st.tuples(*[st.integers(2, 7)] * 3),
    dtype=st.sampled_from(["uint8", "float32"]),
    levels=st.sampled_from([2, 3, 5, 20, 256]),
    seed=st.integers(0, 2**32),
    low=st.sampled_from([0.0, 0.3, 0.6]),
    high=st.sampled_from([0.7, 0.97, 2.0]),
    size_threshold=st.integers(0, 30),
    dust=st.integers(0, 20),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    order=st.randoms(use_true_random=False),
)
def test_chunked_equals_whole(
    make_affinities, shape, chunk, dtype, levels, seed, order, **config
):
    affinities = make_affinities(shape, dtype, seed, levels)
    whole = reconstruct(affinities, shape, **config)
    parts = reconstruct(affinities, chunk, order=order, **config)
    assert_same(whole, parts)


def test_the_property_is_not_vacuous(make_affinities):
    """The volumes above have basins over many chunks, contacts and merges."""
    result = reconstruct(
        make_affinities((16, 16, 16), "uint8", 1, 5), (5, 4, 3), **SETTINGS
    )
    assert len(result.graph.ids) > 20
    assert len(result.history.loser) > 5
    assert (result.supervoxels == 0).any()
    spread = (result.graph.stop - result.graph.start).max(axis=0)
    assert (spread > (5, 4, 3)).all()


def halo_case(make_affinities, halo, axis, plane):
    """Affinities read for the middle of a volume, whole and with one plane blanked."""
    bounds = Bbox.of_shape((40, 40, 40))
    box = Bbox(Vec3(3, 3, 3), Vec3(37, 37, 37))
    read_box = box.grown(halo)
    read = make_affinities((40, 40, 40), "uint8", 4, 20)[read_box.slices()]
    blank = read.copy(order="F")
    blank[(*[plane if a == axis else slice(None) for a in range(3)],)] = 0
    boxes = {"box": box, "read_box": read_box, "bounds": bounds}
    return read, blank, {**boxes, "low": 0.3, "high": 0.97}


@pytest.mark.parametrize("axis", range(3))
def test_watershed_needs_each_side_of_its_halo(make_affinities, axis):
    read, blank, config = halo_case(make_affinities, WATERSHED_HALO, axis, -1)
    exact, wrong = (watershed(a, **config) for a in (read, blank))
    assert not np.array_equal(exact, wrong)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("plane", [0, -1])
def test_basin_graph_needs_each_side_of_its_halo(make_affinities, axis, plane):
    read, blank, config = halo_case(make_affinities, BASIN_GRAPH_HALO, axis, plane)
    labels = np.arange(1, read[..., 0].size + 1, dtype=np.uint64)
    labels = labels.reshape(read.shape[:3], order="F")
    exact, wrong = (basin_graph(labels, a, **config).joins.tolist() for a in (read, blank))
    assert exact != wrong


def test_a_supervoxel_is_named_after_its_first_voxel(make_affinities):
    shape = (16, 11, 9)
    result = reconstruct(make_affinities(shape, "uint8", 1, 5), (5, 4, 3), **SETTINGS)
    layout = IdLayout.of_grid(Grid(Bbox.of_shape(shape, START), ID_CHUNK))
    flat = result.supervoxels.ravel("F")
    ids, first = np.unique(flat, return_index=True)
    positions, local = layout.unpack(ids[ids > 0])
    voxel = np.stack(np.unravel_index(first[ids > 0], shape, order="F"), axis=1)
    extent = np.array(ID_CHUNK.astuple())
    within = voxel % extent
    np.testing.assert_array_equal(positions, voxel // extent)
    np.testing.assert_array_equal(
        local,
        1 + within[:, 0] + extent[0] * (within[:, 1] + extent[1] * within[:, 2]),
    )
    assert set(np.unique(result.segments)) <= set(np.unique(result.supervoxels))
