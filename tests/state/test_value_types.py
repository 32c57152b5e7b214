"""A value of another type in any column: an error that names the run, never a bare one (D7)."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from flowrun.errors import DamagedRecordError, FlowrunError, UnknownRunError
from flowrun.state import Cached, RunQuery, RunRecord, RunStatus, SqliteStateStore, TaskRecord

from .runs import failed, finish, make_run, running, save, succeeded

COLUMNS = {
    "runs": (
        "run_id dag_name created_at finished_at status error metadata resumed_from targets owner"
        " task_counts checksum started_by params overridden"
    ),
    "tasks": (
        "run place name deps status attempt ready_at started_at finished_at error reason abandoned"
        " earlier_attempts result_state checksum serializer data data_checksum"
    ),
    "attempts": (
        "run place number ready_at started_at finished_at error reason abandoned checksum"
    ),
    "plans": "tasks checksum",
    "results": "run place serializer data checksum",
    "cached": "place source finished_at checksum",
}
CASES = [(table, column) for table, columns in COLUMNS.items() for column in columns.split()]
WRONG = [b"\xff\x00=,", "text=,", 7, None]
Read = Callable[[], object]
HAS_NO_PLACE = ("runs", "plans")


def fill(path: Path) -> None:
    """Keep finished runs, of which two are one another's ancestor, and some that were left."""
    with closing(SqliteStateStore(path, synchronous="NORMAL")) as store:
        for number in (1, 2):
            run = make_run(
                f"done{number}",
                metadata={"n": number},
                targets=("b",),
                started_by="other",
                params={"n": number},
                overridden={"b": "value"},
            )
            store.create_run(run)
            a, b = run.tasks.values()
            cached = succeeded(failed(a).retry(), "short")._replace(cache=Cached(f"key {number}"))
            run = save(store, run, cached)
            taken = Cached("other", "earlier")
            b = succeeded(failed(b).retry(), "long" * 1000)._replace(cache=taken)
            finish(store, save(store, run, b))
            left = make_run(f"left{number}", resumed_from=f"done{number}")
            a, b = left.tasks.values()
            store.create_run(left)
            save(store, left, running(failed(a).retry()))


def harm(path: Path, table: str, column: str, value: object, run: int, place: int) -> bool:
    """Put a value where a STRICT table refuses it, and say nothing of it in the schema.

    Returns:
        Whether anything was changed.
    """
    where = {"runs": "seq = :run", "plans": "run = :run"}.get(
        table, "run = :run AND place = :place"
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        (schema,) = database.execute(
            "SELECT sql FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
        loose = schema.replace("NOT NULL", "").replace(" STRICT, WITHOUT", " WITHOUT")
        loose = re.sub(r"\bSTRICT$", "", loose)
        loose = re.sub(r"(\w+) (TEXT|REAL|INTEGER(?! PRIMARY))", r"\1 BLOB", loose)
        describe(database, table, loose)
        with suppress(sqlite3.IntegrityError):  # another row has that value, where none may
            changed = database.execute(
                f"UPDATE {table} SET {column} = :value WHERE {where}"
                f" AND typeof({column}) <> typeof(:value)",
                {"run": run, "place": place, "value": value},
            ).rowcount
            describe(database, table, schema)
            return changed > 0
        return False


def describe(database: sqlite3.Connection, table: str, schema: str) -> None:
    database.execute("PRAGMA writable_schema = ON")
    database.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (schema, table))
    database.execute("PRAGMA writable_schema = RESET")


def reads(store: SqliteStateStore) -> list[Read]:
    """Return all that reads whole runs."""
    found: list[Read] = []
    for run_id in ("done1", "left1"):
        found += [
            partial(store.load_run, run_id, results=False),
            partial(store.load_run, run_id, results=True),
            partial(store.load_results, run_id, ["a", "b"]),
        ]
    return found


def looks(store: SqliteStateStore) -> list[Read]:
    """Return what looks at parts: it may not see what is damaged."""
    found: list[Read] = [
        store.list_runs,
        partial(store.list_runs, RunQuery(status=RunStatus.RUNNING)),
        partial(store.list_runs, RunQuery(before=5.0)),
    ]
    for run_id in ("done1", "left1"):
        found.append(partial(store.stored_results, run_id))
        found += [partial(store.stored_result, run_id, name) for name in "ab"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("table", "column"), CASES)
def test_value_of_another_type_names_the_run_and_the_others_stay_readable(
    tmp_path: Path, table: str, column: str
) -> None:
    good = tmp_path / "good.db"
    fill(good)
    with closing(SqliteStateStore(good)) as store:
        others = {run_id: store.load_run(run_id, results=True) for run_id in ("done2", "left2")}
        right = [answer(read) for read in reads(store)]
        good_entries = store.list_cached()
        good_result = store.find_cached("key 1", 0.0)
    assert (len(good_entries), good_result is None) == (2, False)
    seen = 0
    places = (0,) if table in HAS_NO_PLACE else (0, 1)
    for number, (value, run, place) in enumerate(itertools.product(WRONG, (1, 2), places)):
        path = tmp_path / f"{number}.db"
        path.write_bytes(good.read_bytes())
        if not harm(path, table, column, value, run, place):
            continue
        told = f"{table}.{column} = {value!r} of run {run}, {place}"
        with closing(SqliteStateStore(path, synchronous="NORMAL")) as store:
            found = [answer(read) for read in reads(store)]
            for old, new in zip(right, found, strict=True):
                assert new == old or isinstance(new, DamagedRecordError | UnknownRunError), told
                assert not isinstance(new, DamagedRecordError) or "run '" in str(new), told
            seen += found != right
            if table == "runs" and found != right:
                assert isinstance(answer(store.list_runs), DamagedRecordError), told
            for look in looks(store):
                answer(look)
            entries = answer(store.list_cached)
            assert (
                entries == good_entries
                or isinstance(entries, DamagedRecordError)
                or (
                    # Its own row, or that of its task, may not be found any more.
                    isinstance(entries, list) and set(entries) < set(good_entries)
                )
            ), told
            result = answer(partial(store.find_cached, "key 1", 0.0))
            assert result in (None, good_result) or isinstance(result, DamagedRecordError), told
            for run_id, record in others.items():
                assert store.load_run(run_id, results=True) == record, told
            # What else looks at it has errors of flowrun's own, too.
            for use in (end_the_dead, carry_over):
                with suppress(FlowrunError):
                    use(store)
            if table == "runs":
                store.prune_runs(keep_last=1, created_before=None)
        with closing(SqliteStateStore(path, recover=True, synchronous="NORMAL")) as store:
            assert store.load_run("left2", results=False).finished_at is not None
    assert seen


def end_the_dead(store: SqliteStateStore) -> None:
    store.create_run(RunRecord("heir", "d", 9.0, {}, resumed_from="left1"))


def carry_over(store: SqliteStateStore) -> None:
    kept: dict[str, TaskRecord] = dict(store.load_run("done1", results=False).tasks)
    store.create_run(RunRecord("heir2", "d", 9.0, kept, resumed_from="done1"))


def answer(read: Read) -> object:
    """Return what was read, or the error that flowrun has for it; any other one is raised."""
    try:
        return read()
    except (DamagedRecordError, UnknownRunError) as error:
        return error
