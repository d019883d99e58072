"""The file of a record: tables, whole or in parts that are read alone.

::

    8 bytes    magic, the last of them the version
    4 bytes    length of the index, little endian
    4 bytes    crc32c of the index, little endian
    index      JSON: kind, size of the file, and (offset, length, crc32c) of each part
    parts      safetensors, compressed with zstandard

A table is a single part. The same tables give the same bytes. Every byte that is read is
covered by a checksum, and what a file says of sizes is doubted before memory is taken.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import DataError
from pipeline.specs import Partitioned, Table

Fetch = Callable[[int, int | None], bytes | None]
"""Returns the bytes from start to stop of a file, or None if there is no file."""

_MAGIC = b"EMRECRD"
_VERSION = b"2"
_HEAD = struct.Struct("<8sII")
_FIRST_READ = 1 << 15
_STEP = 1 << 26
_WHOLE = ""
_LARGEST = 1 << 33
"""Most bytes of a table."""
_DENSEST = 1 << 15
"""Bytes that zstandard makes of one, at most: a block of 128 KiB takes four."""
_DTYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}

_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Index(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["table", "partitioned"]
    size: _Count
    parts: dict[str, tuple[_Count, _Count, _Count]]


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
        If the value is something else, or a table is too large.
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
    head = _HEAD.pack(_MAGIC + _VERSION, len(index), _crc(index))
    return b"".join([head, index, *blobs.values()])


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
    more = None if part is None or len(head) < _FIRST_READ else fetch
    index = _read_index(name, head, more)
    if more is None and len(head) != index.size:
        raise _damaged(name, f"it has {len(head)} bytes of {index.size}")
    if part is None:
        tables = {
            key: _unpack(name, head[offset : offset + size], size, crc)
            for key, (offset, size, crc) in index.parts.items()
        }
        return tables[_WHOLE] if index.kind == "table" else Partitioned(tables)
    if index.kind == "table":
        raise DataError(
            f"{name}: part {part!r} was asked of a table without parts; read it whole"
        )
    if part not in index.parts:
        return {}
    offset, size, crc = index.parts[part]
    return _unpack(name, _gather(head, more, offset, offset + size), size, crc)


def _read_index(name: str, head: bytes, more: Fetch | None) -> _Index:
    """Read the index of a file of which the first bytes are known, and check it.

    Raises
    ------
    DataError
        If it is damaged, or if the file is of another version.
    """
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise _damaged(name, "it does not begin as a record does")
    magic, length, crc = _HEAD.unpack_from(head)
    version = magic.removeprefix(_MAGIC)
    if version != _VERSION:
        raise DataError(
            f"{name}: the record is of version {version.decode('ascii', 'replace')} of its "
            f"format, and this code reads {_VERSION.decode()}; run its stage again"
        )
    begin = _HEAD.size + length
    text = _gather(head, more, _HEAD.size, begin)
    if len(text) != length or _crc(text) != crc:
        raise _damaged(name, f"its index has {len(text)} bytes of {length}, or other bytes")
    try:
        index = _Index.model_validate_json(text)
    except ValueError:
        raise _damaged(name, f"its index of {length} bytes does not parse") from None
    ends = [(offset, offset + size) for offset, size, _ in index.parts.values()]
    if any(start < begin or stop > index.size for start, stop in ends):
        raise _damaged(name, "its index points outside the parts")
    if index.kind == "table" and set(index.parts) != {_WHOLE}:
        raise _damaged(name, f"it is one table in {len(index.parts)} parts")
    return index


def _gather(head: bytes, more: Fetch | None, start: int, stop: int) -> bytes:
    """Return bytes of a file of which the first are known, fewer if it ends before.

    Steps keep a file that says it is large from costing more memory than it is.
    """
    pieces = [head[start:stop]]
    at = max(start, len(head))
    while more is not None and at < stop:
        piece = more(at, min(stop, at + _STEP)) or b""
        pieces.append(piece)
        at += len(piece)
        if len(piece) < _STEP:
            break
    return b"".join(pieces)


def _index(kind: str, blobs: dict[str, bytes]) -> bytes:
    """Return the index; its own length moves the offsets, so it is found by repetition."""
    length = 0
    while True:
        parts, offset = {}, _HEAD.size + length
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
    content = save(columns)
    if len(content) > _LARGEST:
        raise DataError(
            f"{name}: a table of {len(content)} bytes is too large for a record, which "
            f"holds {_LARGEST}; use smaller chunks or more parts"
        )
    return zstandard.ZstdCompressor(level=3).compress(content)


def _unpack(name: str, blob: bytes, size: int, crc: int) -> Table:
    import zstandard
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if len(blob) != size or _crc(blob) != crc:
        raise _damaged(name, f"a part has {len(blob)} bytes of {size}, or other bytes")
    try:
        unpacked = zstandard.frame_content_size(blob)
        if not 0 <= unpacked <= min(len(blob) * _DENSEST, _LARGEST):
            raise _damaged(name, f"a part of {size} bytes claims to hold {unpacked}")
        content = zstandard.ZstdDecompressor().decompress(blob, allow_extra_data=False)
        table: dict[str, Any] = load(content)
    except (zstandard.ZstdError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(name, f"a part of {size} bytes does not unpack") from error
    for column, values in table.items():
        if values.dtype.str[1:] not in _DTYPES:
            raise _damaged(name, f"its column {column!r} is {values.dtype}")
        if values.dtype == bool and (values.view(np.uint8) > 1).any():
            raise _damaged(name, f"its column {column!r} is neither true nor false")
        values.setflags(write=False)
    return dict(sorted(table.items()))


def _crc(content: bytes) -> int:
    from crc32c import crc32c

    return int(crc32c(content))


def _damaged(name: str, why: str) -> DataError:
    return DataError(
        f"{name}: the record is damaged, {why}; delete it and run its stage again"
    )
