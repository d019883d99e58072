"""Parquet files: what other readers see in them, and merging in little memory."""

import io

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.layers import parquet
from pipeline.layers.parquet import ParquetColumn, ParquetTable

TABLE = ParquetTable(
    "contacts",
    "a contact",
    (
        ParquetColumn("a", np.uint64, "", "one", "key"),
        ParquetColumn("b", np.uint64, "", "the other", "key"),
        ParquetColumn("area", np.uint64, "face", "faces", "sum"),
        ParquetColumn("low", np.int64, "voxel", "least", "min"),
        ParquetColumn("high", np.int64, "voxel", "greatest", "max"),
        ParquetColumn("kind", np.uint8, "", "the same for all", "same"),
        ParquetColumn("open", np.uint8, "", "of the node alone", "drop"),
        ParquetColumn(
            "half", np.float64, "face", "half of them", "derive", lambda r, s: r["area"] / s
        ),
    ),
)
BASE = 2**56


def columns(rng, count, names, others=1):
    a = BASE + rng.integers(0, names, count).astype(np.uint64)
    b = BASE + rng.integers(0, others, count).astype(np.uint64)
    return {
        "a": a,
        "b": b,
        "area": rng.integers(1, 2**50, count).astype(np.uint64),
        "low": rng.integers(-50, 50, count),
        "high": rng.integers(-50, 50, count),
        "kind": (a % np.uint64(7)).astype(np.uint8),
        "open": rng.integers(0, 64, count).astype(np.uint8),
    }


def naive(nodes):
    """Merge row by row into a dictionary."""
    found = {}
    for node in nodes:
        for a, b, area, low, high, kind, _ in zip(
            *(v.tolist() for v in node.values()), strict=True
        ):
            old = found.get((a, b), (0, 99, -99, kind))
            found[a, b] = (
                *(old[0] + area, min(old[1], low), max(old[2], high)),
                kind,
            )
    return [(*key, *found[key]) for key in sorted(found)]


def merged(nodes, limit, path, scale=2):
    """Go through the files of nodes to the merged one, as an export does."""
    blocks = []
    for node in nodes:
        rows = TABLE.rows(node)
        content = parquet.encode(TABLE, rows, scale=scale, metadata={})
        blocks.append(parquet.decode(TABLE, "node", content))
    extent = parquet.hull(parquet.extent_of(TABLE, b) for b in blocks if len(b))
    count = parquet.write_merged(
        path,
        TABLE,
        parquet.merge(TABLE, blocks, extent=extent, limit=limit, scratch=path.parent),
        scale=scale,
        metadata={"run": "demo"},
    )
    assert [p.name for p in path.parent.iterdir()] == [path.name], "scratch is left behind"
    return count


@pytest.fixture
def most_held(monkeypatch):
    """The greatest number of rows that were merged at once."""
    seen = []
    combine = parquet.combine

    def watched(table, blocks):
        seen.append(sum(map(len, blocks)))
        return combine(table, blocks)

    monkeypatch.setattr(parquet, "combine", watched)
    return seen


@pytest.mark.parametrize("limit", [2, 3, 50, 1000, 10**6])
def test_merged_rows_are_those_of_a_dictionary(limit, tmp_path, most_held):
    rng = np.random.default_rng(limit)
    nodes = [columns(rng, n, 300, 3) for n in (700, 0, 1, 1200, 90)]
    path = tmp_path / "merged.parquet"
    count = merged(nodes, limit, path)
    expected = naive(nodes)
    assert count == len(expected)
    found = pq.read_table(path).drop_columns("half").to_pydict()
    assert list(zip(*found.values(), strict=True)) == expected
    assert max(most_held) <= limit
    assert (len(most_held) > 1) == (limit < 10**6)


def test_the_limit_does_not_change_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 100)
    rng = np.random.default_rng(1)
    nodes = [columns(rng, 400, 2**40, 2**20) for _ in range(6)]
    contents = set()
    for limit in (2, 7, 300, 10**6):
        path = tmp_path / str(limit) / "merged.parquet"
        path.parent.mkdir()
        merged(nodes, limit, path)
        contents.add(path.read_bytes())
        assert pq.ParquetFile(path).num_row_groups == 24
    assert len(contents) == 1


KEYS = st.one_of(
    st.sampled_from([0, 1, 2**56, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
    st.integers(2**56, 2**56 + 9),
)
PAIRS = st.lists(st.tuples(KEYS, KEYS), max_size=30)


@settings(max_examples=40)
@given(pairs=st.lists(PAIRS, max_size=5), limit=st.integers(2, 40))
def test_any_distribution_of_keys_is_merged(tmp_path_factory, pairs, limit):
    """Few names, one name with many others, and names at the ends of uint64."""
    nodes = []
    for n, rows in enumerate(pairs):
        node = columns(np.random.default_rng(n), len(rows), 1)
        node["a"] = np.array([r[0] for r in rows], np.uint64)
        node["b"] = np.array([r[1] for r in rows], np.uint64)
        node["kind"] = np.zeros(len(rows), np.uint8)
        nodes.append(node)
    path = tmp_path_factory.mktemp("merged") / "merged.parquet"
    merged(nodes, limit, path)
    found = pq.read_table(path).drop_columns("half").to_pydict()
    assert list(zip(*found.values(), strict=True)) == naive(nodes)


def test_another_reader_sees_the_same(tmp_path):
    """DuckDB, which shares no code with Arrow."""
    rng = np.random.default_rng(5)
    node = columns(rng, 500, 40, 40)
    rows = TABLE.rows(node)
    path = tmp_path / "node.parquet"
    path.write_bytes(parquet.encode(TABLE, rows, scale=2, metadata={"node": "0_1_2_3"}))
    seen = duckdb.sql(f"select * from '{path}'").fetchnumpy()
    for name, values in node.items():
        np.testing.assert_array_equal(seen[name], values)
        assert seen[name].dtype == values.dtype
    np.testing.assert_array_equal(seen["half"], node["area"] / 2)
    stored = duckdb.sql(f"select key, value from parquet_kv_metadata('{path}')").fetchall()
    assert {k.decode(): v.decode() for k, v in stored}.items() >= {
        "table": "contacts",
        "row": "a contact",
        "scale": "2",
        "node": "0_1_2_3",
    }.items()

    joined = tmp_path / "m" / "merged.parquet"
    joined.parent.mkdir()
    merged([node, node], 60, joined)
    query = f"select sum(area::hugeint), count(*) from '{joined}'"
    ((total, count),) = duckdb.sql(query).fetchall()
    assert total == 2 * sum(node["area"].tolist())
    assert count == len({(a, b) for a, b in zip(node["a"], node["b"], strict=True)})
    assert "open" not in duckdb.sql(f"select * from '{joined}'").columns


def test_columns_are_described_in_the_file():
    rows = TABLE.rows(columns(np.random.default_rng(0), 3, 3))
    content = parquet.encode(TABLE, rows, scale=255, metadata={})
    assert content == parquet.encode(TABLE, rows, scale=255, metadata={})
    file = pq.ParquetFile(io.BytesIO(content))
    schema = file.schema_arrow
    assert schema.metadata[b"scale"] == b"255"
    for column in TABLE.columns:
        field = schema.field(column.name)
        assert field.type.to_pandas_dtype() is column.dtype
        assert field.metadata[b"unit"].decode() == column.unit
        assert field.metadata[b"meaning"].decode() == column.meaning
        assert not field.nullable
    order = file.metadata.row_group(0).sorting_columns
    assert [(c.column_index, c.descending) for c in order] == [(0, False), (1, False)]


def test_rows_that_must_agree_are_held_to_it(tmp_path):
    node = columns(np.random.default_rng(0), 4, 4)
    other = {**node, "kind": node["kind"] + np.uint8(1)}
    with pytest.raises(DataError, match="contacts of two nodes differ in kind for"):
        merged([node, other], 100, tmp_path / "merged.parquet")


def test_nothing_merges_into_a_table_without_rows(tmp_path):
    path = tmp_path / "merged.parquet"
    assert merged([columns(np.random.default_rng(0), 0, 1)], 10, path) == 0
    table = pq.read_table(path)
    assert table.num_rows == 0
    assert "half" in table.column_names


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
def test_a_damaged_file_is_named(content):
    with pytest.raises(DataError, match=r"node\.parquet is no Parquet file of contacts"):
        parquet.decode(TABLE, "node.parquet", content)


def test_a_cut_file_and_one_of_another_table_are_named():
    rows = TABLE.rows(columns(np.random.default_rng(0), 50, 9))
    content = parquet.encode(TABLE, rows, scale=1, metadata={})
    with pytest.raises(DataError, match="no Parquet file of contacts"):
        parquet.decode(TABLE, "node.parquet", content[: len(content) // 2])
    other = ParquetTable("other", "a row", TABLE.columns[:1])
    content = parquet.encode(other, other.rows({"a": rows["a"]}), scale=1, metadata={})
    with pytest.raises(DataError, match="no Parquet file of contacts"):
        parquet.decode(TABLE, "node.parquet", content)


@pytest.mark.parametrize(
    "change",
    [
        {"area": np.ones(3, np.int64)},
        {"area": np.ones(4, np.uint64)},
        {"area": None},
    ],
)
def test_columns_of_another_kind_are_refused(change):
    node = {**columns(np.random.default_rng(0), 3, 3), **change}
    node = {k: v for k, v in node.items() if v is not None}
    with pytest.raises(DataError, match=r"column \w+ of contacts is"):
        TABLE.rows(node)
