"""The SQLite store's statements: constant text, each served by an index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.state.rows import ATTEMPT_COLUMNS, CACHED_COLUMNS, RUN_COLUMNS, TASK_COLUMNS

if TYPE_CHECKING:
    from flowrun.state.protocol import RunQuery

INSERT_RUN = (
    f"INSERT INTO runs ({RUN_COLUMNS}, checksum) VALUES ({', '.join('?' * 16)})"  # noqa: S608 - constants
    " ON CONFLICT (run_id) DO NOTHING RETURNING seq"
)
SELECT_RUN = f"SELECT seq, {RUN_COLUMNS}, checksum FROM runs WHERE run_id = ?"  # noqa: S608 - constants
END_RUN = (
    "UPDATE runs SET finished_at = ?, status = ?, error = ?, task_counts = ?, owner = NULL,"
    " checksum = ? WHERE seq = ?"
)
FAMILY = (
    "WITH RECURSIVE family (run_id) AS (VALUES (?) UNION"
    " SELECT runs.run_id FROM family JOIN runs ON runs.resumed_from = family.run_id)"
    " SELECT run_id, finished_at, owner FROM family JOIN runs USING (run_id)"
)
"""A run, and all that came of it by resuming it or one of those."""
OWNER_OF = "SELECT finished_at, owner FROM runs WHERE run_id = ?"
UNFINISHED = "SELECT run_id, owner FROM runs WHERE finished_at IS NULL"
UNFINISHED_OF_DAG = f"{UNFINISHED} AND dag_name = ?"
INSERT_PLAN = "INSERT INTO plans (run, tasks, checksum) VALUES (?, ?, ?)"
SELECT_PLAN = "SELECT tasks, checksum FROM plans WHERE run = ?"
_WHOLE_TASK = f"run, place, {TASK_COLUMNS}, checksum, serializer, data, data_checksum"


def _put_tasks(number: int) -> str:
    row = f"({', '.join('?' * 25)})"
    rows = ", ".join([row] * number)
    return f"INSERT OR REPLACE INTO tasks ({_WHOLE_TASK}) VALUES {rows}"  # noqa: S608 - constants


PUT_TASKS = {number: _put_tasks(number) for number in (64, 8, 1)}
"""Statements by the number of rows that they take: one of many rows costs less than many."""

PUT_ATTEMPT = (
    f"INSERT OR REPLACE INTO attempts (run, place, {ATTEMPT_COLUMNS}, checksum)"  # noqa: S608 - constants
    f" VALUES ({', '.join('?' * 12)})"
)
SELECT_ATTEMPTS = (
    f"SELECT place, {ATTEMPT_COLUMNS}, checksum FROM attempts WHERE run = ? ORDER BY place, number"  # noqa: S608 - constants
)
PUT_NOTES = (
    "INSERT OR REPLACE INTO notes (run, place, number, notes, checksum) VALUES (?, ?, ?, ?, ?)"
)
SELECT_NOTES = "SELECT place, number, notes, checksum FROM notes WHERE run = ?"
UPDATE_TASK = (
    "UPDATE tasks SET name = ?, deps = ?, status = ?, attempt = ?, ready_at = ?, started_at = ?,"
    " finished_at = ?, error = ?, reason = ?, abandoned = ?, earlier_attempts = ?,"
    " result_state = ?, item = ?, item_key = ?, items = ?, granted_at = ?, limit_waits = ?,"
    " encoded_at = ?, why_run = ?, checksum = ? WHERE run = ? AND place = ?"
)
SELECT_TASKS = f"SELECT place, {TASK_COLUMNS}, checksum FROM tasks WHERE run = ? ORDER BY place"  # noqa: S608 - constants
PLACES_OF_ITEMS = "SELECT name, item, place FROM tasks WHERE run = ? AND item IS NOT NULL"
RUN_OF = "SELECT run_id FROM runs WHERE seq = ?"
PUT_RESULT = (
    "INSERT OR REPLACE INTO results (run, place, serializer, data, checksum) VALUES (?, ?, ?, ?, ?)"
)
DELETE_RESULT = "DELETE FROM results WHERE run = ? AND place = ?"


def _of(table: str, columns: str) -> str:
    """Return columns of one of several tables, and its checksum."""
    return ", ".join(f"{table}.{name}" for name in (*columns.split(", "), "checksum"))


PUT_CACHED = f"INSERT OR REPLACE INTO cached ({CACHED_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
SELECT_CACHED = f"SELECT {CACHED_COLUMNS}, checksum FROM cached WHERE run = ?"  # noqa: S608 - constants
_ENTRIES = (
    f"SELECT {_of('runs', RUN_COLUMNS)}, {_of('tasks', TASK_COLUMNS)},"  # noqa: S608 - constants
    f" {_of('cached', CACHED_COLUMNS)} FROM cached JOIN runs ON runs.seq = cached.run"
    " JOIN tasks USING (run, place) WHERE cached.source IS NULL"
)
FIND_CACHED = f"{_ENTRIES} AND cached.key = ? AND cached.finished_at >= ?"
_CHOSEN_ENTRIES = " AND (:dag IS NULL OR dag_name = :dag) AND (:task IS NULL OR tasks.name = :task)"
LIST_CACHED = f"{_ENTRIES}{_CHOSEN_ENTRIES} ORDER BY cached.finished_at DESC"
CLEAR_CACHED = (
    "DELETE FROM cached WHERE source IS NULL AND EXISTS (SELECT 1 FROM runs JOIN tasks"  # noqa: S608 - constants
    " ON tasks.run = runs.seq WHERE runs.seq = cached.run AND tasks.place = cached.place"
    f"{_CHOSEN_ENTRIES})"
)

# A result stands in its task's row, if it is short, or else in a row of its own.
_KEPT = (
    " FROM tasks LEFT JOIN results ON tasks.data IS NULL AND results.run = tasks.run"
    " AND results.place = tasks.place WHERE tasks.result_state = 'stored'"
)
_DATA = "coalesce(tasks.data, results.data)"
_SERIALIZER = "iif(tasks.data IS NULL, results.serializer, tasks.serializer)"
_DATA_CHECKSUM = "iif(tasks.data IS NULL, results.checksum, tasks.data_checksum)"
_FOUND = " AND (tasks.data IS NOT NULL OR results.data IS NOT NULL)"
_OF_TASK = (
    " AND tasks.run = (SELECT seq FROM runs WHERE run_id = ?) AND tasks.name = ?"
    " AND tasks.item IS ?"
)
# Not of what coalesce() returns: that would read all of a long result.
PEEK_RESULTS = (
    f"SELECT tasks.name, {_SERIALIZER},"  # noqa: S608 - constants
    " iif(tasks.data IS NULL, length(results.data), length(tasks.data)),"
    " iif(tasks.data IS NULL, substr(results.data, 1, :most), substr(tasks.data, 1, :most))"
    f"{_KEPT} AND tasks.run = (SELECT seq FROM runs WHERE run_id = :run_id)"
    f" AND (:name IS NULL OR tasks.name = :name) AND (:items OR tasks.item IS NULL){_FOUND}"
)
CARRY_TASK = (
    f"INSERT INTO tasks ({_WHOLE_TASK}) SELECT {', '.join('?' * 22)}, tasks.serializer,"
    f" tasks.data, tasks.data_checksum{_KEPT}{_OF_TASK}{_FOUND}"
)
CARRY_RESULT = (
    "INSERT INTO results (run, place, serializer, data, checksum)"
    " SELECT ?, ?, results.serializer, results.data, results.checksum"
    f"{_KEPT}{_OF_TASK} AND results.data IS NOT NULL"
)
SELECT_RESULTS = (
    f"SELECT tasks.name, tasks.item, {_SERIALIZER}, {_DATA_CHECKSUM}, {_DATA}{_KEPT}"
    f" AND tasks.run = ?{_FOUND}"
)
SELECT_RESULT = (
    f"SELECT {_SERIALIZER}, {_DATA_CHECKSUM}, {_DATA}{_KEPT}"
    f" AND tasks.run = ? AND tasks.place = ?{_FOUND}"
)

_COUNTS = (
    "CASE WHEN finished_at IS NULL THEN (SELECT group_concat(status || '=' || number) FROM"
    " (SELECT ifnull(status, '') AS status, count(*) AS number FROM tasks WHERE run = runs.seq"
    " AND item IS NULL GROUP BY status)) END"
)
_LISTED = f"SELECT seq, {_COUNTS}, {RUN_COLUMNS}, checksum FROM runs"  # noqa: S608 - constants


def list_runs(query: RunQuery, *, from_view: bool) -> list[str]:
    """Return the statements whose rows, newest first, are together the runs that may match.

    A run's own row says its status only once it has ended, so the runs that have not ended
    are looked for by themselves.

    Args:
        query: Which runs.
        from_view: Whether ``runs`` is a view on an older file, of which no index can be named.
    """
    conditions: list[str] = []
    if query.dag_name is not None:
        conditions.append("dag_name = :dag")
    if query.resumed_from is not None:
        conditions.append("resumed_from = :ancestor")
    if isinstance(query.before, str):
        conditions.append("seq < :seq")
    elif query.before is not None:
        # Clocks are set back, so that the newest run before a time need not be the one before it
        # in the file. The plus keeps SQLite from an index that would need sorting.
        conditions.append("seq <= (SELECT max(seq) FROM runs WHERE created_at < :time)")
        conditions.append("+created_at < :time")

    def listed(*more: str, index: str = "") -> str:
        wanted = " AND ".join([*conditions, *more]) or "TRUE"
        return f"{_LISTED}{index} WHERE {wanted} ORDER BY seq DESC"

    if query.status is None:
        return [listed()]
    index = "" if from_view else " INDEXED BY runs_unfinished"
    return [
        listed("status = :status", "finished_at IS NOT NULL"),
        listed("finished_at IS NULL", index=index),
    ]


PRUNABLE_BY_AGE = (
    f"SELECT seq, {RUN_COLUMNS}, checksum FROM runs"  # noqa: S608 - constants
    " WHERE created_at < :before AND finished_at IS NOT NULL"
)
PRUNABLE_BY_NUMBER = (
    "WITH RECURSIVE dags (name) AS (SELECT min(dag_name) FROM runs UNION ALL"  # noqa: S608 - constants
    " SELECT (SELECT min(dag_name) FROM runs WHERE dag_name > name) FROM dags"
    " WHERE name IS NOT NULL)"
    f" SELECT seq, {RUN_COLUMNS}, checksum FROM dags CROSS JOIN runs ON dag_name = name AND seq <="
    " (SELECT seq FROM runs WHERE dag_name = name AND finished_at IS NOT NULL"
    " ORDER BY seq DESC LIMIT 1 OFFSET :keep)"
    " WHERE finished_at IS NOT NULL AND (:before IS NULL OR created_at < :before)"
)
PRUNE_RUN = "DELETE FROM runs WHERE seq = ? AND finished_at IS NOT NULL"
