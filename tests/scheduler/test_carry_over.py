"""Large results: the loop goes on, they are written once, and a resume moves no bytes of them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrun import Engine, JsonSerializer, SqliteStateStore

SIZE = 30_000_000
MakeEngine = Callable[..., Engine]


class Counting(JsonSerializer):
    """Counts the bytes that go through it, either way."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[int] = []
        self.read: list[int] = []

    def serialize(self, obj: object) -> bytes:
        data = super().serialize(obj)
        self.written.append(len(data))
        return data

    def deserialize(self, data: bytes) -> object:
        self.read.append(len(data))
        return super().deserialize(data)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Write down every statement that SQLite is given."""
    told: list[str] = []
    connect = sqlite3.connect

    def connect_and_trace(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(told.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_and_trace)
    return told


@pytest.mark.once
@pytest.mark.no_cover
@pytest.mark.parametrize(
    "value",
    ["x" * SIZE, b"x" * SIZE, ["x" * 1000] * (SIZE // 1000), "\N{SNOWMAN}\\" * (SIZE // 4)],
    ids=["text", "bytes", "list", "escapes"],
)
async def test_large_result_is_written_once_and_carried_over_in_the_file(  # S4
    tmp_path: Path, make_engine: MakeEngine, said: list[str], value: object
) -> None:
    path = tmp_path / "runs.db"
    serializer = Counting()
    store = SqliteStateStore(path, serializer, synchronous="NORMAL")
    engine = make_engine(state_store=store)
    broken = [True]

    @engine.task(dag="d")
    def big() -> object:
        return value

    @engine.task(dag="d")
    def size(big: object) -> int:
        return len(big)  # type: ignore[arg-type]

    @engine.task(dag="d")
    def last(size: int) -> int:
        if broken:
            broken.clear()
            raise ValueError
        return size

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    old = await engine.run_once("d")
    ticking.cancel()
    assert ticks > 10
    assert [count > 1000 for count in serializer.written] == [True, False]
    assert sum(text.startswith("INSERT OR REPLACE INTO results") for text in said) == 1
    assert serializer.read == []
    serializer.written.clear()
    said.clear()
    new = await engine.resume(old)
    # Only the failed task ran, and it was given the small result.
    assert [max(serializer.written), max(serializer.read)] < [10, 10]
    carried = [text for text in said if text.startswith("INSERT INTO results")]
    assert len(carried) == 2
    assert all("SELECT" in text and len(text) < 1000 for text in carried)
    assert not [text for text in said if text.startswith("SELECT") and len(text) > 1000]
    serializer.read.clear()
    assert engine.get_run_report(new)["tasks"]["big"]["result"] == value
    assert len(serializer.read) == 3
    store.close()


def test_long_text_is_read_whatever_it_holds() -> None:
    serializer = JsonSerializer()
    for value in ("x" * 300_000, '"' * 300_000, "\\" * 300_000, "\n" * 300_000, "\u20ac" * 300_000):
        for whole in (value, [value], {"a": value, "b": 1}):
            assert serializer.deserialize(serializer.serialize(whole)) == whole
