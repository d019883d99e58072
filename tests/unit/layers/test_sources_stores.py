"""Sources in Zarr, N5 and Precomputed, written by tensorstore and by CloudVolume."""

import functools
import http.server
import json
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import tensorstore as ts
from cloudvolume import CloudVolume

from pipeline.errors import SourceError, StorageUnavailableError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources import open_source, stores

SHAPE = (21, 33, 45)
"""z, y, x."""


def random_array(dtype="uint8", shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def write(driver, path, array, chunks=(8, 16, 20), **metadata):
    """Write an array with tensorstore, in the axis order given."""
    chunks = (*(1,) * (array.ndim - 3), *chunks)
    if driver == "zarr":
        metadata |= {"chunks": chunks, "shape": array.shape, "dtype": array.dtype.str}
    elif driver == "zarr3":
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        metadata |= {
            "chunk_grid": grid,
            "shape": array.shape,
            "data_type": array.dtype.name,
        }
    else:
        metadata |= {
            "blockSize": chunks,
            "dimensions": array.shape,
            "dataType": array.dtype.name,
            "compression": {"type": "gzip"},
        }
    kvstore = {"driver": "file", "path": f"{path}/"}
    spec = {"driver": driver, "kvstore": kvstore, "metadata": metadata}
    ts.open(spec, create=True).result()[...] = array


def write_json(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def assert_reads(source, whole):
    """Read the whole and some boxes, and compare with the array in x, y, z."""
    assert source.shape == Vec3(*whole.shape[:3])
    rng = np.random.default_rng(1)
    boxes = [Bbox.of_shape(source.shape)]
    for _ in range(8):
        a, b = np.sort(
            rng.integers(0, np.array(source.shape.astuple()) + 1, (2, 3)), axis=0
        )
        boxes.append(Bbox(Vec3.of(a), Vec3.of(b)))
    for box in boxes:
        part = source.read(box.shifted(source.bounds.start))
        assert part.dtype == source.dtype
        assert part.flags.f_contiguous
        np.testing.assert_array_equal(part, whole[box.slices()])


# Zarr


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "float32", "bool"])
def test_zarr_array(tmp_path, driver, dtype):
    write(driver, tmp_path / "a.zarr", random_array(dtype))
    source = open_source(str(tmp_path / "a.zarr"))
    assert_reads(source, random_array(dtype).T)
    assert source.natural_chunk == Vec3(20, 16, 8)
    assert source.dtype == ("uint8" if dtype == "bool" else dtype)
    assert source.voxel_size_nm is None
    assert source.voxel_offset is None


def test_zarr_array_with_the_attributes_of_funlib(tmp_path):
    write("zarr", tmp_path / "a.zarr", random_array())
    attributes = {"resolution": [40, 4, 5], "offset": [400, 8, 15]}
    write_json(tmp_path / "a.zarr/.zattrs", attributes)
    source = open_source(str(tmp_path / "a.zarr"))
    assert source.voxel_size_nm == (5.0, 4.0, 40.0)
    assert source.bounds == Bbox.of_shape((45, 33, 21), Vec3(3, 2, 10))
    assert_reads(source, random_array().T)


@pytest.mark.parametrize("channels", [1, 2])
def test_zarr3_named_dimensions(tmp_path, channels):
    array = random_array(shape=(channels, 45, 33, 21))
    write("zarr3", tmp_path / "a", array, dimension_names=["c", "x", "y", "z"])
    source = open_source(str(tmp_path / "a"))
    assert source.channels == channels
    assert_reads(source, array[0] if channels == 1 else np.moveaxis(array, 0, -1))


def ngff(levels, axes, image_label=False):
    multiscale = {
        "axes": [
            {"name": n, "type": "space"} | ({"unit": u} if u else {}) for n, u in axes
        ],
        "datasets": [
            {"path": path, "coordinateTransformations": steps} for path, steps in levels
        ],
    }
    return {"multiscales": [multiscale]} | ({"image-label": {}} if image_label else {})


LEVELS = [
    (
        "s0",
        [
            {"type": "scale", "scale": [0.04, 0.004, 0.005]},
            {"type": "translation", "translation": [0.4, 0.008, -0.015]},
        ],
    ),
    ("s1", [{"type": "scale", "scale": [0.04, 0.008, 0.01]}]),
]
MICROMETERS = [(name, "micrometer") for name in "zyx"]


@pytest.mark.parametrize("version", [2, 3])
def test_ngff_image(tmp_path, version):
    top = tmp_path / "a.zarr"
    driver, more = ("zarr", {}) if version == 2 else ("zarr3", {})
    write(driver, top / "s0", random_array(), **more)
    write(driver, top / "s1", random_array()[:, ::2, ::2], **more)
    image = ngff(LEVELS, MICROMETERS)
    if version == 2:
        write_json(top / ".zgroup", {"zarr_format": 2})
        write_json(top / ".zattrs", image)
    else:
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": image}}
        write_json(top / "zarr.json", group)
    for location in (top, f"{top}:s0", f"{top}/s0"):
        source = open_source(str(location))
        assert_reads(source, random_array().T)
        if location != f"{top}/s0":
            assert source.voxel_size_nm == (5.0, 4.0, 40.0)
            assert source.voxel_offset == Vec3(-3, 2, 10)
    source = open_source(f"{top}:s1")
    assert source.voxel_size_nm == (10.0, 8.0, 40.0)
    assert source.voxel_offset is None
    assert_reads(source, random_array()[:, ::2, ::2].T)


def test_ngff_of_five_axes_with_labels_below(tmp_path):
    top = tmp_path / "a.zarr"
    write("zarr", top / "0", random_array(shape=(1, 3, *SHAPE)))
    write("zarr", top / "labels/cells/0", random_array("u2"))
    steps = [
        {"type": "scale", "scale": [1, 1, 40, 4, 5]},
        {"type": "translation", "translation": [0, 0, 80, 12, 25]},
    ]
    axes = [("t", None), ("c", None), *((name, "nanometer") for name in "zyx")]
    image = ngff([("0", steps)], axes)
    whole = [{"type": "scale", "scale": [1, 1, 1, 2, 2]}]
    image["multiscales"][0]["coordinateTransformations"] = whole
    write_json(top / ".zattrs", image)
    labels = ngff(
        [("0", [{"type": "scale", "scale": [30, 6, 6]}])], [(n, "nm") for n in "zyx"]
    )
    write_json(top / "labels/cells/.zattrs", labels | {"image-label": {}})
    source = open_source(str(top))
    assert (source.channels, source.kind_of_values) == (3, "image")
    assert source.voxel_size_nm == (10.0, 8.0, 40.0)
    assert source.voxel_offset == Vec3(5, 3, 2)
    assert_reads(source, random_array(shape=(1, 3, *SHAPE))[0].transpose(3, 2, 1, 0))
    source = open_source(f"{top}:labels/cells")
    assert (source.dtype, source.kind_of_values) == ("uint16", "segmentation")
    assert source.voxel_size_nm == (6.0, 6.0, 30.0)


def test_ngff_without_units_has_no_voxel_size(tmp_path):
    write("zarr", tmp_path / "a.zarr/s0", random_array())
    write_json(tmp_path / "a.zarr/.zattrs", ngff(LEVELS[:1], [(n, None) for n in "zyx"]))
    source = open_source(str(tmp_path / "a.zarr"))
    assert source.voxel_size_nm is None
    assert source.voxel_offset is None


def test_ngff_over_time_is_refused(tmp_path):
    write("zarr", tmp_path / "a.zarr/0", random_array(shape=(2, 1, *SHAPE)))
    write_json(
        tmp_path / "a.zarr/.zattrs", {"multiscales": [{"datasets": [{"path": "0"}]}]}
    )
    with pytest.raises(SourceError, match=r"axis 't' of .* has 2 entries; save one volume"):
        open_source(str(tmp_path / "a.zarr"))


def test_zarr_group(tmp_path):
    top = tmp_path / "a.zarr"
    write_json(top / ".zgroup", {"zarr_format": 2})
    with pytest.raises(SourceError, match="no three-dimensional array of numbers is in it"):
        open_source(str(top))
    write("zarr", top / "volumes/raw", random_array())
    assert_reads(open_source(str(top)), random_array().T)
    write("zarr", top / "volumes/ids", random_array("u8"))
    write("zarr", top / "flat", random_array()[0], chunks=(8, 8))
    with pytest.raises(
        SourceError, match=r"holds 2 volumes: volumes/ids .*volumes/raw .*as "
    ):
        open_source(str(top))
    with pytest.raises(
        SourceError, match=r"'raw' is not an array; name one of: volumes/ids"
    ):
        open_source(f"{top}:raw")
    with pytest.raises(SourceError, match=r"shape \(33, 45\) is not three-dimensional"):
        open_source(f"{top}:flat")
    assert open_source(f"{top}:volumes/ids").kind_of_values == "segmentation"


def test_zarr_faults(tmp_path):
    write("zarr", tmp_path / "complex", random_array("c8"))
    with pytest.raises(SourceError, match="type complex64 is not a volume's"):
        open_source(str(tmp_path / "complex"))
    write("zarr", tmp_path / "empty", random_array(shape=(0, 3, 4)))
    with pytest.raises(SourceError, match=r"volume of \(4, 3, 0\) voxels"):
        open_source(str(tmp_path / "empty"))
    write("zarr", tmp_path / "a", random_array())
    chunk = tmp_path / "a/1.1.1"
    chunk.write_bytes(chunk.read_bytes()[:9])
    source = open_source(str(tmp_path / "a"))
    source.read(Bbox(Vec3(0, 0, 0), Vec3(20, 16, 8)))
    with pytest.raises(
        SourceError, match=r"box 20,16,8,30,30,10: cannot be read, .*1\.1\.1"
    ):
        source.read(Bbox(Vec3(20, 16, 8), Vec3(30, 30, 10)))
    (tmp_path / "a/.zarray").write_text("{")
    with pytest.raises(SourceError, match=r"\.zarray is not JSON"):
        open_source(str(tmp_path / "a"))
    (tmp_path / "a/.zarray").write_text("{}")
    with pytest.raises(SourceError, match=r"cannot be opened, shape; the file is damaged"):
        open_source(str(tmp_path / "a"))


# N5


@pytest.mark.parametrize(
    ("attributes", "size", "offset"),
    [
        ({}, None, None),
        ({"resolution": [5, 4, 40], "offset": [-15, 8, 400]}, (5, 4, 40), Vec3(-3, 2, 10)),
        ({"resolution": [0.005, 0.004, 0.04], "units": ["um"] * 3}, (5, 4, 40), None),
        (
            {"pixelResolution": {"dimensions": [0.005, 0.004, 0.04], "unit": "um"}},
            (5, 4, 40),
            None,
        ),
        (
            {
                "pixelResolution": {"dimensions": [5, 4, 40], "unit": "nm"},
                "downsamplingFactors": [2, 2, 1],
            },
            (10, 8, 40),
            None,
        ),
        (
            {
                "transform": {
                    "axes": ["z", "y", "x"],
                    "scale": [40, 4, 5],
                    "translate": [400, 8, -15],
                    "units": ["nm"] * 3,
                }
            },
            (5, 4, 40),
            Vec3(-3, 2, 10),
        ),
    ],
)
def test_n5_array(tmp_path, attributes, size, offset):
    write("n5", tmp_path / "a.n5", random_array("u2").T, **attributes)
    source = open_source(str(tmp_path / "a.n5"))
    assert_reads(source, random_array("u2").T)
    assert source.natural_chunk == Vec3(8, 16, 20)
    assert source.voxel_size_nm == size
    assert source.voxel_offset == offset


def test_n5_group_of_scales(tmp_path):
    top = tmp_path / "a.n5"
    write_json(top / "attributes.json", {"n5": "2.0.0"})
    write("n5", top / "setup0/s0", random_array().T)
    write("n5", top / "setup0/s1", random_array().T[::2], downsamplingFactors=[2, 1, 1])
    pixel = {"dimensions": [5, 4, 40], "unit": "nm"}
    write_json(top / "setup0/attributes.json", {"pixelResolution": pixel})
    for location in (top, f"{top}:setup0", f"{top}:setup0/s0"):
        source = open_source(str(location))
        assert source.voxel_size_nm == (5.0, 4.0, 40.0)
        assert_reads(source, random_array().T)
    assert open_source(f"{top}:setup0/s1").voxel_size_nm == (10.0, 4.0, 40.0)
    write("n5", top / "other", random_array().T)
    with pytest.raises(
        SourceError, match=r"holds 2 volumes: other .*, setup0 .*name one, as"
    ):
        open_source(str(top))
    with pytest.raises(SourceError, match=r"'setup1' is not an array; name one of: other"):
        open_source(f"{top}:setup1")


# Precomputed


@pytest.mark.parametrize(
    ("dtype", "kind", "encoding", "channels"),
    [
        ("uint8", "image", "raw", 1),
        ("uint8", "image", "raw", 3),
        ("uint8", "image", "png", 1),
        ("uint16", "segmentation", "raw", 1),
        ("uint64", "segmentation", "compressed_segmentation", 1),
        ("uint64", "segmentation", "crackle", 1),
        ("uint32", "segmentation", "compresso", 1),
        ("float32", "image", "fpzip", 3),
    ],
)
def test_precomputed(tmp_path, dtype, kind, encoding, channels):
    info = CloudVolume.create_new_info(
        num_channels=channels,
        layer_type=kind,
        data_type=dtype,
        encoding=encoding,
        resolution=(5, 4.5, 40),
        voxel_offset=(-3, 2, 10),
        volume_size=(45, 33, 21),
        chunk_size=(20, 16, 8),
    )
    volume = CloudVolume(
        f"precomputed://file://{tmp_path}/layer", info=info, progress=False
    )
    volume.commit_info()
    whole = random_array(dtype, (channels, *SHAPE)).transpose(3, 2, 1, 0)
    volume[:, :, :] = np.asfortranarray(whole)
    for prefix in ("", "file://", "precomputed://file://"):
        source = open_source(f"{prefix}{tmp_path}/layer")
        assert source.voxel_size_nm == (5.0, 4.5, 40.0)
        assert source.bounds == Bbox.of_shape((45, 33, 21), Vec3(-3, 2, 10))
        assert source.natural_chunk == Vec3(20, 16, 8)
        assert (source.kind_of_values, source.channels) == (kind, channels)
    assert_reads(source, whole if channels > 1 else whole[..., 0])


@pytest.mark.parametrize("encoding", ["raw", "crackle"])
def test_precomputed_blank_and_damaged_chunks(tmp_path, encoding):
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="segmentation",
        data_type="uint32",
        encoding=encoding,
        resolution=(4, 4, 40),
        voxel_offset=(0, 0, 0),
        volume_size=(40, 16, 8),
        chunk_size=(20, 16, 8),
    )
    volume = CloudVolume(
        f"precomputed://file://{tmp_path}", info=info, progress=False, compress=False
    )
    volume.commit_info()
    volume[:20, :, :] = np.ones((20, 16, 8, 1), np.uint32)
    source = open_source(str(tmp_path))
    part = source.read(source.bounds)
    assert (part[:20] == 1).all()
    assert not part[20:].any()
    (chunk,) = (tmp_path / info["scales"][0]["key"]).iterdir()
    chunk.write_bytes(b"short")
    with pytest.raises(SourceError, match=r"box 0,0,0,40,16,8.*cannot be"):
        open_source(str(tmp_path)).read(source.bounds)


def test_precomputed_that_is_no_volume(tmp_path):
    write_json(tmp_path / "info", {"@type": "neuroglancer_annotations_v1"})
    with pytest.raises(SourceError, match="neuroglancer_annotations_v1 without scales"):
        open_source(str(tmp_path))
    write_json(tmp_path / "info", {"type": "image", "scales": [{}]})
    with pytest.raises(SourceError, match="cannot be opened, size; the file is damaged"):
        open_source(str(tmp_path))


# Object stores


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64


@contextmanager
def served(folder):
    handler = functools.partial(_Quiet, directory=folder)
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_over_http(tmp_path):
    write("zarr", tmp_path / "a.zarr/s0", random_array())
    write_json(tmp_path / "a.zarr/.zattrs", ngff(LEVELS[:1], MICROMETERS))
    write("zarr3", tmp_path / "b.zarr/x/y", random_array())
    write_json(tmp_path / "b.zarr/zarr.json", {"node_type": "group"})
    write("n5", tmp_path / "c.n5/raw", random_array().T)
    info = CloudVolume.create_new_info(
        1,
        "image",
        "uint8",
        "raw",
        (4, 4, 40),
        (5, 6, 7),
        (45, 33, 21),
        chunk_size=(20, 16, 8),
    )
    volume = CloudVolume(f"file://{tmp_path}/d", info=info, progress=False, compress=False)
    volume.commit_info()
    volume[:, :, :] = np.asfortranarray(random_array().T[..., None])
    with served(tmp_path) as url:
        assert_reads(open_source(f"precomputed://{url}/d"), random_array().T)
        source = open_source(f"{url}/a.zarr")
        assert source.voxel_size_nm == (5.0, 4.0, 40.0)
        assert_reads(source, random_array().T)
        for location in ("b.zarr:x/y", "b.zarr/x/y", "c.n5:raw", "c.n5/raw/"):
            assert_reads(open_source(f"{url}/{location}"), random_array().T)
        with pytest.raises(
            SourceError, match=r"no array is there, .*name an array in it as"
        ):
            open_source(f"{url}/b.zarr")
        with pytest.raises(
            SourceError, match=r"no info, zarr\.json, .* is there; give the"
        ):
            open_source(f"{url}/nothing.h5")


def test_a_store_that_does_not_answer_may_be_tried_again(monkeypatch):
    few = {"max_retries": 1, "initial_delay": "10ms"}
    monkeypatch.setitem(stores._CONTEXT, "http_request_retries", few)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(
        StorageUnavailableError, match=r"the store does not answer, .*connect"
    ):
        open_source(f"http://127.0.0.1:{port}/a.zarr")


def test_relative_paths(tmp_path, monkeypatch):
    write("zarr", tmp_path / "a.zarr/s0", random_array())
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert_reads(open_source("../a.zarr/s0"), random_array().T)
    assert_reads(open_source("../b/../a.zarr:s0"), random_array().T)
