"""The picture of a reconstruction, and the rasteriser that it draws neurons with."""

import numpy as np
import pytest
from PIL import Image

from pipeline.contact_sheet import (
    Camera,
    colours_of,
    contact_sheet,
    matched,
    prominent,
    render,
)
from pipeline.errors import GeometryError
from pipeline.specs import Mesh

SIZE = (40, 30)


def flat(size=SIZE, nm_per_pixel=1.0):
    """A camera along z, pixel (0, 0) at the origin."""
    middle = np.array([size[0] / 2, size[1] / 2, 0.0]) * nm_per_pixel
    return Camera(np.eye(3), middle, nm_per_pixel, size)


def mesh(vertices, faces):
    return Mesh(np.array(vertices, np.float32), np.array(faces, np.uint32))


def square(low, high, z):
    (x0, y0), (x1, y1) = low, high
    zs = np.broadcast_to(z, 4)
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return mesh(
        [(x, y, depth) for (x, y), depth in zip(corners, zs, strict=True)],
        [(0, 1, 2), (0, 2, 3)],
    )


def box(low, high):
    corners = [[(low, high)[i >> axis & 1][axis] for axis in range(3)] for i in range(8)]
    quads = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2)]
    quads.append((1, 3, 7, 5))
    return mesh(corners, [f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])


def hue_is(picture, segment):
    """Whether pixels have the colour of a segment, whatever the light."""
    seen = picture[..., :3].astype(float)
    colour = colours_of(np.array(segment))
    across = seen / np.maximum(np.linalg.norm(seen, axis=-1, keepdims=True), 1e-9)
    return (across @ (colour / np.linalg.norm(colour)) > 0.99) & (picture[..., 3] > 0)


class TestRender:
    def test_cube_covers_exactly_its_pixels(self):
        picture = render({5: box((8, 6, 1), (24, 16, 9))}, flat(), supersampling=1)
        wanted = np.zeros((30, 40), bool)
        wanted[6:16, 8:24] = True
        assert np.array_equal(picture[..., 3] == 255, wanted)
        assert np.array_equal(picture[..., 3] > 0, wanted)
        assert hue_is(picture, 5)[wanted].all()

    def test_half_covered_pixels_are_half_opaque(self):
        picture = render({5: square((8, 6), (24.5, 16), 1)}, flat(), supersampling=2)
        assert (picture[6:16, 24, 3] == 128).all()
        assert (picture[6:16, 23, 3] == 255).all()

    def test_scale(self):
        camera = flat(nm_per_pixel=8.0)
        picture = render({5: square((80, 80), (160, 240), 1)}, camera, supersampling=1)
        assert (picture[..., 3] > 0).sum() == 10 * 20
        assert picture[10:30, 10:20, 3].all()

    @pytest.mark.parametrize("order", [(1, 2), (2, 1)])
    def test_nearest_wins_in_any_order(self, order):
        squares = {1: square((5, 5), (25, 25), 20), 2: square((15, 5), (35, 25), 10)}
        picture = render({i: squares[i] for i in order}, flat(), supersampling=1)
        assert hue_is(picture, 1)[5:25, 5:15].all()
        assert hue_is(picture, 2)[5:25, 15:35].all(), "the nearer, at z = 10"

    def test_crossing_surfaces_change_places_where_they_cross(self):
        level = square((0, 0), (40, 30), 20)
        sloping = square((0, 0), (40, 30), (0, 40, 40, 0))
        picture = render({1: level, 2: sloping}, flat(), supersampling=1)
        assert hue_is(picture, 2)[:, :20].all()
        assert hue_is(picture, 1)[:, 20:].all()

    def test_random_triangles_as_by_definition(self):
        """Each pixel's middle against each triangle, one by one."""
        rng = np.random.default_rng(4)
        triangles = rng.uniform((-8, -8, 0), (48, 38, 50), (60, 3, 3))
        meshes = {i + 1: mesh(t, [(0, 1, 2)]) for i, t in enumerate(triangles)}
        picture = render(meshes, flat(), supersampling=1)
        hits = 0
        for row in range(SIZE[1]):
            for column in range(SIZE[0]):
                nearest, owner = np.inf, 0
                for i, t in enumerate(triangles.astype(np.float32).astype(float)):
                    system = np.vstack([t[:, :2].T, np.ones(3)])
                    weights = np.linalg.solve(system, (column + 0.5, row + 0.5, 1))
                    if (weights >= 0).all() and weights @ t[:, 2] < nearest:
                        nearest, owner = weights @ t[:, 2], i + 1
                if owner:
                    hits += 1
                    assert hue_is(picture[row, column], owner), (row, column)
                else:
                    assert picture[row, column, 3] == 0, (row, column)
        assert 300 < hits < SIZE[0] * SIZE[1]

    def test_neighbours_leave_no_gap(self):
        rng = np.random.default_rng(1)
        n = 24
        x, y = np.meshgrid(np.linspace(-2, 42, n), np.linspace(-2, 32, n), indexing="ij")
        inner = np.zeros((n, n))
        inner[1:-1, 1:-1] = 0.4
        x, y = (v + rng.uniform(-1, 1, (n, n)) * inner for v in (x, y))
        at = np.arange(n * n).reshape(n, n)
        a, b, c, d = at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]
        faces = np.concatenate(
            [np.stack([v.ravel() for v in t], 1) for t in ((a, b, c), (a, c, d))]
        )
        sheet = mesh(np.stack([x, y, 0 * x], -1).reshape(-1, 3), faces)
        assert (render({9: sheet}, flat())[..., 3] == 255).all()

    def test_outside_edge_on_and_empty(self):
        meshes = {
            1: square((100, 100), (120, 120), 1),
            2: square((-50, -50), (-5, -5), 1),
            3: mesh([(5, 5, 0), (5, 5, 9), (5, 20, 4)], [(0, 1, 2)]),
            4: mesh(np.zeros((0, 3)), np.zeros((0, 3))),
        }
        assert not render(meshes, flat()).any()
        assert not render({}, flat()).any()

    def test_surface_larger_than_the_picture(self):
        picture = render({1: square((-1e5, -1e5), (1e5, 1e5), 1)}, flat())
        assert (picture[..., 3] == 255).all()

    def test_light_comes_from_upper_left(self):
        up_left = square((5, 5), (35, 25), (10, 6, 2, 6))  # lower right is nearer
        down_right = square((5, 5), (35, 25), (2, 6, 10, 6))
        dark, bright = (
            render({1: m}, flat(), supersampling=1)[15, 20, :3].astype(int).sum()
            for m in (down_right, up_left)
        )
        assert bright > 1.15 * dark

    def test_inside_of_an_open_surface_is_lit(self):
        facing = square((5, 5), (35, 25), 5)
        away = Mesh(facing.vertices, facing.faces[:, ::-1].copy())
        assert np.array_equal(render({1: facing}, flat()), render({1: away}, flat()))

    def test_what_lies_behind_an_edge_is_darker(self):
        behind = square((0, 0), (40, 30), 200)
        before = square((0, 0), (20, 30), 0)
        picture = render({1: behind, 2: before}, flat(), supersampling=1).astype(int)
        assert picture[15, 21, :3].sum() < 0.9 * picture[15, 38, :3].sum()


class TestCamera:
    @pytest.mark.parametrize("size", [(100, 100), (300, 80), (50, 400)])
    @pytest.mark.parametrize("extent", [(3000, 3000, 300), (10, 500, 20)])
    def test_all_of_the_box_is_seen_and_fills_the_picture(self, size, extent):
        low = np.array((-70.0, 1000, 5))
        camera = Camera.around(low, low + extent, size)
        corners = low + np.array(extent) * list(np.ndindex(2, 2, 2))
        seen = camera.project(corners)[:, :2]
        assert (seen >= 0).all()
        assert (seen <= size).all()
        assert (np.ptp(seen, axis=0) / size).max() > 0.9

    def test_is_a_rotation_that_keeps_sections_unmirrored(self):
        camera = Camera.around(np.zeros(3), np.ones(3), SIZE)
        assert np.allclose(camera.axes @ camera.axes.T, np.eye(3))
        assert np.linalg.det(camera.axes) == pytest.approx(1)
        level = Camera.around(np.zeros(3), np.ones(3), SIZE, azimuth=0, elevation=0)
        assert np.allclose(level.axes, np.eye(3))

    def test_nearer_is_less(self):
        camera = Camera.around(np.zeros(3), np.ones(3), SIZE)
        near, far = camera.project(np.array([-camera.axes[2], camera.axes[2]]))
        assert near[2] < far[2]

    def test_from_above(self):
        """The top of a block, at low y, is what the viewer sees of it."""
        assert Camera.around(np.zeros(3), np.ones(3), SIZE).axes[2] @ (0, 1, 0) > 0


class TestColours:
    def test_follow_from_the_id_alone(self):
        ids = np.array([[0, 7], [2**63 + 1, 7]], np.uint64)
        colours = colours_of(ids)
        assert colours.shape == (2, 2, 3)
        assert np.array_equal(colours[0, 1], colours[1, 1])
        assert np.array_equal(colours[0, 1], colours_of(np.array(7, np.uint16)))
        assert not colours[0, 0].any()

    def test_do_not_change_from_version_to_version(self):
        assert (colours_of(np.arange(1, 4)) * 255).round().astype(int).tolist() == [
            [89, 136, 18],
            [158, 181, 100],
            [0, 146, 164],
        ]

    def test_differ_and_can_be_seen(self):
        colours = colours_of(np.arange(1, 2000))
        assert len(np.unique((colours * 255).round(), axis=0)) > 1950
        assert colours.min() >= 0
        assert colours.max() <= 1
        assert (colours @ (0.3, 0.59, 0.11)).min() > 0.3, "none dark"


class TestMatched:
    def test_most_overlap(self):
        truth = np.repeat([1, 1, 1, 2, 2, 0, 3], 4).reshape(-1, 2, 2)
        ours = np.repeat([8, 8, 9, 9, 7, 6, 0], 4).reshape(-1, 2, 2)
        ours[3, 0, 0] = 7
        assert matched(truth, ours) == {1: 8, 2: 7}

    def test_a_merger_keeps_the_larger_and_leaves_the_other_out(self):
        truth = np.repeat([1, 1, 1, 2, 2], 4).reshape(-1, 2, 2)
        assert matched(truth, np.full_like(truth, 5)) == {1: 5}

    def test_one_that_lost_its_segment_takes_no_sliver_instead(self):
        truth = np.repeat([1, 1, 1, 2, 2, 2], 4).reshape(-1, 2, 2)
        ours = np.repeat([5, 5, 5, 5, 5, 6], 4).reshape(-1, 2, 2)
        assert matched(truth, ours) == {1: 5}

    def test_nothing(self):
        empty = np.zeros((3, 3, 3), np.uint64)
        assert matched(empty, empty) == {}
        assert matched(empty + 1, empty) == {}

    def test_large_block(self):
        x = np.arange(260) // 65 + 1
        truth = np.broadcast_to(x[:, None, None], (260, 200, 100)).astype(np.uint32)
        assert matched(truth, truth.astype(np.uint64) + 10) == {
            i: i + 10 for i in range(1, 5)
        }


class TestProminent:
    def test_long_before_round_and_large_before_small(self):
        meshes = {
            1: box((0, 0, 0), (40, 40, 40)),
            2: box((0, 0, 0), (200, 20, 20)),
            3: box((0, 0, 0), (20, 2, 2)),
            4: mesh(np.zeros((0, 3)), np.zeros((0, 3))),
        }
        assert list(prominent(meshes, 9)) == [2, 1, 3]
        assert list(prominent(meshes, 1)) == [2]


SHAPE = (96, 80, 20)
VOXEL_NM = (8.0, 8.0, 30.0)


@pytest.fixture(scope="module")
def block():
    x, y, _ = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    segments = np.zeros(SHAPE, np.uint64, order="F")
    segments[(x - 30) ** 2 + (y - 40) ** 2 < 20**2] = 3
    segments[(x - 72) ** 2 + (y - 40) ** 2 < 16**2] = 4
    image = np.where(segments > 0, 180, 70).astype(np.uint8)
    affinities = np.repeat(image[..., None], 3, axis=3)
    meshes = {
        3: box((80, 160, 0), (400, 480, 600)),
        4: box((448, 192, 0), (704, 448, 600)),
    }
    return image, affinities, segments, meshes


def drawn(path, *args, **options):
    contact_sheet(path, *args, voxel_size_nm=VOXEL_NM, dpi=50, **options)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


class TestContactSheet:
    def test_whole(self, block, tmp_path):
        image, affinities, segments, meshes = block
        sheet = drawn(
            tmp_path / "sheet.png",
            image,
            affinities,
            segments,
            meshes,
            truth=segments,
            title="a block",
            subtitle="phantom",
            scores={"adapted Rand error": 0.1234},
        )
        assert sheet.shape[1] == 800
        left, right = sheet[:, :500], sheet[:, 520:]
        saturation = right.max(axis=-1) - right.min(axis=-1)
        assert (saturation > 40).mean() > 0.1, "neurons in 3D"
        assert (left.max(axis=-1) - left.min(axis=-1) > 25).mean() > 0.05, "segments"

    def test_without_truth_meshes_affinities_and_text(self, block, tmp_path):
        image, _, segments, _ = block
        bare = drawn(tmp_path / "bare.png", image, None, segments, {})
        right = bare[:, 520:]
        assert (right.max(axis=-1) - right.min(axis=-1) > 40).mean() < 0.001
        assert (bare.max(axis=-1) - bare.min(axis=-1) > 25).mean() > 0.02

    def test_empty_segmentation(self, block, tmp_path):
        image, affinities, segments, _ = block
        nothing = np.zeros_like(segments)
        empty = drawn(tmp_path / "e.png", image, affinities, nothing, {}, truth=nothing)
        assert (empty.max(axis=-1) - empty.min(axis=-1)).max() < 40, "no colour"

    def test_same_input_same_bytes(self, block, tmp_path):
        image, affinities, segments, meshes = block
        for name in ("a.png", "b.png"):
            drawn(tmp_path / name, image, affinities, segments, meshes, title="twice")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_truth_takes_the_colours_of_its_segments(self, block, tmp_path):
        """Relabelled truth gives the picture that the segmentation as truth gives."""
        image, _, segments, _ = block
        relabelled = np.where(segments > 0, segments + 1000, 0)
        same = drawn(tmp_path / "a.png", image, None, segments, {}, truth=segments)
        renamed = drawn(tmp_path / "b.png", image, None, segments, {}, truth=relabelled)
        assert np.array_equal(same, renamed)

    def test_a_merger_shows(self, block, tmp_path):
        image, _, truth, _ = block
        merged = np.where(truth > 0, 3, 0).astype(np.uint64)
        one = drawn(tmp_path / "a.png", image, None, merged, {}, truth=merged)
        two = drawn(tmp_path / "b.png", image, None, merged, {}, truth=truth)
        assert (np.abs(one - two).max(axis=-1) > 25).mean() > 0.01, "two colours in truth"

    @pytest.mark.parametrize("dtype", [np.uint16, np.float32])
    def test_other_types_and_flat_values(self, block, tmp_path, dtype):
        _, _, segments, _ = block
        image = np.full(SHAPE, 3, dtype)
        affinities = np.ones((*SHAPE, 3), np.float32)
        drawn(tmp_path / "x.png", image, affinities, segments.astype(np.int32), {})

    @pytest.mark.parametrize("shape", [(1, 1, 1), (200, 20, 3), (20, 200, 60)])
    def test_odd_shapes(self, tmp_path, shape):
        image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        labels = np.ones(shape, np.uint64)
        drawn(tmp_path / "x.png", image, None, labels, {}, truth=labels)

    def test_meshes_lie_in_the_box_wherever_the_block_is(self, block, tmp_path):
        image, _, segments, meshes = block
        away = np.array((1e5, 2e5, 3e4), np.float32)
        moved = {i: Mesh(m.vertices + away, m.faces) for i, m in meshes.items()}
        here = drawn(tmp_path / "a.png", image, None, segments, meshes)
        there = drawn(
            tmp_path / "b.png", image, None, segments, moved, corner_nm=tuple(away.tolist())
        )
        assert np.abs(here - there).mean() < 0.1

    def test_meshes_end_where_the_block_ends(self, block, tmp_path):
        image, _, segments, meshes = block
        larger = meshes | {9: box((5000, 0, 0), (9000, 600, 600))}
        inside = drawn(tmp_path / "a.png", image, None, segments, meshes)
        assert np.array_equal(
            drawn(tmp_path / "b.png", image, None, segments, larger), inside
        )

    def test_faults(self, block, tmp_path):
        image, affinities, segments, _ = block
        for arrays, message in [
            ((image, affinities, segments[:-1]), r"segmentation.*\(95, 80, 20\)"),
            ((image, affinities[..., :2], segments), r"affinities.*\(96, 80, 20, 2\)"),
            ((image[:0], None, segments[:0]), r"image.*\(0, 80, 20\)"),
        ]:
            with pytest.raises(GeometryError, match=message):
                drawn(tmp_path / "x.png", *arrays, {})
        with pytest.raises(GeometryError, match=r"section 20 .*0 to 19"):
            drawn(tmp_path / "x.png", image, affinities, segments, {}, section=20)
        assert not (tmp_path / "x.png").exists()
