"""``RunHandle``: a run that goes on beside the code that has started it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from flowrun.failure import error_line, redacted
from flowrun.hooks import DagEndEvent, DagStartEvent, TaskProgressEvent, TaskSuccessEvent
from flowrun.report import progress_report
from flowrun.state import RunStatus

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator

    from flowrun.hooks import Event
    from flowrun.report import ProgressReport, RunReport
    from flowrun.scheduler.run import Run
    from flowrun.state import RunRecord

_KEPT_EVENTS = 10_000


class RunHandle:
    """A run that :meth:`Engine.start` has started. ``await handle`` returns its report.

    Cancelling a task that awaits the handle does not cancel the run; :meth:`cancel` and closing
    the engine do. A run also ends if no code awaits it; the log then says whether it has failed.

    Attributes:
        run_id: The run's id.
        dag_name: Its DAG.

    Example:
        >>> import asyncio
        >>> from flowrun import build_default_engine
        >>> async def main() -> str:
        ...     async with build_default_engine() as engine:
        ...         @engine.task(dag="hello")
        ...         def greet() -> str:
        ...             return "hello"
        ...         handle = engine.start("hello")
        ...         report = await handle
        ...     return report["status"]
        >>> asyncio.run(main())
        'SUCCESS'
    """

    def __init__(
        self,
        record: RunRecord,
        read_report: Callable[[str], Coroutine[None, None, RunReport]],
        log: logging.Logger,
        redact: Callable[[str], str] | None,
    ) -> None:
        self.run_id = record.run_id
        self.dag_name = record.dag_name
        self._read_report = read_report
        self._log = log
        self._redact = redact
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._emitted = 0
        # The newest of each task that runs, apart from the events that are kept: it comes often.
        self._progress: dict[tuple[str, int | None], TaskProgressEvent] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._is_awaited = False
        self._error: BaseException | None = None
        self._run: Run
        self._task: asyncio.Task[None]

    def __await__(self) -> Generator[object, None, RunReport]:
        """Wait for the end of the run and return its report.

        Raises:
            RunFailedError: It has failed, and was started with ``raise_on_failure=True``.
            RunAliveError: It was not started, because of ``if_running="refuse"``.
            asyncio.CancelledError: It was cancelled, or the awaiting task was.
            StoreError: The store failed.
        """
        return self._outcome().__await__()

    @property
    def progress(self) -> dict[str, int]:
        """The number of tasks by status, statuses with none left out."""
        return _counts(self._run)

    @property
    def task_progress(self) -> dict[str, ProgressReport]:
        """What running tasks have said last by ``current_attempt().progress()``, by name.

        An item of a mapped task is called ``load[3]``.
        """
        told = {task.label: progress_report(task.notes) for task in self._run.running()}
        return {name: progress for name, progress in told.items() if progress is not None}

    def cancel(self) -> bool:
        """Cancel the run, from any thread; return whether it had not ended yet."""
        if self._task.done():
            return False
        self._run.request_cancel("handle.cancel() was called")
        return True

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the run's events, from the first one to the end of the run.

        They are those that hooks get, but success events are without results, which are in the
        report. A slow reader does not delay the run: the handle keeps the newest 10,000 events, and
        the log says when a reader has missed older ones. Of the progress of a task only the newest
        event is kept, and none once its attempt has ended.
        """
        place = 0
        seen: dict[tuple[str, int | None], TaskProgressEvent] = {}
        while True:
            first = self._emitted - len(self._events)
            if place < first:
                text = "a reader of the events of run %s has missed %d of them, as it is too slow"
                self._log.warning(text, self.run_id, first - place, extra={"run_id": self.run_id})
                place = first
            if place < self._emitted:
                event = self._events[place - first]
                place += 1
                yield event
                if type(event) is DagEndEvent:
                    return
            elif progress := [one for one in self._progress.values() if one not in seen.values()]:
                seen[progress[0].task_name, progress[0].item] = progress[0]
                yield progress[0]
            elif self._task.done():
                return
            else:
                more = asyncio.get_running_loop().create_future()
                self._waiting.append(more)
                await more

    def __repr__(self) -> str:
        """Show id and DAG."""
        return f"<RunHandle {self.run_id!r} of DAG {self.dag_name!r}>"

    # -- for the engine ------------------------------------------------------------------------

    def begin(
        self, run: Run, work: Coroutine[None, None, None], leave: Callable[[], object]
    ) -> None:
        """Have the running loop carry out the run.

        Args:
            run: The run.
            work: Carries it out.
            leave: Called when that has ended, also if it has never begun.
        """
        self._run = run
        self._task = asyncio.get_running_loop().create_task(
            self._keep_outcome(work), name=f"flowrun-{self.run_id}"
        )
        self._task.add_done_callback(lambda _: self._ended(work, leave))

    def take(self, event: Event) -> None:
        """Keep an event for those who read them; called on the loop."""
        if type(event) is TaskProgressEvent:
            self._take_progress(event)
            return
        if not isinstance(event, DagStartEvent | DagEndEvent):
            self._progress.pop((event.task_name, event.item), None)
        if type(event) is TaskSuccessEvent:
            event = event._replace(result=None)  # a result may be large, and is to be released
        self._events.append(event)
        self._emitted += 1
        self._wake()

    def _take_progress(self, event: TaskProgressEvent) -> None:
        place = (event.task_name, event.item)
        last = self._progress.get(place)
        if last is None or last._replace(timestamp=event.timestamp) != event:
            self._progress[place] = event
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for more in waiting:
            with contextlib.suppress(asyncio.InvalidStateError, RuntimeError):  # it left, or ended
                more.set_result(None)

    async def _outcome(self) -> RunReport:
        self._is_awaited = True
        if not self._task.done():
            await asyncio.wait([self._task])
        if self._error is not None:
            raise self._error
        self._task.result()  # raises if it was cancelled before it had begun
        return await self._read_report(self.run_id)

    async def _keep_outcome(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except BaseException as error:
            self._error = error
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise  # to the loop, as from any task

    def _ended(self, work: Coroutine[None, None, None], leave: Callable[[], object]) -> None:
        work.close()
        leave()
        self._wake()
        is_cancelled = self._task.cancelled() or isinstance(self._error, asyncio.CancelledError)
        if self._is_awaited or is_cancelled:
            return
        if self._error is not None:
            from flowrun.escape import for_terminal  # noqa: PLC0415 - for errors only

            why = for_terminal(redacted(error_line(self._error), self._redact))
        elif self._run.ended is not None and self._run.ended.status is RunStatus.FAILED:
            why = "see its report"
        else:
            return
        self._log.error(
            "run %s of DAG %r, started by engine.start(), has failed: %s",
            self.run_id,
            self.dag_name,
            why,
            extra={"run_id": self.run_id, "dag": self.dag_name},
        )


def _counts(run: Run) -> dict[str, int]:
    counts = run.record._replace(tasks=run.tasks()).task_counts()
    return {str(status): number for status, number in counts.items()}
