"""The checksums of rows in the SQLite store (D7), as every schema has had them."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Row: TypeAlias = tuple[Any, ...]

TASK_EARLIER, TASK_MAPPING, TASK_TIMES = 10, 12, 15  # of a task's row
ATTEMPT_TIMES = 7  # of an attempt's row
_RUN_COLUMNS_AT_FIRST = 11
_NO_MAPPING = (None, None, None)
_crc32 = zlib.crc32
_packed = struct.Struct("<qqqqddd").pack
_packed_more = struct.Struct("<dd").pack
_NAN = float("nan")
_NULL = "\1"
NO_EARLIER = "[]"


def checksum(row: Row) -> int:
    """Return the CRC-32 of a row's values."""
    return _crc32(repr(row).encode("utf-8", "surrogatepass"))


def run_checksum(row: Row) -> int:
    """Return the CRC-32 of a run's values.

    Without those of the last columns that are NULL: then the checksum of a row that was written
    before there were these columns is still right.
    """
    while len(row) > _RUN_COLUMNS_AT_FIRST and row[-1] is None:
        row = row[:-1]
    return checksum(row)


def task_checksum(run: int, place: int, row: Row) -> int:
    """Return the CRC-32 of a task's values, and of where they stand."""
    earlier = row[TASK_EARLIER]
    if type(earlier) is not int:
        msg = f"earlier_attempts is {earlier!r}"
        raise TypeError(msg)
    # Before schema 4 the earlier attempts stood here as JSON. The text of an empty list stays,
    # so that the checksums of most rows are still right.
    return task_checksum_with(run, place, row, str(earlier) if earlier else NO_EARLIER)


def task_checksum_with(run: int, place: int, row: Row, earlier: str) -> int:
    """Return the checksum of a task's row with this text in the place of its earlier attempts."""
    name, deps, status, attempt, ready_at, started_at, finished_at = row[:7]
    error, reason, abandoned, _, state = row[7:TASK_MAPPING]
    error = _NULL if error is None else error
    texts = [name, deps, status, error, _NULL if reason is None else reason, earlier, state]
    mapping = row[TASK_MAPPING:TASK_TIMES]
    if mapping not in ((), _NO_MAPPING):  # else as before there were these columns
        texts.append(repr(mapping))
    crc = _crc(run, place, attempt, abandoned, ready_at, started_at, finished_at, texts)
    return _crc_with(crc, *row[TASK_TIMES:])


def attempt_checksum(run: int, place: int, row: Row) -> int:
    """Return the CRC-32 of an attempt's values, and of where they stand."""
    number, ready_at, started_at, finished_at, error, reason, abandoned = row[:ATTEMPT_TIMES]
    texts = (_NULL if error is None else error, _NULL if reason is None else reason)
    crc = _crc(run, place, number, abandoned, ready_at, started_at, finished_at, texts)
    return _crc_with(crc, *row[ATTEMPT_TIMES:])


def _crc_with(
    crc: int,
    granted_at: float | None = None,
    limit_waits: str | None = None,
    encoded_at: float | None = None,
    why_run: str | None = None,
) -> int:
    """Return a checksum with the columns of schema 7; without them it stays what it was."""
    if limit_waits is not None or why_run is not None:
        texts = f"{limit_waits or _NULL}\0{why_run or _NULL}"
        crc = _crc32(texts.encode("utf-8", "surrogatepass"), crc)
    if granted_at is None and encoded_at is None:
        return crc
    granted_at = _NAN if granted_at is None else granted_at
    return _crc32(_packed_more(granted_at, _NAN if encoded_at is None else encoded_at), crc)


def _crc(  # noqa: PLR0913 - what attempts and tasks have
    run: int,
    place: int,
    number: int,
    abandoned: int,
    ready_at: float | None,
    started_at: float | None,
    finished_at: float | None,
    texts: Iterable[str],
) -> int:
    # Numbers as they are in memory: to write floats as text would take longer than all the rest.
    # NaN stands for NULL, as SQLite makes NULL of NaN.
    numbers = _packed(
        run,
        place,
        number,
        abandoned,
        _NAN if ready_at is None else ready_at,
        _NAN if started_at is None else started_at,
        _NAN if finished_at is None else finished_at,
    )
    return _crc32("\0".join(texts).encode("utf-8", "surrogatepass"), _crc32(numbers))
