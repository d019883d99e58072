"""Tables of named columns, and the sums and unions that combine them exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.kernels import _cpp


def column(dtype: type[np.generic], rows: str, *, width: int = 0) -> dict[str, Any]:
    """Describe a column, as metadata of a dataclass field.

    Parameters
    ----------
    dtype : numpy type
        Type of the numbers.
    rows : str
        Columns of the same rows are equally long.
    width : int
        Numbers in each row; 0 makes a flat column.

    Returns
    -------
    dict
        For ``dataclasses.field(metadata=...)``.
    """
    return {"dtype": dtype, "rows": rows, "width": width}


@dataclass(frozen=True, eq=False)
class Columns:
    """Base of the tables: a frozen dataclass of columns and whole numbers.

    Raises
    ------
    DataError
        If a column has another dtype or shape than its table says.
    """

    def __post_init__(self) -> None:
        lengths: dict[str, tuple[str, int]] = {}
        for f in fields(self):
            if not f.metadata:
                continue
            value = np.ascontiguousarray(getattr(self, f.name))
            object.__setattr__(self, f.name, value)
            dtype, rows, width = (f.metadata[k] for k in ("dtype", "rows", "width"))
            shape = (len(value), width) if width else (len(value),)
            if value.dtype != dtype or value.shape != shape:
                raise DataError(
                    f"{type(self).__name__}.{f.name} is {value.dtype} of shape "
                    f"{value.shape} where {np.dtype(dtype)} of shape {shape} should be"
                )
            first, length = lengths.setdefault(rows, (f.name, len(value)))
            if len(value) != length:
                raise DataError(
                    f"{type(self).__name__}.{f.name} has {len(value)} rows but "
                    f"{first} has {length}; both describe each {rows}"
                )

    def to_table(self) -> dict[str, NDArray[Any]]:
        """Return the columns by name; whole numbers as arrays of shape ()."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_table(cls, table: Mapping[str, NDArray[Any]]) -> Self:
        """Take the columns of a table; the inverse of `to_table`.

        Raises
        ------
        DataError
            If the columns are not those of this table.
        """
        names = {f.name for f in fields(cls)}
        if set(table) != names:
            raise DataError(
                f"the columns {sorted(table)} are not those of {cls.__name__}, "
                f"{sorted(names)}; read the record of another layer"
            )
        return cls(
            **{
                f.name: np.asarray(table[f.name]) if f.metadata else int(table[f.name])
                for f in fields(cls)
            }
        )


class Groups:
    """Rows gathered by equal keys.

    Parameters
    ----------
    keys : array, (n,) or (n, width)
        Key of each row.
    within : sequence of arrays, (n,)
        Order of the rows of a group, the most significant first.
    """

    def __init__(self, keys: NDArray[Any], *within: NDArray[Any]) -> None:
        wide = keys if keys.ndim == 2 else keys[:, None]
        by = [*within[::-1], *wide.T[::-1]]
        self.order: NDArray[np.intp] = np.lexsort(by)
        ordered = wide[self.order]
        changes = (ordered[1:] != ordered[:-1]).any(axis=1)
        edge = np.ones(min(len(keys), 1), bool)
        self.starts: NDArray[np.intp] = np.flatnonzero(np.append(edge, changes))
        self.ends: NDArray[np.intp] = np.flatnonzero(np.append(changes, edge))

    def reduce(self, ufunc: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
        """Combine the values of each group; keeps the dtype, and so exactness."""
        if len(self.starts) == 0:
            return values[:0]
        combined: NDArray[Any] = ufunc.reduceat(values[self.order], self.starts, axis=0)
        return combined.astype(values.dtype, copy=False)

    def first(self, values: NDArray[Any]) -> NDArray[Any]:
        """Take the value of the first row of each group."""
        rows: NDArray[Any] = values[self.order[self.starts]]
        return rows

    def last(self, values: NDArray[Any]) -> NDArray[Any]:
        """Take the value of the last row of each group."""
        rows: NDArray[Any] = values[self.order[self.ends]]
        return rows


def rows_of(ids: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the row of each key in a table of ids, -1 where the table lacks it.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Each once, in any order.
    keys : uint64 array, any shape
        Ids to look up; 0 is none.

    Returns
    -------
    int64 array, of the shape of the keys
        Rows.
    """
    flat = np.ascontiguousarray(keys).reshape(-1)
    return _cpp.places(np.ascontiguousarray(ids), flat).reshape(keys.shape)


def common_scale(scales: list[int]) -> int:
    """Return the fixed-point scale that tables to be merged share.

    Raises
    ------
    DataError
        If there are none, or if they differ.
    """
    if len(set(scales)) != 1:
        raise DataError(
            f"tables of scales {sorted(set(scales))} cannot be merged; merge at least one, "
            "all from affinities of one dtype"
        )
    return scales[0]
