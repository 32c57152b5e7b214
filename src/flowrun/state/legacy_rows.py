"""Tasks as schemas 1 to 3 kept them: the attempts before the last one as JSON in the task's row.

Used when a file is migrated, and when one is read that may not be migrated.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flowrun.state.checked_rows import NONSENSE
from flowrun.state.records import AttemptRecord, Reason
from flowrun.state.rows import (
    attempt_checksum,
    attempt_row,
    checksum,
    task_checksum,
    task_checksum_with,
)

if TYPE_CHECKING:
    from flowrun.state.rows import Row

_UNREADABLE = -1


def renewed(
    row: Row, stored: object, run: int, place: int
) -> tuple[Row, object, list[tuple[Row, object]]]:
    """Return a task's row as schema 4 keeps it.

    Args:
        row: The task's values, with JSON in the place of the number of earlier attempts.
        stored: The checksum that was stored with them.
        run: Where the row stands.
        place: The same.

    Returns:
        The task's values and their checksum, and the rows of its earlier attempts, each with a
        checksum. A damaged row stays one: it does not match its checksum afterwards either.
    """
    if row[10] == "[]":
        return (*row[:10], 0, row[11]), stored, []
    try:
        attempts = _attempts(row, stored, run, place)
        new = (*row[:10], len(attempts), row[11])
        return new, task_checksum(run, place, new), attempts
    except NONSENSE:
        return (*row[:10], _UNREADABLE, row[11]), stored, []


def _attempts(row: Row, stored: object, run: int, place: int) -> list[tuple[Row, object]]:
    """Return the rows of a task's earlier attempts, each with its checksum.

    Raises:
        ValueError: The row does not match its checksum.
        Exception: One of ``NONSENSE``: its values make no sense.
    """
    earlier = str(row[10])
    if stored not in (task_checksum_with(run, place, row, earlier), checksum(row)):
        msg = "the row does not match its checksum"
        raise ValueError(msg)
    attempts: dict[object, tuple[Row, object]] = {}
    for fields in json.loads(earlier):
        attempt = attempt_row(_attempt(fields))
        attempts[attempt[0]] = (attempt, attempt_checksum(run, place, attempt))
    return list(attempts.values())


def _attempt(fields: list[Any]) -> AttemptRecord:
    number, ready_at, started_at, finished_at, error, reason, abandoned = fields
    return AttemptRecord(
        number,
        ready_at,
        started_at,
        finished_at,
        error,
        None if reason is None else Reason(reason),
        abandoned,
    )
