"""The SQLite store's statements: constant text, each served by an index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.state.rows import RUN_COLUMNS, TASK_COLUMNS

if TYPE_CHECKING:
    from flowrun.state.protocol import RunQuery

INSERT_RUN = f"INSERT INTO runs ({RUN_COLUMNS}, checksum) VALUES ({', '.join('?' * 12)})"  # noqa: S608 - constants
SELECT_RUN = f"SELECT seq, {RUN_COLUMNS}, checksum FROM runs WHERE run_id = ?"  # noqa: S608 - constants
END_RUN = (
    "UPDATE runs SET finished_at = ?, status = ?, error = ?, task_counts = ?, owner = NULL,"
    " checksum = ? WHERE seq = ?"
)
FAMILY = (
    "SELECT run_id, finished_at, owner FROM runs WHERE run_id = ? UNION ALL"
    " SELECT run_id, finished_at, owner FROM runs WHERE resumed_from = ?"
)
OWNER_OF = "SELECT finished_at, owner FROM runs WHERE run_id = ?"
UNFINISHED = "SELECT run_id, owner FROM runs WHERE finished_at IS NULL"
INSERT_TASK = (
    f"INSERT INTO tasks (run, place, {TASK_COLUMNS}, checksum) VALUES ({', '.join('?' * 15)})"  # noqa: S608 - constants
)
UPDATE_TASK = (
    "UPDATE tasks SET name = ?, deps = ?, status = ?, attempt = ?, ready_at = ?, started_at = ?,"
    " finished_at = ?, error = ?, reason = ?, abandoned = ?, earlier = ?, result_state = ?,"
    " checksum = ? WHERE run = ? AND place = ?"
)
SELECT_TASKS = f"SELECT place, {TASK_COLUMNS}, checksum FROM tasks WHERE run = ? ORDER BY place"  # noqa: S608 - constants
HAS_TASK = "SELECT 1 FROM tasks WHERE run = ? AND place = ?"
SELECT_PLACES = "SELECT place, name FROM tasks WHERE run = ?"
SEQ_OF = "SELECT seq FROM runs WHERE run_id = ?"
INSERT_RESULT = (
    "INSERT OR REPLACE INTO results (run, place, serializer, data, checksum) VALUES (?, ?, ?, ?, ?)"
)
DELETE_RESULT = "DELETE FROM results WHERE run = ? AND place = ?"
CARRY_RESULT = (
    "INSERT INTO results (run, place, serializer, data, checksum)"
    " SELECT ?, ?, results.serializer, results.data, results.checksum FROM runs"
    " JOIN tasks ON tasks.run = runs.seq JOIN results ON results.run = runs.seq"
    " AND results.place = tasks.place WHERE runs.run_id = ? AND tasks.name = ?"
)
SELECT_RESULTS = (
    "SELECT tasks.name, results.serializer, results.checksum, results.data FROM results"
    " JOIN tasks ON tasks.run = results.run AND tasks.place = results.place"
    " WHERE results.run = ?"
)
SELECT_RESULT = "SELECT serializer, checksum, data FROM results WHERE run = ? AND place = ?"
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

_COUNTS = (
    "CASE WHEN finished_at IS NULL THEN (SELECT group_concat(status || '=' || number) FROM"
    " (SELECT status, count(*) AS number FROM tasks WHERE run = runs.seq GROUP BY status)) END"
)
_LISTED = f"SELECT seq, {_COUNTS}, {RUN_COLUMNS}, checksum FROM runs"  # noqa: S608 - constants
_CONDITIONS = {
    "dag": "dag_name = :dag",
    "ancestor": "resumed_from = :ancestor",
    "seq": "seq < :seq",
    # Clocks are set back, so that the newest run before a time need not be the one before it in
    # the file. The plus keeps SQLite from an index that would need sorting.
    "time": ("seq <= (SELECT max(seq) FROM runs WHERE created_at < :time) AND +created_at < :time"),
}


def list_runs(query: RunQuery) -> list[str]:
    """Return the statements whose rows, newest first, are together the runs that may match.

    A run's own row says its status only once it has ended, so the runs that have not ended
    are looked for by themselves.
    """
    wanted = {
        "dag": query.dag_name is not None,
        "ancestor": query.resumed_from is not None,
        "seq": isinstance(query.before, str),
        "time": isinstance(query.before, int | float),
    }
    conditions = [text for name, text in _CONDITIONS.items() if wanted[name]]
    if query.status is None:
        return [_listed("", conditions)]
    return [
        _listed("", [*conditions, "status = :status", "finished_at IS NOT NULL"]),
        _listed(" INDEXED BY runs_unfinished", [*conditions, "finished_at IS NULL"]),
    ]


def _listed(index: str, conditions: list[str]) -> str:
    return f"{_LISTED}{index} WHERE {' AND '.join(conditions) or 'TRUE'} ORDER BY seq DESC"


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
