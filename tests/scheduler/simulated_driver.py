"""A driver of a run state without loop, threads and store, and with choices from outside.

It obeys the protocol of ``messages.py`` and is otherwise as unkind as that allows: answers come
late, in any order and many at once, attempts do not end, the store refuses. After each step it
compares what the run state says with :class:`ContractModel`.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from flowrun.graph import Graph
from flowrun.scheduler.limits import Amounts, Needs
from flowrun.scheduler.messages import (
    CodeEnded,
    Event,
    Failed,
    Failure,
    Finish,
    GiveUp,
    Instruction,
    LookedUp,
    LookUp,
    Refusal,
    Report,
    Save,
    Saved,
    SlotsGranted,
    Start,
    Started,
    Stop,
    StopAnswer,
    StopAnswered,
    StopRequested,
    Subject,
    Succeeded,
)
from flowrun.scheduler.run_settings import RunSettings
from flowrun.scheduler.run_state import RunState
from flowrun.scheduler.stand_ins import StandIn
from flowrun.scheduler.units import Phase
from flowrun.state import Cached, NoResult, Reason, RunRecord, RunStatus, TaskRecord

from .contract_model import FAILED, OMITTED, SUCCESS, ContractModel, Told

OFFSET = 1_600_000_000.0
Choose = Callable[[int], int]
"""Given a number n, choose one of 0 to n - 1; 0 is the plainest choice."""

KINDS = {
    Subject.START: "start",
    Subject.SUCCESS: "success",
    Subject.RETRY: "retry",
    Subject.FAILURE: "failure",
    Subject.SKIP: "skip",
    Subject.OMIT: "omit",
    Subject.ABANDONED: "abandoned",
}


@dataclass
class Setup:
    """What a run is made of.

    Attributes:
        retries: Of each task.
        carried: Numbers of tasks that a resume keeps.
        pooled: Numbers of sync tasks whose executor does not say when their code begins.
        slots: Slots of the engine.
        heavy: Numbers of tasks that need a limit beside their slot.
        cached: Numbers of tasks with a cache, and whether they have to run all the same.
    """

    graph: Graph
    retries: list[int]
    carried: set[int] = field(default_factory=set[int])
    pooled: set[int] = field(default_factory=set[int])
    heavy: set[int] = field(default_factory=set[int])
    cached: dict[int, bool] = field(default_factory=dict[int, bool])
    slots: int = 2
    cancel_grace_s: float = 1.0
    thread_grace_s: float = 0.25
    run_timeout_s: float | None = None
    fails_fast: bool = False
    most_encoding: int = 0
    reports_starts: bool = True
    reports_successes: bool = True


def granted_by(events: list[Event]) -> Counter[Needs]:
    """Return what the events grant."""
    granted: Counter[Needs] = Counter()
    for event in events:
        if isinstance(event, SlotsGranted):
            granted.update(event.slots)
    return granted


class Code:
    """The code of one attempt, somewhere outside the run."""

    def __init__(self, unit: int, attempt: int, *, is_async: bool) -> None:
        self.unit = unit
        self.attempt = attempt
        self.is_async = is_async
        self.begun_at: float | None = None
        self.ended_at: float | None = None
        self.is_told = False  # to stop
        self.given_up = False
        self.outcome: Succeeded | Failed | None = None


class SimulatedDriver:
    """One run with everything that is outside of it."""

    def __init__(self, setup: Setup, choose: Choose) -> None:
        self.setup = setup
        self.choose = choose
        self.graph = graph = setup.graph
        self.now = 1000.0
        tasks = {
            name: TaskRecord(name, deps)
            for name, deps in zip(graph.names, graph.dependency_names, strict=True)
        }
        values: dict[int, object] = {}
        for number in setup.carried:
            name = graph.names[number]
            tasks[name] = tasks[name].start(1.0, 1.0).succeed(2.0, NoResult.STORED)
            if not setup.carried.issuperset(graph.children[number]):
                values[number] = (number, "kept")
        choices = {
            number: frozenset(child for child in graph.children[number] if not choose(2))
            for number in sorted(setup.carried)
            if graph.specs[number].is_branch
        }
        record = RunRecord("r", graph.dag_name, OFFSET + self.now, tasks)
        self.needs: list[Needs] = [
            (("", 1), ("api", 2)) if number in setup.heavy else (("", 1),)
            for number in range(len(graph))
        ]
        self.state = RunState(
            graph,
            record,
            {graph.names[number]: value for number, value in values.items()},
            self.needs,
            self.exchange,
            lambda names, until: (),
            RunSettings(
                offset=OFFSET,
                cancel_grace_s=setup.cancel_grace_s,
                thread_grace_s=setup.thread_grace_s,
                reports_starts=setup.reports_starts,
                reports_successes=setup.reports_successes,
                save_starts_after_s=None,
                fails_fast=setup.fails_fast,
                cached=setup.cached,
                most_encoding=setup.most_encoding,
                kept_choices=choices,
                validates=True,
            ),
        )
        until = None if setup.run_timeout_s is None else self.now + setup.run_timeout_s
        kept = {number: values.get(number) for number in setup.carried}
        graces = (setup.cancel_grace_s, setup.thread_grace_s)
        self.model = ContractModel(
            graph,
            kept,
            until,
            graces,
            needs=self.needs,
            fails_fast=setup.fails_fast,
            cached=setup.cached,
            most_encoding=setup.most_encoding,
        )
        for number in setup.carried:
            self.model.tasks[number].attempt = 1
            self.model.tasks[number].reasons = [None]
            self.model.tasks[number].begins = [1.0 - OFFSET]
            self.model.tasks[number].follows = choices.get(number)
        self.codes: dict[int, Code] = {}  # attempts that the run counts on
        self.late: list[Code] = []  # attempts that were given up, and whose code still runs
        self.events: list[Event] = []  # in the inbox
        self.sent: set[tuple[int, int]] = set()  # attempts whose outcome is in there
        self.owed: deque[tuple[Code, Stop]] = deque()  # not answered yet
        self.saves: deque[Save] = deque()
        self.look_ups: list[LookUp] = []  # not answered yet
        self.stored: dict[str, TaskRecord] = {}
        self.held: Counter[Needs] = Counter()
        self.asked: Counter[Needs] = Counter()  # what the run waits for
        self.taken: Counter[Needs] = Counter()  # what it got by asking, in this step
        self.finish: Finish | None = None
        self.history: list[str] = []

    # -- the run -------------------------------------------------------------------------------

    def begin(self) -> None:
        self.taken = Counter()
        self.model.begin()
        instructions = self.state.begin(self.now, self.setup.run_timeout_s)
        self.after_step(instructions, self.model.step((), self.now, self.taken))

    def apply(self) -> None:
        """Have the run state and the model take what is in the inbox."""
        events, self.events = self.events, []
        slots = granted_by(events)
        self.asked -= slots
        self.taken = Counter()
        self.history.append(f"apply {events} at {self.now}")
        instructions = self.state.apply(events, self.now)
        self.history.append(f"  -> {instructions}")
        self.after_step(instructions, self.model.step(events, self.now, slots + self.taken))

    def exchange(self, released: Amounts, wanted: Amounts, now: float) -> tuple[Amounts, float]:
        """Stand for the limits of an engine, which may have something free or not."""
        assert now == self.now
        assert list(wanted) == sorted(wanted, key=self.first_of)
        self.held -= Counter(released)
        assert all(count >= 0 for count in self.held.values())
        taken: Counter[Needs] = Counter()
        for needs, count in wanted.items():
            most = min(self.setup.slots - (self.held + taken).total(), count)
            taken[needs] = self.choose(most + 1) if most > 0 else 0
        taken = +taken
        self.held += taken
        self.asked = Counter(wanted) - taken
        self.taken += taken
        return dict(taken), math.inf

    def first_of(self, needs: Needs) -> int:
        """Return the place of the first task that waits with these needs."""
        order = sorted(
            range(len(self.graph)), key=lambda each: (-self.graph.specs[each].priority, each)
        )
        units = self.state.table.units
        return next(
            place
            for place, number in enumerate(order)
            if self.needs[number] == needs and units[number].phase is Phase.READY
        )

    def after_step(self, instructions: list[Instruction], starts: list[int]) -> None:
        self.check_reports(instructions)
        for instruction in instructions:
            self.carry_out(instruction)
        asked_for = [each.unit for each in instructions if isinstance(each, LookUp)]
        assert sorted(asked_for) == sorted(self.model.asked_for)
        self.model.asked_for = []
        started = [each.unit for each in instructions if isinstance(each, Start)]
        assert started == starts, f"started {started}, not {starts}"
        self.check_stops()
        saving = {unit for save in self.saves for unit in save.units}
        assert saving == {
            number
            for number, task in enumerate(self.model.tasks)
            if task.saving is not None or task.start_saved is not None
        }
        self.check_slots()
        self.check_values()
        assert +self.asked == Counter(self.needs[each] for each in self.model.startable())
        assert (self.state.stopping is None) == (self.model.stopped is None)
        assert self.state.is_finished == self.model.all_over == (self.finish is not None)
        due = self.state.deadlines.next()
        assert due is None or due > self.now, "it is due already, and will be for ever"
        latest = self.model.next_due()
        assert latest is None or (due is not None and due <= latest), "it would look too late"

    def carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Start(unit=unit, attempt=attempt):
                self.start(unit, attempt)
            case Stop(units=units, cause=cause):
                for unit in units:
                    if cause:
                        assert unit in self.model.told_of_stop
                    else:
                        assert self.model.is_overdue(unit)
                    self.model.tell(unit, "stop" if cause else "timeout")
                    self.owe(unit, instruction)
            case LookUp(unit=unit, is_fresh=is_fresh):
                assert is_fresh == self.setup.cached[unit]
                self.look_ups.append(instruction)
            case GiveUp(unit=unit):
                assert unit not in self.codes or self.codes[unit].is_told
                if unit in self.codes:  # else its outcome is in the inbox
                    self.give_up(self.codes[unit])
            case Save():
                self.check_save(instruction)
                self.saves.append(instruction)
            case Finish():
                assert self.finish is None
                self.finish = instruction
            case _:
                pass

    def owe(self, unit: int, instruction: Stop) -> None:
        if unit in self.codes:  # else its outcome is in the inbox
            self.codes[unit].is_told = True
            self.owed.append((self.codes[unit], instruction))

    def start(self, unit: int, attempt: int) -> None:
        assert unit not in self.codes
        # A2: two attempts of one task never run at once.
        assert all(code.unit != unit for code in self.late)
        for parent in self.graph.parents[unit]:
            if self.model.succeeded(parent):
                assert self.state.value(parent) == self.model.needed_value(parent)[1]
        is_async = self.graph.is_async[unit]
        self.codes[unit] = Code(unit, attempt, is_async=is_async)
        if unit in self.setup.pooled:  # its clock starts when it is handed over
            self.events.append(Started(unit, attempt, self.now))

    # -- what may happen outside -----------------------------------------------------------------

    def possible(self) -> list[Callable[[], None]]:
        """Return what may happen next."""
        steps: list[Callable[[], None]] = [self.apply]
        if self.saves:
            steps.append(self.answer_save)
        if self.owed:
            steps.append(self.answer_owed)
        if self.look_ups:
            steps.append(self.answer_look_up)
        if self.can_grant():
            steps.append(self.grant)
        for code in [*self.codes.values(), *self.late]:
            steps.append(lambda code=code: self.go_on(code))
        return steps

    def answer_look_up(self) -> None:
        """Answer for one of the tasks that were looked up, which may have been skipped since."""
        look_up = self.look_ups.pop(self.choose(len(self.look_ups)))
        unit, kind = look_up.unit, self.choose(4)
        if kind == 0:
            self.events.append(LookedUp(unit, None, None, "the key function failed"))
        elif kind == 1 or look_up.is_fresh:
            self.events.append(LookedUp(unit, Cached(f"key {unit}")))
        else:
            keeps, value = self.graph.specs[unit].retain_result, (unit, "cached")
            stored = value if keeps else NoResult.RELEASED
            found = StandIn(value, stored, self.some_children(unit))
            self.events.append(LookedUp(unit, Cached(f"key {unit}", "earlier"), found))

    def some_children(self, unit: int) -> frozenset[int] | None:
        """Return what a branch chooses."""
        if not self.graph.specs[unit].is_branch:
            return None
        return frozenset(each for each in self.graph.children[unit] if not self.choose(2))

    def can_grant(self) -> bool:
        return self.setup.slots > self.held.total() and bool(self.asked - granted_by(self.events))

    def grant(self) -> None:
        wanted = self.asked - granted_by(self.events)
        needs = sorted(wanted)[self.choose(len(wanted))]
        most = min(self.setup.slots - self.held.total(), wanted[needs])
        count = most - self.choose(most)
        self.held[needs] += count
        self.events.append(SlotsGranted({needs: count}))

    def go_on(self, code: Code) -> None:
        """Have the code of an attempt begin, or end, or send its outcome."""
        if code.begun_at is None:
            code.begun_at = self.now
            if code.unit not in self.setup.pooled:
                self.events.append(Started(code.unit, code.attempt, self.now))
        elif code.ended_at is None:
            code.ended_at = self.now
            code.outcome = self.make_outcome(code)
            if not self.choose(2):
                self.send(code)  # encoding its result takes no time
            elif isinstance(code.outcome, Succeeded) and not code.given_up:
                self.events.append(CodeEnded(code.unit, code.attempt))
        else:
            self.send(code)

    def send(self, code: Code) -> None:
        assert code.outcome is not None
        if code.given_up:
            self.late.remove(code)
        else:
            del self.codes[code.unit]
        self.events.append(code.outcome)
        self.sent.add((code.unit, code.attempt))

    def make_outcome(self, code: Code) -> Succeeded | Failed:
        assert code.ended_at is not None
        unit, attempt = code.unit, code.attempt
        kinds = ("success", "success", "success", "failure", "failure", "interrupt", "omit")
        kind = kinds[self.choose(7)]
        if kind == "success":
            value = (unit, attempt)
            follows = self.some_children(unit)
            times = (code.begun_at, code.ended_at)
            return Succeeded(unit, attempt, *times, value, value, follows)
        failure = self.failure(unit, attempt, "error")
        failure.interrupts = kind == "interrupt" and not self.choose(4)
        if kind == "omit":
            failure = Failure("nothing new", "nothing new", omits=True)
        return Failed(unit, attempt, code.begun_at, failure)

    def failure(self, unit: int, attempt: int, text: str) -> Failure:
        allowed = attempt <= self.setup.retries[unit] and self.choose(8) != 1
        delay_s = (0.0, 0.0, 0.5, 3.0)[self.choose(4)] if allowed else 0.0
        return Failure(text, text, allowed, delay_s)

    def answer_owed(self) -> None:
        """Answer the oldest ``Stop``, unless an outcome has come first."""
        code, instruction = self.owed.popleft()
        unit = code.unit
        if self.codes.get(unit) is not code:
            return
        timeout = None
        if not instruction.cause:
            timeout = self.failure(unit, code.attempt, "timed out")
        answer = self.stop_answer(code)
        if answer is StopAnswer.WITHDRAWN:
            del self.codes[unit]
        self.events.append(StopAnswered(unit, code.attempt, answer, timeout))

    def stop_answer(self, code: Code) -> StopAnswer:
        if code.ended_at is not None:
            return StopAnswer.ENDED
        if code.begun_at is None and (code.unit in self.setup.pooled or self.choose(4)):
            return StopAnswer.WITHDRAWN
        return (StopAnswer.WILLING, StopAnswer.UNWILLING)[self.choose(2)]

    def give_up(self, code: Code) -> None:
        del self.codes[code.unit]
        code.given_up = True
        if code.begun_at is not None:
            self.late.append(code)
        else:  # it never will
            self.events.append(Failed(code.unit, code.attempt, None, Failure("", "")))

    def answer_save(self) -> None:
        """Answer the oldest save; the store may refuse a result, or everything."""
        save = self.saves.popleft()
        refuses = self.choose(24) == 1
        broken = refuses and self.choose(2) == 1
        refusals: dict[int, Refusal] = {}
        for unit in save.units:
            is_success = self.model.tasks[unit].saving
            if refuses and self.choose(2) == 0:
                if broken:
                    refusals[unit] = Refusal("disk full", "disk full", of_result=False)
                elif is_success is not None and is_success.status == SUCCESS:
                    refusals[unit] = Refusal("no JSON", "no JSON", of_result=True)
        for record in save.records:
            self.stored[record.name] = record
        self.events.append(Saved(save.units, refusals or None))
        if broken:
            self.events.append(StopRequested(Reason.RUN_BROKEN, "disk full", broken=True))

    def request_stop(self) -> None:
        reasons = (Reason.RUN_CANCELLED, Reason.RUN_TIMED_OUT, Reason.RUN_BROKEN)
        reason = reasons[self.choose(3)]
        broken = reason is Reason.RUN_BROKEN
        interrupts = reason is Reason.RUN_CANCELLED and not self.choose(2)
        self.events.append(StopRequested(reason, "because", broken=broken, interrupts=interrupts))

    def send_stale(self) -> None:
        """Send what concerns an attempt that is over for the run."""
        unit, attempt = sorted(self.sent)[self.choose(len(self.sent))]
        if any(isinstance(each, Succeeded | Failed) and each.unit == unit for each in self.events):
            return  # it is not over yet
        self.events.append(
            (
                Started(unit, attempt, self.now),
                StopAnswered(unit, attempt, StopAnswer.UNWILLING, None),
            )[self.choose(2)]
        )

    def let_time_pass(self) -> None:
        due = self.state.deadlines.next()
        step = self.choose(4)
        if due is not None and step < 2:
            self.now = max(self.now, due)
        else:
            self.now += (0.25, 0.25, 0.25, 8.0)[step]

    # -- the whole of it -------------------------------------------------------------------------

    def play(self, steps: int) -> None:
        """Let things happen at random, then answer everything until the run has ended."""
        self.begin()
        rare = (self.let_time_pass, self.send_stale, self.request_stop)
        for _ in range(steps):
            if self.finish is not None:
                break
            if not self.choose(3):
                choice = self.choose(40)
                which = 0 if choice < 28 else 1 if choice < 36 else 2
                if which != 1 or self.sent:
                    rare[which]()
                continue
            possible = self.possible()
            possible[self.choose(len(possible))]()
        self.play_to_the_end()
        self.check_end()

    def play_to_the_end(self) -> None:
        """Answer everything; code ends, unless a deadline will end it and it is stubborn."""
        stubborn = self.choose(3) == 1
        bound = 200 + 100 * len(self.graph)
        for _ in range(bound):
            if self.finish is not None:
                return
            answers = bool(self.owed or self.saves or self.events or self.look_ups)
            while self.look_ups:
                self.answer_look_up()
            while self.owed:
                self.answer_owed()
            if self.saves:
                self.answer_save()
            if self.can_grant():
                self.grant()
                answers = True
            going = [*self.codes.values(), *self.late]
            if stubborn:
                going = [code for code in going if code.begun_at is None]
            for code in going:
                self.go_on(code)
            if not answers and not going:
                due = self.state.deadlines.next()
                if due is not None:
                    self.now = max(self.now, due)
                else:
                    assert self.codes, "the run waits for nothing and has not ended"
                    told = [code.unit for code in self.codes.values() if code.is_told]
                    assert not told, f"{told} were told to stop, and nobody looks after them"
                    stubborn = False
            self.apply()
        msg = f"the run has not ended after {bound} steps"
        raise AssertionError(msg)

    # -- comparisons -------------------------------------------------------------------------------

    def check_reports(self, instructions: list[Instruction]) -> None:
        found: dict[int, list[Told]] = {}
        for instruction in instructions:
            if not isinstance(instruction, Report) or instruction.subject is Subject.NOTE:
                continue
            kind, record = KINDS[instruction.subject], instruction.record
            number = self.graph.index[record.name]
            reason = None if kind == "abandoned" else record.reason
            found.setdefault(number, []).append(Told(kind, record.attempt, reason))
            if kind == "success":
                assert self.model.tasks[number].outcome == (SUCCESS, None, instruction.value)
            if kind in {"success", "skip", "omit"}:  # D8: committed, then shown
                assert self.stored[record.name] == record
        expected: dict[int, list[Told]] = {}
        for number, reports in self.model.reports.items():
            kept = [
                report
                for report in reports
                if (report.kind != "start" or self.setup.reports_starts)
                and (report.kind != "success" or self.setup.reports_successes)
            ]
            if kept:
                expected[number] = kept
        assert found == expected

    def check_stops(self) -> None:
        """Whoever had to be told to stop was told in this step."""
        assert not self.model.told_of_stop
        for number in range(len(self.graph)):
            assert not self.model.is_overdue(number), f"{number} was not told in time"

    def check_slots(self) -> None:
        assert 0 <= self.held.total() <= self.setup.slots
        running = Counter(
            self.needs[number]
            for number, task in enumerate(self.model.tasks)
            if task.running and not task.encoding
        )
        assert self.held - granted_by(self.events) == running

    def check_values(self) -> None:
        for number in range(len(self.graph)):
            needed, value = self.model.needed_value(number)
            assert self.state.value(number) == (value if needed else NoResult.RELEASED)

    def check_save(self, save: Save) -> None:
        by_name = {record.name: record for record in save.records}
        for record in save.records:
            if record.status == "RUNNING":  # D8: only if the attempt still runs
                assert self.model.tasks[self.graph.index[record.name]].running
        for number in save.units:
            task, record = self.model.tasks[number], by_name[self.graph.names[number]]
            if task.start_saved is not None:
                assert (record.status, record.attempt) == ("RUNNING", task.attempt)
                continue
            assert task.saving is not None
            assert (record.status, record.reason) == task.saving[:2]
            assert record.attempt == task.attempt
            if record.status == SUCCESS:
                assert record.cache == task.cached
                keeps = self.graph.specs[number].retain_result
                assert record.result == (task.saving.value if keeps else NoResult.RELEASED)

    def check_end(self) -> None:
        assert self.finish is not None
        assert not +self.held
        ended = self.finish.record
        # What the store has refused is offered once more.
        again = [record.name for record in self.finish.records]
        assert again == (list(self.graph.names) if self.model.broken else [])
        statuses: set[str] = set()
        for name, task in zip(self.graph.names, self.model.tasks, strict=True):
            record, outcome = ended.tasks[name], task.outcome
            assert outcome is not None
            statuses.add(outcome.status)
            assert (record.status, record.reason) == outcome[:2]
            assert record.attempt == task.attempt == len(task.reasons)
            assert [each.reason for each in record.attempts] == task.reasons
            assert [each.number for each in record.attempts] == [
                number + 1 for number in range(len(task.reasons))
            ]
            begins = [begun_at + OFFSET for begun_at in task.begins]
            assert [each.started_at for each in record.attempts] == begins
            retries = self.setup.retries[self.graph.index[name]]
            assert record.attempt <= 1 + retries
            for each in record.attempts:
                assert each.ready_at is not None
                assert each.started_at is not None
                assert each.finished_at is not None
                assert each.ready_at <= each.started_at <= each.finished_at
        is_good = statuses <= {SUCCESS, OMITTED}
        assert ended.status == (RunStatus.SUCCESS if is_good else RunStatus.FAILED)
        stopped = self.model.stopped
        if stopped is None or (is_good and not self.model.broken):
            assert ended.error is None
        else:
            assert ended.error is not None
            assert ended.error.startswith(stopped)
        assert FAILED in statuses or stopped is not None or is_good
        assert self.state.apply((), self.now + 1000.0) == []
        assert self.state.deadlines.next() is None
