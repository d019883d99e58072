"""Parquet files of tables: columns described in the file, and parts merged in order.

A table is written in parts, one for each node of an octree. Merged, rows of equal keys
become one and ascend by key, however many parts there are: what does not fit into a
stated number of rows is spread over files by ranges of the key, and each range is merged
by itself.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.kernels.tables import Groups

if TYPE_CHECKING:
    import pyarrow as pa

Rows: TypeAlias = NDArray[np.void]
"""Rows of a table, as a structured array."""

Extent: TypeAlias = list[tuple[int, int]]
"""Least and greatest value of each column of the key."""

ROW_GROUP = 1 << 17
"""Rows that a merged file keeps together."""

_RANGES = 64
_SUMS: dict[str, np.ufunc] = {"sum": np.add, "min": np.minimum, "max": np.maximum}


@dataclass(frozen=True)
class ParquetColumn:
    """A column, and what becomes of it where rows are merged.

    Parameters
    ----------
    name : str
        Name in the file.
    dtype : numpy type
        Type of the numbers.
    unit : str
        Unit, or empty.
    meaning : str
        What the numbers say.
    merge : {"key", "sum", "min", "max", "same", "keep", "drop", "derive"}
        Rows of equal keys become one with the sum, the least or the greatest value, or
        must be the same in all. What makes sense in a node alone is dropped, and what
        follows from other columns is derived anew. Columns of a table without a key are
        kept.
    derive : callable or None
        Computes the column from the rows and the table's scale.
    """

    name: str
    dtype: type[np.generic]
    unit: str
    meaning: str
    merge: Literal["key", "sum", "min", "max", "same", "keep", "drop", "derive"]
    derive: Callable[[Rows, int], NDArray[Any]] | None = None


@dataclass(frozen=True)
class ParquetTable:
    """A table: what a row is, and its columns, the key first where there is one.

    Parameters
    ----------
    name : str
        Name of the table.
    meaning : str
        What a row is.
    columns : tuple of ParquetColumn
        The columns. Those of the key are uint64.
    """

    name: str
    meaning: str
    columns: tuple[ParquetColumn, ...]

    @property
    def key(self) -> list[str]:
        """Columns that name a row."""
        return [c.name for c in self.columns if c.merge == "key"]

    def stored(self, *, merged: bool) -> list[ParquetColumn]:
        """Return the columns that are no function of others."""
        left_out = {"derive", "drop"} if merged else {"derive"}
        return [c for c in self.columns if c.merge not in left_out]

    def dtype(self, *, merged: bool) -> np.dtype[np.void]:
        """Return the type of a row."""
        return np.dtype([(c.name, c.dtype) for c in self.stored(merged=merged)])

    def rows(self, columns: Mapping[str, NDArray[Any]]) -> Rows:
        """Make the rows of a node from its columns.

        Raises
        ------
        DataError
            If a column is missing, has another type, or is not as long as the others.
        """
        wanted = self.dtype(merged=False)
        lengths = {len(columns[c]) for c in wanted.names or () if c in columns}
        rows = np.empty(max(lengths, default=0), wanted)
        for name in wanted.names or ():
            column = columns.get(name)
            if column is None or column.dtype != wanted[name] or len(lengths) != 1:
                found = None if column is None else f"{column.dtype} of {len(column)}"
                raise DataError(
                    f"column {name} of {self.name} is {found}, where {wanted[name]} of "
                    f"{len(rows)} belongs; mend who makes the table"
                )
            rows[name] = column
        return rows


def encode(
    table: ParquetTable, rows: Rows, *, scale: int, metadata: Mapping[str, str]
) -> bytes:
    """Return the file of a node; the same rows give the same bytes."""
    buffer = io.BytesIO()
    with _writer(table, buffer, scale, metadata, merged=False) as writer:
        writer.write_table(_arrow(table, rows, writer.schema, scale))
    return buffer.getvalue()


def decode(table: ParquetTable, name: str, content: bytes) -> Rows:
    """Read from the file of a node what merging it takes.

    Parameters
    ----------
    table : ParquetTable
        The table that it is of.
    name : str
        Name of the file, for the message.
    content : bytes
        The file.

    Raises
    ------
    DataError
        If it is not such a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    dtype = table.dtype(merged=True)
    try:
        found = pq.read_table(io.BytesIO(content), columns=list(dtype.names or ()))
        rows = np.empty(found.num_rows, dtype)
        for column in dtype.names or ():
            rows[column] = found.column(column).to_numpy()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"{name} is no Parquet file of {table.name} ({' '.join(str(error).split())}); "
            "delete it and export again"
        ) from error
    return rows


def write_merged(
    path: Path,
    table: ParquetTable,
    blocks: Iterable[Rows],
    *,
    scale: int,
    metadata: Mapping[str, str],
) -> int:
    """Write rows that come in order, a group of rows at a time; return how many."""
    count = 0
    with open(path, "wb") as file, _writer(table, file, scale, metadata, merged=True) as w:
        for rows in _regrouped(blocks, ROW_GROUP):
            w.write_table(_arrow(table, rows, w.schema, scale))
            count += len(rows)
    return count


def extent_of(table: ParquetTable, rows: Rows) -> Extent:
    """Return the extent of rows, of which there is at least one."""
    return [(int(rows[k].min()), int(rows[k].max())) for k in table.key]


def hull(extents: Iterable[Extent]) -> Extent:
    """Return the extent around others; empty where there are none."""
    columns = zip(*extents, strict=True)
    return [(min(a for a, _ in c), max(b for _, b in c)) for c in columns]


def merge(
    table: ParquetTable,
    blocks: Iterable[Rows],
    *,
    extent: Extent,
    limit: int,
    scratch: Path,
) -> Iterator[Rows]:
    """Merge the rows of equal keys, and yield them ascending by key.

    Parameters
    ----------
    table : ParquetTable
        The table; its key and how each column is merged.
    blocks : iterable of structured arrays
        Rows in any order, each with the type ``table.dtype(merged=True)``.
    extent : Extent
        Extent of all of them.
    limit : int
        Rows that are held at most, besides the block in hand; 2 or more.
    scratch : Path
        Folder for the files that ranges of the key are spread over.

    Yields
    ------
    structured array
        Merged rows.

    Raises
    ------
    DataError
        If rows of one key differ where they must be the same.
    """
    held: list[Rows] = []
    count, half = 0, max(1, limit // 2)
    waiting = _sliced(blocks, half)
    for block in waiting:
        if count + len(block) > limit:
            held = [combine(table, held)]
            count = len(held[0])
            if count > half:
                held.append(block)
                yield from _by_range(table, held, waiting, extent, limit, scratch)
                return
        held.append(block)
        count += len(block)
    if held:
        yield combine(table, held)


def combine(table: ParquetTable, blocks: Sequence[Rows]) -> Rows:
    """Merge the rows of equal keys in memory; ascending by key.

    Raises
    ------
    DataError
        If rows of one key differ where they must be the same.
    """
    rows = np.concatenate(blocks)
    groups = Groups(np.stack([rows[k] for k in table.key], axis=1))
    result = np.empty(len(groups.starts), rows.dtype)
    for column in table.stored(merged=True):
        values = np.ascontiguousarray(rows[column.name])
        if column.merge in _SUMS:
            result[column.name] = groups.reduce(_SUMS[column.merge], values)
            continue
        result[column.name] = groups.first(values)
        if column.merge == "same":
            differs = groups.reduce(np.minimum, values) != groups.reduce(np.maximum, values)
            if differs.any():
                row = result[differs][0]
                raise DataError(
                    f"{table.name} of two nodes differ in {column.name} for "
                    f"{[int(row[k]) for k in table.key]}; run em verify, then the stage "
                    "that wrote them again"
                )
    return result


def _by_range(
    table: ParquetTable,
    held: list[Rows],
    waiting: Iterator[Rows],
    extent: Extent,
    limit: int,
    scratch: Path,
) -> Iterator[Rows]:
    """Spread rows over files by ranges of the key, and merge one range after another.

    The ranges are of the first column of the key that is not the same in all rows.
    """
    by = next(n for n, (low, high) in enumerate(extent) if low < high)
    low, high = extent[by]
    width = np.uint64((high - low) // _RANGES + 1)
    extents: dict[int, Extent] = {}
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        for rows in _drained(held, waiting):
            place = (rows[table.key[by]] - np.uint64(low)) // width
            for number in np.unique(place).tolist():
                part = rows[place == number]
                known = [extents[number]] if number in extents else []
                extents[number] = hull([*known, extent_of(table, part)])
                with open(folder / str(number), "ab") as file:
                    file.write(part.tobytes())
        for number in sorted(extents):
            path = folder / str(number)
            yield from merge(
                table,
                _blocks_of(path, table.dtype(merged=True), max(1, limit // 2)),
                extent=extents[number],
                limit=limit,
                scratch=scratch,
            )
            path.unlink()


def _drained(held: list[Rows], waiting: Iterator[Rows]) -> Iterator[Rows]:
    """Yield what is held, letting go of it, then what is still to come."""
    while held:
        yield held.pop()
    yield from waiting


def _blocks_of(path: Path, dtype: np.dtype[np.void], count: int) -> Iterator[Rows]:
    with open(path, "rb") as file:
        while content := file.read(count * dtype.itemsize):
            yield np.frombuffer(content, dtype)


def _sliced(blocks: Iterable[Rows], count: int) -> Iterator[Rows]:
    for block in blocks:
        for start in range(0, len(block), count):
            yield block[start : start + count]


def _regrouped(blocks: Iterable[Rows], count: int) -> Iterator[Rows]:
    """Yield the same rows in blocks of a given length, but for the last."""
    held: list[Rows] = []
    for block in _sliced(blocks, count):
        held.append(block)
        if sum(map(len, held)) >= count:
            rows = np.concatenate(held)
            yield rows[:count]
            held = [rows[count:]]
    if sum(map(len, held)):
        yield np.concatenate(held)


def _writer(
    table: ParquetTable,
    file: Any,
    scale: int,
    metadata: Mapping[str, str],
    *,
    merged: bool,
) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = [c for c in table.columns if not (merged and c.merge == "drop")]
    schema = pa.schema(
        [
            pa.field(
                c.name,
                pa.from_numpy_dtype(np.dtype(c.dtype)),
                nullable=False,
                metadata={"unit": c.unit, "meaning": c.meaning},
            )
            for c in shown
        ],
        metadata={
            "table": table.name,
            "row": table.meaning,
            "scale": str(scale),
            **metadata,
        },
    )
    ascending = [(k, "ascending") for k in table.key]
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=False,
        sorting_columns=pq.SortingColumn.from_ordering(schema, ascending),
    )


def _arrow(table: ParquetTable, rows: Rows, schema: pa.Schema, scale: int) -> pa.Table:
    import pyarrow as pa

    derived = {c.name: c.derive for c in table.columns if c.derive is not None}
    return pa.Table.from_arrays(
        [
            pa.array(
                derived[name](rows, scale)
                if name in derived
                else np.ascontiguousarray(rows[name])
            )
            for name in schema.names
        ],
        schema=schema,
    )
