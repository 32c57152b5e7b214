"""The tables of the SQLite file, and the steps by which a file of any age gets them (D5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from flowrun.state.rows import renewed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

Step: TypeAlias = "Callable[[sqlite3.Connection], None]"

APPLICATION_ID = 0x666C6F77  # "flow"


def statements(text: str) -> Step:
    """Return the step that executes these statements, none of which holds a semicolon.

    Not ``executescript``: it would commit the transaction that all steps share.
    """

    def step(connection: sqlite3.Connection) -> None:
        for statement in text.split(";"):
            connection.execute(statement)

    return step


_OLD_TASK = (
    "name, deps, status, attempt, ready_at, started_at, finished_at, error, reason, abandoned,"
    " earlier, result_state, checksum"
)


def _move_attempts(connection: sqlite3.Connection) -> None:
    """Give each attempt before a task's last one a row, in the place of JSON in the task's row."""
    connection.execute("""
CREATE TABLE attempts (
    run INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    number INTEGER NOT NULL,
    ready_at REAL,
    started_at REAL,
    finished_at REAL,
    error TEXT,
    reason TEXT,
    abandoned INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (run, place, number)
) STRICT, WITHOUT ROWID
""")
    connection.execute("ALTER TABLE runs ADD COLUMN started_by TEXT")
    connection.execute("ALTER TABLE tasks ADD COLUMN earlier_attempts INTEGER NOT NULL DEFAULT 0")
    for run, place in connection.execute(
        "SELECT run, place FROM tasks WHERE earlier <> '[]'"
    ).fetchall():
        select = f"SELECT {_OLD_TASK} FROM tasks WHERE run = ? AND place = ?"  # noqa: S608 - constants
        *row, stored = connection.execute(select, (run, place)).fetchone()
        task, checksum, attempts = renewed(tuple(row), stored, run, place)
        connection.execute(
            "UPDATE tasks SET earlier_attempts = ?, checksum = ? WHERE run = ? AND place = ?",
            (task[10], checksum, run, place),
        )
        connection.executemany(
            "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(run, place, *attempt[:7], attempt[-1]) for attempt in attempts],
        )
    connection.execute("ALTER TABLE tasks DROP COLUMN earlier")


STEPS: Sequence[Step] = (
    statements("""
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL UNIQUE,
    dag_name TEXT NOT NULL,
    created_at REAL NOT NULL,
    finished_at REAL,
    status TEXT NOT NULL,
    error TEXT,
    metadata TEXT NOT NULL,
    resumed_from TEXT,
    targets TEXT,
    owner INTEGER,
    task_counts TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE INDEX runs_by_dag ON runs (dag_name, seq);
CREATE INDEX runs_by_ancestor ON runs (resumed_from, seq) WHERE resumed_from IS NOT NULL;
CREATE INDEX runs_by_time ON runs (created_at);
CREATE INDEX runs_by_status ON runs (status, seq);
CREATE INDEX runs_unfinished ON runs (seq) WHERE finished_at IS NULL;
CREATE TABLE tasks (
    run INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    name TEXT NOT NULL,
    deps TEXT NOT NULL,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    ready_at REAL,
    started_at REAL,
    finished_at REAL,
    error TEXT,
    reason TEXT,
    abandoned INTEGER NOT NULL,
    earlier TEXT NOT NULL,
    result_state TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (run, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE results (
    run INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    serializer TEXT NOT NULL,
    data BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (run, place)
) STRICT;
"""),
    statements("""
CREATE INDEX runs_by_dag_and_status ON runs (dag_name, status, seq);
"""),
    # A task has no row before anything happened to it, and a short result stands in that row.
    statements("""
CREATE TABLE plans (
    run INTEGER PRIMARY KEY REFERENCES runs (seq) ON DELETE CASCADE,
    tasks TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
ALTER TABLE tasks ADD COLUMN serializer TEXT;
ALTER TABLE tasks ADD COLUMN data BLOB;
ALTER TABLE tasks ADD COLUMN data_checksum INTEGER;
"""),
    _move_attempts,
    statements("""
ALTER TABLE runs ADD COLUMN params TEXT;
ALTER TABLE runs ADD COLUMN overridden TEXT
"""),
    # Step 6: items of mapped tasks, which have rows like tasks, after those of the run's tasks.
    statements("""
ALTER TABLE tasks ADD COLUMN item INTEGER;
ALTER TABLE tasks ADD COLUMN item_key TEXT;
ALTER TABLE tasks ADD COLUMN items INTEGER
"""),
    # Step 7: what tasks have to do with the cache between runs (a row without a source is an entry;
    # a newer one replaces that of the same key), where the time of an attempt went, why a resume
    # ran a task, what carried out the run; progress and log lines (an attempt has a row if there is
    # any).
    statements("""
CREATE TABLE cached (
    run INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    key TEXT NOT NULL,
    source TEXT,
    finished_at REAL NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (run, place)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX cached_by_key ON cached (key) WHERE source IS NULL;
ALTER TABLE runs ADD COLUMN made_by TEXT;
ALTER TABLE tasks ADD COLUMN granted_at REAL;
ALTER TABLE tasks ADD COLUMN limit_waits TEXT;
ALTER TABLE tasks ADD COLUMN encoded_at REAL;
ALTER TABLE tasks ADD COLUMN why_run TEXT;
ALTER TABLE attempts ADD COLUMN granted_at REAL;
ALTER TABLE attempts ADD COLUMN limit_waits TEXT;
CREATE TABLE notes (
    run INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    number INTEGER NOT NULL,
    notes TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (run, place, number)
) STRICT
"""),
)
"""The n-th step leads from version n - 1 to version n; a new file takes all of them.

What a release has written is never changed here: another step is added, and
``tests/data/make_runs.py`` makes a file of the version that has become an old one.
"""

_NO_ITEMS = "NULL AS item, NULL AS item_key, NULL AS items"
_NO_TIMES = "NULL AS granted_at, NULL AS limit_waits"
_NO_TASK_TIMES = f"{_NO_TIMES}, NULL AS encoded_at, NULL AS why_run"
_VIEWS = (
    (
        3,
        statements(f"""
CREATE TEMP VIEW tasks AS SELECT *, earlier AS earlier_attempts, NULL AS serializer,
    NULL AS data, NULL AS data_checksum, {_NO_ITEMS}, {_NO_TASK_TIMES} FROM main.tasks;
CREATE TEMP VIEW plans AS SELECT NULL AS run, NULL AS tasks, NULL AS checksum WHERE FALSE
"""),  # noqa: S608 - constants
    ),
    (
        4,
        statements(f"""
CREATE TEMP VIEW IF NOT EXISTS tasks AS SELECT *, earlier AS earlier_attempts, {_NO_ITEMS},
    {_NO_TASK_TIMES} FROM main.tasks;
CREATE TEMP VIEW runs AS SELECT *, NULL AS started_by, NULL AS params, NULL AS overridden,
    NULL AS made_by FROM main.runs;
CREATE TEMP VIEW attempts AS SELECT NULL AS run, NULL AS place, NULL AS number, NULL AS ready_at,
    NULL AS started_at, NULL AS finished_at, NULL AS error, NULL AS reason, NULL AS abandoned,
    NULL AS checksum, {_NO_TIMES} WHERE FALSE
"""),  # noqa: S608 - constants
    ),
    (
        5,
        statements("""
CREATE TEMP VIEW IF NOT EXISTS runs AS SELECT *, NULL AS params, NULL AS overridden,
    NULL AS made_by FROM main.runs
"""),
    ),
    (
        6,
        statements(f"""
CREATE TEMP VIEW IF NOT EXISTS tasks AS SELECT *, {_NO_ITEMS}, {_NO_TASK_TIMES} FROM main.tasks
"""),  # noqa: S608 - constants
    ),
    (
        7,
        statements(f"""
CREATE TEMP VIEW IF NOT EXISTS runs AS SELECT *, NULL AS made_by FROM main.runs;
CREATE TEMP VIEW IF NOT EXISTS tasks AS SELECT *, {_NO_TASK_TIMES} FROM main.tasks;
CREATE TEMP VIEW IF NOT EXISTS attempts AS SELECT *, {_NO_TIMES} FROM main.attempts
"""),  # noqa: S608 - constants
    ),
    (
        7,
        statements("""
CREATE TEMP VIEW cached AS SELECT NULL AS run, NULL AS place, NULL AS key, NULL AS source,
    NULL AS finished_at, NULL AS checksum WHERE FALSE
"""),
    ),
    (
        7,
        statements("""
CREATE TEMP VIEW notes AS SELECT NULL AS run, NULL AS place, NULL AS number, NULL AS notes,
    NULL AS checksum WHERE FALSE
"""),
    ),
)
"""What makes a file of an older version than these look like one of the present version."""


def complete(connection: sqlite3.Connection, version: int) -> None:
    """Let a connection that only reads see an older file as if it were of the present version.

    Except for the attempts, which are still in their tasks' rows; see ``rows.renewed``.
    """
    for since, step in _VIEWS:
        if version < since:
            step(connection)


def upgrade(connection: sqlite3.Connection, version: int, steps: Sequence[Step]) -> None:
    """Take the steps that a file of this version lacks, in the caller's transaction."""
    for step in steps[version:]:
        step(connection)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(steps)}")
