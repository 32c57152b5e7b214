"""Deleting finished runs from a SQLite file and giving their space back to the file system."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from flowrun.errors import DamagedRecordError
from flowrun.state import statements as sql
from flowrun.state.rows import check_run_row

if TYPE_CHECKING:
    from flowrun.state.sqlite_connections import SqliteConnections

_PAUSE_S = 0.05
_VACUUMED_PAGES = 1000
_MOST_RUNS = 2**62

_log = logging.getLogger("flowrun.state")


def prune(
    connections: SqliteConnections, *, keep_last: int | None, created_before: float | None
) -> int:
    """Delete finished runs in short transactions with pauses, so that other writers can work.

    A damaged run is skipped: its time and its DAG cannot be trusted.

    Returns:
        How many were deleted.
    """
    seqs = _prunable(connections, keep_last, created_before)
    deleted = 0
    while seqs:
        with connections.transaction() as db:
            until = time.monotonic() + _PAUSE_S
            while seqs and time.monotonic() < until:
                deleted += db.execute(sql.PRUNE_RUN, (seqs.pop(),)).rowcount
        time.sleep(_PAUSE_S if seqs else 0)
    return deleted


def give_back(connections: SqliteConnections) -> None:
    """Shrink the file by its free pages, a few at a time."""
    free = _free_pages(connections)
    while free:
        with connections.maintenance() as writer:
            # The module's execute() would stop after the first page: it takes no second
            # step of a statement without columns.
            writer.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_PAGES})")
        before, free = free, _free_pages(connections)
        if free >= before:
            break
        time.sleep(_PAUSE_S if free else 0)
    with connections.maintenance() as writer:
        # Writers stand still while a checkpoint waits for readers, so it does not wait: what it
        # cannot give back now goes with the next one.
        (wait_ms,) = writer.execute("PRAGMA busy_timeout").fetchone()
        writer.execute("PRAGMA busy_timeout = 0")
        try:
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            writer.execute(f"PRAGMA busy_timeout = {wait_ms}")


def _prunable(
    connections: SqliteConnections, keep_last: int | None, created_before: float | None
) -> list[int]:
    """Return the numbers of the runs to delete, the oldest last."""
    text = sql.PRUNABLE_BY_AGE if keep_last is None else sql.PRUNABLE_BY_NUMBER
    if keep_last is not None:
        keep_last = min(keep_last, _MOST_RUNS)  # SQLite's integers have an end
    seqs: list[int] = []
    with connections.reading() as db:
        for seq, *row, stored in db.execute(text, {"before": created_before, "keep": keep_last}):
            try:
                check_run_row(tuple(row), stored)
            except DamagedRecordError as error:
                _log.warning("not deleted: %s", error, extra={"run_id": error.run_id})
            else:
                seqs.append(seq)
    return sorted(seqs, reverse=True)


def _free_pages(connections: SqliteConnections) -> int:
    with connections.reading() as db:
        return int(db.execute("PRAGMA freelist_count").fetchone()[0])
