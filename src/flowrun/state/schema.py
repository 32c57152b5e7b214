"""The tables of the SQLite file, and the steps by which a file of any age gets them (D5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

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
)
"""The n-th step leads from version n - 1 to version n; a new file takes all of them.

What a release has written is never changed here: another step is added, and
``tests/data/make_runs.py`` makes a file of the version that has become an old one.
"""

_LACKING = (
    (
        3,
        statements("""
CREATE TEMP VIEW tasks AS SELECT *, NULL AS serializer, NULL AS data, NULL AS data_checksum
    FROM main.tasks;
CREATE TEMP VIEW plans AS SELECT NULL AS run, NULL AS tasks, NULL AS checksum WHERE FALSE
"""),
    ),
)


def complete(connection: sqlite3.Connection, version: int) -> None:
    """Let a connection that only reads see an older file as if it were of the present version."""
    for since, step in _LACKING:
        if version < since:
            step(connection)


def upgrade(connection: sqlite3.Connection, version: int, steps: Sequence[Step]) -> None:
    """Take the steps that a file of this version lacks, in the caller's transaction."""
    for step in steps[version:]:
        step(connection)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(steps)}")
