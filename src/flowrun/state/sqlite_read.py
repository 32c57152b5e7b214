"""Rows of a SQLite file -> runs: what is read, and how it is checked."""

from __future__ import annotations

import json
import operator
import zlib
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from flowrun.errors import DamagedRecordError, ResultNotReadableError, UnknownRunError
from flowrun.state.records import NoResult, run_status
from flowrun.state.rows import (
    RUN_COLUMNS,
    TASK_COLUMNS,
    check_row,
    run_of_row,
    summary_of_row,
    task_of_row,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Sequence

    from flowrun.state.protocol import RunQuery
    from flowrun.state.records import RunRecord, RunSummary, TaskRecord
    from flowrun.state.rows import Row
    from flowrun.state.serializers import ResultSerializer

    IsAlive: TypeAlias = Callable[[Sequence[object]], bool]

_status_of = operator.attrgetter("status")


def read_run(
    db: sqlite3.Connection, run_id: str, serializer: ResultSerializer | None, is_alive: IsAlive
) -> RunRecord:
    """Return a run with its tasks; with their results if there is a serializer.

    Raises:
        UnknownRunError: There is no such run.
        DamagedRecordError: One of its rows is not as it was written, or missing.
        ResultNotReadableError: Another serializer wrote a result.
    """
    seq, row = read_run_row(db, run_id)
    tasks = {task.name: task for task in read_tasks(db, seq, row)}
    counts: dict[str, int] = json.loads(str(row[10]))
    if row[3] is not None and counts != Counter(map(_status_of, tasks.values())):
        problem = "the rows of its tasks are older, or newer, than its end"
        raise DamagedRecordError(run_id, None, problem)
    if serializer is not None:
        for name, value in read_results(db, seq, run_id, serializer, None).items():
            tasks[name].result = value
        for task in tasks.values():
            if task.result is NoResult.STORED:
                raise DamagedRecordError(run_id, task.name, "its result is missing")
    return run_of_row(row, tasks, alive=is_alive(row))


def read_runs(db: sqlite3.Connection, query: RunQuery, is_alive: IsAlive) -> list[RunSummary]:
    """Return the runs that match, newest first.

    Raises:
        UnknownRunError: There is no run with the id that they should be older than.
        DamagedRecordError: The row of one of them is not as it was written.
    """
    found: list[RunSummary] = []
    values = {
        "dag": query.dag_name,
        "ancestor": query.resumed_from,
        "status": None if query.status is None else str(query.status),
        "seq": _seq_before(db, query.before),
        "time": query.before if isinstance(query.before, int | float) else None,
    }
    for seq, *row, stored in db.execute(_list_statement(query), values):
        try:
            check_row(tuple(row), stored, str(row[0]), None)
        except DamagedRecordError as error:
            how = f"; list_runs(before={error.run_id!r}) lists the older ones"
            raise DamagedRecordError(error.run_id, None, error.problem + how) from None
        alive = is_alive(row)
        if row[3] is None:
            # Its own row is written when it ends; until then its tasks tell.
            counts = dict(db.execute(_COUNT_TASKS, (seq,)).fetchall())
            row[4] = str(run_status(counts))
            if query.status is not None and row[4] != query.status:
                continue
        else:
            counts = json.loads(str(row[10]))
        found.append(summary_of_row(tuple(row), counts, alive=alive))
        if len(found) == query.limit:
            break
    return found


def read_run_row(db: sqlite3.Connection, run_id: str) -> tuple[int, Row]:
    """Return a run's number in the file, and its own row, checked.

    Raises:
        UnknownRunError: There is no such run.
        DamagedRecordError: Its row is not as it was written.
    """
    found = db.execute(_SELECT_RUN, (run_id,)).fetchone()
    if found is None:
        raise UnknownRunError(run_id)
    seq, *row, stored = found
    check_row(tuple(row), stored, run_id, None)
    return int(seq), tuple(row)


def read_tasks(db: sqlite3.Connection, seq: int, run: Row) -> list[TaskRecord]:
    """Return all tasks of a run, whose own row is given; their results are not read.

    Raises:
        DamagedRecordError: One of their rows is not as it was written, or missing.
    """
    run_id = str(run[0])
    tasks: list[TaskRecord] = []
    for *row, stored in db.execute(_SELECT_TASKS, (seq,)):
        check_row(tuple(row), stored, run_id, str(row[0]))
        tasks.append(task_of_row(tuple(row)))
    if len(tasks) != sum(json.loads(str(run[10])).values()):
        raise DamagedRecordError(run_id, None, "rows of its tasks are missing")
    return tasks


def read_results(
    db: sqlite3.Connection,
    seq: int,
    run_id: str,
    serializer: ResultSerializer,
    wanted: Collection[str] | None,
) -> dict[str, object]:
    """Return the results of these tasks of a run, or of all.

    Raises:
        DamagedRecordError: One of them is not as it was written.
        ResultNotReadableError: Another serializer wrote it.
    """
    found: dict[str, object] = {}
    for name, writer, stored, place in db.execute(_SELECT_RESULTS, (seq,)).fetchall():
        if wanted is not None and name not in wanted:
            continue
        if writer != serializer.name:
            msg = (
                f"the result of task {name!r} in run {run_id!r} was written by the"
                f" {writer!r} serializer, and this store has {serializer.name!r};"
                " open the file with the serializer that wrote it"
            )
            raise ResultNotReadableError(msg)
        data = db.execute(_SELECT_RESULT, (seq, place)).fetchone()
        if data is None or zlib.crc32(data[0]) != stored:
            problem = "its result does not match its checksum; the file was damaged"
            raise DamagedRecordError(run_id, name, problem)
        found[name] = serializer.loads(data[0])
    return found


def _seq_before(db: sqlite3.Connection, before: str | float | None) -> int | None:
    if not isinstance(before, str):
        return None
    found = db.execute(_SEQ_OF, (before,)).fetchone()  # its row need not be whole
    if found is None:
        raise UnknownRunError(before)
    return int(found[0])


def _list_statement(query: RunQuery) -> str:
    """Return the constant statement whose conditions an index serves."""
    condition = " AND ".join(
        text
        for text, wanted in (
            ("dag_name = :dag", query.dag_name),
            ("resumed_from = :ancestor", query.resumed_from),
            ("(status = :status OR finished_at IS NULL)", query.status),
            ("seq < :seq", isinstance(query.before, str) or None),
            ("created_at < :time", isinstance(query.before, int | float) or None),
        )
        if wanted is not None
    )
    return _LIST.replace("{condition}", condition or "TRUE")


_SELECT_RUN = f"SELECT seq, {RUN_COLUMNS}, checksum FROM runs WHERE run_id = ?"  # noqa: S608 - constants
_LIST = f"SELECT seq, {RUN_COLUMNS}, checksum FROM runs WHERE {{condition}} ORDER BY seq DESC"  # noqa: S608 - constants
_SEQ_OF = "SELECT seq FROM runs WHERE run_id = ?"
_SELECT_TASKS = f"SELECT {TASK_COLUMNS}, checksum FROM tasks WHERE run = ? ORDER BY place"  # noqa: S608 - constants
_COUNT_TASKS = "SELECT status, count(*) FROM tasks WHERE run = ? GROUP BY status"
_SELECT_RESULTS = (
    "SELECT tasks.name, results.serializer, results.checksum, results.place FROM results"
    " JOIN tasks ON tasks.run = results.run AND tasks.place = results.place"
    " WHERE results.run = ?"
)
_SELECT_RESULT = "SELECT data FROM results WHERE run = ? AND place = ?"
PEEK_RESULT = (
    "SELECT results.serializer, length(results.data), substr(results.data, 1, ?) FROM runs"
    " JOIN tasks ON tasks.run = runs.seq JOIN results ON results.run = runs.seq"
    " AND results.place = tasks.place WHERE runs.run_id = ? AND tasks.name = ?"
)
PEEK_RESULTS = (
    "SELECT tasks.name, results.serializer, length(results.data), substr(results.data, 1, ?)"
    " FROM runs JOIN tasks ON tasks.run = runs.seq JOIN results ON results.run = runs.seq"
    " AND results.place = tasks.place WHERE runs.run_id = ?"
)
