"""Neuroglancer in a real browser, on layers as CloudVolume writes them."""

import shutil

import cloudvolume
import neuroglancer
import numpy as np
import psutil
import pytest
import zmesh
from PIL import Image

from pipeline import view
from pipeline.errors import TransientError
from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VolumeSpec
from pipeline.view import ViewLayer, launch, screenshot

VOXEL_NM = (8.0, 8.0, 30.0)
SHAPE = (160, 128, 40)
OFFSET = (32, 64, 8)
SIZE = (800, 600)
# Neuroglancer draws no skeleton that has an attribute of integers, which
# CloudVolume's own default of attributes holds.
RADIUS = [{"id": "radius", "data_type": "float32", "num_components": 1}]
ONE_SHARD = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 4,
    "minishard_bits": 0,
    "shard_bits": 0,
    "hash": "identity",
    "minishard_index_encoding": "gzip",
    "data_encoding": "gzip",
}

needs_browser = pytest.mark.skipif(
    not any(map(shutil.which, view.BROWSERS)),
    reason=f"none of {', '.join(view.BROWSERS)} is in PATH",
)


def spec(**changes):
    return VolumeSpec(
        bounds=Bbox.of_shape(SHAPE, Vec3(*OFFSET)), voxel_size_nm=VOXEL_NM, **changes
    )


def labels():
    """Three crossing neurites: one along each axis."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    out = np.zeros(SHAPE, np.uint64, order="F")
    out[(y - 40) ** 2 + ((z - 12) * 3.75) ** 2 < 24**2] = 11
    out[(x - 110) ** 2 + ((z - 28) * 3.75) ** 2 < 22**2] = 12
    out[(x - 45) ** 2 + (y - 95) ** 2 < 20**2] = 13
    return out


def image(segments):
    inside = np.where(segments > 0, 190, 60)
    noise = np.random.default_rng(0).normal(0, 12, SHAPE)
    return np.asfortranarray((inside + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image, affinities and a segmentation with surface meshes and skeletons."""
    root = tmp_path_factory.mktemp("layers")
    segments = labels()

    def write(name, array, layer_type, encoding, sharding=None, **extra):
        n_channels = array.shape[3] if array.ndim == 4 else 1
        info = cloudvolume.CloudVolume.create_new_info(
            num_channels=n_channels,
            layer_type=layer_type,
            data_type=str(array.dtype),
            encoding=encoding,
            resolution=VOXEL_NM,
            voxel_offset=OFFSET,
            volume_size=SHAPE,
            chunk_size=(64, 64, 20),
            **extra,
        )
        if sharding is not None:
            info["scales"][0]["sharding"] = sharding
        volume = cloudvolume.CloudVolume(
            f"file://{root / name}", info=info, compress=sharding is None, progress=False
        )
        volume.commit_info()
        volume[:] = array
        return volume

    sharded = write("image", image(segments), "image", "raw", sharding=ONE_SHARD)
    assert [f.suffix for f in (root / "image" / sharded.key).iterdir()] == [".shard"]
    affinities = np.full((*SHAPE, 3), 230, np.uint8, order="F")
    affinities[segments == 0] = (230, 20, 20)
    write("affinities", affinities, "image", "raw")
    volume = write(
        "segmentation",
        segments,
        "segmentation",
        "compressed_segmentation",
        mesh="mesh",
        skeletons="skeletons",
    )
    volume.mesh.meta.info.update({"@type": "neuroglancer_legacy_mesh"})
    mesher = zmesh.Mesher(VOXEL_NM)
    mesher.mesh(np.pad(segments, 1), close=False)
    corner_nm = np.array(OFFSET) * VOXEL_NM
    meshes, skeletons = [], []
    for segment in mesher.ids():
        found = mesher.get(segment, normals=False)
        vertices = (found.vertices - np.array(VOXEL_NM) + corner_nm).astype(np.float32)
        meshes.append(
            cloudvolume.Mesh(vertices=vertices, faces=found.faces, segid=int(segment))
        )
        low, high = vertices.min(0), vertices.max(0)
        points = np.linspace(low, high, 12, dtype=np.float32)
        edges = np.stack([np.arange(11), np.arange(1, 12)], axis=1).astype(np.uint32)
        skeletons.append(
            cloudvolume.Skeleton(
                points,
                edges,
                segid=int(segment),
                extra_attributes=RADIUS,
            )
        )
    volume.mesh.put(meshes)
    volume.skeleton.meta.info["vertex_attributes"] = RADIUS
    volume.skeleton.meta.commit_info()
    volume.skeleton.upload(skeletons)
    return root


def layers(folder, **changes):
    of_segmentation = {"selected": [11, 12, 13], "meshes": True, **changes}
    return [
        ViewLayer(
            "image", f"file://{folder}/image", spec(dtype="uint8", kind_of_values="image")
        ),
        ViewLayer(
            "affinities",
            f"file://{folder}/affinities",
            spec(dtype="uint8", channels=3, kind_of_values="image"),
        ),
        ViewLayer(
            "segmentation",
            f"file://{folder}/segmentation",
            spec(
                dtype="uint64",
                kind_of_values="segmentation",
                encoding="compressed_segmentation",
            ),
            **of_segmentation,
        ),
    ]


def picture(shown, path):
    with launch(shown, size=SIZE) as viewer:
        screenshot(viewer, path, SIZE, timeout_s=120)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def saturation(pixels):
    return pixels.max(axis=-1) - pixels.min(axis=-1)


def panels(pixels):
    """Return the xy, xz, 3D and zy panels, without the lines between them."""
    h, w = SIZE[1] // 2, SIZE[0] // 2
    return [pixels[r : r + h - 8, c : c + w - 8] for r in (4, h + 4) for c in (4, w + 4)]


@pytest.fixture(scope="module")
def full(folder, tmp_path_factory):
    """The picture of image, segmentation and surface meshes."""
    return picture(layers(folder), tmp_path_factory.mktemp("pictures") / "full.png")


@pytest.fixture(scope="module")
def bare(folder, tmp_path_factory):
    """The same without surface meshes."""
    path = tmp_path_factory.mktemp("pictures") / "bare.png"
    return picture(layers(folder, meshes=False), path)


@pytest.fixture(scope="module", autouse=True)
def _stop_neuroglancer():
    yield
    neuroglancer.stop()


@needs_browser
def test_picture_shows_image_and_segmentation(full):
    assert full.shape == (SIZE[1], SIZE[0], 3)
    for section in (panels(full)[0], panels(full)[1], panels(full)[3]):
        grey = section[saturation(section) < 8]
        noise = grey[(grey.max(axis=1) > 20) & (grey.max(axis=1) < 120)]
        assert len(noise) > 10_000, "the image, read by ranges out of one shard"
        assert noise.std() > 5
        assert (saturation(section) > 60).sum() > 2_000, "a segment in its colour"


@needs_browser
def test_3d_panel_shows_meshes(full, bare):
    with_meshes, without = panels(full)[2], panels(bare)[2]
    differs = np.abs(with_meshes - without).max(axis=-1) > 40
    assert differs.mean() > 0.1
    colours = {tuple((np.array(c) // 64).tolist()) for c in with_meshes[differs]}
    assert len(colours) > 3, "three segments, shaded"
    for at in (0, 1, 3):
        assert np.abs(panels(full)[at] - panels(bare)[at]).mean() < 2, "same sections"


@needs_browser
def test_3d_panel_shows_skeletons(folder, bare, tmp_path):
    lines = picture(
        layers(folder, meshes=False, skeletons=True), tmp_path / "skeletons.png"
    )
    differs = np.abs(panels(lines)[2] - panels(bare)[2]).max(axis=-1) > 40
    assert 100 < differs.sum() < 0.1 * differs.size, "lines, not surfaces"


@needs_browser
def test_affinities_are_coloured(folder, tmp_path):
    pixels = picture(layers(folder)[1:2], tmp_path / "affinities.png")
    section = panels(pixels)[0]
    near = lambda colour: (np.abs(section - np.array(colour)).max(axis=-1) < 12).sum()  # noqa: E731
    assert near((230, 20, 20)) > 5_000, "outside: joined along x alone"
    assert near((230, 230, 230)) > 1_000, "inside: joined along every axis"


@needs_browser
def test_no_picture_in_time_is_transient_and_leaves_no_browser(folder, tmp_path):
    with launch(layers(folder)) as viewer, pytest.raises(TransientError, match="within"):
        screenshot(viewer, tmp_path / "never.png", timeout_s=0.3)
    assert not (tmp_path / "never.png").exists()
    assert not left_over()
    with launch(layers(folder), size=SIZE) as viewer:
        screenshot(viewer, tmp_path / "later.png", SIZE)
    assert (tmp_path / "later.png").exists()
    assert not left_over()


def left_over():
    """Browsers started here that still live; the dying get a moment."""
    found = [
        p
        for p in psutil.process_iter(["cmdline"])
        if any("em-browser-" in a for a in p.info["cmdline"] or ())
    ]
    return psutil.wait_procs(found, timeout=5)[1]
