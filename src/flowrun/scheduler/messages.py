"""Events that go into a run's state, and instructions that come out of it.

Plain facts, made once and never changed. Points in time are readings of the run's monotonic
clock, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from flowrun.state import NoResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.context import AttemptNotes
    from flowrun.scheduler.limits import Amounts
    from flowrun.scheduler.stand_ins import StandIn
    from flowrun.state import Cached, Reason, RunRecord, TaskRecord


@dataclass(slots=True)
class Failure:
    """What is known of an attempt's error.

    Attributes:
        text: The error with its traceback, redacted.
        line: The error's own line, redacted.
        retryable: Whether the retry policy allows another attempt.
        delay_s: Seconds to wait before that attempt.
        note: A warning for the log about the policy itself, or an empty text.
        interrupts: Whether it is a ``KeyboardInterrupt``, which ends the run; see
            :class:`StopRequested`.
        omits: Whether it is a ``SkipTask``: the task has nothing to do.
        pauses: Limits that no attempt may use before the delay is over.
    """

    text: str
    line: str
    retryable: bool = False
    delay_s: float = 0.0
    note: str = ""
    interrupts: bool = False
    omits: bool = False
    pauses: tuple[str, ...] = ()


@dataclass(slots=True)
class Refusal:
    """Why the store did not keep a record: the error's text, its line, whether of the result."""

    text: str
    line: str
    of_result: bool


class StopAnswer(IntEnum):
    """What an attempt that was told to stop can do about it.

    ``WITHDRAWN``: its code has not begun and never will. ``WILLING``: it will end soon, as it
    was cancelled or killed. ``UNWILLING``: its thread can only be told. ``ENDED``: its code has
    ended, and its result is being encoded.
    """

    WITHDRAWN = 0
    WILLING = 1
    UNWILLING = 2
    ENDED = 3


# -- events ---------------------------------------------------------------------------------


@dataclass(slots=True)
class SlotsGranted:
    """The engine's limits gave the run slots that it had waited for.

    Attributes:
        slots: For how many units of each kind.
        ask_again_at: When more may be free, if that depends on a time alone.
    """

    slots: Amounts
    ask_again_at: float = inf


@dataclass(slots=True)
class StopRequested:
    """Something outside the tasks ends the run.

    Attributes:
        reason: Why; the first reason counts.
        cause: The same in words.
        broken: Whether the store or flowrun has failed.
        interrupts: Whether it was Ctrl-C, or another cancellation of the code that awaits the run.
            The second one ends the teardowns, too.
    """

    reason: Reason
    cause: str
    broken: bool = False
    interrupts: bool = False


@dataclass(slots=True)
class LookedUp:
    """The answer to a ``LookUp``.

    Attributes:
        cached: What the unit has to do with the cache; ``None`` if the cache cannot be used.
        found: What stands for its result; ``None`` if it has to run.
        note: A warning for the log, or an empty text.
        attempt: It has had none.
    """

    unit: int
    cached: Cached | None = None
    found: StandIn | None = None
    note: str = ""
    attempt: int = 0


@dataclass(slots=True)
class Started:
    """The code of a sync attempt has begun."""

    unit: int
    attempt: int
    at: float


@dataclass(slots=True)
class CodeEnded:
    """The code of an attempt has returned, and its result is being encoded."""

    unit: int
    attempt: int


@dataclass(slots=True)
class Succeeded:
    """The code of an attempt has returned.

    Attributes:
        started_at: When the code began; ``None`` if that is unknown.
        ended_at: When it returned.
        value: What it returned, for its consumers.
        stored: What the store keeps of that.
        follows: Of a branch, the children that it has chosen.
        notes: What is kept of its inside.
    """

    unit: int
    attempt: int
    started_at: float | None
    ended_at: float
    value: object
    stored: object
    follows: frozenset[int] | None = None
    notes: AttemptNotes | None = None


@dataclass(slots=True)
class Failed:
    """The code of an attempt has raised, or its result cannot be kept."""

    unit: int
    attempt: int
    started_at: float | None
    failure: Failure
    notes: AttemptNotes | None = None


@dataclass(slots=True)
class StopAnswered:
    """An attempt was told to stop; ``timeout`` is its failure, if its time is up."""

    unit: int
    attempt: int
    answer: StopAnswer
    timeout: Failure | None
    notes: AttemptNotes | None = None


@dataclass(slots=True)
class Saved:
    """The store has answered a ``Save``; ``refusals``: what it did not keep, by unit."""

    units: Sequence[int]
    refusals: Mapping[int, Refusal] | None = None


class Element(NamedTuple):
    """What an item of a mapped task is made of.

    Attributes:
        number: The item's number.
        value: The element, or a tuple of one of each source.
        key: What it is known by in another run.
        kept: The item's record, if an earlier run has done it.
        result: The value of its result then, if a consumer needs it.
    """

    number: int
    value: object
    key: object
    kept: TaskRecord | None = None
    result: object = NoResult.RELEASED


@dataclass(slots=True)
class Expanded:
    """The elements of a mapped task are known; ``failure``: why they never will be."""

    unit: int
    elements: Sequence[Element]
    failure: Failure | None = None


UnitEvent: TypeAlias = LookedUp | Started | CodeEnded | Succeeded | Failed | StopAnswered
Event: TypeAlias = UnitEvent | SlotsGranted | StopRequested | Saved | Expanded

# -- instructions -----------------------------------------------------------------------------


@dataclass(slots=True)
class LookUp:
    """Ask the cache for a unit's result, and answer with a ``LookedUp``.

    ``is_fresh``: the unit has to run, and only its place in the cache is asked for.
    """

    unit: int
    is_fresh: bool


@dataclass(slots=True)
class Start:
    """Start an attempt of a unit."""

    unit: int
    attempt: int


@dataclass(slots=True)
class Expand:
    """Find the elements of a mapped task, and answer with an ``Expanded``.

    Attributes:
        unit: The mapped task.
        numbers: The numbers of the items to be; ``None``: all of them.
        values: The result of each source; with ``numbers``: the element of each item.
        is_needed: Whether a consumer needs the results of items that are kept.
    """

    unit: int
    numbers: Sequence[int] | None
    values: Sequence[object]
    is_needed: bool


@dataclass(slots=True)
class Stop:
    """Tell attempts to stop, and answer with a ``StopAnswered`` for each.

    ``cause`` says why; it is empty if their time is up.
    """

    units: Sequence[int]
    cause: str


@dataclass(slots=True)
class GiveUp:
    """Go on without an attempt that does not end; send its outcome all the same, once it does."""

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


class Subject(IntEnum):
    """What a :class:`Report` is about."""

    START = 0
    SUCCESS = 1
    RETRY = 2
    FAILURE = 3
    SKIP = 4
    OMIT = 5
    ABANDONED = 6
    NOTE = 7


@dataclass(slots=True)
class Report:
    """Notify hooks and log of what has happened to a unit, and is durable if it is an outcome.

    Attributes:
        subject: What has happened.
        record: The unit's record.
        line: The line of a failure, or the text of a note.
        value: What a task has returned.
        delay_s: Seconds until the next attempt.
        max_attempts: How many attempts there are at most.
    """

    subject: Subject
    record: TaskRecord
    line: str = ""
    value: object = None
    delay_s: float = 0.0
    max_attempts: int = 0


Instruction: TypeAlias = LookUp | Start | Expand | Stop | GiveUp | Save | Finish | Report
