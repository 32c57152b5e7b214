"""What is known of a run: immutable values, and the transitions that make new ones.

No clock, no lock, no store. Points in time are epoch seconds (float, UTC).
"""

from __future__ import annotations

from enum import Enum, StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowrun.context import AttemptNotes


class TaskStatus(StrEnum):
    """Where a task of a run stands; equal to its own string."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    OMITTED = "OMITTED"


class Reason(StrEnum):
    """Why a task is FAILED, SKIPPED or OMITTED."""

    ERROR = "ERROR"
    TIMEOUT = "TIMEOUT"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    RUN_CANCELLED = "RUN_CANCELLED"
    RUN_TIMED_OUT = "RUN_TIMED_OUT"
    RUN_BROKEN = "RUN_BROKEN"
    OWNER_DIED = "OWNER_DIED"
    FAIL_FAST = "FAIL_FAST"
    SKIP_TASK = "SKIP_TASK"
    NOT_CHOSEN = "NOT_CHOSEN"
    UPSTREAM_OMITTED = "UPSTREAM_OMITTED"
    RULE_NOT_MET = "RULE_NOT_MET"


class NoResult(Enum):
    """What stands in a record's ``result`` when the value itself does not (I2).

    ``ABSENT``: the task has not succeeded. ``RELEASED``: it has, and its result was released
    (``retain_result=False``). ``STORED``: the store has the result, this record does not.
    ``ITEMS``: it is the list of what the records of the task's items have.
    """

    ABSENT = "absent"
    RELEASED = "released"
    STORED = "stored"
    ITEMS = "items"


LimitWaits: TypeAlias = tuple[tuple[str, float], ...]
"""Names of limits, and the seconds for which a task waited for each."""


class AttemptRecord(NamedTuple):
    """The trace of one attempt that ended (A6).

    Attributes:
        number: 1 for the first.
        ready_at: When it could have started (its parents done, its delay over).
        started_at: When its code started.
        finished_at: When it ended or was given up.
        error: Its error with traceback; ``None`` when it succeeded.
        reason: Why it failed.
        abandoned: Its thread, or its task on the loop, went on after it was given up.
        granted_at: When it got its slot and its limits.
        limit_waits: How long it waited for named limits, of the time until then.
        notes: What is kept of its inside.
    """

    number: int
    ready_at: float | None
    started_at: float | None
    finished_at: float | None
    error: str | None
    reason: Reason | None
    abandoned: bool
    granted_at: float | None = None
    limit_waits: LimitWaits = ()
    notes: AttemptNotes | None = None


class Cached(NamedTuple):
    """What a task has to do with the cache between runs.

    Attributes:
        key: Stands for all that its result depends on. A later task of the same key takes that.
        run_id: The run from which its result was taken; ``None`` if it makes its own one.
    """

    key: str
    run_id: str | None = None


class EncodedResult(NamedTuple):
    """A result as a store keeps it.

    Attributes:
        serializer: The name of the serializer that made the bytes.
        data: The bytes.
    """

    serializer: str
    data: bytes


class CarriedResult(NamedTuple):
    """Stands for the result of an item of another run, which the store is to copy.

    Attributes:
        run_id: That run.
        item: The item's number there; the task is of the same name.
    """

    run_id: str
    item: int


class TransitionError(RuntimeError):
    """A transition that the table does not allow: a bug in flowrun or in a store."""


# Module names cost less to read than an enum's attributes, and are read for every task.
_PENDING, _RUNNING, _SUCCESS = TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SUCCESS
_FAILED, _SKIPPED, _OMITTED = TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.OMITTED
_status_of = attrgetter("status")
_item_of = attrgetter("item")
# Twice as fast as the constructor, which every task of every run needs twice.
_new_record: Callable[[type[TaskRecord], tuple[object, ...]], TaskRecord] = cast(
    "Any", tuple
).__new__
_ABSENT = NoResult.ABSENT


class TaskRecord(NamedTuple):
    """One task of one run, or one item of it; a value. Each transition returns a new record.

    ``PENDING -> RUNNING -> SUCCESS``, ``RUNNING -> FAILED (-> PENDING)``,
    ``PENDING -> SKIPPED``, ``PENDING`` or ``RUNNING -> OMITTED``, ``PENDING -> SUCCESS`` by an
    override or from the cache, and ``RUNNING -> PENDING`` for an attempt whose code never began.
    A mapped task is RUNNING as long as its items are.
    Every other transition raises :class:`TransitionError`.

    Attributes:
        name: The task.
        deps: Its dependencies in this run, in declared order.
        status: Its status.
        attempt: Number of its last attempt, 0 before the first.
        ready_at: When that attempt could have started.
        started_at: When that attempt's code started.
        finished_at: When the task ended.
        error: Error text with traceback of the last attempt, or why the task was skipped or
            omitted.
        reason: Why the task is FAILED, SKIPPED or OMITTED.
        abandoned: Whether the code of its last attempt still ran when it was given up.
        result: The value, an :class:`EncodedResult`, a :class:`CarriedResult`, or a
            :class:`NoResult`.
        earlier: The attempts before the last one.
        item: Of an item its number among those of its task; ``None`` for the task itself.
        key: What the item's element is known by in another run; ``None`` if by nothing.
        items: Of a mapped task how many items it has, as far as that is known; of others ``None``.
        cache: What it has to do with the cache; ``None`` without one.
        granted_at: When its last attempt got its slot and its limits.
        limit_waits: How long that attempt waited for named limits.
        encoded_at: When its result was ready to be saved.
        why_run: Why a resume runs it.
        teardown_of: Those of its dependencies that it tears down.
        notes: What is kept of the inside of the last attempt.
    """

    name: str
    deps: tuple[str, ...] = ()
    status: TaskStatus = _PENDING
    attempt: int = 0
    ready_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    error: str | None = None
    reason: Reason | None = None
    abandoned: bool = False
    result: object = NoResult.ABSENT
    earlier: tuple[AttemptRecord, ...] = ()
    item: int | None = None
    key: object = None
    items: int | None = None
    cache: Cached | None = None
    granted_at: float | None = None
    limit_waits: LimitWaits = ()
    encoded_at: float | None = None
    why_run: str | None = None
    teardown_of: tuple[str, ...] = ()
    notes: AttemptNotes | None = None

    @property
    def label(self) -> str:
        """The task's name, and the number of the item if it is one."""
        return self.name if self.item is None else f"{self.name}[{self.item}]"

    def start(self, now: float, ready_at: float, limit_waits: LimitWaits = ()) -> TaskRecord:
        """PENDING -> RUNNING: the next attempt begins."""
        if self.status is not _PENDING:
            self._refuse("start")
        begun = (
            self.name,
            self.deps,
            _RUNNING,
            self.attempt + 1,
            ready_at,
            now,
            None,
            None,
            None,
            False,
            _ABSENT,
            self.earlier,
            self.item,
            self.key,
            None,
            self.cache,
            now,
            limit_waits,
            None,
            self.why_run,
            self.teardown_of,
            None,
        )
        return _new_record(TaskRecord, begun)

    def begun(self, at: float) -> TaskRecord:
        """RUNNING: the code of the attempt has begun later than it was handed over."""
        if self.status is not _RUNNING:
            self._refuse("begin")
        return self._replace(started_at=at)

    def waited(self, ready_at: float, limit_waits: LimitWaits) -> TaskRecord:
        """PENDING: it was ready, and its run ended before it could start."""
        if self.status is not _PENDING:
            self._refuse("wait")
        return self._replace(ready_at=ready_at, limit_waits=limit_waits, granted_at=None)

    def withdraw(self) -> TaskRecord:
        """RUNNING -> PENDING: the code of the attempt has not begun and never will."""
        if self.status is not _RUNNING:
            self._refuse("withdraw")
        return self._replace(attempt=self.attempt - 1, started_at=None, status=_PENDING)

    def succeed(
        self,
        now: float,
        result: object,
        started_at: float | None = None,
        encoded_at: float | None = None,
    ) -> TaskRecord:
        """RUNNING -> SUCCESS.

        Args:
            now: When the code returned.
            result: What the store keeps.
            started_at: When the code began, if that is known better.
            encoded_at: When the result was ready to be saved.
        """
        if self.status is not _RUNNING:
            self._refuse("succeed")
        at = self.started_at if started_at is None else started_at
        return self._ended(_SUCCESS, now, None, None, False, result, at, encoded_at)  # noqa: FBT003

    def stand_in(self, now: float, result: object, cache: Cached | None = None) -> TaskRecord:
        """PENDING -> SUCCESS: a value was given, or was in the cache, in place of an attempt."""
        if self.status is not _PENDING:
            self._refuse("be overridden")
        ended = self._ended(_SUCCESS, now, None, None, False, result, None)  # noqa: FBT003
        return ended if cache is None else ended._replace(cache=cache)

    def fail(
        self, now: float, error: str, reason: Reason, *, abandoned: bool = False
    ) -> TaskRecord:
        """RUNNING -> FAILED."""
        if self.status is not _RUNNING:
            self._refuse("fail")
        return self._ended(_FAILED, now, error, reason, abandoned, self.result, self.started_at)

    def omit(self, now: float, reason: Reason, why: str) -> TaskRecord:
        """PENDING or RUNNING -> OMITTED: it has nothing to do in this run."""
        if self.status is not _PENDING and self.status is not _RUNNING:
            self._refuse("be omitted")
        at = self.started_at
        return self._ended(_OMITTED, now, why, reason, self.abandoned, self.result, at)

    def expand(self, now: float, ready_at: float, items: int) -> TaskRecord:
        """PENDING -> RUNNING: a mapped task, which has no attempt of its own, has items."""
        if self.status is not _PENDING:
            self._refuse("expand")
        return self._replace(status=_RUNNING, ready_at=ready_at, started_at=now, items=items)

    def gather(
        self, status: TaskStatus, items: Sequence[TaskRecord], now: float, result: object
    ) -> TaskRecord:
        """RUNNING -> its end: the items of a mapped task have ended.

        Args:
            status: How.
            items: They.
            now: The time, which counts if there is no item.
            result: Of a success.
        """
        if self.status is not _RUNNING:
            self._refuse("gather items")
        new = [item for item in items if item.why_run == self.why_run]  # others a resume has kept
        starts = [item.started_at for item in new if item.started_at is not None]
        ends = [item.finished_at for item in new if item.finished_at is not None]
        return self._replace(
            status=status,
            attempt=max((item.attempt for item in items), default=0),
            started_at=min(starts, default=self.started_at),
            finished_at=max(ends, default=now),
            result=result,
            items=len(items),
        )

    def amend(self, error: str) -> TaskRecord:
        """Replace the error text of a FAILED task by a longer one."""
        if self.status is not _FAILED:
            self._refuse("amend")
        return self._replace(error=error)

    def retry(self) -> TaskRecord:
        """FAILED -> PENDING: another attempt will follow."""
        if self.status is not _FAILED:
            self._refuse("retry")
        return self._replace(earlier=(*self.earlier, self._last_attempt()), status=_PENDING)

    def skip(self, now: float, reason: Reason, why: str) -> TaskRecord:
        """PENDING -> SKIPPED: it will not run (again)."""
        if self.status is not _PENDING:
            self._refuse("skip")
        at = self.started_at
        return self._ended(_SKIPPED, now, why, reason, self.abandoned, self.result, at)

    def release(self) -> TaskRecord:
        """Drop the result; the task stays SUCCESS."""
        if self.status is not _SUCCESS:
            self._refuse("release")
        return self._replace(result=NoResult.RELEASED)

    def without_entry(self) -> TaskRecord:
        """Leave the entry in the cache to the run that has made it."""
        is_entry = self.cache is not None and self.cache.run_id is None
        return self._replace(cache=None) if is_entry else self

    def without_logs(self) -> TaskRecord:
        """Leave out the log lines of all attempts."""
        if self.notes is None and not self.earlier:
            return self
        earlier = tuple(
            [each._replace(notes=each.notes and each.notes.without_logs()) for each in self.earlier]
        )
        return self._replace(notes=self.notes and self.notes.without_logs(), earlier=earlier)

    @property
    def attempts(self) -> tuple[AttemptRecord, ...]:
        """Every attempt that has ended, the first one first."""
        if self.items is not None:
            return ()
        if self.attempt > len(self.earlier) and self.status in (_SUCCESS, _FAILED, _OMITTED):
            return (*self.earlier, self._last_attempt())
        return self.earlier

    def _ended(  # noqa: PLR0913 - what an end says
        self,
        status: TaskStatus,
        now: float,
        error: str | None,
        reason: Reason | None,
        abandoned: bool,  # noqa: FBT001
        result: object,
        started_at: float | None,
        encoded_at: float | None = None,
    ) -> TaskRecord:
        ended = (
            self.name,
            self.deps,
            status,
            self.attempt,
            self.ready_at,
            started_at,
            now,
            error,
            reason,
            abandoned,
            result,
            self.earlier,
            self.item,
            self.key,
            self.items,
            self.cache,
            self.granted_at,
            self.limit_waits,
            encoded_at,
            self.why_run,
            self.teardown_of,
            self.notes,
        )
        return _new_record(TaskRecord, ended)

    def _last_attempt(self) -> AttemptRecord:
        return AttemptRecord(*self[3:10], self.granted_at, self.limit_waits, self.notes)

    def _refuse(self, change: str) -> NoReturn:
        msg = f"task {self.name!r} cannot {change} while it is {self.status}"
        raise TransitionError(msg)

    def __repr__(self) -> str:
        """Show name and status; never the result, which may be large or secret."""
        return f"<TaskRecord {self.label!r} {self.status} attempt={self.attempt}>"


def items_by_task(records: Iterable[TaskRecord]) -> dict[str, list[TaskRecord]]:
    """Return the items among records, by task and in their order."""
    found: dict[str, list[TaskRecord]] = {}
    for record in records:
        if record.item is not None:
            found.setdefault(record.name, []).append(record)
    for items in found.values():
        items.sort(key=_item_of)
    return found
