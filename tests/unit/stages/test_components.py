"""Components cut into chunks are those that cc3d finds in the whole."""

import cc3d
import numpy as np
import pytest

from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.ids import IdLayout
from pipeline.kernels.components import Extents, component_graph
from pipeline.layers.store import Store
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec
from tests.conformance import synapses

SHAPE = (40, 36, 22)
START = Vec3(-7, 4, 2)
BOUNDS = Bbox.of_shape(Vec3.of(SHAPE), START)


def blobs(seed=0):
    """Make a map of blobs, threads along diagonals, specks, and one that snakes."""
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) > 0.93
    steps = np.arange(20)
    mask[steps + 3, steps + 2, steps] = True  # neighbours by corners alone
    mask[steps + 12, 30 - steps, 10] = True  # by edges alone
    mask[2:38, 5, 15] = mask[37, 5:30, 15] = mask[2:38, 29, 15] = True
    return np.asfortranarray(mask.astype(np.uint8) * 255)


def found(mask, chunk, tmp_path, connectivity=26, dust=4, stages=4):
    store = Store(str(tmp_path / "layers"))
    spec = VolumeSpec(
        dtype=mask.dtype.name,
        bounds=BOUNDS,
        voxel_size_nm=(8.0, 8.0, 40.0),
        kind_of_values="image",
        storage_chunk=Vec3.of(SHAPE),
    )
    store.create("map", spec)
    store.write(Region("map", BOUNDS), spec, mask)
    entries = synapses.components(chunk, "map", connectivity=connectivity, dust=dust)
    recipe = Recipe.parse(
        {
            "name": "components",
            "grid": {
                "bounds": {"start": list(START), "stop": list(BOUNDS.stop)},
                "chunk": list(chunk),
            },
            "layers": {"map": f"{store.root}/map"},
            "stage": entries[:stages],
        }
    )
    run = Run.start(recipe, str(tmp_path / "run"))
    run_to_end(run, serial, quiet=True)
    return run


def whole(mask, connectivity, dust):
    """Label all at once, drop what is small, and name by the first voxel."""
    labels = cc3d.connected_components(mask >= 159, connectivity=connectivity)
    sizes = np.bincount(labels.reshape(-1))
    layout = IdLayout.of_grid(Grid(BOUNDS, Vec3(512, 512, 128)))
    names = np.zeros(len(sizes), np.uint64)
    flat = labels.reshape(-1, order="F")
    for label in np.flatnonzero(sizes >= dust):
        if label:
            place = int(np.flatnonzero(flat == label)[0])
            x, y, z = np.unravel_index(place, SHAPE, order="F")
            names[label] = layout.pack([0, 0, 0], 1 + x + 512 * (y + 512 * z))
    return names[labels]


@pytest.mark.parametrize(
    ("chunk", "connectivity"), [((22, 20, 12), 6), ((9, 36, 22), 18), ((15, 13, 12), 26)]
)
def test_chunked_is_whole(chunk, connectivity, tmp_path):
    mask = blobs()
    run = found(mask, chunk, tmp_path, connectivity)
    expected = whole(mask, connectivity, 4)
    assert len(np.unique(expected)) > 4
    np.testing.assert_array_equal(run.store.read(Region("clefts", BOUNDS)), expected)


def test_sums_of_chunks_are_those_of_the_whole(tmp_path):
    """No voxel is lost or counted twice, and centroids and boxes are exact."""
    mask = blobs(1)
    run = found(mask, (22, 20, 12), tmp_path, stages=6)
    table = Extents.from_table(synapses.rows(run, "cleft_list"))
    expected = whole(mask, 26, 4)
    ids = np.unique(expected[expected > 0])
    np.testing.assert_array_equal(table.ids, ids)
    assert table.sizes.sum() == np.count_nonzero(expected)
    for row, component in enumerate(ids):
        place = np.argwhere(expected == component) + np.array(START.astuple())
        assert table.sizes[row] == len(place)
        np.testing.assert_array_equal(table.sums[row], place.sum(axis=0))
        np.testing.assert_array_equal(table.low[row], place.min(axis=0))
        np.testing.assert_array_equal(table.high[row], place.max(axis=0) + 1)
        np.testing.assert_array_equal(
            table.centroids[row], np.floor(place.mean(axis=0)).astype(int)
        )


def test_a_small_piece_at_a_face_is_kept_until_it_is_whole(tmp_path):
    """Two voxels on each side of a face are four, and four are enough."""
    mask = np.zeros(SHAPE, np.uint8, order="F")
    mask[14:18, 3, 3] = 255
    mask[30:32, 3, 3] = 255
    run = found(mask, (16, 20, 22), tmp_path)
    labels = run.store.read(Region("clefts", BOUNDS))
    assert np.count_nonzero(labels[14:18, 3, 3]) == 4
    assert len(np.unique(labels)) == 2


def test_an_empty_volume_has_no_components(tmp_path):
    run = found(np.zeros(SHAPE, np.uint8, order="F"), (16, 20, 22), tmp_path)
    assert not run.store.read(Region("clefts", BOUNDS)).any()


def test_a_chunk_without_its_halo_is_refused():
    box = Bbox.of_shape((4, 4, 4), Vec3(4, 4, 4))
    with pytest.raises(ValueError, match="lack part of the halo"):
        component_graph(
            np.zeros((4, 4, 4), np.uint64),
            box=box,
            read_box=box,
            bounds=Bbox.of_shape((8, 8, 8)),
            connectivity=26,
        )


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", 0.7), ("uint32", 9), ("uint64", 2**40)]
)
def test_probabilities_and_ids_are_masks(dtype, value, tmp_path):
    mask = np.asfortranarray((blobs(2) > 0) * np.array(value, dtype))
    run = found(mask, (16, 20, 22), tmp_path)
    expected = whole(blobs(2), 26, 4)
    np.testing.assert_array_equal(run.store.read(Region("clefts", BOUNDS)), expected)
