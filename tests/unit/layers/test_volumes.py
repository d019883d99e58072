"""Volumes, read back by tensorstore, which shares no code with what wrote them.

What lies compressed on disk is decompressed first, as a web server's clients would. It
has no fpzip, zfpc, compresso or crackle: those are read by a fresh CloudVolume instead.
"""

import gzip

import numpy as np
import pytest
import tensorstore as ts
from cloudvolume import CloudVolume

from pipeline.errors import DataError, GeometryError, SourceError
from pipeline.geometry import Bbox, Grid, Vec3
from pipeline.layers.store import Store
from pipeline.layers.volumes import volume_info, volume_spec
from pipeline.specs import Region, VolumeSpec, grid_of

START = Vec3(-5, 7, 100)
SHAPE = (41, 30, 19)
CHUNK = Vec3(16, 8, 8)

CASES = [
    *[("raw", d, 1) for d in ("uint8", "uint16", "uint32", "uint64", "float32")],
    *[("raw", d, 1) for d in ("int8", "int16", "int32")],
    ("raw", "uint8", 3),
    ("raw", "float32", 12),
    ("png", "uint8", 1),
    ("jpeg", "uint8", 1),
    ("fpzip", "float32", 1),
    ("fpzip", "float32", 3),
    ("zfpc", "float32", 3),
    ("compressed_segmentation", "uint32", 1),
    ("compressed_segmentation", "uint64", 1),
    ("crackle", "uint32", 1),
    ("crackle", "uint64", 1),
    ("compresso", "uint64", 1),
]
TENSORSTORE_READS = {"raw", "png", "jpeg", "compressed_segmentation"}


def values(dtype, channels, shape=SHAPE, seed=0):
    """Smooth images, blobs of labels beyond 2**53; a corner of zeros."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).astype(np.float64)
    full = []
    for c in range(channels):
        wave = 0.5 + 0.45 * np.sin(grid[0] / 6 + c) * np.cos(grid[1] / 5 + grid[2] / 7)
        if np.dtype(dtype).kind == "f":
            full.append((wave + 1e-3 * rng.random(shape)).astype(dtype))
        elif dtype in ("uint32", "uint64"):
            top = {"uint32": 2**32, "uint64": 2**64}[dtype]
            full.append(
                np.array([0, 1, 7, top - 1, top - 2, top - 3], dtype)[
                    (wave * 6).astype(int)
                ]
            )
        else:
            full.append((wave * np.iinfo(dtype).max).astype(dtype))
    array = np.stack(full, axis=-1)
    array[:16, :8, :8] = 0
    array = array[..., 0] if channels == 1 else array
    return np.asfortranarray(array)


def spec_of(encoding, dtype, channels=1, **fields):
    return VolumeSpec(
        dtype=dtype,
        channels=channels,
        kind_of_values="segmentation" if dtype in ("uint32", "uint64") else "image",
        encoding=encoding,
        **{
            "bounds": Bbox.of_shape(SHAPE, START),
            "voxel_size_nm": (6.0, 6.5, 30.0),
            "storage_chunk": CHUNK,
            **fields,
        },
    )


def write_all(store, layer, spec, array, chunk=None, mip=0):
    """Write an array chunk by chunk; return the checksums of every object."""
    bounds = spec.bounds_at(mip)
    grid = Grid(bounds, chunk or spec.shard or spec.storage_chunk * 2)
    written = {}
    for key in grid.keys():  # noqa: SIM118
        box = grid.box(key)
        region = Region(layer, box, mip)
        written |= store.write(region, spec, array[box.slices(bounds.start)])
    return written


def read_independently(store, layer, spec, mip=0):
    if spec.encoding not in TENSORSTORE_READS:
        volume = CloudVolume(
            store.location(layer), mip=mip, progress=False, fill_missing=True
        )
        return np.asarray(volume[:])
    opened = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"{store.location(layer)}/",
        "scale_index": mip,
    }
    array = ts.open(opened, read=True).result()
    assert array.domain.origin[:3] == spec.bounds_at(mip).start.astuple()
    return array.read().result()


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
@pytest.mark.parametrize(("encoding", "dtype", "channels"), CASES)
def test_round_trip(encoding, dtype, channels, sharded, store):
    spec = spec_of(encoding, dtype, channels, shard=Vec3(32, 16, 16) if sharded else None)
    array = values(dtype, channels)
    store.create("layer", spec)
    written = write_all(store, "layer", spec, array)
    assert len(written) == (2 * 2 * 2 if sharded else 3 * 4 * 3 - 1)
    assert store.check("layer", written) == []

    ours = store.read(Region("layer", spec.bounds))
    theirs = read_independently(store, "layer", spec)
    theirs = theirs[..., 0] if channels == 1 else theirs
    assert ours.dtype == dtype
    assert ours.shape == array.shape
    assert ours.flags.f_contiguous
    assert not ours.flags.writeable
    np.testing.assert_array_equal(ours, theirs)
    if encoding == "jpeg":
        assert np.abs(ours.astype(int) - array).mean() < 3
    else:
        np.testing.assert_array_equal(ours, array)


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
def test_every_mip_has_its_own_place(sharded, store):
    spec = spec_of(
        "compressed_segmentation",
        "uint64",
        factors=(Vec3(1, 1, 1), Vec3(2, 2, 1), Vec3(4, 4, 2)),
        shard=Vec3(32, 16, 16) if sharded else None,
    )
    store.create("layer", spec)
    for mip in range(3):
        array = values("uint64", 1, spec.bounds_at(mip).shape.astuple(), seed=mip)
        write_all(store, "layer", spec, array, mip=mip)
        ours = store.read(Region("layer", spec.bounds_at(mip), mip))
        np.testing.assert_array_equal(ours, array)
        np.testing.assert_array_equal(
            read_independently(store, "layer", spec, mip)[..., 0], array
        )
    assert store.describe("layer") == spec


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
@pytest.mark.parametrize("encoding", ["raw", "fpzip"])
def test_reads_any_box_down_to_a_voxel(encoding, sharded, channels, store):
    spec = spec_of(
        encoding, "float32", channels, shard=Vec3(32, 16, 16) if sharded else None
    )
    array = values("float32", channels)
    store.create("layer", spec)
    write_all(store, "layer", spec, array)
    for low, high in [
        ((20, 9, 9), (21, 10, 10)),
        ((3, 5, 7), (30, 29, 8)),
        ((4, 4, 4), (4, 9, 9)),
    ]:
        box = Bbox(Vec3(*low), Vec3(*high))
        ours = store.read(Region("layer", box.shifted(START)))
        np.testing.assert_array_equal(ours, array[box.slices()])


def test_one_label_voxel_of_a_crackle_chunk(store):
    spec = spec_of("crackle", "uint64")
    array = values("uint64", 1)
    store.create("layer", spec)
    write_all(store, "layer", spec, array)
    box = Bbox.of_shape((1, 1, 1), Vec3(22, 11, 13))
    ours = store.read(Region("layer", box.shifted(START)))
    assert ours.item() == array[22, 11, 13]


@pytest.mark.parametrize(
    ("shape", "shard", "effective"),
    [
        ((64, 64, 64), (32, 32, 32), (32, 32, 32)),
        ((64, 64, 64), (32, 32, 16), (32, 32, 16)),
        ((64, 64, 16), (64, 64, 64), (64, 64, 16)),
        ((100, 40, 10), (64, 64, 16), (64, 64, 16)),
        ((17, 9, 8), (16, 8, 8), (16, 8, 8)),
        ((8, 8, 8), (8, 8, 8), (8, 8, 8)),
    ],
)
def test_shards_of_many_shapes(shape, shard, effective, store):
    spec = spec_of(
        "raw",
        "uint16",
        bounds=Bbox.of_shape(shape, START),
        storage_chunk=Vec3(8, 8, 8),
        shard=Vec3(*shard),
    )
    array = values("uint16", 1, shape) + 1
    store.create("layer", spec)
    written = write_all(store, "layer", spec, array)
    assert len(written) == Grid(spec.bounds, spec.shard).counts().product
    np.testing.assert_array_equal(store.read(Region("layer", spec.bounds)), array)
    np.testing.assert_array_equal(read_independently(store, "layer", spec)[..., 0], array)
    assert store.describe("layer").shard == Vec3(*effective)


@pytest.mark.parametrize("shard", [(32, 8, 8), (24, 8, 8), (12, 8, 8), (8, 8, 16)])
def test_a_shard_that_the_format_cannot_hold_is_refused(shard, store):
    spec = spec_of(
        "raw",
        "uint8",
        bounds=Bbox.of_shape((64, 64, 64)),
        storage_chunk=Vec3(8, 8, 8),
        shard=Vec3(*shard),
    )
    with pytest.raises(GeometryError, match=r"layer: shard \(\d+, 8, \d+\)"):
        store.create("layer", spec)


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
def test_bytes_do_not_depend_on_order_or_time(sharded, tmp_path, monkeypatch):
    spec = spec_of("raw", "uint8", shard=Vec3(32, 16, 16) if sharded else None)
    array = values("uint8", 1)
    found = []
    for name, step in (("a", 1), ("b", -1)):
        store = Store(str(tmp_path / name))
        store.create("layer", spec)
        grid = Grid(spec.bounds, Vec3(32, 16, 16))
        for key in list(grid.keys())[::step]:
            box = grid.box(key)
            store.write(Region("layer", box), spec, array[box.slices(START)])
        monkeypatch.setattr("time.time", lambda: 2e9)
        files = sorted((tmp_path / name / "layer").rglob("*"))
        found.append({f.name: f.read_bytes() for f in files if f.is_file()})
    assert found[0] == found[1]


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
def test_a_blank_chunk_is_not_stored_and_clears_what_was(sharded, store, tmp_path):
    spec = spec_of("raw", "uint8", shard=Vec3(16, 8, 8) if sharded else None)
    store.create("layer", spec)
    box = grid_of(spec).box(next(grid_of(spec).keys()))
    region = Region("layer", box)
    ones = np.ones(box.shape.astuple(), np.uint8)
    assert len(store.write(region, spec, ones)) == 1
    assert store.write(region, spec, ones * 0) == {}
    assert not [
        p for p in (tmp_path / "root/layer").rglob("*") if p.is_file() and p.name != "info"
    ]
    assert not store.read(region).any()


def test_check_names_what_is_gone_or_damaged(store, tmp_path):
    spec = spec_of("raw", "uint8")
    store.create("layer", spec)
    written = write_all(store, "layer", spec, values("uint8", 1) + 1)
    gone, torn, other = sorted(written)[:3]
    layer = tmp_path / "root/layer"
    (layer / gone).unlink()
    (layer / torn).write_bytes((layer / torn).read_bytes()[:-9])
    (layer / other).write_bytes((layer / sorted(written)[4]).read_bytes())
    faults = store.check("layer", written)
    assert [f.split(" ")[0] for f in faults] == [f"layer/{p}" for p in (gone, torn, other)]
    assert "missing" in faults[0]
    assert "damaged" in faults[1]
    assert written[other] in faults[2]
    assert store.check("layer", written, contents=False) == faults[:1]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_torn_chunk_is_an_error_not_zeros(compressed, store, tmp_path):
    spec = spec_of("raw", "uint8", shard=None)
    store.create("layer", spec)
    written = write_all(store, "layer", spec, values("uint8", 1) + 1)
    for path in written:
        file = tmp_path / "root/layer" / path
        content = file.read_bytes()
        if compressed:
            file.unlink()
            file = file.with_name(f"{file.name}.gz")
            content = gzip.compress(content)
        file.write_bytes(content[:20])
    with pytest.raises(DataError, match="layer: box"):
        store.read(Region("layer", spec.bounds))


def test_boxes_that_do_not_fit_are_refused(store):
    spec = spec_of("raw", "uint8")
    store.create("layer", spec)
    for start, stop in [
        ((1, 0, 0), (16, 8, 8)),
        ((0, 0, 0), (15, 8, 8)),
        ((-16, 0, 0), (16, 8, 8)),
    ]:
        box = Bbox(Vec3(*start), Vec3(*stop)).shifted(START)
        with pytest.raises(GeometryError, match=r"layer: box .*\(16, 8, 8\)"):
            store.write(Region("layer", box), spec, np.ones(box.shape.astuple(), np.uint8))
    with pytest.raises(GeometryError, match="leaves the bounds"):
        store.read(Region("layer", Bbox(START, START + 50)))
    with pytest.raises(GeometryError, match="no mip 1"):
        store.read(Region("layer", spec.bounds, 1))
    sharded = spec.model_copy(update={"shard": Vec3(32, 16, 16)})
    box = Bbox.of_shape(CHUNK, START)
    with pytest.raises(GeometryError, match="is not one shard"):
        store.write(Region("layer", box), sharded, np.ones(CHUNK.astuple(), np.uint8))


def test_values_of_another_kind_are_refused(store):
    spec = spec_of("raw", "uint8")
    region = Region("layer", Bbox.of_shape(CHUNK, START))
    with pytest.raises(DataError, match="uint16, but the layer holds uint8"):
        store.write(region, spec, np.ones(CHUNK.astuple(), np.uint16))
    with pytest.raises(DataError, match=r"\(16, 8, 8, 1\), not \(16, 8, 8\)"):
        store.write(region, spec, np.ones((*CHUNK, 1), np.uint8))
    with pytest.raises(DataError, match="does not hold dict"):
        store.write(region, spec, {"a": np.ones(3)})


@pytest.mark.parametrize(
    ("encoding", "dtype", "channels", "hint"),
    [
        ("jpeg", "uint16", 1, "use raw"),
        ("png", "uint8", 3, "use raw"),
        ("png", "float32", 1, "raw or fpzip or zfpc"),
        ("crackle", "uint64", 2, "use raw"),
        ("raw", "int64", 1, "another dtype"),
    ],
)
def test_an_encoding_that_does_not_hold_the_values_is_refused(
    encoding, dtype, channels, hint, store
):
    with pytest.raises(DataError, match=hint):
        store.create("layer", spec_of(encoding, dtype, channels))


def test_info_of_others_is_understood_or_refused():
    info = volume_info(
        "layer", spec_of("raw", "uint8", factors=(Vec3(1, 1, 1), Vec3(2, 2, 1)))
    )
    info["scales"].append({**info["scales"][0], "resolution": [9, 9, 30], "key": "odd"})
    assert volume_spec(info, "gs://x").factors == (Vec3(1, 1, 1), Vec3(2, 2, 1))
    info["scales"][0]["encoding"] = "jxl"
    with pytest.raises(SourceError, match=r"gs://x.*jxl"):
        volume_spec(info, "gs://x")
    info["scales"][0]["encoding"] = "jpeg"
    info["num_channels"] = 3
    with pytest.raises(SourceError, match="jpeg with 3 channels"):
        volume_spec(info, "gs://x")
    with pytest.raises(SourceError, match="num_channels"):
        volume_spec({k: v for k, v in info.items() if k != "num_channels"}, "gs://x")
