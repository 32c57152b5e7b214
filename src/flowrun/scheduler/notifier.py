"""Notify log and hooks of what a run does.

Hooks get texts as they are. A log mostly ends on a screen, so its texts are escaped (V1).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from flowrun.hooks import (
    DagEndEvent,
    DagStartEvent,
    TaskFailureEvent,
    TaskOmitEvent,
    TaskProgressEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
)
from flowrun.scheduler.messages import Report, Subject
from flowrun.state import Reason, RunStatus, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flowrun.context import Attempt, Progress
    from flowrun.hooks import Event, HookChannel
    from flowrun.state import RunRecord, TaskRecord

TASK_FAILED = "task %r %s: %s"
TASK_RETRIED = "task %r attempt %d failed and will be retried in %g s: %s"
"""The log lines of failures; a program that shows failures itself can filter them out."""


class Notifier:
    """Write a line to the log, at the contract's levels, and send an event to the hooks.

    Args:
        record: The run.
        channel: Where its events go.
        log: Where its lines go.
        listener: Called with each event, beside the hooks.

    Attributes:
        reports_starts: Whether any hook or log wants starts.
        reports_successes: Whether any hook or log wants successes.
        reports_progress: Whether any hook wants progress.
    """

    def __init__(
        self,
        record: RunRecord,
        channel: HookChannel,
        log: logging.Logger,
        listener: Callable[[Event], object] | None = None,
    ) -> None:
        self._record = record
        self._channel = channel
        self._log = log
        self._listener = listener
        # Asked once per run, as these two come for every task.
        debugs, informs = log.isEnabledFor(logging.DEBUG), log.isEnabledFor(logging.INFO)
        self.reports_starts = debugs or self._wants(TaskStartEvent)
        self.reports_successes = informs or self._wants(TaskSuccessEvent)
        self.reports_progress = self._wants(TaskProgressEvent)
        self._reports: dict[Subject, Callable[[Report], None]] = {
            Subject.START: self._started,
            Subject.SUCCESS: self._succeeded,
            Subject.RETRY: self._retrying,
            Subject.FAILURE: self._failed,
            Subject.SKIP: self._skipped,
            Subject.OMIT: self._omitted,
            Subject.ABANDONED: self._abandoned,
            Subject.NOTE: self._noted,
        }

    # -- the run -----------------------------------------------------------------------------------

    def run_started(self, task_names: tuple[str, ...]) -> None:
        """A run begins."""
        run = self._record
        text = "run %s of DAG %r started: %d task(s)"
        count = len(task_names)
        self._write(logging.INFO, None, text, run.run_id, run.dag_name, count)
        self._emit(DagStartEvent, None, run.created_at, task_names, run.resumed_from)

    def run_ended(self, run: RunRecord, duration_s: float) -> None:
        """A run has ended, and its record is saved."""
        for task in run.owed_teardowns() if run.status is RunStatus.FAILED else ():
            text = "task %r, the teardown of %s, has not succeeded; resume run %s to run it"
            setups = ", ".join(map(repr, task.teardown_of))
            self._write(logging.WARNING, task, text, task.name, setups, run.run_id)
        text = "run %s of DAG %r finished: %s in %.3f s"
        status = run.status
        self._write(logging.INFO, None, text, run.run_id, run.dag_name, status, duration_s)
        self._emit(DagEndEvent, None, run.finished_at or 0.0, status.value, duration_s, run.error)

    def run_aborted(
        self, tasks: Iterable[TaskRecord], run: RunRecord, duration_s: float | None = None
    ) -> None:
        """A run was ended without its state: these tasks have ended with it."""
        for task in tasks:
            failed = task.status is TaskStatus.FAILED
            subject = Subject.FAILURE if failed else Subject.SKIP
            self.report(Report(subject, task, task.error or ""))
        if duration_s is None:
            duration_s = (run.finished_at or 0.0) - run.created_at
        self.run_ended(run, duration_s)

    def run_broke(self, line: str, text: str) -> None:
        """The store or flowrun itself has failed: the error's own line, and its traceback."""
        whole = f"{line}\n{text}"
        self._write(logging.ERROR, None, "run %s broke: %s", self._record.run_id, shown=whole)

    # -- its tasks ---------------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        """Report what has happened to a task."""
        self._reports[report.subject](report)

    def progressed(self, attempt: Attempt, at: float, progress: Progress) -> bool:
        """An attempt has said how far it has come; return whether hooks are called for it.

        Hooks that are busy do not: what they have yet to handle would become more and more, and
        the run ends only when they have handled all.
        """
        about = (attempt.run_id, attempt.dag_name, attempt.task_name, at, attempt.attempt)
        event = TaskProgressEvent(*about, *progress, attempt.item)
        if self._listener is not None:
            self._listener(event)
        if not self._channel.wants(TaskProgressEvent):
            return True
        if self._channel.is_busy:
            return False
        self._channel.emit(event)
        return True

    def _started(self, report: Report) -> None:
        task = report.record
        self._emit(TaskStartEvent, task, task.started_at or 0.0, task.attempt)
        self._write(logging.DEBUG, task, "task %r attempt %d launched", task.label, task.attempt)

    def _succeeded(self, report: Report) -> None:
        task = report.record
        duration_s, ended_at = _duration_s(task), task.finished_at or 0.0
        self._emit(TaskSuccessEvent, task, ended_at, task.attempt, duration_s, report.value)
        level = logging.INFO if task.item is None else logging.DEBUG
        source = None if task.cache is None else task.cache.run_id
        if source is None:
            self._write(level, task, "task %r succeeded in %.3f s", task.label, duration_s)
        else:
            text = "task %r has its result from the cache, of run %s"
            self._write(level, task, text, task.label, source)

    def _retrying(self, report: Report) -> None:
        task, line, delay_s = report.record, report.line, report.delay_s
        about = (task.label, task.attempt, delay_s)
        self._write(logging.WARNING, task, TASK_RETRIED, *about, shown=line)
        self._write_traceback(task)
        attempts = (task.attempt + 1, report.max_attempts)
        error, ended_at = task.error or "", task.finished_at or 0.0
        whole = (ended_at, task.attempt, delay_s, error, line, *attempts)
        self._emit(TaskRetryEvent, task, *whole)

    def _failed(self, report: Report) -> None:
        task, line = report.record, report.line
        verb = "timed out" if task.reason is Reason.TIMEOUT else "failed"
        self._write(logging.WARNING, task, TASK_FAILED, task.label, verb, shown=line)
        self._write_traceback(task)
        error, ended_at = task.error or "", task.finished_at or 0.0
        about = (ended_at, task.attempt, _duration_s(task), error, line)
        self._emit(TaskFailureEvent, task, *about, str(task.reason))

    def _skipped(self, report: Report) -> None:
        task, why = report.record, report.record.error or ""
        self._write(logging.INFO, task, "task %r skipped: %s", task.label, shown=why)
        self._emit(TaskSkipEvent, task, task.finished_at or 0.0, str(task.reason), why)

    def _omitted(self, report: Report) -> None:
        task, why = report.record, report.record.error or ""
        self._write(logging.INFO, task, "task %r omitted: %s", task.label, shown=why)
        self._emit(TaskOmitEvent, task, task.finished_at or 0.0, str(task.reason), why)

    def _abandoned(self, report: Report) -> None:
        task = report.record
        text = "task %r attempt %d does not end; it is abandoned and may run on unseen"
        self._write(logging.WARNING, task, text, task.label, task.attempt)

    def _noted(self, report: Report) -> None:
        self._write(logging.WARNING, report.record, "task %r: %s", report.record.label, report.line)

    def _write_traceback(self, task: TaskRecord) -> None:
        text, trace = "traceback of task %r:\n%s", task.error or ""
        self._write(logging.DEBUG, task, text, task.label, shown=trace)

    # -- where it goes -----------------------------------------------------------------------------

    def _write(
        self,
        level: int,
        task: TaskRecord | None,
        text: str,
        *about: object,
        shown: str | None = None,
    ) -> None:
        """Write a line; ``shown`` is its last argument, and of a user's making."""
        if not self._log.isEnabledFor(level):
            return
        extra: dict[str, object] = {"run_id": self._record.run_id, "dag": self._record.dag_name}
        if task is not None:
            extra["task"] = task.name
            if task.item is not None:
                extra["item"] = task.item
        if shown is not None:
            from flowrun.escape import for_terminal  # noqa: PLC0415 - for errors only

            about = (*about, for_terminal(shown, multiline=level in (logging.DEBUG, logging.ERROR)))
        self._log.log(level, text, *about, extra=extra)

    def _wants(self, kind: type[Any]) -> bool:
        return self._listener is not None or self._channel.wants(kind)

    def _emit(self, kind: type[Any], task: TaskRecord | None, *about: object) -> None:
        if not self._wants(kind):
            return
        ids = (self._record.run_id, self._record.dag_name)
        if task is None:
            event = kind(*ids, *about)
        elif task.item is None:
            event = kind(*ids, task.name, *about)
        else:
            event = kind(*ids, task.name, *about, item=task.item)
        if self._channel.wants(kind):
            self._channel.emit(event)
        if self._listener is not None:
            self._listener(event)


def _duration_s(task: TaskRecord) -> float:
    finished = task.finished_at or 0.0
    return finished - (task.started_at or finished)
