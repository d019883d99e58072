import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry import Bbox, Vec3
from pipeline.nets.config import Inference, ModelConfig
from pipeline.nets.patches import LEAST_WEIGHT, bump, patches_touching, peak_bytes, read_box

small = st.integers(1, 9)


@st.composite
def layouts(draw):
    patch = Vec3(*draw(st.tuples(small, small, small)))
    overlap = Vec3(*(draw(st.integers(0, n - 1)) for n in patch))
    start = Vec3(*draw(st.tuples(*[st.integers(-20, 20)] * 3)))
    shape = draw(st.tuples(*[st.integers(1, 25)] * 3))
    bounds = Bbox.of_shape(shape, start)
    corners = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    corners = [
        (min(a, n - 1), max(b, min(a, n - 1) + 1))
        for (a, b), n in zip(corners, shape, strict=True)
    ]
    low, high = zip(*corners, strict=True)
    core = Bbox(start + Vec3(*low), start + Vec3(*high))
    return Inference(patch=patch, overlap=overlap), bounds, core


@given(layouts())
def test_a_box_gets_the_patches_of_the_whole_that_touch_it(layout):
    inference, bounds, core = layout
    whole = patches_touching(bounds, bounds, inference)
    touching = [p for p in whole if not p.intersection(core).is_empty]
    assert patches_touching(core, bounds, inference) == touching


@given(layouts())
def test_every_voxel_is_covered_and_every_patch_lies_inside(layout):
    inference, bounds, core = layout
    covered = np.zeros(bounds.shape.astuple(), bool)
    for patch in patches_touching(bounds, bounds, inference):
        covered[patch.intersection(bounds).slices(bounds.start)] = True
        for a in range(3):
            assert patch.start[a] >= bounds.start[a]
            assert patch.stop[a] <= bounds.stop[a] or patch.start[a] == bounds.start[a]
    assert covered.all()
    read = read_box(core, bounds, inference)
    assert bounds.contains(read)
    for patch in patches_touching(core, bounds, inference):
        assert read.contains(patch.intersection(bounds))


def test_the_last_patch_moves_inward():
    inference = Inference(patch=Vec3(8, 8, 4), overlap=Vec3(2, 2, 1))
    bounds = Bbox.of_shape((21, 8, 4), Vec3(100, 0, 0))
    starts = [p.start.x for p in patches_touching(bounds, bounds, inference)]
    assert starts == [100, 106, 112, 113]


def test_bump_is_the_definition_and_never_vanishes():
    weight = bump(Vec3(7, 5, 191))
    assert weight.flags.f_contiguous
    assert weight.dtype == np.float32
    assert weight.max() == 1 == weight[3, 2, 95]
    assert weight.min() == np.float32(LEAST_WEIGHT)
    x, y, z = 2, 1, 80
    u = [(i + 1) / (n + 1) * 2 - 1 for i, n in ((x, 7), (y, 5), (z, 191))]
    expected = np.exp(3 - sum(1 / (1 - v * v) for v in u))
    assert weight[x, y, z] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(weight, weight[::-1, ::-1, ::-1], rtol=1e-5)


def test_memory_grows_with_the_box_and_the_patch(tmp_path, model_toml):
    (tmp_path / "model.toml").write_text(model_toml)
    config = ModelConfig.load(tmp_path)
    small = peak_bytes(config, Vec3(64, 64, 16), width=3)
    assert peak_bytes(config, Vec3(128, 64, 16), width=3) - small >= 64 * 64 * 16 * 16
    (tmp_path / "model.toml").write_text(
        model_toml.replace("[16, 12, 6]", "[256, 256, 20]")
    )
    assert (
        peak_bytes(ModelConfig.load(tmp_path), Vec3(64, 64, 16), width=3)
        > small + 256 * 256 * 20
    )
