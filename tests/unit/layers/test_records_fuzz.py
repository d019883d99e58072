"""Damaged and hostile records: an error that names the record, never anything else.

A file that was cut or changed anywhere never reads as another table. A file made to
deceive, with good checksums, is refused before it costs memory.
"""

from __future__ import annotations

import json
import struct
import tracemalloc

import hypothesis
import numpy as np
import pytest
import zstandard
from crc32c import crc32c
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.layers import records
from pipeline.layers.store import Store
from pipeline.specs import Partitioned, Record

NAME = "edges/1_0_0_0"
TABLE = {
    "ids": np.arange(7, dtype=np.uint64),
    "mean": np.linspace(0, 1, 5, dtype=np.float32),
    "pairs": np.arange(12, dtype=np.int64).reshape(6, 2),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3), np.uint8),
}
PARTS = {f"0_{n}_0_0": {"ids": np.arange(n, dtype=np.uint64)} for n in range(5)}
FILES = {
    "table": records.encode(NAME, TABLE),
    "parts": records.encode(NAME, Partitioned(PARTS)),
}
READS = [("table", None), ("parts", None), ("parts", "0_0_0_0"), ("parts", "0_4_0_0")]
MOST_MEMORY = 16 << 20


def fetch_from(content):
    def fetch(start, stop):
        return content[start:stop]

    return fetch


def read(content, part=None):
    """Decode, and hold the decoder to its memory."""
    tracemalloc.start()
    try:
        return records.decode(NAME, fetch_from(content), part)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_MEMORY


def refused(content, part=None):
    with pytest.raises(DataError, match=f"^{NAME}: "):
        read(content, part)


def plain(value):
    """Return tables as what compares."""
    if isinstance(value, Partitioned):
        return {part: plain(table) for part, table in value.parts.items()}
    return {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in value.items()}


def assert_same_or_refused(content, kind, part):
    """Damage is either seen, or lies in a part that was not asked for."""
    try:
        found = read(content, part)
    except DataError:
        return refused(content, part)
    assert part is not None, "damage went unseen"
    assert plain(found) == plain(read(FILES[kind], part))
    return None


# -- damage ---------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "part"), READS)
def test_every_truncation(kind, part):
    content = FILES[kind]
    for length in range(len(content)):
        assert_same_or_refused(content[:length], kind, part)


@pytest.mark.parametrize(("kind", "part"), READS)
def test_every_flipped_bit(kind, part):
    content = FILES[kind]
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        assert_same_or_refused(bytes(changed), kind, part)


@pytest.mark.parametrize(("kind", "part"), READS)
@hypothesis.given(data=st.data())
def test_any_patch(kind, part, data):
    """Cut a stretch out and put any bytes in its place."""
    content = FILES[kind]
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    patched = content[:start] + data.draw(st.binary(max_size=40)) + content[stop:]
    if patched != content:
        assert_same_or_refused(patched, kind, part)


@hypothesis.given(content=st.binary(max_size=200), is_record=st.booleans())
@pytest.mark.parametrize("part", [None, "x"])
def test_any_bytes(part, content, is_record):
    refused((FILES["table"][:8] if is_record else b"") + content, part)


def test_another_version_is_told_from_damage():
    content = FILES["table"]
    for version in (b"1", b"3", b"9"):
        with pytest.raises(DataError, match=f"^{NAME}: .*version {version.decode()}"):
            read(content[:7] + version + content[8:])


# -- deceit: every checksum is right --------------------------------------------------


def forged(index, *blobs):
    """Make a file of an index, JSON or bytes, and of whatever follows."""
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    head = FILES["table"][:8] + struct.pack("<II", len(text), crc32c(text))
    return b"".join([head, text, *blobs])


def wrapped(blob, *, kind="table", part="", **changes):
    """Make a file of one part."""
    length = 0
    while True:  # the index holds the offset of what follows it
        at = 16 + length
        entry = [at, len(blob), crc32c(blob)]
        index = {"kind": kind, "size": at + len(blob), "parts": {part: entry}, **changes}
        text = json.dumps(index).encode()
        if len(text) <= length:
            return forged(text.ljust(length), blob)
        length = len(text)


def packed(content):
    return zstandard.ZstdCompressor().compress(content)


def tensors(header, data=b""):
    """Make a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_forged_file_can_be_good():
    """What is refused below is refused for its fault and not for its form."""
    good = tensors({"n": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2")
    assert read(wrapped(packed(good)))["n"].tolist() == [1, 2]


SHAPELESS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["kind", "size", "parts", "x", ""]), inner)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("part", [None, "x"])
@hypothesis.given(index=SHAPELESS)
def test_any_json_for_an_index(part, index):
    refused(forged(index), part)


@pytest.mark.parametrize("part", [None, "x"])
@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 30_000,
        b'{"a":' * 30_000,
        b'{"kind":"table","size":' + b"9" * 10_000 + b"}",
    ],
    ids=["empty", "cut", "not text", "deep list", "deep object", "long number"],
)
def test_any_text_for_an_index(part, index):
    refused(forged(index), part)


NUMBER = st.sampled_from(
    [-(2**63), -1, 0, 1, 15, 16, 2**31, 2**63, 2**64, 10**30, 1.5, True]
)


@pytest.mark.parametrize("part", [None, "x"])
@hypothesis.given(entry=st.lists(NUMBER, min_size=2, max_size=4), size=NUMBER)
def test_any_place_of_a_part(part, entry, size):
    index = {"kind": "partitioned", "size": size, "parts": {"x": entry}}
    refused(forged(index, b"some bytes that are no part"), part)


@pytest.mark.parametrize("claimed", [2**27, 2**40, 2**62])
def test_a_part_that_says_it_is_large(claimed, tmp_path):
    """A file on disk, longer than the first read: no such buffer is asked for."""
    fill = np.random.default_rng(0).bytes(50_000)
    index = {
        "kind": "partitioned",
        "size": 1000 + claimed,
        "parts": {"x": [1000, claimed, 0]},
    }
    (tmp_path / "t").mkdir()
    (tmp_path / "t/0_0_0_0").write_bytes(forged(index, fill))
    store = Store(str(tmp_path))
    for part in ("x", None):
        tracemalloc.start()
        with pytest.raises(DataError, match=r"^t/0_0_0_0: the record is damaged"):
            store.read(Record("t", "0_0_0_0", part))
        assert tracemalloc.get_traced_memory()[1] < records._STEP + MOST_MEMORY
        tracemalloc.stop()


def test_an_index_that_says_it_is_large(tmp_path):
    head = FILES["table"][:8] + struct.pack("<II", 2**32 - 1, 0)
    (tmp_path / "t").mkdir()
    (tmp_path / "t/0_0_0_0").write_bytes(head + bytes(50_000))
    for part in ("x", None):
        with pytest.raises(DataError, match=r"^t/0_0_0_0: the record is damaged"):
            Store(str(tmp_path)).read(Record("t", "0_0_0_0", part))


def test_a_table_in_parts_and_parts_without_one():
    blob = packed(tensors({}))
    refused(wrapped(blob, kind="table", part="x"))
    refused(wrapped(blob, kind="tables"))
    refused(wrapped(blob, more=1))
    assert read(wrapped(blob, kind="partitioned", part="x"), "y") == {}


def frame(content_size, blocks):
    """Make a zstandard frame by hand: its claim, and runs of 128 KiB of zeros."""
    run = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = ((1 << 17) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    window = b"\x70"  # 16 MiB
    head = b"\x28\xb5\x2f\xfd" + b"\xc0" + window + struct.pack("<Q", content_size)
    return head + run * (blocks - 1) + last


def test_a_frame_made_by_hand_is_one():
    assert zstandard.ZstdDecompressor().decompress(frame(3 << 17, 3)) == bytes(3 << 17)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x28\xb5\x2f\xfd",
        b"no frame",
        frame(2**62, 1),
        frame(2**34, 1 << 17),
        frame(4 << 17, 3),
        frame(2 << 17, 3),
        packed(tensors({})) + b"more",
        packed(tensors({}))[:-1],
        zstandard.ZstdCompressor(write_content_size=False).compress(tensors({})),
    ],
    ids=[
        "empty",
        "magic alone",
        "garbage",
        "a claim of exabytes",
        "a bomb of 16 GiB",
        "a claim of more",
        "a claim of less",
        "more behind it",
        "cut",
        "no claim",
    ],
)
def test_any_compression(blob):
    refused(wrapped(blob))
    refused(wrapped(blob, kind="partitioned", part="x"), "x")


def column(dtype="U8", shape=(2,), offsets=(0, 2)):
    return {"n": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"", b""),
        (b"[]", b""),
        (b"{", b""),
        (b"\xff" * 9, b""),
        (b"[" * 30_000, b""),
        ({"n": 3}, b""),
        ({"n": {}}, b""),
        (column(), b""),
        (column(), b"abc"),
        (column(dtype="F16", shape=(1,)), b"ab"),
        (column(dtype="BF16", shape=(1,)), b"ab"),
        (column(dtype="F8_E4M3"), b"ab"),
        (column(dtype="C64", shape=(1,), offsets=(0, 8)), bytes(8)),
        (column(dtype="X"), b"ab"),
        (column(shape=(3,)), b"ab"),
        (column(shape=(-2,)), b"ab"),
        (column(shape=(2**32, 2**32)), b"ab"),
        (column(shape=(2**63, 0), offsets=(0, 0)), b""),
        (column(shape=(2**70,)), b"ab"),
        (column(shape=[1] * 65, offsets=(0, 1)), b"a"),
        (column(shape="2"), b"ab"),
        (column(offsets=(2, 0)), b"ab"),
        (column(offsets=(-2, 0)), b"ab"),
        (column(offsets=(0, 2**63)), b"ab"),
        ({**column(), "m": column()["n"]}, b"ab"),
    ],
)
def test_any_table(header, data):
    refused(wrapped(packed(tensors(header, data))))


@pytest.mark.parametrize("length", [0, 7, 9, 2**31, 2**63, 2**64 - 1])
def test_any_length_of_a_header(length):
    refused(wrapped(packed(struct.pack("<Q", length) + b"{}")))
    refused(wrapped(packed(b"{}")))


@hypothesis.given(content=st.binary(max_size=100))
def test_any_bytes_for_a_table(content):
    hypothesis.assume(content[:10] != tensors({})[:10])
    refused(wrapped(packed(content)))


@hypothesis.given(header=SHAPELESS, data=st.binary(max_size=8))
def test_any_json_for_a_table(header, data):
    hypothesis.assume(header not in ({}, {"x": {}}))
    refused(wrapped(packed(tensors(header, data))))


def test_a_table_too_large_is_not_written(monkeypatch):
    monkeypatch.setattr(records, "_LARGEST", 1000)
    records.encode(NAME, {"n": np.zeros(100)})
    with pytest.raises(DataError, match=f"^{NAME}: a table of .* bytes is too large"):
        records.encode(NAME, {"n": np.zeros(200)})


def test_flags_have_no_third_value():
    assert read(wrapped(packed(tensors(column("BOOL"), b"\1\0"))))["n"].tolist() == [1, 0]
    refused(wrapped(packed(tensors(column("BOOL"), b"\1\2"))))
