"""Write a store's file with one run of each kind, as SQL, to standard output.

``schema-N.sql`` was made by it with the release whose schema was N, and is never made again:
it stands for the files that people have. Run it when the schema's version is raised.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

from flowrun import Engine, SqliteStateStore, build_default_engine


class Switch:
    """What makes a task fail, as long as it is on."""

    def __init__(self) -> None:
        self.on = True


def declare(engine: Engine, ran: list[str], broken: Switch) -> None:
    """Declare the DAGs of the fixture; ``ran`` is told what ran."""

    @engine.task(dag="nightly")
    def rows() -> tuple[int, ...]:
        ran.append("rows")
        return (1, 2, 3)

    @engine.task(dag="nightly", retain_result=False)
    def frame(rows: tuple[int, ...]) -> dict[str, int]:
        ran.append("frame")
        return {str(row): row for row in rows}

    @engine.task(dag="nightly")
    def nothing(rows: tuple[int, ...]) -> None:
        ran.append("nothing")

    @engine.task(dag="nightly", retries=1)
    def load(frame: dict[str, int], nothing: None) -> dict[Any, Any]:
        ran.append("load")
        if broken.on:
            message = "the database is away \N{SNOWMAN}"
            raise OSError(message)
        return {"when": dt.datetime(2026, 3, 1, 3, 12, tzinfo=dt.UTC), 7: Decimal("1.50")}

    @engine.task(dag="nightly")
    def tell(load: dict[Any, Any]) -> str:
        ran.append("tell")
        return f"loaded {len(load)}"

    @engine.task(dag="dies")
    def first() -> str:
        ran.append("first")
        return "kept"

    @engine.task(dag="dies")
    def second(first: str) -> str:
        ran.append("second")
        if broken.on:
            os._exit(0)
        return first * 2


async def make(folder: Path) -> None:
    """Make the file; the process dies in the middle of the last run."""
    store = SqliteStateStore(folder / "runs.db", synchronous="NORMAL")
    engine = build_default_engine(state_store=store)
    broken = Switch()
    declare(engine, [], broken)
    failed = await engine.run_once("nightly", metadata={"night": 1, "by": ["cron", None]})
    broken.on = False
    await engine.resume(failed)
    await engine.run_subgraph("nightly", ["nothing"])
    broken.on = True
    await engine.run_once("dies")


def main() -> None:
    """Make the file in a child process and write it down."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not os.fork():
            asyncio.run(make(folder))
            os._exit(1)
        os.wait()
        with closing(sqlite3.connect(folder / "runs.db")) as database:
            for pragma in ("auto_vacuum", "application_id", "user_version"):
                (value,) = database.execute(f"PRAGMA {pragma}").fetchone()
                print(f"PRAGMA {pragma} = {value};")
            for line in database.iterdump():
                print(line)


if __name__ == "__main__":
    sys.exit(main())
