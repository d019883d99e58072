"""Sources in single files and in folders of sections, against the arrays written."""

import os
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import GeometryError, SourceError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources import SectionOrigin, open_source
from pipeline.layers.sources.numbering import natural, number_sections
from pipeline.layers.sources.stack import DecodedCache

DATA = Path(os.environ.get("EM_DATA", "../shared/data"))

SHAPE = (7, 33, 45)
"""z, y, x."""


def random_array(dtype="uint8", shape=SHAPE, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, shape)
    return values.astype(dtype)


def assert_reads(source, zyx):
    """Read the whole and some boxes, and compare with the array."""
    whole = zyx.T
    assert source.shape == Vec3(*whole.shape[-3:])
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
        assert part.flags.writeable
        np.testing.assert_array_equal(part, whole[box.slices()])


# HDF5


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory):
    path = tmp_path_factory.mktemp("hdf5") / "sample.hdf"
    with h5py.File(path, "w") as file:
        raw = file.create_dataset(
            "volumes/raw", data=random_array(), chunks=(2, 8, 16), compression="gzip"
        )
        raw.attrs["resolution"] = (40.0, 4.0, 5.0)
        ids = file.create_dataset("volumes/labels/ids", data=random_array(">u8"))
        ids.attrs["resolution"] = (40.0, 4.0, 5.0)
        ids.attrs["offset"] = (400.0, 8.0, -15.0)
        file["flat"] = random_array(shape=(3, 4))
        file["pairs"] = random_array("complex64")
        file["mask"] = random_array() > 99
        file["empty"] = np.zeros((0, 4, 4), np.uint8)
        file["half"] = random_array("float16")
        boundaries = file.create_dataset("boundaries", data=random_array("f4", (3, *SHAPE)))
        boundaries.attrs["axes"] = "czyx"
        turned = file.create_dataset("turned", data=random_array().T)
        turned.attrs["axes"] = "xyz"
        turned.attrs["element_size_um"] = (0.03, 0.006, 0.005)
        file.create_dataset("several", data=random_array(shape=(2, *SHAPE)))
    return path


def test_hdf5_dataset_with_its_voxel_size(hdf5):
    with open_source(f"{hdf5}:volumes/raw") as source:
        assert_reads(source, random_array())
        assert source.voxel_size_nm == (5.0, 4.0, 40.0)
        assert source.voxel_offset is None
        assert source.natural_chunk == Vec3(16, 8, 2)
        assert (source.dtype, source.kind_of_values) == ("uint8", "image")


def test_hdf5_offset_places_the_bounds(hdf5):
    with open_source(f"{hdf5}:volumes/labels/ids") as source:
        assert source.voxel_offset == Vec3(-3, 2, 10)
        assert source.bounds == Bbox.of_shape((45, 33, 7), Vec3(-3, 2, 10))
        assert (source.dtype, source.kind_of_values) == ("uint64", "segmentation")
        assert_reads(source, random_array("u8"))


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_hdf5_any_box(hdf5, data):
    lows = [data.draw(st.integers(0, n)) for n in SHAPE[::-1]]
    highs = [
        data.draw(st.integers(low, n)) for low, n in zip(lows, SHAPE[::-1], strict=True)
    ]
    box = Bbox(Vec3(*lows), Vec3(*highs))
    with open_source(f"{hdf5}:volumes/raw") as source:
        np.testing.assert_array_equal(source.read(box), random_array().T[box.slices()])


def test_hdf5_named_axes(hdf5):
    with open_source(f"{hdf5}:boundaries") as source:
        assert source.channels == 3
        expected = random_array("f4", (3, *SHAPE)).transpose(3, 2, 1, 0)
        box = Bbox(Vec3(3, 0, 2), Vec3(9, 33, 7))
        np.testing.assert_array_equal(source.read(box), expected[box.slices()])
    with open_source(f"{hdf5}:turned") as source:
        assert_reads(source, random_array())
        assert source.voxel_size_nm == (5.0, 6.0, 30.0)


@pytest.mark.parametrize(("name", "dtype"), [("mask", "uint8"), ("half", "float32")])
def test_types_that_are_turned(hdf5, name, dtype):
    with h5py.File(hdf5) as file, open_source(f"{hdf5}:{name}") as source:
        assert source.dtype == dtype
        assert source.kind_of_values == "image"
        assert_reads(source, file[name][:].astype(dtype))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", r"holds \d+ volumes: .*volumes/raw \(7, 33, 45\) uint8.*name one"),
        (
            ":volumes/rew",
            r"'volumes/rew' is not a dataset.*volumes/raw \(7, 33, 45\) uint8",
        ),
        (":volumes", r"'volumes' is not a dataset.*volumes/raw"),
        (":flat", r"shape \(3, 4\) is not three-dimensional.*volumes/raw"),
        (":several", r"shape \(2, 7, 33, 45\) is not three-dimensional.*'czyx'"),
        (":pairs", r"type complex64 is not a volume's; save it as whole numbers"),
        (":empty", r"\(4, 4, 0\) voxels and 1 channels is empty"),
    ],
)
def test_hdf5_faults(hdf5, name, said):
    with pytest.raises(SourceError, match=said) as caught:
        open_source(f"{hdf5}{name}")
    assert str(hdf5) in str(caught.value)


def test_hdf5_takes_the_only_volume(tmp_path):
    path = tmp_path / "one.h5"
    with h5py.File(path, "w") as file:
        file["stack"] = random_array("u2")
        file["names"] = np.array([b"a", b"b"])
    with open_source(str(path)) as source:
        assert_reads(source, random_array("u2"))
        assert source.voxel_size_nm is None
        assert source.voxel_offset is None
        assert source.natural_chunk == Vec3(45, 33, 1)
    with h5py.File(path, "a") as file:
        del file["stack"]
    with pytest.raises(SourceError, match="no three-dimensional dataset"):
        open_source(str(path))


def test_hdf5_damaged(tmp_path):
    path = tmp_path / "bad.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"junk" * 40)
    with pytest.raises(SourceError, match=r"bad\.h5:raw: cannot be opened, .*damaged"):
        open_source(f"{path}:raw")
    whole = tmp_path / "cut.h5"
    with h5py.File(whole, "w") as file:
        file.create_dataset("raw", data=random_array(), chunks=(1, 33, 45), shuffle=True)
        file["raw"].id.flush()
        at = file["raw"].id.get_chunk_info(3).byte_offset
    with h5py.File(whole, "a") as file:
        del file["raw"]
        file.create_dataset("raw", data=random_array(), chunks=(1, 33, 45), compression=9)
        at = file["raw"].id.get_chunk_info(3).byte_offset
    with whole.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff" * 40)
    with open_source(f"{whole}:raw") as source:
        source.read(Bbox(Vec3(0, 0, 0), Vec3(45, 33, 3)))
        with pytest.raises(SourceError, match=r"box 0,0,3,45,33,4 cannot be decoded"):
            source.read(Bbox(Vec3(0, 0, 3), Vec3(45, 33, 4)))


# NPY, NPZ


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int64", "float64", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    path = tmp_path / "a.npy"
    np.save(path, np.array(random_array(dtype), order=order))
    source = open_source(str(path))
    turned = {"float64": "float32", "bool": "uint8", ">u2": "uint16"}.get(dtype, dtype)
    assert source.dtype == turned
    assert source.voxel_size_nm is None
    assert source.natural_chunk == (Vec3(45, 33, 1) if order == "C" else Vec3(1, 33, 7))
    assert_reads(source, random_array(dtype).astype(turned))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, raw=random_array(), labels=random_array("u4"), names=np.array(["a"]))
    assert_reads(open_source(f"{path}:raw"), random_array())
    labels = open_source(f"{path}:labels")
    assert labels.kind_of_values == "segmentation"
    assert_reads(labels, random_array("u4"))
    with pytest.raises(
        SourceError, match=r"holds 2 volumes: raw \(7, 33, 45\) uint8, labels"
    ):
        open_source(str(path))
    with pytest.raises(SourceError, match=r"'row' is not an array of .*raw \(7, 33, 45\)"):
        open_source(f"{path}:row")
    save(path, random_array("f4"))
    assert_reads(open_source(str(path)), random_array("f4"))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 5), np.uint8), r"shape \(4, 5\) is not three-dimensional.*z, y, x"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"shape \(2, 3, 4, 5\) is not three-dim"),
        (np.zeros((3, 4, 5), complex), "type complex128 is not a volume's"),
        (np.full((1, 1, 1), None), "type object is not a volume's"),
        (np.zeros((3, 0, 5), np.uint8), r"\(5, 0, 3\) voxels and 1 channels is empty"),
    ],
)
def test_npy_faults(tmp_path, array, said):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(SourceError, match=said):
        open_source(str(tmp_path / "a.npy"))


def test_npy_and_npz_damaged(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, random_array())
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    with pytest.raises(
        SourceError, match=rf"cut short, {len(content) - 7} of {len(content)} b"
    ):
        open_source(str(path))
    path.write_bytes(b"PK" + content[2:])
    with pytest.raises(SourceError, match="cannot be opened, the magic string"):
        open_source(str(path))
    packed = tmp_path / "a.npz"
    np.savez_compressed(packed, raw=random_array())
    content = packed.read_bytes()
    packed.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match="File is not a zip file; the file is damaged"):
        open_source(str(packed))
    packed.write_bytes(content[:2000] + b"\0" * 500 + content[2500:])
    with pytest.raises(SourceError, match="cannot be opened"):
        open_source(f"{packed}:raw")


def test_a_small_box_of_a_large_npy_takes_little_memory(tmp_path):
    shape = (300, 1024, 1024)
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)))
    tracemalloc.start()
    source = open_source(str(path))
    part = source.read(Bbox(Vec3(500, 500, 10), Vec3(600, 600, 290)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part.shape == (100, 100, 280)
    assert peak < 10e6


# TIFF stacks


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw", "rowsperstrip": 5},
        {"compression": "zlib", "tile": (16, 32)},
        {"tile": (16, 16)},
        {"rowsperstrip": 10, "metadata": None},
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_stack(tmp_path, how, dtype):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, random_array(dtype), photometric="minisblack", **how)
    with open_source(str(path)) as source:
        assert_reads(source, random_array(dtype))
        assert source.dtype == dtype
        assert source.voxel_size_nm is None
        tile = how.get("tile", SHAPE[1:])
        assert source.natural_chunk == Vec3(tile[1], tile[0], 1)


def test_tiff_written_page_by_page(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for section in random_array("u2"):
            writer.write(section)
    with open_source(str(tmp_path / "a.tif")) as source:
        assert_reads(source, random_array("u2"))
    pages = [Image.fromarray(section) for section in random_array()]
    pages[0].save(
        tmp_path / "b.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw"
    )
    with open_source(str(tmp_path / "b.tif")) as source:
        assert_reads(source, random_array())


def test_tiff_of_one_page_is_one_section(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", random_array()[0])
    tifffile.imwrite(tmp_path / "b.tif", random_array()[0], compression="zlib")
    for name in "ab":
        with open_source(str(tmp_path / f"{name}.tif")) as source:
            assert_reads(source, random_array()[:1])


def test_tiff_bilevel_is_0_and_1(tmp_path):
    mask = random_array() > 99
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack")
    with open_source(str(tmp_path / "a.tif")) as source:
        assert source.dtype == "uint8"
        assert_reads(source, mask.astype("uint8"))


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        ("micron", (6.0, 7.0, 30.0)),
        ("\\u00B5m", (6.0, 7.0, 30.0)),
        ("nm", (0.006, 0.007, 0.03)),
        ("pixel", None),
    ],
)
@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
def test_imagej_voxel_size(tmp_path, unit, size, axes):
    tifffile.imwrite(
        tmp_path / "a.tif",
        random_array("u2"),
        imagej=True,
        resolution=(1 / 0.006, 1 / 0.007),
        metadata={"spacing": 0.03, "unit": unit, "axes": axes},
    )
    with open_source(str(tmp_path / "a.tif")) as source:
        assert_reads(source, random_array("u2"))
        assert source.voxel_size_nm == size


def test_imagej_channels(tmp_path):
    array = random_array(shape=(7, 2, 33, 45))
    for compression in (None, "zlib"):
        tifffile.imwrite(
            tmp_path / "a.tif",
            array,
            imagej=True,
            metadata={"axes": "ZCYX"},
            compression=compression,
        )
        with open_source(str(tmp_path / "a.tif")) as source:
            assert source.channels == 2
            box = Bbox(Vec3(4, 5, 2), Vec3(40, 20, 6))
            expected = array.transpose(3, 2, 0, 1)[box.slices()]
            np.testing.assert_array_equal(source.read(box), expected)
    tifffile.imwrite(tmp_path / "b.tif", array[0], imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(SourceError, match="2 channels of one section; save the pages as"):
        open_source(str(tmp_path / "b.tif"))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_voxel_size(tmp_path, compression):
    metadata = {
        "axes": "ZYX",
        "PhysicalSizeX": 0.004,
        "PhysicalSizeY": 5,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": 0.00004,
        "PhysicalSizeZUnit": "mm",
    }
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, random_array(), metadata=metadata, compression=compression)
    with open_source(str(path)) as source:
        assert_reads(source, random_array())
        assert source.voxel_size_nm == (4.0, 5.0, 40.0)
    del metadata["PhysicalSizeZ"], metadata["PhysicalSizeZUnit"]
    tifffile.imwrite(path, random_array(), metadata=metadata)
    with open_source(str(path)) as source:
        assert source.voxel_size_nm is None


@pytest.mark.parametrize("kept", [0.03, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    "how",
    [
        {"metadata": None},
        {},
        {"imagej": True},
        {"compression": "zlib"},
        {"compression": "zlib", "metadata": None, "bigtiff": True},
        {"tile": (16, 16)},
    ],
)
def test_truncated_tiff(tmp_path, how, kept):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, random_array(), photometric="minisblack", **how)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(SourceError, match=r"a\.tif: (cut short|cannot be opened).*copy it"):
        open_source(str(path))


def test_a_mapped_tiff_cut_short_says_by_how_much(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, random_array(), photometric="minisblack", truncate=True)
    with open_source(str(path)) as source:
        assert_reads(source, random_array())
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 45 * 33)
    with pytest.raises(
        SourceError, match=rf"cut short, {size - 45 * 33} bytes are there but"
    ):
        open_source(str(path))


def test_truncated_tiff_of_pillow(tmp_path):
    pages = [Image.fromarray(section) for section in random_array()]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    content = path.read_bytes()
    for kept in range(0, len(content), 997):
        path.write_bytes(content[:kept])
        with pytest.raises(SourceError, match=r"cut short|cannot be opened"):
            open_source(str(path))


def test_tiff_pages_of_two_sizes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for height in (33, 33, 34):
            writer.write(random_array(shape=(height, 45)), metadata=None)
    with pytest.raises(
        SourceError, match=r"page 2 is 45 x 34 uint8 but page 0 is 45 x 33 uint8; make"
    ):
        open_source(str(tmp_path / "a.tif"))


def test_tiff_damaged_page_is_named_when_read(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, random_array(), compression="zlib")
    with tifffile.TiffFile(path) as file:
        at = file.pages[4].dataoffsets[0]
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff" * 60)
    with open_source(str(path)) as source:
        source.read(Bbox(Vec3(0, 0, 0), Vec3(45, 33, 4)))
        with pytest.raises(SourceError, match=r"box 0,0,3,45,33,5 cannot be decoded"):
            source.read(Bbox(Vec3(0, 0, 3), Vec3(45, 33, 5)))


def test_tiff_in_colour(tmp_path):
    grey = np.repeat(random_array()[..., None], 3, axis=-1)
    for name, planes in (("a", "contig"), ("b", "separate")):
        stored = grey if planes == "contig" else np.moveaxis(grey, -1, 1)
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planes)
        with open_source(str(path)) as source:
            assert_reads(source, random_array())
    grey[0, 3, 4, 1] += 1
    tifffile.imwrite(tmp_path / "c.tif", grey, photometric="rgb")
    with (
        open_source(str(tmp_path / "c.tif")) as source,
        pytest.raises(SourceError, match="section 0 is in colour"),
    ):
        source.read(source.bounds)


def test_a_small_box_of_a_long_tiff_takes_little_memory(tmp_path):
    path = tmp_path / "long.tif"
    section = random_array(shape=(512, 512)) // 64
    with tifffile.TiffWriter(path) as writer:
        for _ in range(200):
            writer.write(section, compression="zlib", compressionargs={"level": 1})
            section = np.roll(section, 1)
    tracemalloc.start()
    with open_source(str(path)) as source:
        assert source.shape == Vec3(512, 512, 200)
        part = source.read(Bbox(Vec3(100, 100, 90), Vec3(164, 164, 110)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part.shape == (64, 64, 20)
    assert peak < 25e6, "the stack has 52 MB"


# Folders of sections


def save_sections(folder: Path, array, suffix, names=None):
    folder.mkdir(exist_ok=True)
    for number, section in enumerate(array):
        path = folder / f"{names[number] if names else f's{number}'}{suffix}"
        if suffix.startswith(".tif"):
            tifffile.imwrite(path, section, compression="zlib")
        else:
            Image.fromarray(section).save(path)
    return folder


@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".png", "u1"), (".png", "u2"), (".tif", "u2"), (".TIFF", "f4")]
)
def test_sections_in_natural_order(tmp_path, suffix, dtype):
    array = random_array(dtype, (12, 33, 45))
    folder = save_sections(tmp_path / "s", array, suffix.lower())
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(suffix))
    (folder / "notes.txt").write_text("not a section")
    (folder / f"._s1{suffix}").write_bytes(b"what a file system left")
    with open_source(str(folder)) as source:
        assert_reads(source, array)
        assert source.natural_chunk == Vec3(45, 33, 1)
        assert source.voxel_size_nm is None


def test_sections_in_jpeg(tmp_path):
    array = np.repeat(np.arange(0, 240, 30, np.uint8), 32 * 48).reshape(8, 32, 48)
    source = open_source(str(save_sections(tmp_path / "s", array, ".jpg")))
    part = source.read(source.bounds)
    assert abs(part.astype(int) - array.T.astype(int)).max() <= 2


def test_sections_in_tiles(tmp_path):
    array = random_array("u2", (3, 100, 120))
    for number, section in enumerate(array):
        tifffile.imwrite(tmp_path / f"{number}.tif", section, tile=(32, 48))
    source = open_source(str(tmp_path))
    assert source.natural_chunk == Vec3(48, 32, 1)
    assert_reads(source, array)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_smaller_section_lies_in_the_corner_and_is_named(tmp_path, suffix):
    array = random_array()
    folder = save_sections(tmp_path / "s", array, suffix)
    save_sections(folder, array[:1, :30, :41], suffix, names=["s5"])
    with open_source(str(folder)) as source:
        expected = array.copy()
        expected[5] = 0
        expected[5, :30, :41] = array[0, :30, :41]
        assert_reads(source, expected)
        (remark,) = source.remarks
        assert f"1 of 7 sections are smaller than 45 x 33: s5{suffix} (41 x 30)" in remark
        assert source.origins[5] == SectionOrigin(5, f"s5{suffix}", (41, 30))
        box = Bbox(Vec3(42, 10, 4), Vec3(45, 33, 7))
        assert (source.read(box) == expected.T[box.slices()]).all()


def test_what_a_smaller_section_lacks_is_darkest(tmp_path):
    """So that a range of intensities that begins below zero makes it black too."""
    save_sections(tmp_path, random_array("f4") - 0.5, ".tif")
    save_sections(tmp_path, random_array("f4", (1, 30, 41)), ".tif", names=["s5"])
    part = open_source(str(tmp_path)).read(Bbox(Vec3(42, 0, 5), Vec3(45, 33, 6)))
    assert (part == np.finfo(np.float32).min).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sections_of_two_types(tmp_path, suffix):
    folder = save_sections(tmp_path / "s", random_array(), suffix)
    save_sections(folder, random_array("u2", (1, 33, 45)), suffix, names=["s5"])
    with pytest.raises(SourceError, match=rf"s5{suffix} is 45 x 33 uint16 but s0"):
        open_source(str(folder))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_missing_number_is_a_blank_section(tmp_path, suffix):
    array = random_array()
    names = ["a1_001", "a1_002", "a1_004", "a1_005", "a1_006", "a1_009", "a1_010"]
    folder = save_sections(tmp_path / "s", array, suffix, names=names)
    with open_source(str(folder)) as source:
        expected = np.zeros((10, *array.shape[1:]), array.dtype)
        expected[[0, 1, 3, 4, 5, 8, 9]] = array
        assert_reads(source, expected)
        first, second = source.remarks
        assert f"number 3 (between a1_002{suffix} and a1_004{suffix})" in first
        assert "number 7, 8 (between" in second
        assert source.origins[2] == SectionOrigin(3, "", (0, 0))
        assert source.origins[3] == SectionOrigin(4, f"a1_004{suffix}", (45, 33))


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["s10", "s20", "s40"], [10, 20, 30, 40]),
        (["0", "1", "2"], [0, 1, 2]),
        (["w1_s1", "w1_s2", "w2_s1"], None),
        (["b", "a", "c"], None),
        (["s1", "s2", "s2_again"], None),
    ],
)
def test_numbers_of_sections(names, numbers):
    files = sorted((Path(f"{name}.png") for name in names), key=natural)
    found = number_sections("here", files)
    assert found.numbers == (numbers and tuple(numbers))
    assert [f for f in found.files if f] == files
    if numbers is None:
        assert "cannot be told from names like" in found.remarks[0]
    elif len(numbers) > len(names):
        assert "go up by 10" in found.remarks[0]
        assert "number 30 (between s20.png and s40.png)" in found.remarks[1]


def test_two_sections_of_one_number(tmp_path):
    names = ["s1", "s2", "s3", "s03", "s4", "s5", "s6"]
    save_sections(tmp_path, random_array(), ".png", names=names)
    with pytest.raises(SourceError, match=r"s0?3\.png and s0?3\.png are both section 3"):
        open_source(str(tmp_path))


def test_numbers_that_are_none_of_sections(tmp_path):
    names = ["s1", "s2", "s90", "s91", "s92", "s93", "s94"]
    save_sections(tmp_path, random_array(), ".png", names=names)
    with pytest.raises(SourceError, match=r"87 of 94 are missing; number the files"):
        open_source(str(tmp_path))


def test_sections_in_colour(tmp_path):
    for number, section in enumerate(random_array(shape=(3, 33, 45))):
        alpha = np.full_like(section, 255)
        Image.fromarray(np.stack([section] * 3 + [alpha], -1)).save(
            tmp_path / f"{number}.png"
        )
    source = open_source(str(tmp_path))
    assert_reads(source, random_array(shape=(3, 33, 45)))
    pixels = np.asarray(Image.open(tmp_path / "1.png")).copy()
    pixels[0, 0, 2] ^= 1
    Image.fromarray(pixels).save(tmp_path / "1.png")
    source = open_source(str(tmp_path))
    with pytest.raises(
        SourceError, match=r"1\.png is in colour, its red, green and blue dif"
    ):
        source.read(source.bounds)
    pixels[0, 0, 2] ^= 1
    pixels[5, 5, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "1.png")
    source = open_source(str(tmp_path))
    with pytest.raises(SourceError, match=r"1\.png is transparent in places"):
        source.read(source.bounds)
    pixels[..., 0] = 7
    Image.fromarray(pixels).save(tmp_path / "0.png")
    with pytest.raises(SourceError, match=r"0\.png is"):
        open_source(str(tmp_path))


def test_sections_with_a_palette_or_one_bit(tmp_path):
    array = random_array(shape=(2, 33, 45)) // 16
    for number, section in enumerate(array):
        image = Image.fromarray(section, mode=None).convert("P")
        image.putpalette([v for v in range(256) for _ in range(3)])
        image.save(tmp_path / f"{number}.png")
    assert_reads(open_source(str(tmp_path)), array)
    for number, section in enumerate(array):
        Image.fromarray(section > 7).save(tmp_path / f"{number}.png")
    assert_reads(open_source(str(tmp_path)), (array > 7).astype(np.uint8))


def test_png_of_16_bit_colour_is_not_cut_to_8(tmp_path):
    import imagecodecs

    pixels = np.repeat(random_array("u2")[0][..., None] * 200, 3, axis=-1)
    (tmp_path / "0.png").write_bytes(imagecodecs.png_encode(pixels))
    with pytest.raises(SourceError, match="several samples of 16 bits in a pixel"):
        open_source(str(tmp_path))


def test_folder_faults(tmp_path):
    with pytest.raises(SourceError, match=r"folder holds no section \(TIFF, PNG, JPEG\)"):
        open_source(str(tmp_path))
    save_sections(tmp_path, random_array(), ".png")
    save_sections(tmp_path, random_array()[:2], ".tif")
    with pytest.raises(SourceError, match=r"folder holds 7 PNG, 2 TIFF files"):
        open_source(str(tmp_path))
    for path in tmp_path.glob("*.png"):
        path.unlink()
    tifffile.imwrite(tmp_path / "s1.tif", random_array(), photometric="minisblack")
    with pytest.raises(SourceError, match=r"s1\.tif has 7 pages; open it alone as a stack"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_truncated_section_is_named(tmp_path, suffix):
    folder = save_sections(tmp_path / "s", random_array(), suffix)
    path = folder / f"s4{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=rf"s4{suffix}.*copy it again"):
        open_source(str(folder)).read(Bbox(Vec3(0, 0, 0), Vec3(9, 9, 7)))
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=rf"s4{suffix} is not a .* file that can be read"):
        open_source(str(folder))


# Locations


def test_locations_that_are_none(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.h5:raw: no such file or folder"):
        open_source(str(tmp_path / "gone.h5:raw"))
    (tmp_path / "a.mrc").write_bytes(b"1234")
    with pytest.raises(
        SourceError, match=r"extension '.mrc' is not known; give one of TIFF"
    ):
        open_source(str(tmp_path / "a.mrc"))
    save_sections(tmp_path / "s", random_array(), ".png")
    with pytest.raises(
        SourceError, match=r"is one section; give the folder of the sections"
    ):
        open_source(str(tmp_path / "s" / "s1.png"))
    with pytest.raises(SourceError, match=r"ftp:// is not an address that can be read"):
        open_source("ftp://host/a.zarr")


def test_file_url_and_a_colon_in_the_path(tmp_path):
    folder = tmp_path / "12:30.h5"
    folder.mkdir()
    with h5py.File(folder / "a:b.h5", "w") as file:
        file["raw"] = random_array()
        file["other"] = random_array()
    with open_source(f"file://{folder}/a:b.h5:raw") as source:
        assert_reads(source, random_array())


def test_a_box_outside_is_refused(hdf5):
    with open_source(f"{hdf5}:volumes/labels/ids") as source:
        for box in (
            Bbox(Vec3(-4, 2, 10), Vec3(5, 5, 12)),
            Bbox(Vec3(-3, 2, 10), Vec3(5, 36, 12)),
            Bbox(Vec3(90, 90, 90), Vec3(91, 91, 91)),
        ):
            with pytest.raises(
                GeometryError, match=r"reaches outside the bounds -3,2,10,42"
            ):
                source.read(box)
        assert source.read(Bbox(Vec3(0, 5, 12), Vec3(0, 8, 15))).shape == (0, 3, 3)


def test_npz_member_at_an_offset_is_mapped(tmp_path):
    """A member behind others, with an extra field in its header, is found."""
    np.save(tmp_path / "a.npy", random_array())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "x" * 1001)
        info = zipfile.ZipInfo("raw.npy")
        info.extra = b"\x99\x99\x04\x00abcd"
        archive.writestr(info, (tmp_path / "a.npy").read_bytes())
    assert_reads(open_source(str(tmp_path / "a.npz")), random_array())


def test_decoded_pieces_are_held_up_to_the_limit():
    decoded = []

    def piece(n):
        decoded.append(n)
        return np.zeros(4, np.uint8)

    cache = DecodedCache(limit=8)
    for n in (0, 1, 0, 2, 0, 1):
        cache.get(n, lambda n=n: piece(n))
    assert decoded == [0, 1, 2, 1]
    small = DecodedCache(limit=1)
    small.get("a", lambda: np.zeros(4, np.uint8))
    assert small.get("a", lambda: None) is not None


@pytest.mark.skipif(
    not (DATA / "ac4.h5").exists(), reason=f"no data in {DATA}; set EM_DATA"
)
def test_real_volumes():
    with open_source(f"{DATA}/ac4.h5:raw") as source:
        assert source.shape == Vec3(1024, 1024, 100)
        assert source.voxel_size_nm == (6.0, 6.0, 30.0)
        part = source.read(Bbox(Vec3(9, 9, 9), Vec3(99, 99, 19)))
        assert part.std() > 10
    with open_source(f"{DATA}/isbi2012/image") as source:
        assert source.shape == Vec3(512, 512, 20)
        assert source.read(Bbox(Vec3(9, 9, 9), Vec3(99, 99, 19))).std() > 10
