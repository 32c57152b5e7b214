"""Large results: off the event loop, written once, carried over without being looked at."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flowrun import Engine, JsonSerializer, SqliteStateStore

from ..conftest import WAIT_S

MakeEngine = Callable[..., Engine]
LARGE = 20_000_000


class Watched(JsonSerializer):
    """Note every call, and let the event loop have a turn in the middle of each."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.calls: list[tuple[str, int]] = []
        self.threads: set[int] = set()

    def serialize(self, obj: object) -> bytes:
        data = super().serialize(obj)
        self.note("serialize", len(data))
        return data

    def deserialize(self, data: bytes) -> object:
        self.note("deserialize", len(data))
        return super().deserialize(data)

    def note(self, call: str, size: int) -> None:
        self.calls.append((call, size))
        self.threads.add(threading.get_ident())
        if self.loop is not None:
            turned = threading.Event()
            self.loop.call_soon_threadsafe(turned.set)
            assert turned.wait(WAIT_S), "the event loop is blocked"


@pytest.fixture
def serializer() -> Watched:
    return Watched()


@pytest.fixture
def store(tmp_path: Path, serializer: Watched) -> Iterator[SqliteStateStore]:
    with closing(SqliteStateStore(tmp_path / "runs.db", serializer)) as opened:
        yield opened


def declare(engine: Engine, *, failing: bool) -> None:
    engine.task(name="big", dag="d")(lambda: "x" * LARGE)
    engine.task(name="size", dag="d")(lambda big: len(big))

    @engine.task(dag="d")
    def last(size: int) -> int:
        if failing:
            raise ConnectionError
        return size


async def test_large_result_is_written_once_while_the_loop_goes_on(
    make_engine: MakeEngine, store: SqliteStateStore, serializer: Watched
) -> None:
    engine = make_engine(state_store=store)
    declare(engine, failing=False)
    serializer.loop = asyncio.get_running_loop()
    await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    sizes = [size for call, size in serializer.calls if call == "serialize"]
    assert [size > LARGE for size in sizes] == [True, False, False]
    assert not [call for call, _ in serializer.calls if call == "deserialize"]
    assert threading.get_ident() not in serializer.threads


async def test_kept_result_is_carried_over_without_being_looked_at(  # S1
    make_engine: MakeEngine, store: SqliteStateStore, serializer: Watched, tmp_path: Path
) -> None:
    engine = make_engine(state_store=store)
    declare(engine, failing=True)
    old = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    again = make_engine(state_store=store)
    declare(again, failing=False)
    serializer.calls.clear()
    serializer.loop = asyncio.get_running_loop()
    new = await asyncio.wait_for(again.resume(old), WAIT_S)
    # What "last" is given, and what it returns; of "big" nothing.
    assert [call for call, _ in serializer.calls] == ["deserialize", "serialize"]
    assert max(size for _, size in serializer.calls) < 100
    assert threading.get_ident() not in serializer.threads
    serializer.loop = None
    assert again.get_run_report(new)["tasks"]["big"]["result"] == "x" * LARGE
