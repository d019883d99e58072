"""The file of a record: tables, whole or in parts that are read alone.

::

    8 bytes    magic
    8 bytes    length of the index, little endian
    index      JSON: kind, size of the file, and (offset, length, crc32c) of each part
    parts      safetensors, compressed with zstandard

A table is a single part. The same tables give the same bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.specs import Partitioned, Table

Fetch = Callable[[int, int | None], bytes | None]
"""Returns the bytes from start to stop of a file, or None if there is no file."""

_MAGIC = b"EMRECRD1"
_HEAD = 16
_FIRST_READ = 1 << 15
_WHOLE = ""
_DTYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}


def encode(name: str, value: Table | Partitioned) -> bytes:
    """Return the file of a table or of partitioned tables.

    Parameters
    ----------
    name : str
        Layer and key, for the messages.
    value : Table or Partitioned
        Columns of booleans, integers, float32 or float64, of any shape.

    Raises
    ------
    DataError
        If the value is something else.
    """
    if isinstance(value, Partitioned):
        kind, tables = "partitioned", dict(value.parts)
    elif isinstance(value, dict):
        kind, tables = "table", {_WHOLE: value}
    else:
        raise DataError(
            f"{name}: a record holds a table or partitioned tables, not "
            f"{type(value).__name__}; return a dict of arrays"
        )
    blobs = {part: _pack(name, tables[part]) for part in sorted(tables)}
    index = _index(kind, blobs)
    return b"".join([_MAGIC, struct.pack("<Q", len(index)), index, *blobs.values()])


def decode(name: str, fetch: Fetch, part: str | None = None) -> Table | Partitioned | None:
    """Read a record, whole or a part; None where there is none.

    Parameters
    ----------
    name : str
        Layer and key, for the messages.
    fetch : callable
        Returns the bytes from start to stop of the file.
    part : str or None
        Part of partitioned tables; only its bytes are read. One that was not written
        is an empty table.

    Raises
    ------
    DataError
        If the file is damaged, or if a part is asked of a table that has none.
    """
    head = fetch(0, None if part is None else _FIRST_READ)
    if head is None:
        return None
    if len(head) < _HEAD or head[:8] != _MAGIC:
        raise _damaged(name, "it does not begin as a record does")
    (length,) = struct.unpack("<Q", head[8:_HEAD])
    if part is not None and _HEAD + length > len(head) == _FIRST_READ:
        head += fetch(len(head), _HEAD + length) or b""
    try:
        index = json.loads(head[_HEAD : _HEAD + length])
    except ValueError:
        raise _damaged(name, f"its index of {length} bytes does not parse") from None
    if part is None:
        if len(head) != index["size"]:
            raise _damaged(name, f"it has {len(head)} bytes of {index['size']}")
        tables = {key: _unpack(name, head, *at) for key, at in index["parts"].items()}
        return tables[_WHOLE] if index["kind"] == "table" else Partitioned(tables)
    if index["kind"] == "table":
        raise DataError(
            f"{name}: part {part!r} was asked of a table without parts; read it whole"
        )
    if part not in index["parts"]:
        return {}
    offset, size, crc = index["parts"][part]
    if offset + size <= len(head):
        return _unpack(name, head, offset, size, crc)
    return _unpack(name, fetch(offset, offset + size) or b"", 0, size, crc)


def _index(kind: str, blobs: dict[str, bytes]) -> bytes:
    """Return the index; its own length moves the offsets, so it is found by repetition."""
    length = 0
    while True:
        parts, offset = {}, _HEAD + length
        for part, blob in blobs.items():
            parts[part] = [offset, len(blob), _crc(blob)]
            offset += len(blob)
        document = {"kind": kind, "size": offset, "parts": parts}
        index = json.dumps(document, separators=(",", ":")).encode()
        if len(index) <= length:
            return index.ljust(length)
        length = len(index)


def _pack(name: str, table: Table) -> bytes:
    import zstandard
    from safetensors.numpy import save

    columns = {}
    for column, values in table.items():
        array = np.asarray(values)
        if array.dtype.str[1:] not in _DTYPES:
            raise DataError(
                f"{name}: column {column!r} has dtype {array.dtype}; records hold "
                "booleans, integers, float32 and float64"
            )
        columns[column] = (
            np.ascontiguousarray(array)
            .astype(array.dtype.newbyteorder("<"), copy=False)
            .reshape(array.shape)
        )
    return zstandard.ZstdCompressor(level=3).compress(save(columns))


def _unpack(name: str, data: bytes, offset: int, size: int, crc: int) -> Table:
    import zstandard
    from safetensors.numpy import load

    blob = data[offset : offset + size]
    if len(blob) != size or _crc(blob) != crc:
        raise _damaged(name, f"a part has {len(blob)} bytes of {size}, or other bytes")
    table: dict[str, Any] = load(zstandard.ZstdDecompressor().decompress(blob))
    for column in table.values():
        column.setflags(write=False)
    return dict(sorted(table.items()))


def _crc(content: bytes) -> int:
    from crc32c import crc32c

    return int(crc32c(content))


def _damaged(name: str, why: str) -> DataError:
    return DataError(
        f"{name}: the record is damaged, {why}; delete it and run its stage again"
    )
