"""``PickleSerializer`` with the arrays and tables of other libraries, small and large."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from flowrun.state.encoding import decode, encode
from flowrun.state.pickle_serializer import PickleSerializer

SERIALIZERS = [PickleSerializer(), PickleSerializer(key=bytes(16)), PickleSerializer(protocol=4)]
# A pickler writes a buffer of 64 KiB or more by itself.
SIZES = [0, 1, 1 << 13, (1 << 13) + 1, 1 << 15]

REASON = "the data group is not installed, or has no wheel of this for this Python"

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.parametrize("serializer", SERIALIZERS, ids=repr),
    pytest.mark.parametrize("size", SIZES),
]


def kept(value: object, serializer: Any) -> Any:
    found = encode(serializer, [value, 1], longest=1 << 30, run_id="r", task_name="t")
    back: Any = decode(serializer, *found)
    assert back[1] == 1
    return back[0]


def test_numpy_arrays_come_back(serializer: Any, size: int) -> None:
    np = pytest.importorskip("numpy", reason=REASON)
    array = np.arange(size, dtype="int64")
    read_only = array.copy()
    read_only.flags.writeable = False
    for value in (array, read_only, array[::2], array.astype("float32"), array.astype("U5")):
        found = kept(value, serializer)
        assert found.dtype == value.dtype
        assert np.array_equal(found, value)
        found.sum() if value.dtype.kind != "U" else None
    table = np.arange(6 * size).reshape(2, 3 * size)
    for value in (table, table.T, np.asfortranarray(table)):
        assert np.array_equal(kept(value, serializer), value)
    mixed = np.array([(1, 2.5)] * size, dtype=[("a", "i4"), ("b", "f8")])
    assert np.array_equal(kept({"x": mixed}, serializer)["x"], mixed)


class InFortranOrder:
    """Hands the pickler memory whose elements are in Fortran order."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> tuple[object, ...]:
        memory = pickle.PickleBuffer(self.data) if protocol >= 5 else self.data.tobytes("A")
        return InFortranOrder, (memory,)


def test_memory_in_fortran_order_comes_back_as_it_is(serializer: Any, size: int) -> None:
    np = pytest.importorskip("numpy", reason=REASON)
    value = np.asfortranarray(np.arange(2 * size, dtype="int64").reshape(2, size))
    assert bytes(kept(InFortranOrder(value), serializer).data) == value.tobytes("A")


def test_pandas_tables_come_back(serializer: Any, size: int) -> None:
    pd = pytest.importorskip("pandas", reason=REASON)
    table = pd.DataFrame({"number": range(size), "text": "x", "when": pd.Timestamp(2024, 1, 1)})
    table["kind"] = table["text"].astype("category")
    pd.testing.assert_frame_equal(kept(table, serializer), table)
    pd.testing.assert_series_equal(kept(table["number"], serializer), table["number"])
    by_key = table.set_index(["number", "text"])
    pd.testing.assert_frame_equal(kept(by_key, serializer), by_key)


def test_polars_tables_come_back(serializer: Any, size: int) -> None:
    pl = pytest.importorskip("polars", reason=REASON)
    table = pl.DataFrame({"number": range(size), "text": ["x"] * size, "part": [[1, 2]] * size})
    assert kept(table, serializer).equals(table)
    assert kept(table["number"], serializer).equals(table["number"])
    assert kept(table.lazy(), serializer).collect().equals(table)


def test_arrow_tables_come_back(serializer: Any, size: int) -> None:
    pa = pytest.importorskip("pyarrow", reason=REASON)
    table = pa.table({"number": range(size), "text": ["x"] * size, "part": [[1, 2]] * size})
    assert kept(table, serializer).equals(table)
    assert kept(table["number"], serializer).equals(table["number"])
    assert kept(pa.array(range(size)), serializer).equals(pa.array(range(size)))
