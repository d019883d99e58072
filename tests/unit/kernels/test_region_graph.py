"""The region graph against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.kernels.region_graph import (
    REGION_GRAPH_HALO,
    RegionGraph,
    merge_region_graphs,
    region_graph,
)

SHAPE = (5, 6, 4)
START = Vec3(10, -20, 30)
IDS = np.array([0, 3, 8, 2**64 - 1, 2**40, 2], np.uint64)
DTYPES = ["uint8", "float16", "float32"]


def whole(labels, affinities, **options):
    box = Bbox.of_shape(labels.shape, START)
    return region_graph(labels, affinities, box=box, read_box=box, bounds=box, **options)


def chunk_of(box, labels, affinities, semantics=None, **options):
    """Measure a chunk of a volume, reading no more than the halo."""
    bounds = Bbox.of_shape(labels.shape, START)
    read_box = bounds.intersection(box.grown(REGION_GRAPH_HALO))
    read = read_box.slices(START)
    if semantics is not None:
        options["semantics"] = semantics[read]
    return region_graph(
        labels[read], affinities[read], box=box, read_box=read_box, bounds=bounds, **options
    )


def fixed_point(affinities):
    if affinities.dtype == np.uint8:
        return affinities.astype(int)
    return np.floor(affinities.astype(np.float64) * 2**20 + 0.5).astype(int)


def oracle(labels, affinities, semantics, box):
    """Look at every voxel of a chunk, and at its three lower faces."""
    bounds = Bbox.of_shape(labels.shape, START)
    codes, shape = fixed_point(affinities), labels.shape
    contacts, regions = {}, {}
    for v in np.ndindex(shape):
        at = np.array(v) + START.astuple()
        label = int(labels[v])
        if label == 0 or (at < tuple(box.start)).any() or (at >= tuple(box.stop)).any():
            continue
        place = int(np.ravel_multi_index(v, shape, order="F"))
        for axis in range(3):
            below = tuple(c - (a == axis) for a, c in enumerate(v))
            if min(below) < 0 or labels[below] in (0, label):
                continue
            pair = tuple(sorted((label, int(labels[below]))))
            row = contacts.setdefault(pair, ([0, 0, 0], [0, 0, 0], []))
            row[0][axis] += int(codes[(*v, axis)])
            row[1][axis] += 1
            row[2].append(3 * place + axis)
        voxels, places, classes, faces = regions.setdefault(label, ([], [], [0] * 6, set()))
        voxels.append(at)
        places.append(place)
        classes[int(semantics[v])] += 1
        for axis in range(3):
            if at[axis] == box.start[axis] != bounds.start[axis]:
                faces.add(axis)
            if at[axis] + 1 == box.stop[axis] != bounds.stop[axis]:
                faces.add(3 + axis)
    return dict(sorted(contacts.items())), dict(sorted(regions.items()))


def assert_is(graph, contacts, regions):
    assert graph.pairs.tolist() == [list(p) for p in contacts]
    for row, (affinity, area, keys) in enumerate(contacts.values()):
        assert graph.affinity[row].tolist() == affinity
        assert graph.area[row].tolist() == area
        assert graph.key[row] == min(keys)
        assert graph.mean_affinity[row] == pytest.approx(
            sum(affinity) / sum(area) / graph.scale
        )
    assert graph.ids.tolist() == list(regions)
    for row, (voxels, places, classes, faces) in enumerate(regions.values()):
        at = np.array(voxels)
        assert graph.size[row] == len(at)
        assert graph.anchor[row] == min(places)
        assert graph.coordinate_sum[row].tolist() == at.sum(axis=0).tolist()
        assert graph.start[row].tolist() == at.min(axis=0).tolist()
        assert graph.stop[row].tolist() == (at.max(axis=0) + 1).tolist()
        assert graph.classes[row].tolist() == classes[1:]
        assert graph.faces[row] == sum(1 << bit for bit in faces)
        np.testing.assert_allclose(graph.centroid[row], at.mean(axis=0))


def assert_equal(a, b, *, but=()):
    a, b = a.to_table(), b.to_table()
    assert a.keys() == b.keys()
    for name in a.keys() - set(but):
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], name)


def volumes(make_affinities, shape, dtype, seed, n_ids=6, levels=256):
    rng = np.random.default_rng(seed)
    affinities = make_affinities(
        shape, "uint8" if dtype == "uint8" else "float32", seed, levels
    )
    # Runs of a label along x, as long as they come.
    labels = rng.choice(IDS[:n_ids], shape)
    kept = rng.random(shape) < rng.random()
    for x in range(1, shape[0]):
        labels[x] = np.where(kept[x], labels[x - 1], labels[x])
    semantics = np.asfortranarray(rng.integers(0, 6, shape), np.uint8)
    return np.asfortranarray(labels), affinities.astype(dtype, order="F"), semantics


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", "FC")
@pytest.mark.parametrize("seed", range(3))
def test_graph_is_that_of_the_definition(make_affinities, dtype, order, seed):
    labels, affinities, semantics = volumes(make_affinities, SHAPE, dtype, seed)
    affinities, semantics = (np.array(a, order=order) for a in (affinities, semantics))
    graph = whole(labels, affinities, semantics=semantics)
    box = Bbox.of_shape(SHAPE, START)
    assert_is(graph, *oracle(labels, affinities, semantics, box))
    assert graph.scale == (255 if dtype == "uint8" else 2**20)
    assert not graph.faces.any()


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    corners=st.tuples(*[st.tuples(st.integers(0, 6), st.integers(0, 6))] * 3),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 5),
    n_ids=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_a_chunk_is_that_of_the_definition(
    make_affinities, shape, corners, dtype, threads, n_ids, seed
):
    corners = [sorted((a % n, b % n)) for (a, b), n in zip(corners, shape, strict=True)]
    box = Bbox(
        START + Vec3(*(a for a, _ in corners)), START + Vec3(*(b + 1 for _, b in corners))
    )
    labels, affinities, semantics = volumes(make_affinities, shape, dtype, seed, n_ids)
    graph = chunk_of(box, labels, affinities, semantics, threads=threads)
    assert_is(graph, *oracle(labels, affinities, semantics, box))


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    chunk=st.tuples(*[st.integers(1, 9)] * 3),
    dtype=st.sampled_from(DTYPES),
    order=st.sampled_from("FC"),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    shuffled=st.randoms(use_true_random=False),
)
def test_chunks_add_up_to_the_whole(
    make_affinities, shape, chunk, dtype, order, threads, seed, shuffled
):
    labels, affinities, semantics = volumes(make_affinities, shape, dtype, seed)
    affinities = np.array(affinities, order=order)
    grid = Grid(Bbox.of_shape(shape, START), Vec3.of(chunk))
    parts = [
        chunk_of(grid.box(key), labels, affinities, semantics, threads=threads)
        for key in grid.keys()  # noqa: SIM118
    ]
    shuffled.shuffle(parts)
    # Faces are those of the chunk, and the whole has none that are open.
    merged = merge_region_graphs(parts)
    assert_equal(merged, whole(labels, affinities, semantics=semantics), but={"faces"})
    faces = {int(i): 0 for i in merged.ids}
    for part in parts:
        for i, bits in zip(part.ids.tolist(), part.faces.tolist(), strict=True):
            faces[i] |= bits
    assert merged.faces.tolist() == list(faces.values())


def test_merging_one_graph_changes_nothing(make_affinities):
    """A kernel's graph is in the order that merging gives."""
    graph = whole(*volumes(make_affinities, (30, 20, 10), "uint8", 3)[:2])
    assert len(graph.pairs) > 5
    assert_equal(merge_region_graphs([graph]), graph)


@pytest.mark.parametrize("threads", [2, 3, 50])
def test_many_labels_on_many_threads(make_affinities, threads):
    """Tables grow and entries displace one another; nothing is lost."""
    shape = (60, 50, 21)
    affinities = make_affinities(shape, "float32", 5)
    labels = np.random.default_rng(5).permutation(np.arange(60 * 50 * 21, dtype=np.uint64))
    labels = labels.reshape(shape, order="F")
    graph = whole(labels, affinities)
    assert_equal(graph, whole(labels, affinities, threads=threads))
    assert graph.ids.tolist() == list(range(1, 60 * 50 * 21))
    assert (graph.size == 1).all()
    for axis in range(3):
        on_axis = np.moveaxis(labels, axis, 0)
        touching = (on_axis[1:] > 0) & (on_axis[:-1] > 0)
        codes = fixed_point(np.moveaxis(affinities[..., axis], axis, 0)[1:])
        assert graph.area[:, axis].sum() == touching.sum()
        assert graph.affinity[:, axis].sum() == codes[touching].sum()


def test_no_threads_are_refused(make_affinities):
    labels, affinities, _ = volumes(make_affinities, SHAPE, "uint8", 0)
    with pytest.raises(ValueError, match="0 threads"):
        whole(labels, affinities, threads=0)


def test_a_semantic_label_beyond_the_classes_is_refused(make_affinities):
    labels, affinities, semantics = volumes(make_affinities, SHAPE, "uint8", 0)
    semantics[4, 3, 2] = 6
    with pytest.raises(DataError, match="holds label 6 where 0 to 5"):
        whole(labels, affinities, semantics=semantics)


@pytest.mark.parametrize(
    "semantics", [np.zeros(SHAPE, np.uint64), np.zeros((5, 6, 3), np.uint8)]
)
def test_semantics_of_another_kind_are_refused(make_affinities, semantics):
    labels, affinities, _ = volumes(make_affinities, SHAPE, "uint8", 0)
    with pytest.raises(DataError, match=r"semantic labels are .* calls for uint8"):
        whole(labels, affinities, semantics=semantics)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("value", [np.nan, -0.5, 1.5])
def test_what_is_no_affinity_is_refused_even_within_a_region(value, threads):
    labels = np.ones(SHAPE, np.uint64)
    affinities = np.zeros((*SHAPE, 3), np.float32)
    affinities[2, 3, 3, 1] = value
    with pytest.raises(DataError, match="affinities hold"):
        whole(labels, affinities, threads=threads)


def test_contact_across_the_lower_halo_is_owned_but_not_its_lower_voxel():
    labels = np.array([4, 9], np.uint64).reshape(1, 1, 2)
    affinities = np.full((1, 1, 2, 3), 50, np.uint8)
    bounds = Bbox.of_shape((1, 1, 2))
    upper = Bbox(Vec3(0, 0, 1), Vec3(1, 1, 2))
    graph = region_graph(labels, affinities, box=upper, read_box=bounds, bounds=bounds)
    assert graph.pairs.tolist() == [[4, 9]]
    assert graph.area.tolist() == [[0, 0, 1]]
    assert graph.affinity.tolist() == [[0, 0, 50]]
    assert graph.ids.tolist() == [9]


def test_float_affinities_are_rounded_once_and_then_exact():
    labels = np.arange(1, 3, dtype=np.uint64).reshape(2, 1, 1)
    affinities = np.zeros((2, 1, 1, 3), np.float32)
    affinities[1, 0, 0, 0] = 0.3
    graph = whole(labels, affinities)
    assert graph.affinity.tolist() == [[round(0.3 * 2**20), 0, 0]]
    affinities[1, 0, 0, 0] = 1.0005  # overshoot of a lossy codec
    assert whole(labels, affinities).affinity.tolist() == [[2**20, 0, 0]]


def test_narrower_labels_are_widened(make_affinities):
    affinities = make_affinities(SHAPE, "uint8", 1)
    labels = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint16)
    assert_equal(whole(labels, affinities), whole(labels.astype(np.uint64), affinities))


def test_a_table_survives_the_round_trip(make_affinities):
    labels = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint64)
    graph = whole(labels, make_affinities(SHAPE, "uint8", 1))
    table = graph.to_table()
    again = RegionGraph.from_table(table).to_table()
    assert again.keys() == table.keys()
    assert all(np.array_equal(again[k], table[k]) for k in table)
    assert all(again[k].dtype == table[k].dtype for k in table)


def test_rejects_other_columns(make_affinities):
    labels = np.ones(SHAPE, np.uint64)
    table = whole(labels, make_affinities(SHAPE, "uint8", 1)).to_table()
    with pytest.raises(DataError, match="RegionGraph"):
        RegionGraph.from_table({k: v for k, v in table.items() if k != "area"})
    with pytest.raises(DataError, match="size is float64"):
        RegionGraph.from_table(table | {"size": table["size"] / 1})
    with pytest.raises(DataError, match="anchor has 2 rows"):
        RegionGraph.from_table(table | {"anchor": np.repeat(table["anchor"], 2)})


def test_rejects_signed_labels(make_affinities):
    with pytest.raises(DataError, match="int64"):
        whole(np.ones(SHAPE, np.int64), make_affinities(SHAPE, "uint8", 1))


def test_refuses_to_merge_nothing():
    with pytest.raises(DataError, match="at least one"):
        merge_region_graphs([])
