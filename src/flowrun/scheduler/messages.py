"""Events that go into a run's state, and instructions that come out of it.

Plain facts, made once and never changed. Points in time are readings of the run's monotonic
clock, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.state import Reason, RunRecord, TaskRecord


@dataclass(slots=True)
class Failure:
    """What is known of an attempt's error.

    Attributes:
        text: The error with its traceback, redacted.
        line: The error's own line, redacted.
        retryable: Whether the retry policy allows another attempt.
        delay_s: Seconds to wait before that attempt.
        note: A warning for the log about the policy itself, or an empty text.
        interrupts: Whether it is a ``KeyboardInterrupt``, which ends the run.
    """

    text: str
    line: str
    retryable: bool = False
    delay_s: float = 0.0
    note: str = ""
    interrupts: bool = False


FLOWRUN_FAILED = "flowrun itself has failed"
"""The text of a failure of which nothing else is known; the run's error says more."""


@dataclass(slots=True)
class Refusal:
    """Why the store did not keep a record.

    Attributes:
        text: The error with its traceback, redacted.
        line: The error's own line, redacted.
        of_result: Whether the task's result is what could not be kept.
    """

    text: str
    line: str
    of_result: bool


class StopAnswer(IntEnum):
    """What an attempt that was told to stop can do about it.

    ``WITHDRAWN``: its code has not begun and never will. ``WILLING``: it will end soon, as it
    was cancelled or killed. ``UNWILLING``: its thread can only be told. ``ENDED``: its code has
    ended in time, and its outcome is on its way.
    """

    WITHDRAWN = 0
    WILLING = 1
    UNWILLING = 2
    ENDED = 3


# -- events ---------------------------------------------------------------------------------


@dataclass(slots=True)
class SlotsGranted:
    """The engine's limits gave the run slots that it had asked for."""

    count: int


@dataclass(slots=True)
class StopRequested:
    """Something outside the tasks ends the run.

    Attributes:
        reason: Why.
        cause: The same in words.
        broken: Whether the store or flowrun itself failed.
    """

    reason: Reason
    cause: str
    broken: bool = False


@dataclass(slots=True)
class Started:
    """The code of a sync attempt has begun."""

    unit: int
    attempt: int
    at: float


@dataclass(slots=True)
class Succeeded:
    """The code of an attempt has returned.

    Attributes:
        started_at: When the code began; ``None`` if the start instruction was its beginning.
        ended_at: When it returned.
        value: What it returned, for its consumers.
        stored: What the store keeps of that.
    """

    unit: int
    attempt: int
    started_at: float | None
    ended_at: float
    value: object
    stored: object


@dataclass(slots=True)
class Failed:
    """The code of an attempt has raised, or its result cannot be kept."""

    unit: int
    attempt: int
    started_at: float | None
    ended_at: float
    failure: Failure


@dataclass(slots=True)
class StopAnswered:
    """An attempt was told to stop.

    Attributes:
        answer: What it can do about it.
        timeout: The failure of its task, if its time is up.
    """

    unit: int
    attempt: int
    answer: StopAnswer
    timeout: Failure | None


@dataclass(slots=True)
class GivenUp:
    """An attempt was to be given up; ``ok`` is ``False`` if its outcome came first."""

    unit: int
    attempt: int
    ok: bool


@dataclass(slots=True)
class EndedLate:
    """The code of an attempt that was given up has ended after all."""

    unit: int
    attempt: int


@dataclass(slots=True)
class Saved:
    """The store has answered a ``Save``.

    Attributes:
        units: The units whose outcome was in it.
        refusals: Why some of them were not kept, by unit; ``None`` if all were.
    """

    units: Sequence[int]
    refusals: Mapping[int, Refusal] | None = None


UnitEvent: TypeAlias = Started | Succeeded | Failed | StopAnswered | GivenUp | EndedLate
Event: TypeAlias = UnitEvent | SlotsGranted | StopRequested | Saved

# -- instructions -----------------------------------------------------------------------------


@dataclass(slots=True)
class Start:
    """Start an attempt of a unit."""

    unit: int
    attempt: int


@dataclass(slots=True)
class Stop:
    """Tell attempts to stop, and answer with a ``StopAnswered`` for each.

    Attributes:
        units: Which.
        cause: Why, in words; empty if their time is up.
    """

    units: Sequence[int]
    cause: str


@dataclass(slots=True)
class GiveUp:
    """Go on without an attempt that does not end, and answer with ``GivenUp``."""

    unit: int


@dataclass(slots=True)
class Save:
    """Save records, and answer with a ``Saved`` of the same units."""

    records: Sequence[TaskRecord]
    units: Sequence[int]


@dataclass(slots=True)
class Finish:
    """The run has ended: save its record, with these tasks' beside it, and report the end."""

    record: RunRecord
    records: Sequence[TaskRecord]


@dataclass(slots=True)
class ReportStart:
    """Notify hooks and log of an attempt's start."""

    record: TaskRecord


@dataclass(slots=True)
class ReportSuccess:
    """Notify hooks and log of a success that is durable."""

    record: TaskRecord
    value: object


@dataclass(slots=True)
class ReportRetry:
    """Notify hooks and log of a failed attempt that another one follows."""

    record: TaskRecord
    line: str
    delay_s: float
    max_attempts: int


@dataclass(slots=True)
class ReportFailure:
    """Notify hooks and log of a final failure."""

    record: TaskRecord
    line: str


@dataclass(slots=True)
class ReportSkip:
    """Notify hooks and log of a skipped task."""

    record: TaskRecord


@dataclass(slots=True)
class ReportAbandoned:
    """Log that an attempt was given up while its code still runs."""

    record: TaskRecord


@dataclass(slots=True)
class ReportNote:
    """Log a warning about a task that its record does not show."""

    record: TaskRecord
    text: str


Instruction: TypeAlias = (
    Start
    | Stop
    | GiveUp
    | Save
    | Finish
    | ReportStart
    | ReportSuccess
    | ReportRetry
    | ReportFailure
    | ReportSkip
    | ReportAbandoned
    | ReportNote
)
