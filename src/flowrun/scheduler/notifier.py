"""Notify log and hooks of what a run does.

Hooks get texts as they are. A log mostly ends on a screen, so its texts are escaped (V1).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flowrun.hooks import (
    DagEndEvent,
    DagStartEvent,
    TaskFailureEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
)
from flowrun.state import Reason, TaskStatus

if TYPE_CHECKING:
    from flowrun.hooks import HookChannel
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

    Attributes:
        reports_starts: Whether any hook or log wants starts.
        reports_successes: Whether any hook or log wants successes.
    """

    __slots__ = (
        "_channel",
        "_log",
        "_logs_start",
        "_logs_success",
        "_record",
        "_wants_start",
        "_wants_success",
        "reports_starts",
        "reports_successes",
    )

    def __init__(self, record: RunRecord, channel: HookChannel, log: logging.Logger) -> None:
        self._record = record
        self._channel = channel
        self._log = log
        # Asked once per run, as these two come for every task.
        self._wants_start = channel.wants(TaskStartEvent)
        self._wants_success = channel.wants(TaskSuccessEvent)
        self._logs_start = log.isEnabledFor(logging.DEBUG)
        self._logs_success = log.isEnabledFor(logging.INFO)
        self.reports_starts = self._wants_start or self._logs_start
        self.reports_successes = self._wants_success or self._logs_success

    def run_started(self, task_names: tuple[str, ...]) -> None:
        """A run begins."""
        record = self._record
        self._log.info(
            "run %s of DAG %r started: %d task(s)",
            record.run_id,
            record.dag_name,
            len(task_names),
            extra=self._about(),
        )
        if self._channel.wants(DagStartEvent):
            self._channel.emit(
                DagStartEvent(
                    record.run_id,
                    record.dag_name,
                    record.created_at,
                    task_names,
                    record.resumed_from,
                )
            )

    def run_ended(self, record: RunRecord, duration_s: float) -> None:
        """A run has ended, and its record is saved."""
        status = record.status
        self._log.info(
            "run %s of DAG %r finished: %s in %.3f s",
            record.run_id,
            record.dag_name,
            status,
            duration_s,
            extra=self._about(),
        )
        if self._channel.wants(DagEndEvent):
            self._channel.emit(
                DagEndEvent(
                    record.run_id,
                    record.dag_name,
                    record.finished_at or 0.0,
                    status.value,
                    duration_s,
                    record.error,
                )
            )

    def run_recovered(self) -> None:
        """Send the events of a run that a dead process left behind, now that it has ended."""
        record = self._record
        for task in record.tasks.values():
            if task.reason is Reason.OWNER_DIED and task.status is TaskStatus.FAILED:
                self.failed(task, task.error or "")
            elif task.reason is Reason.OWNER_DIED:
                self.skipped(task)
        self.run_ended(record, (record.finished_at or 0.0) - record.created_at)

    def run_broke(self, line: str, text: str) -> None:
        """The store or flowrun itself has failed.

        Args:
            line: The error's own line.
            text: The same with its traceback.
        """
        line, text = _shown(line), _shown(text, multiline=True)
        self._log.error(
            "run %s broke: %s\n%s", self._record.run_id, line, text, extra=self._about()
        )

    def started(self, task: TaskRecord) -> None:
        """An attempt is launched."""
        if self._wants_start:
            record = self._record
            self._channel.emit(
                TaskStartEvent(
                    record.run_id,
                    record.dag_name,
                    task.name,
                    task.started_at or 0.0,
                    task.attempt,
                )
            )
        if self._logs_start:
            self._log.debug(
                "task %r attempt %d launched", task.name, task.attempt, extra=self._about(task)
            )

    def succeeded(self, task: TaskRecord, value: object) -> None:
        """A task has succeeded, and that is saved."""
        if self._wants_success:
            record = self._record
            self._channel.emit(
                TaskSuccessEvent(
                    record.run_id,
                    record.dag_name,
                    task.name,
                    task.finished_at or 0.0,
                    task.attempt,
                    _duration_s(task),
                    value,
                )
            )
        if self._logs_success:
            self._log.info(
                "task %r succeeded in %.3f s",
                task.name,
                _duration_s(task),
                extra=self._about(task),
            )

    def retrying(self, task: TaskRecord, line: str, delay_s: float, max_attempts: int) -> None:
        """An attempt has failed; another one follows."""
        record = self._record
        if self._log.isEnabledFor(logging.WARNING):
            self._log.warning(
                TASK_RETRIED,
                task.name,
                task.attempt,
                delay_s,
                _shown(line),
                extra=self._about(task),
            )
        self._log_traceback(task)
        if self._channel.wants(TaskRetryEvent):
            self._channel.emit(
                TaskRetryEvent(
                    record.run_id,
                    record.dag_name,
                    task.name,
                    task.finished_at or 0.0,
                    task.attempt,
                    delay_s,
                    task.error or "",
                    line,
                    task.attempt + 1,
                    max_attempts,
                )
            )

    def failed(self, task: TaskRecord, message: str) -> None:
        """A task has failed for good."""
        record = self._record
        if self._log.isEnabledFor(logging.WARNING):
            verb = "timed out" if task.reason is Reason.TIMEOUT else "failed"
            about = self._about(task)
            self._log.warning(TASK_FAILED, task.name, verb, _shown(message), extra=about)
        self._log_traceback(task)
        if self._channel.wants(TaskFailureEvent):
            self._channel.emit(
                TaskFailureEvent(
                    record.run_id,
                    record.dag_name,
                    task.name,
                    task.finished_at or 0.0,
                    task.attempt,
                    _duration_s(task),
                    task.error or "",
                    message,
                    str(task.reason),
                )
            )

    def _log_traceback(self, task: TaskRecord) -> None:
        if self._log.isEnabledFor(logging.DEBUG):
            trace = _shown(task.error or "", multiline=True)
            self._log.debug("traceback of task %r:\n%s", task.name, trace, extra=self._about(task))

    def skipped(self, task: TaskRecord) -> None:
        """A task will not run."""
        record = self._record
        if self._log.isEnabledFor(logging.INFO):
            why = _shown(task.error or "")
            self._log.info("task %r skipped: %s", task.name, why, extra=self._about(task))
        if self._channel.wants(TaskSkipEvent):
            self._channel.emit(
                TaskSkipEvent(
                    record.run_id,
                    record.dag_name,
                    task.name,
                    task.finished_at or 0.0,
                    str(task.reason),
                    task.error or "",
                )
            )

    def noted(self, task: TaskRecord, what: str) -> None:
        """Log a warning that the task's record does not show."""
        self._log.warning("task %r: %s", task.name, what, extra=self._about(task))

    def abandoned(self, task: TaskRecord) -> None:
        """An attempt was given up while its code still runs."""
        self._log.warning(
            "task %r attempt %d does not end; it is abandoned and may run on unseen",
            task.name,
            task.attempt,
            extra=self._about(task),
        )

    def _about(self, task: TaskRecord | None = None) -> dict[str, object]:
        about: dict[str, object] = {"run_id": self._record.run_id, "dag": self._record.dag_name}
        if task is not None:
            about["task"] = task.name
        return about


def _shown(text: str, *, multiline: bool = False) -> str:
    from flowrun.escape import for_terminal  # noqa: PLC0415 - most runs have no error to show

    return for_terminal(text, multiline=multiline)


def _duration_s(task: TaskRecord) -> float:
    finished = task.finished_at or 0.0
    return finished - (task.started_at or finished)
