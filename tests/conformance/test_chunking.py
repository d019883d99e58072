"""No result depends on how the volume was cut: what every distributed run rests on.

Exact stages give the same to the last bit, ids included. Basins end at the faces of chunks
by design and are looked at once they are joined; what nodes of an octree decide is looked
at once it is handed down, or added up. Skeletons find other paths in other chunks, and must
hang together as those of the whole do.
"""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from pipeline.errors import TaskError
from pipeline.geometry import ChunkKey, Halo, Vec3
from pipeline.recipe import Recipe
from pipeline.specs import Region
from pipeline.stages import STAGES

from .examples import (
    BOUNDS,
    EXAMPLES,
    SHAPE,
    VOXEL,
    Example,
    agglomerated,
    finished,
    parse,
    region_graphs,
    segments,
    supervoxels,
    volume,
)
from .same import assert_same

CHUNKS = st.builds(
    Vec3, st.integers(11, SHAPE.x), st.integers(9, SHAPE.y), st.integers(5, SHAPE.z)
)
CUT = Vec3(11, 9, 5)


@pytest.fixture(scope="session")
def whole(world, tmp_path_factory):
    """What an example gives in one chunk."""

    @cache
    def result(name):
        return cut_into(EXAMPLES[name], SHAPE, world, tmp_path_factory.mktemp("whole"))

    return result


def cut_into(example: Example, chunk, world, root):
    return example.result(finished(example.recipe(chunk, world, joined=True), root))


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=4, phases=[Phase.generate])
@given(chunk=CHUNKS)
def test_result_does_not_depend_on_chunking(name, chunk, whole, world, tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    assert_same(whole(name), cut_into(EXAMPLES[name], chunk, world, root))


@pytest.mark.parametrize("name", EXAMPLES)
def test_there_is_something_to_compare(name, whole):
    """Voxels of several values, tables with rows, more than one shard."""
    for leaf in leaves(whole(name)):
        assert np.size(leaf) == 1 or len(np.unique(leaf)) > 1
    assert len(leaves(whole(name))) > 0


def leaves(value):
    """List what mappings and lists hold."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for v in value for leaf in leaves(v)]
    return [value]


def test_all_but_skeletons_are_exact():
    seams = {name for name, stage in STAGES.items() if stage.chunking == "seams"}
    assert seams == {"skeleton_fragments", "skeletons"}


# -- skeletons ------------------------------------------------------------------------


@settings(max_examples=3, phases=[Phase.generate])
@given(chunk=CHUNKS)
def test_skeletons_meet_wherever_a_segment_crosses_a_seam(chunk, world, tmp_path_factory):
    """Chunks have a vertex in common in each patch of a segment on their shared plane.

    Patches of a voxel or two may be all that one of them sees, and have no centreline.
    """
    recipe = EXAMPLES["skeleton_fragments"].recipe(chunk, world)
    run = finished(recipe, tmp_path_factory.mktemp("seams"))
    stage = run.recipe.stages[-1]
    vertices = {}
    for key in stage.plan()[0]:
        task = stage.task(key)
        pieces = stage.pieces(task, run.store.read(stage.reads(task)["segmentation"]))
        vertices[key] = {
            segment: {tuple(v) for v in piece["vertices"].tolist()}
            for segment, piece in pieces.items()
        }
    crossings = 0
    for lower, axis in itertools.product(vertices, range(3)):
        upper = ChunkKey(0, *(lower.position + Vec3.of(np.eye(3, dtype=int)[axis])))
        if upper not in vertices:
            continue
        plane = stage.task(lower).read_box.intersection(stage.task(upper).read_box)
        for segment, patch in patches_on(run, plane):
            shared = vertices[lower].get(segment, set()) & vertices[upper].get(
                segment, set()
            )
            assert shared & patch or len(patch) < 3, (
                f"{segment} breaks between {lower} and {upper}"
            )
            crossings += 1
    assert crossings > 10 or len(vertices) == 1


def patches_on(run, plane):
    """Yield each connected patch of a segment on a plane, as the centres of its voxels."""
    labels = run.store.read(Region("labels", plane))
    for segment in np.unique(labels[labels > 0]).tolist():
        patches, n = label(labels == segment, structure=np.ones((3, 3, 3)))
        for number in range(1, n + 1):
            voxels = np.argwhere(patches == number) + np.array(list(plane.start))
            centres = ((voxels + 0.5) * np.array(VOXEL)).astype(np.float32)
            yield segment, {tuple(c) for c in centres.tolist()}


# -- end to end -----------------------------------------------------------------------


@pytest.mark.parametrize("affinities", ["ties", "affinities"])
@settings(max_examples=4, phases=[Phase.generate])
@given(chunk=CHUNKS)
def test_segments_of_affinities_do_not_depend_on_chunking(
    affinities, chunk, whole_segments, world, tmp_path_factory
):
    """From uint8 affinities full of ties, and from float32."""
    found = segmented(affinities, chunk, world, tmp_path_factory.mktemp("segments"))
    assert_same(whole_segments(affinities), found)


@pytest.fixture(scope="session")
def whole_segments(world, tmp_path_factory):
    @cache
    def result(affinities):
        root = tmp_path_factory.mktemp("whole-segments")
        return segmented(affinities, SHAPE, world, root)

    return result


def segmented(affinities, chunk, world, root):
    """Run the chain; return volumes, graph, history and refusals, ids included."""
    entries = [
        *supervoxels(chunk, affinities),
        *segments(chunk, "supervoxels", affinities),
    ]
    run = finished(parse(entries, chunk, world), root)
    return {
        "supervoxels": volume(run, "supervoxels")[0],
        "segments": volume(run, "segments")[0],
        "graph": region_graphs(run),
        **agglomerated(run),
    }


@pytest.mark.parametrize("affinities", ["ties", "affinities"])
def test_the_chain_is_not_vacuous(affinities, whole_segments):
    """Many supervoxels, fewer segments, and more than one of them."""
    found = whole_segments(affinities)
    n_supervoxels = len(np.unique(found["supervoxels"]))
    n_segments = len(np.unique(found["segments"]))
    assert 5 < n_segments < n_supervoxels
    assert len(found["refusals"]["key"]) > 1


# -- the property has teeth -----------------------------------------------------------

SIDES = [
    ("basins", "basins", "after"),
    ("basin_graph", "basin_graph", "before"),
    ("basin_graph", "basin_graph", "after"),
    ("region_graph", "region_graph", "before"),
    ("mesh_fragments", "fragments", "after"),
    ("image_quality", "quality", "after"),
    ("component_graph", "cleft_graph", "before"),
    ("component_graph", "cleft_graph", "after"),
]


def with_stage(recipe, output, change):
    """Return the recipe, with one stage replaced by a subclass of it."""
    stages = tuple(
        change(type(s)).model_validate(s.model_dump()) if s.output == output else s
        for s in recipe.stages
    )
    return Recipe(recipe.name, stages, recipe.layers)


def without_a_plane(side, axis):
    """Return what makes a stage blind to one plane of its halo."""

    def change(kind):
        class Blind(kind):
            def process(self, task, **inputs):
                reads = self.reads(task)
                seen = {
                    name: blanked(value, reads[name], task, side, axis)
                    for name, value in inputs.items()
                }
                return super().process(task, **seen)

        return Blind

    return change


def blanked(value, read, task, side, axis):
    if not isinstance(read, Region):
        return value
    box = task.box
    if side == "before":
        lost = read.box.start[axis] < box.start[axis]
    else:
        lost = read.box.stop[axis] > box.stop[axis]
    if not lost:
        return value
    value = value.copy(order="F")
    np.moveaxis(value, axis, 0)[0 if side == "before" else -1] = 0
    return value


@pytest.mark.parametrize(
    ("name", "output", "side", "axis"),
    [
        (name, output, side, axis)
        for name, output, side in SIDES
        for axis in range(3)
        if getattr(STAGES[name].halo, side)[axis] > 0
    ],
)
def test_without_a_plane_of_its_halo_a_stage_is_found_out(
    name, output, side, axis, whole, world, tmp_path
):
    example = EXAMPLES[name]
    recipe = example.recipe(CUT, world, joined=True)
    run = finished(with_stage(recipe, output, without_a_plane(side, axis)), tmp_path)
    with pytest.raises(AssertionError):
        assert_same(whole(name), example.result(run))


def without_halo(kind):
    class Narrow(kind):
        halo = Halo()

    return Narrow


@pytest.mark.parametrize("name", ["basins", "basin_graph", "region_graph"])
def test_kernels_refuse_a_chunk_without_its_halo(name, world, tmp_path):
    recipe = EXAMPLES[name].recipe(CUT, world, joined=True)
    with pytest.raises(TaskError, match="lack part of the halo"):
        finished(with_stage(recipe, name, without_halo), tmp_path)


@pytest.mark.parametrize("name", ["mesh_fragments", "skeleton_fragments"])
def test_fragments_without_a_halo_are_found_out(name, whole, world, tmp_path):
    recipe = with_stage(EXAMPLES[name].recipe(CUT, world), "fragments", without_halo)
    with pytest.raises(AssertionError):
        assert_same(whole(name), EXAMPLES[name].result(finished(recipe, tmp_path)))


def test_patches_counted_from_the_chunk_are_found_out(whole, world, tmp_path):
    """A net that does not know of the whole shows where it was cut."""

    def change(kind):
        class Local(kind):
            def task(self, key):
                task = super().task(key)
                return type(task)(task.key, task.box, task.read_box, task.box)

        return Local

    example = EXAMPLES["affinities"]
    run = finished(with_stage(example.recipe(CUT, world), "predicted", change), tmp_path)
    with pytest.raises(AssertionError):
        assert_same(whole("affinities"), example.result(run))


def test_every_halo_is_tried():
    with_halo = {name for name, stage in STAGES.items() if stage.halo != Halo()}
    assert with_halo == {name for name, _, _ in SIDES} | {"skeleton_fragments"}
    sides = {
        (name, side)
        for name in with_halo - {"skeleton_fragments"}
        for side in ("before", "after")
        if getattr(STAGES[name].halo, side) != Vec3(0, 0, 0)
    }
    assert sides == {(name, side) for name, _, side in SIDES}


def test_bounds_are_no_multiple_of_chunks_nor_of_coarser_voxels():
    """The last chunk along every axis is cut short, and so are cells of the pyramid."""
    assert all(n % c for n, c in zip(SHAPE, CUT, strict=True))
    factor = Vec3(2, 2, 1)
    assert BOUNDS.coarser(factor).finer(factor) != BOUNDS
