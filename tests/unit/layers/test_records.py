import numpy as np
import pytest

from pipeline.errors import DataError, MissingInputError
from pipeline.layers.store import Store
from pipeline.specs import Partitioned, Record, RecordsSpec

DTYPES = ["bool", "float32", "float64"] + [
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
]
SPEC = RecordsSpec()


def same(a, b):
    assert list(a) == sorted(b)
    for column, values in b.items():
        assert a[column].dtype == np.asarray(values).dtype.newbyteorder("=")
        np.testing.assert_array_equal(a[column], values)
        assert not a[column].flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(dtype, store):
    top = (
        1
        if dtype == "bool"
        else np.finfo(dtype).max
        if "f" in dtype
        else np.iinfo(dtype).max
    )
    table = {
        "values": np.array([0, 1, top], dtype),
        "rows": np.arange(12).reshape(4, 3).astype(dtype),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
        "swapped": np.array([0, 1, top], dtype).astype(np.dtype(dtype).newbyteorder(">")),
        "none": np.zeros((0, 3), dtype),
        "scalar": np.array(top, dtype),
    }
    written = store.write(Record("graph", "0_1_2_3"), SPEC, table)
    assert list(written) == ["0_1_2_3"]
    assert store.check("graph", written) == []
    same(store.read(Record("graph", "0_1_2_3")), table)


def test_an_empty_table_is_a_record(store):
    store.write(Record("graph", "0_0_0_0"), SPEC, {})
    assert store.read(Record("graph", "0_0_0_0")) == {}


def test_parts_are_read_alone(store, tmp_path):
    rng = np.random.default_rng(0)
    parts = {f"0_{n}_0_0": {"id": rng.integers(0, 2**63, 9000)} for n in range(8)}
    record = Record("edges", "1_0_0_0")
    store.write(record, SPEC, Partitioned(parts))
    for part, table in parts.items():
        same(store.read(Record("edges", "1_0_0_0", part)), table)
    assert store.read(Record("edges", "1_0_0_0", "0_9_0_0")) == {}
    whole = store.read(record)
    assert isinstance(whole, Partitioned)
    assert set(whole.parts) == set(parts)

    # Only the bytes of the part are looked at: damage to another goes unnoticed.
    file = tmp_path / "root/edges/1_0_0_0"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    same(store.read(Record("edges", "1_0_0_0", "0_3_0_0")), parts["0_3_0_0"])
    with pytest.raises(DataError, match="edges/1_0_0_0: the record is damaged"):
        store.read(Record("edges", "1_0_0_0", "0_7_0_0"))


def test_an_index_longer_than_the_first_read(store):
    parts = {f"part {n:05}": {"n": np.array([n])} for n in range(3000)}
    store.write(Record("edges", "1_0_0_0"), SPEC, Partitioned(parts))
    assert store.read(Record("edges", "1_0_0_0", "part 02999"))["n"].item() == 2999


def test_a_list_of_records(store):
    for n in range(3):
        store.write(Record("sizes", f"0_{n}_0_0"), SPEC, {"n": np.array([n])})
    tables = store.read([Record("sizes", f"0_{n}_0_0") for n in (2, 0)])
    assert [t["n"].item() for t in tables] == [2, 0]
    assert store.read([]) == []


def test_the_same_table_gives_the_same_bytes(tmp_path):
    columns = [("b", np.arange(5)), ("a", np.ones(3, np.float32)), ("c", np.zeros(2, bool))]
    found = set()
    for n, order in enumerate((columns, columns[::-1])):
        store = Store(str(tmp_path / str(n)))
        store.write(Record("t", "0_0_0_0"), SPEC, dict(order))
        parts = Partitioned({k: {k: v} for k, v in order})
        store.write(Record("p", "0_0_0_0"), SPEC, parts)
        found.add(
            tuple((tmp_path / str(n) / p / "0_0_0_0").read_bytes() for p in ("t", "p"))
        )
    assert len(found) == 1


@pytest.mark.parametrize("keep", [0, 5, 15, 40, -1])
def test_a_truncated_record_is_refused(keep, store, tmp_path):
    store.write(Record("t", "0_0_0_0"), SPEC, {"n": np.arange(100)})
    store.write(Record("p", "0_0_0_0"), SPEC, Partitioned({"x": {"n": np.arange(100)}}))
    for layer, part in (("t", None), ("p", None), ("p", "x")):
        file = tmp_path / "root" / layer / "0_0_0_0"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(DataError, match=f"{layer}/0_0_0_0: the record is damaged"):
            store.read(Record(layer, "0_0_0_0", part))


def test_what_is_not_there_is_named(store):
    with pytest.raises(MissingInputError, match="sizes: record 0_4_0_0 was never written"):
        store.read(Record("sizes", "0_4_0_0"))
    with pytest.raises(MissingInputError, match="sizes: record 0_4_0_0"):
        store.read(Record("sizes", "0_4_0_0", "part"))
    store.write(Record("sizes", "0_0_0_0"), SPEC, {"n": np.arange(3)})
    with pytest.raises(DataError, match="part 'x' was asked of a table without parts"):
        store.read(Record("sizes", "0_0_0_0", "x"))


def test_columns_that_are_not_numbers_are_refused(store):
    for values in (np.array(["a"]), np.array([1j]), np.array([object()])):
        with pytest.raises(DataError, match="t/0_0_0_0: column 'n' has dtype"):
            store.write(Record("t", "0_0_0_0"), SPEC, {"n": values})
    with pytest.raises(DataError, match="does not hold ndarray"):
        store.write(Record("t", "0_0_0_0"), SPEC, np.arange(3))
