"""The state of one run, and every rule by which it changes.

Events go in, instructions come out: :meth:`RunState.apply` books all events of one wake-up,
then decides once. Nothing here waits, reads a clock, takes a lock, or calls a user's code, and
no result is looked into. The driver in ``run.py`` carries the instructions out and turns what
happens into events.

A unit is a task of the run, or an item of a mapped one; ``mapping.py`` has the rules of those. This
is its way through its phases; ``attempt_rules.py`` has the table of transitions,
``deadline_rules.py`` what follows when time is up::

    WAITING ----------------------> SAVING (a value overrides it)
    WAITING -> LOOKING_UP -> READY, or SAVING (its result is in the cache)
    WAITING -> READY -> RUNNING -> SAVING -> DONE
                ^          |-> EXPIRING (its time is up) -|
                |          |-> STOPPING (the run stops) --|-> FAILING -> DONE
                |                                         |
                |-- DELAYED (before a retry) <------------|
                |-- LINGERING (an abandoned attempt has to end first) <-|

    READY -> STARTING (a teardown: its start is being saved) -> RUNNING
    WAITING, READY, DELAYED, EXPANDING -> SKIPPING -> DONE
    WAITING, RUNNING -> OMITTING -> DONE

SAVING, FAILING, SKIPPING and OMITTING wait for the store: an outcome is committed, then shown (D8).
Children become ready, and slots become free, by these rules:

- A slot is held from the start instruction until the code has ended or was given up. While more
  than ``most_encoding`` results are encoded it is held longer, so that results do not pile up.
- When all parents of a unit are DONE, its trigger rule says whether it runs, is skipped or omitted.
- A final failure skips at once, when it is committed, all descendants that need a success.
- A branch omits the children that it has not chosen.
- A run that is stopped tells running attempts to stop. When all have ended, it skips the rest, but
  for teardowns; ``stopping.py`` has these rules.
- A teardown is ready when its parents and all other children of its setups are DONE. It runs if
  its setups have succeeded. A resume has to know of its start, which is saved first.
- A value is dropped when every consumer is DONE, its retries included (I2).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from flowrun.registry import TriggerRule
from flowrun.scheduler.attempt_rules import (
    TRANSITIONS,
    begin_saved,
    look_up,
    make_ready,
    refuse,
    stand_in,
)
from flowrun.scheduler.deadline_rules import DUE, meet_deadlines
from flowrun.scheduler.deadlines import Deadlines, Wait
from flowrun.scheduler.mapping import (
    begin,
    book_expanded,
    feed,
    item_ended,
    parent_ended,
    restore,
)
from flowrun.scheduler.messages import (
    Expanded,
    Failed,
    Finish,
    Report,
    Save,
    Saved,
    SlotsGranted,
    Start,
    StopRequested,
    Subject,
    Succeeded,
)
from flowrun.scheduler.slot_requests import SlotRequests
from flowrun.scheduler.stopping import Stopping, skip_rest, stop
from flowrun.scheduler.trigger_rules import Verdict, verdict
from flowrun.scheduler.units import ACTIVE, Phase, UnitTable, require
from flowrun.state import Reason, RunStatus, TaskStatus, TransitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowrun.graph import Graph
    from flowrun.scheduler.deadlines import Deadline
    from flowrun.scheduler.limits import Amounts, Needs
    from flowrun.scheduler.messages import Event, Instruction, UnitEvent
    from flowrun.scheduler.run_settings import RunSettings
    from flowrun.scheduler.units import Unit
    from flowrun.state import RunRecord, TaskRecord


class RunState:
    """The state machine of one run.

    Args:
        graph: The graph.
        record: The run as it was created; tasks that are already SUCCESS were carried over.
        values: Results of carried-over tasks, by name, that tasks of this run are given.
        needs: What each unit needs at once to start, by number.
        exchange: The engine's limits: given how many units of each kind have ended and could start,
            and the time, returns how many may start; others come as :class:`SlotsGranted`.
        pause: Holds limits for everybody until a time; returns those that do not exist.
        settings: How it goes on.
        waited: See :class:`flowrun.scheduler.slot_requests.SlotRequests`.

    Attributes:
        table: All units.
        stopping: Why the run is ended from outside its tasks; ``None`` if it is not.
        stopped: What else is known of that.
        is_finished: Whether the last instruction was given.
        requests: The slots that it has asked for.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        graph: Graph,
        record: RunRecord,
        values: Mapping[str, object],
        needs: Sequence[Needs],
        exchange: Callable[[Amounts, Amounts, float], tuple[Amounts, float]],
        pause: Callable[[Sequence[str], float], Sequence[str]],
        settings: RunSettings,
        waited: Callable[[Needs, float], Mapping[str, float]] | None = None,
    ) -> None:
        self.graph = graph
        self.settings = settings
        self.offset = settings.offset
        self.now = 0.0
        self.table = UnitTable(graph, record, values, needs)
        self.deadlines = Deadlines(self.is_current)
        self.out: list[Instruction] = []
        self.stopping: Reason | None = None
        self.stopped = Stopping()
        self.is_finished = False
        self.pause = pause
        self._record = record
        self.requests = SlotRequests(exchange, waited, settings.most_encoding)
        self.run_timeout_s = 0.0
        self.saves_starts = False
        self._saved_starts: list[Unit] = []
        restore(self, record, values)

    # -- what the driver asks ----------------------------------------------------------------

    @property
    def epoch(self) -> float:
        """The time of the last call, in epoch seconds."""
        return self.now + self.offset

    @property
    def why_it_stops(self) -> str:
        """Why the run is ended from outside its tasks, in words."""
        return f"{self.stopping}: {self.stopped.cause}"

    def is_ending(self, unit: Unit) -> bool:
        """Return whether the run was stopped and the unit may not start any more."""
        return self.stopping is not None and not (
            unit.is_teardown and self.stopped.spares_teardowns
        )

    def value(self, number: int) -> object:
        """Return a unit's value, which a consumer needs."""
        return self.table.units[number].value

    def records(self) -> dict[str, TaskRecord]:
        """Return the records of all tasks."""
        return self.table.records()

    def begin(self, now: float, timeout_s: float | None = None) -> list[Instruction]:
        """Make ready what waits for nothing; return the first instructions.

        Args:
            now: As for :meth:`apply`.
            timeout_s: How long the whole run may take.
        """
        if timeout_s is not None:
            self.run_timeout_s = timeout_s
            self.deadlines.add(now + timeout_s, Wait.RUN)
        self.now = now
        for number, chosen in self.settings.kept_choices.items():
            self._omit_others(self.table.units[number], chosen)
        for unit in self.table.units:
            if not unit.unmet and unit.phase is Phase.WAITING:
                self._judge(unit)
        return self.apply((), now)

    def apply(self, events: Iterable[Event], now: float) -> list[Instruction]:
        """Book all events, then decide; return the instructions in their order.

        It has to be called again when ``deadlines.earliest`` has come, at the latest.

        Args:
            events: What has happened, the oldest first.
            now: The monotonic clock's reading; never below an earlier one.

        Raises:
            TransitionError: An event is impossible in its unit's phase: a bug in the driver.
        """
        self.now = now
        for event in events:
            self._BOOKED.get(type(event), RunState._book_of_unit)(self, event)
        if self.deadlines.earliest <= now:
            meet_deadlines(self)
        self._decide()
        if self.settings.validates:
            self.check()
        out, self.out = self.out, []
        return out

    # -- events --------------------------------------------------------------------------------

    def _book_of_unit(self, event: UnitEvent) -> None:
        unit = self.table.units[event.unit]
        if event.attempt != unit.record.attempt:
            return  # of an attempt that is over for the run
        transition = TRANSITIONS.get((unit.phase, type(event)))
        if transition is not None:
            transition(self, unit, event)
        elif unit.phase in ACTIVE or not _may_be_late(unit, event):
            msg = (
                f"run {self._record.run_id!r}: {event!r} is impossible for task"
                f" {unit.record.name!r}, attempt {unit.record.attempt}, in phase {unit.phase.name}"
            )
            raise TransitionError(msg)

    def _book_granted(self, event: SlotsGranted) -> None:
        self.requests.book(event)
        self._ask_at(event.ask_again_at)

    def _book_stop(self, event: StopRequested) -> None:
        interrupts, broken = event.interrupts, event.broken
        stop(self, event.reason, event.cause, interrupts=interrupts, broken=broken)

    def _book_saved(self, event: Saved) -> None:
        for number in event.units:
            unit = self.table.units[number]
            refusal = None if event.refusals is None else event.refusals.get(number)
            if unit.phase is Phase.STARTING:
                unit.is_start_saved = refusal is None
                self._saved_starts.append(unit)
            elif unit.phase is not Phase.SAVING:
                self.settle(unit)
            elif refusal is None:
                self._settle_success(unit)
            else:
                refuse(self, unit, refusal)

    def _settle_success(self, unit: Unit) -> None:
        value = unit.value
        if unit.follows is not None and self.stopping is None:
            self._omit_others(unit, unit.follows)
        freed = self.table.settle(unit)
        if self.settings.reports_successes:
            self.out.append(Report(Subject.SUCCESS, unit.record, "", value))
        if unit.owner is not None:
            item_ended(self, unit)
            return
        self._judge_all(freed)
        if self.table.maps:
            parent_ended(self, unit)

    def _omit_others(self, unit: Unit, chosen: frozenset[int]) -> None:
        why = f"the branch {unit.record.name!r} did not choose it"
        for number in self.graph.children[unit.number]:
            child = self.table.units[number]
            is_open = child.phase is Phase.WAITING and not child.is_teardown
            if is_open and number not in chosen and number not in self.settings.named:
                self.omit(child, Reason.NOT_CHOSEN, why)

    def settle(self, unit: Unit) -> None:
        """A final failure, a skip or an omission is committed."""
        freed = self.table.settle(unit)
        record = unit.record
        self.out.append(Report(_SUBJECTS[record.status], record, unit.line))
        if unit.owner is not None:
            item_ended(self, unit)
            return
        is_failed = record.status is TaskStatus.FAILED
        if self.stopping is None and (is_failed or unit.map is not None):
            if is_failed and self.settings.fails_fast:
                self.stop(Reason.FAIL_FAST, f"the task {record.name!r} failed")
            else:
                why = f"the task {record.name!r} upstream of it {_ENDED[record.status]}"
                self.skip(self.table.waiting_descendants(unit), Reason.UPSTREAM_FAILED, why)
        self._judge_all(freed)
        if self.table.maps:
            parent_ended(self, unit)

    def _judge_all(self, units: Sequence[Unit]) -> None:
        for unit in units:
            if unit.phase is Phase.WAITING and (self.stopping is None or not self.is_ending(unit)):
                self._judge(unit)

    def _judge(self, unit: Unit) -> None:
        """Decide what becomes of a unit whose parents have all ended."""
        total = len(self.graph.parents[unit.number])
        if not (unit.bad or unit.omitted) and unit.rule is TriggerRule.ALL_SUCCESS:
            self._run(unit)
            return
        decided = verdict(unit.rule, total, unit.bad, unit.omitted)
        if decided is Verdict.RUN:
            self._run(unit)
        elif decided is Verdict.SKIP:
            why = f"its trigger_rule {unit.rule} was not met, as a task upstream of it failed"
            if unit.is_teardown:
                why = "what it tears down was not set up"
            self.skip([unit], self.stopping or Reason.UPSTREAM_FAILED, why)
        elif unit.rule is TriggerRule.ALL_SUCCESS:
            why = "a task upstream of it was omitted"
            self.omit(unit, Reason.UPSTREAM_OMITTED, why)
        else:
            self.omit(unit, Reason.RULE_NOT_MET, f"its trigger_rule {unit.rule} was not met")

    def _run(self, unit: Unit) -> None:
        """Start a unit when there is a slot, unless a value stands for its result."""
        if unit.number in self.settings.stand_ins:
            stand_in(self, unit, self.settings.stand_ins[unit.number])
        elif unit.task in self.graph.map_sources:
            begin(self, unit)
        elif unit.task in self.settings.cached:
            look_up(self, unit)
        else:
            make_ready(self, unit)

    def omit(self, unit: Unit, reason: Reason, why: str) -> None:
        """A unit has nothing to do in this run."""
        self.table.commit(unit, Phase.OMITTING, unit.record.omit(self.epoch, reason, why))

    def skip(self, units: Sequence[Unit], reason: Reason, why: str) -> None:
        """Units will not run."""
        for unit in units:
            skipped = unit.record.skip(self.epoch, reason, f"{reason}: {why}")
            self.table.commit(unit, Phase.SKIPPING, skipped)

    def end_attempt(self, unit: Unit) -> None:
        """The code of a unit's attempt has ended, or goes on without the run: its slot is free."""
        del self.table.active[unit.number]
        self.requests.free(unit, self.table.needs[unit.task])

    # -- deadlines -------------------------------------------------------------------------------

    def is_current(self, deadline: Deadline) -> bool:
        """Return whether a deadline still matters."""
        _, wait, number, attempt = deadline
        if wait in DUE:
            unit = self.table.units[number]
            return unit.phase in DUE[wait][0] and unit.record.attempt == attempt
        return not self.is_finished and (wait is not Wait.RUN or self.stopping is None)

    def stop(self, reason: Reason, cause: str, *, interrupts: bool = False) -> None:
        """End the run from inside: a task, a time limit."""
        stop(self, reason, cause, interrupts=interrupts, broken=False)

    # -- deciding --------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Start what is ready, end the run if all has ended, and save what has changed."""
        table = self.table
        starts = begin_saved(self, self._saved_starts) if self._saved_starts else []
        if self.stopping is not None:
            skip_rest(self, self.stopping)
        elif table.unfed:
            feed(self)
        # What is saved at once may have a child that comes first (R6).
        if not (self.settings.is_saved_at_once and table.outcomes):
            slots, again_at = self.requests.take(table, self.now)
            self._ask_at(again_at)
            if slots:
                starts += self._start(slots)
        if table.changed:
            self.out.append(Save(table.changed, table.outcomes))
            table.changed, table.outcomes = [], []
        for unit in starts:
            if self.settings.reports_starts:
                self.out.append(Report(Subject.START, unit.record))
            self.out.append(Start(unit.number, unit.record.attempt))
        if not table.open and not self.is_finished:
            self._finish()

    def _ask_at(self, time: float) -> None:
        """Ask the limits again when a time has come."""
        if time < inf:
            self.deadlines.add(time, Wait.LIMITS)

    def _start(self, slots: Amounts) -> list[Unit]:
        """Turn so many ready units into running ones."""
        starts: list[Unit] = []
        table, specs, now, epoch = self.table, self.graph.specs, self.now, self.epoch
        for unit in table.pop_ready(slots):
            unit.phase = Phase.RUNNING
            waits = self.requests.limit_waits(unit, table.needs[unit.task], now)
            unit.record = record = unit.record.start(epoch, unit.ready_at, waits)
            unit.started_at = None
            unit.is_start_saved = unit.is_overdue = False
            if unit.is_teardown:
                unit.phase = Phase.STARTING
                table.changed.append(record)
                table.outcomes.append(unit.number)
                continue
            timeout_s = specs[unit.task].timeout_s
            if timeout_s is not None:
                self.deadlines.add_timeout(now, timeout_s, unit.number, record.attempt)
            starts.append(unit)
        if self.settings.save_starts_after_s is not None and not self.saves_starts:
            self.saves_starts = True
            self.deadlines.add(now + self.settings.save_starts_after_s, Wait.STARTS)
        return starts

    def _finish(self) -> None:
        self.is_finished = True
        ended = self._record.finish(self.epoch, None, self.records())
        ended = ended._replace(items=self.table.items())
        # What came too late to stop anything has not ended the run.
        broken = self.stopped.is_broken
        if self.stopping is not None and (broken or ended.status is not RunStatus.SUCCESS):
            ended = ended._replace(error=self.why_it_stops)
        # What the store refused before may be kept now, so that the end it shows is whole.
        records = ended.records if broken else []
        self.out.append(Finish(ended, records))

    def check(self) -> None:
        """Check what must hold between two calls.

        Raises:
            AssertionError: It does not; the message names the unit.
        """
        self.table.check()
        is_open = bool(self.table.open)
        require(self.is_finished != is_open, "the run ends when all its units have")
        require(not (self.is_finished and self.table.active), "nothing runs after the end")

    _BOOKED: ClassVar[dict[type, Callable[[RunState, Any], None]]] = {
        Expanded: book_expanded,
        Saved: _book_saved,
        SlotsGranted: _book_granted,
        StopRequested: _book_stop,
    }


_ENDED = {TaskStatus.FAILED: "failed", TaskStatus.SKIPPED: "was skipped"}
_SUBJECTS = {
    TaskStatus.FAILED: Subject.FAILURE,
    TaskStatus.SKIPPED: Subject.SKIP,
    TaskStatus.OMITTED: Subject.OMIT,
}


def _may_be_late(unit: Unit, event: UnitEvent) -> bool:
    """Return whether an event may come after its attempt has ended for the run."""
    if isinstance(event, Succeeded | Failed):  # only of an attempt that was given up
        return (unit.pending or unit.record).abandoned
    return True
