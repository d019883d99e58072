"""Pieces and their edges against the definition, face by face."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.errors import DataError, GeometryError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.chunk_graph import CHUNK_GRAPH_HALO, chunk_graph, cut_supervoxels

START = Vec3(-3, 7, 100)


def volumes(seed, shape, dtype):
    """Supervoxels that meander, their segments, and affinities."""
    rng = np.random.default_rng(seed)
    supervoxels = rng.integers(0, 6, shape).astype(np.uint64)
    segment = np.array([0, 50, 50, 60, 70, 50], np.uint64)
    affinities = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if dtype == "float32":
        affinities = affinities.astype(np.float32) / np.float32(255)
    named = np.where(supervoxels == 0, 0, supervoxels + np.uint64(2**40))
    return map(np.asfortranarray, (named, segment[supervoxels], affinities))


def cut(supervoxels, grid):
    layout = IdLayout.of_grid(grid)
    pieces = np.zeros_like(supervoxels)
    for key in grid:
        here = grid.box(key).slices(START)
        pieces[here] = cut_supervoxels(
            supervoxels[here], layout=layout, position=key.position
        )
    return pieces


def measured(pieces, supervoxels, segments, affinities, grid):
    found = {}
    for key in grid:
        box = grid.box(key)
        read_box = box.grown(CHUNK_GRAPH_HALO).intersection(grid.bounds)
        at = read_box.slices(START)
        found[key.position.astuple()] = chunk_graph(
            *(v[at] for v in (pieces, supervoxels, segments, affinities)),
            layout=IdLayout.of_grid(grid),
            position=key.position,
            box=box,
            read_box=read_box,
            bounds=grid.bounds,
        )
    return found


def naive_contacts(pieces, affinities):
    """Sum affinity and area of each contact, one face after another."""
    scale = 255 if affinities.dtype == np.uint8 else 2**20
    steps = affinities.astype(np.float64) * (1 if scale == 255 else scale)
    fixed = np.floor(steps + 0.5)
    found = {}
    for x, y, z in np.ndindex(pieces.shape):
        for axis in range(3):
            below = [x, y, z]
            below[axis] -= 1
            if below[axis] < 0:
                continue
            a, b = int(pieces[tuple(below)]), int(pieces[x, y, z])
            if a and b and a != b:
                total, area = found.get((min(a, b), max(a, b)), (0, 0))
                total += int(fixed[x, y, z, axis])
                found[min(a, b), max(a, b)] = total, area + 1
    return {pair: (total / scale, area) for pair, (total, area) in found.items()}


CHUNKS = st.tuples(st.integers(1, 7), st.integers(2, 6), st.integers(1, 5))


@settings(max_examples=25)
@given(st.integers(0, 2**32), CHUNKS, st.sampled_from(["uint8", "float32"]))
def test_chunks_find_the_edges_that_the_definition_does(seed, chunk, dtype):
    shape = (7, 6, 5)
    supervoxels, segments, affinities = volumes(seed, shape, dtype)
    grid = Grid(Bbox.of_shape(shape, START), Vec3(*chunk))
    layout = IdLayout.of_grid(grid)
    pieces = cut(supervoxels, grid)
    expected = naive_contacts(pieces, affinities)
    parent = dict(zip(pieces.ravel().tolist(), supervoxels.ravel().tolist(), strict=True))
    segment = dict(zip(pieces.ravel().tolist(), segments.ravel().tolist(), strict=True))

    def position(piece):
        return tuple(layout.unpack(np.uint64(piece))[0].tolist())

    seen = dict.fromkeys(expected, 0)
    for here, graph in measured(pieces, supervoxels, segments, affinities, grid).items():
        ours = {p for p in parent if p and position(p) == here}
        assert set(graph.pieces.tolist()) == ours
        across = set()
        for kind, edges in (
            ("in", graph.in_chunk),
            ("between", graph.between_chunk),
            ("cross", graph.cross_chunk),
        ):
            rows = list(zip(edges.first.tolist(), edges.second.tolist(), strict=True))
            assert rows == sorted(set(rows))
            for (a, b), affinity, area in zip(
                rows, edges.affinity, edges.area.tolist(), strict=True
            ):
                pair = min(a, b), max(a, b)
                seen[pair] += 1
                assert position(a) == here
                assert (position(b) == here) == (kind == "in")
                assert (parent[a] == parent[b]) == (kind == "cross")
                total, faces = expected[pair]
                if kind == "cross":
                    total, faces = np.inf, 1
                assert affinity == np.float32(total)
                assert area == faces
                across.add(b)
        joined = {p for pair in expected for p in pair}
        assert graph.isolated == len(ours - joined)
        assert sorted(p for c in graph.components for p in c.tolist()) == sorted(
            ours | across
        )
        for component in graph.components:
            assert len({segment[p] for p in component.tolist()}) == 1
        assert len({segment[int(c[0])] for c in graph.components}) == len(graph.components)
    # Each edge lies in one chunk's file, or in the files of both of its chunks.
    assert seen == {(a, b): 1 if position(a) == position(b) else 2 for a, b in expected}


@settings(max_examples=25)
@given(st.integers(0, 2**32), CHUNKS)
def test_pieces_are_the_connected_parts_within_chunks(seed, chunk):
    shape = (9, 6, 5)
    supervoxels, _, _ = volumes(seed, shape, "uint8")
    grid = Grid(Bbox.of_shape(shape, START), Vec3(*chunk))
    layout = IdLayout.of_grid(grid)
    pieces = cut(supervoxels, grid)
    assert ((pieces == 0) == (supervoxels == 0)).all()
    for key in grid:
        here = grid.box(key).slices(START)
        parts = 0
        order = pieces[here].ravel(order="F")
        for name in np.unique(supervoxels[here]):
            if name:
                labels, count = ndimage.label(supervoxels[here] == name)
                parts += count
                for n in range(1, count + 1):
                    assert len(np.unique(pieces[here][labels == n])) == 1
        positions, local = layout.unpack(order[order != 0])
        assert (positions == np.array(key.position.astuple())).all()
        # Numbered as they begin, x fastest.
        assert list(dict.fromkeys(local.tolist())) == list(range(1, parts + 1))


def test_a_chunk_of_background_has_nothing():
    nothing = np.zeros((4, 4, 4), np.uint64, order="F")
    grid = Grid(Bbox.of_shape((4, 4, 4)), Vec3(4, 4, 4))
    graph = chunk_graph(
        *(nothing, nothing, nothing, np.zeros((4, 4, 4, 3), np.uint8, order="F")),
        layout=IdLayout.of_grid(grid),
        position=Vec3(0, 0, 0),
        box=grid.bounds,
        read_box=grid.bounds,
        bounds=grid.bounds,
    )
    assert graph.isolated == len(graph.pieces) == len(graph.components) == 0


def test_more_pieces_than_ids_are_refused():
    checkers = np.indices((16, 16, 16)).sum(axis=0) % 2
    with pytest.raises(
        GeometryError, match="2048 labels in a chunk do not fit into 2 bits"
    ):
        cut_supervoxels(
            checkers.astype(np.uint64), layout=IdLayout(18), position=Vec3(0, 0, 0)
        )


@pytest.mark.parametrize("what", ["supervoxel", "segment"])
def test_a_piece_of_nothing_is_refused(what):
    ids = {
        name: np.ones((4, 4, 4), np.uint64, order="F") for name in ("supervoxel", "segment")
    }
    ids[what] *= np.uint64(0)
    grid = Grid(Bbox.of_shape((4, 4, 4)), Vec3(4, 4, 4))
    pieces = cut_supervoxels(
        np.ones((4, 4, 4), np.uint64), layout=IdLayout.of_grid(grid), position=Vec3(0, 0, 0)
    )
    with pytest.raises(DataError, match=f"lies in no {what}"):
        chunk_graph(
            pieces,
            *ids.values(),
            np.zeros((4, 4, 4, 3), np.uint8, order="F"),
            layout=IdLayout.of_grid(grid),
            position=Vec3(0, 0, 0),
            box=grid.bounds,
            read_box=grid.bounds,
            bounds=grid.bounds,
        )


def test_a_supervoxel_that_comes_back_has_several_pieces():
    """Two arms in one chunk that meet in the next."""
    supervoxels = np.zeros((4, 3, 1), np.uint64, order="F")
    supervoxels[:, 0] = supervoxels[:, 2] = supervoxels[3, 1] = 9
    grid = Grid(Bbox.of_shape((4, 3, 1), START), Vec3(2, 3, 1))
    pieces = cut(supervoxels, grid)
    assert len(np.unique(pieces)) == 1 + 3
    graphs = measured(
        pieces, supervoxels, supervoxels, np.zeros((4, 3, 1, 3), np.uint8, order="F"), grid
    )
    near, far = graphs[0, 0, 0], graphs[1, 0, 0]
    assert (len(near.pieces), len(far.pieces)) == (2, 1)
    assert len(near.cross_chunk) == len(far.cross_chunk) == 2
    assert [len(g.between_chunk) + len(g.in_chunk) for g in (near, far)] == [0, 0]
    assert set(itertools.chain(*near.components)) == set(pieces.ravel().tolist()) - {0}
