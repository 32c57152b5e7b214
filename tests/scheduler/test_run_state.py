"""The run state: events in, instructions out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, note, reject, settings
from hypothesis import strategies as st

from flowrun import TaskRegistry
from flowrun.errors import CycleError
from flowrun.graph import Graph
from flowrun.registry import TriggerRule
from flowrun.scheduler.attempt_rules import TRANSITIONS
from flowrun.scheduler.deadlines import Wait
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
from flowrun.scheduler.units import Phase as UnitPhase
from flowrun.state import Cached, NoResult, Reason, RunRecord, TaskRecord, TransitionError

from .simulated_driver import Choose, Setup, SimulatedDriver

EXAMPLES = int(os.environ.get("FLOWRUN_MODEL_EXAMPLES", "300"))

CHOICES = [st.integers(0, max(0, count - 1)) for count in range(122)]


T = TypeVar("T")


def synchronous() -> None:
    """Stand for the function of a sync task; nothing here calls it."""


async def asynchronous() -> None:
    """Stand for the function of an async task; nothing here calls it."""


def make_setup(choose: Choose) -> Setup:
    """Choose a graph and the settings of a run."""

    def one_of(*values: T) -> T:
        return values[choose(len(values))]

    registry = TaskRegistry()
    count = choose(11)
    retries: dict[str, int] = {}
    pooled: set[str] = set()
    for number in range(count):
        name = f"t{number}"
        parents = {choose(number) for _ in range(one_of(1, 0, 2, 3))} if number else set()
        function = one_of(asynchronous, synchronous)
        if function is synchronous and one_of(False, False, True):
            pooled.add(name)
        retries[name] = one_of(0, 1, 1, 3)
        setups = sorted({choose(number), choose(number)} if number and choose(4) == 1 else ())
        parents.difference_update(setups)
        declare = one_of(registry.task, registry.task, registry.task, registry.branch)
        rule = one_of("all_success", "all_success", *map(str, TriggerRule))
        (registry.task if setups else declare)(
            name,
            dag="d",
            deps=[f"t{parent}" for parent in sorted(parents)],
            teardown_of=[f"t{setup}" for setup in setups] or None,
            timeout_s=one_of(None, 1.0, 4.0),
            retries=retries[name],
            retain_result=one_of(True, False),
            priority=one_of(0, 0, 0, 1, -1),
            trigger_rule="all_success" if setups else rule,
        )(function)
    try:
        graph = Graph.build("d", registry.specs("d"), registry)
    except CycleError:  # of a teardown, and what depends on it and on its setup
        reject()
    carries = one_of(False, False, False, False, True)
    return Setup(
        graph,
        [retries[name] for name in graph.names],
        carried={number for number in range(count) if carries and choose(2)},
        pooled={graph.index[name] for name in pooled},
        heavy={number for number in range(count) if not choose(3)} if choose(3) == 1 else set(),
        cached={each: not choose(4) for each in range(count) if choose(2)} if choose(2) else {},
        slots=1 + choose(4),
        cancel_grace_s=one_of(1.0, 0.0, 2.5),
        thread_grace_s=one_of(0.25, 0.0),
        run_timeout_s=one_of(None, None, None, 3.0, 40.0),
        fails_fast=one_of(False, False, False, True),
        most_encoding=one_of(0, 0, 1, 3),
        reports_starts=one_of(True, True, True, False),
        reports_successes=one_of(True, True, True, False),
    )


@pytest.mark.timeout(600)  # what it finds is made small first, which takes long
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_run_state_does_what_the_contract_says(  # A1, A2, D8, I2, R2, R6
    data: st.DataObject,
) -> None:
    def choose(count: int) -> int:
        return data.draw(CHOICES[count]) if count > 1 else 0

    driver = SimulatedDriver(make_setup(choose), choose)
    try:
        driver.play(choose(121))
    except BaseException:
        for line in driver.history:
            note(line)
        raise


# -- by hand: every row of the table, and every kind of deadline -------------------------------

NEEDS: Needs = (("", 1),)
ONE = SlotsGranted({NEEDS: 1})
ERROR = Failure("Traceback ...\nValueError: x", "ValueError: x")
AGAIN = Failure("Traceback ...\nOSError: x", "OSError: x", retryable=True)
TIMEOUT = Failure("TaskTimeoutError: slow", "TaskTimeoutError: slow")
TIMEOUT_AGAIN = Failure("TaskTimeoutError: slow", "TaskTimeoutError: slow", retryable=True)
SLOW = {"a": {"timeout_s": 5.0, "retries": 1}}

DIRECTED: list[Callable[[], None]] = []
TAKEN: set[object] = set()
"""Rows of the transition table and kinds of deadlines that these tests have taken."""


def directed(test: Callable[[], None]) -> Callable[[], None]:
    """Count a test among those that take the rows of the table by hand."""
    DIRECTED.append(test)
    return test


class Machine:
    """A run state that is driven by hand, event by event, and what it has said.

    Args:
        tasks: Options of each task, by name; ``asynchronous`` tasks unless they say otherwise.
        timeout_s: How long the run may take.
        options: Settings of the run state.
    """

    def __init__(
        self,
        tasks: dict[str, dict[str, Any]] | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> None:
        registry = TaskRegistry()
        for name, task in (tasks or {"a": {}}).items():
            given = dict(task)
            function = synchronous if given.pop("sync", False) else asynchronous
            registry.task(name, dag="d", **given)(function)
        self.graph = graph = Graph.build("d", registry.specs("d"), registry)
        deps = graph.dependency_names
        records = {n: TaskRecord(n, d) for n, d in zip(graph.names, deps, strict=True)}
        settings = {
            "cancel_grace_s": 10.0,
            "thread_grace_s": 0.25,
            "save_starts_after_s": None,
        }
        self.state = RunState(
            graph,
            RunRecord("r1", "d", 0.0, records),
            {},
            [NEEDS] * len(graph),
            self.exchange,
            self.pause,
            RunSettings(
                offset=0.0,
                validates=True,
                **{**settings, **options},
            ),
        )
        self.now = 100.0
        self.released = self.wanted = 0
        self.ask_again_at = math.inf
        self.asked_at: list[float] = []
        self.paused: list[tuple[tuple[str, ...], float]] = []
        assert self.state.begin(self.now, timeout_s) == []

    def pause(self, names: Sequence[str], until: float) -> Sequence[str]:
        self.paused.append((tuple(names), until))
        return [name for name in names if name == "unknown"]

    def exchange(self, released: Amounts, wanted: Amounts, now: float) -> tuple[Amounts, float]:
        self.asked_at.append(now)
        self.released += released.get(NEEDS, 0)
        self.wanted = wanted.get(NEEDS, 0)
        return {}, self.ask_again_at

    def start(self, count: int = 1) -> list[str]:
        """Grant slots; the code of async tasks begins at once."""
        self.wanted -= count
        return self.with_begins(self.apply(SlotsGranted({NEEDS: count})))

    def with_begins(self, said: list[str]) -> list[str]:
        """Have the code of async tasks begin."""
        for unit in self.state.table.units:
            is_new = unit.phase is UnitPhase.RUNNING and unit.started_at is None
            if is_new and self.state.graph.is_async[unit.number]:
                said += self.apply(Started(unit.number, unit.record.attempt, self.now))
        return said

    def apply(self, *events: Event) -> list[str]:
        """Apply events one by one; return what the instructions say."""
        said: list[str] = []
        for event in events:
            unit = getattr(event, "unit", None)
            if unit is not None:
                TAKEN.add((self.state.table.units[unit].phase, type(event)))
            said += [shown(each) for each in self.state.apply([event], self.now)]
        return said

    def wait(self, kind: Wait) -> list[str]:
        """Let time pass until the next deadline, which is of this kind."""
        due = self.state.deadlines.next()
        assert due is not None
        self.now = due
        TAKEN.add(kind)
        return [shown(each) for each in self.state.apply((), self.now)]

    # Events of unit 0, attempt 1, unless it is said otherwise.

    def began(self) -> list[str]:
        return self.apply(Started(0, 1, self.now))

    def succeeded(self, unit: int = 0, attempt: int = 1) -> list[str]:
        return self.apply(Succeeded(unit, attempt, None, self.now, f"value of {unit}", "stored"))

    def failed(self, failure: Failure = ERROR, unit: int = 0, attempt: int = 1) -> list[str]:
        return self.apply(Failed(unit, attempt, None, failure))

    def answered(self, answer: StopAnswer, timeout: Failure | None = None) -> list[str]:
        return self.apply(StopAnswered(0, 1, answer, timeout))

    def saved(self, *units: int, refusals: dict[int, Refusal] | None = None) -> list[str]:
        return self.with_begins(self.apply(Saved(units, refusals)))

    def stop(self, *, interrupts: bool = False) -> list[str]:
        return self.apply(StopRequested(Reason.RUN_CANCELLED, "Ctrl-C", interrupts=interrupts))

    def error(self, name: str = "a") -> str:
        return self.state.records()[name].error or ""


def shown(instruction: Instruction) -> str:
    """Return an instruction in a few words."""
    match instruction:
        case LookUp():
            return f"look {'afresh ' * instruction.is_fresh}up {instruction.unit}"
        case Start():
            return f"start {instruction.unit}.{instruction.attempt}"
        case Stop():
            return f"stop {[*instruction.units]} {instruction.cause or 'time is up'}"
        case GiveUp():
            return f"give up {instruction.unit}"
        case Save():
            records = ", ".join(f"{each.name} {each.status}" for each in instruction.records)
            return f"save {records} for {[*instruction.units]}"
        case Finish():
            return f"finish {instruction.record.status}, {instruction.record.error}"
        case Report(subject=Subject.NOTE):
            return f"note {instruction.record.name}: {instruction.line}"
        case Report():
            kind = instruction.subject.name.lower()
            return f"{kind} {instruction.record.name}.{instruction.record.attempt}"


@directed
def test_success_is_saved_then_reported_then_its_child_starts() -> None:  # D8
    run = Machine({"a": {}, "b": {"deps": ["a"]}})
    assert run.start() == ["start a.1", "start 0.1"]
    assert run.succeeded() == ["save a SUCCESS for [0]"]
    assert (run.released, run.wanted) == (1, 0)
    assert run.saved(0) == ["success a.1"]
    assert (run.wanted, run.state.value(0)) == (1, "value of 0")
    assert run.start() == ["start b.1", "start 1.1"]
    assert run.succeeded(1) == ["save b SUCCESS for [1]"]
    assert run.saved(1) == ["success b.1", "finish SUCCESS, None"]
    assert run.state.value(0) is NoResult.RELEASED


@directed
def test_value_that_overrides_a_unit_is_saved_once_its_parents_have_ended() -> None:  # D8
    tasks: dict[str, dict[str, Any]] = {"a": {}, "b": {"deps": ["a"]}, "c": {"deps": ["b"]}}
    run = Machine(tasks, stand_ins={1: StandIn("value", "stored")})
    run.start()
    run.succeeded()
    assert run.saved(0) == ["success a.1", "save b SUCCESS for [1]"]
    assert run.wanted == 0
    assert run.saved(1) == ["success b.0"]
    assert (run.wanted, run.state.value(1)) == (1, "value")
    assert run.start() == ["start c.1", "start 2.1"]
    record = run.state.records()["b"]
    assert (record.result, record.attempts, record.finished_at) == ("stored", (), 100.0)
    run.succeeded(2)
    assert run.saved(2) == ["success c.1", "finish SUCCESS, None"]


@directed
def test_value_that_overrides_a_unit_counts_when_the_run_stops_meanwhile() -> None:  # R2
    tasks: dict[str, dict[str, Any]] = {"a": {}, "b": {"deps": ["a"]}, "c": {"deps": ["b"]}}
    run = Machine(tasks, stand_ins={1: StandIn("value", "stored")})
    run.start()
    run.succeeded()
    run.saved(0)
    assert run.stop() == []
    assert run.saved(1) == ["success b.0", "save c SKIPPED for [2]"]


CHAIN: dict[str, dict[str, Any]] = {"a": {}, "b": {"deps": ["a"]}, "c": {"deps": ["b"]}}
FOUND = LookedUp(1, Cached("key", "old"), StandIn("value", "stored"))


def looking_up(is_fresh: bool = False) -> Machine:
    """Return a run whose second task is being looked up."""
    run = Machine(CHAIN, cached={1: is_fresh})
    run.start()
    run.succeeded()
    assert run.saved(0) == ["success a.1", f"look {'afresh ' * is_fresh}up 1"]
    assert (run.wanted, run.state.value(0)) == (0, "value of 0")
    return run


@directed
def test_result_in_the_cache_is_saved_without_an_attempt() -> None:  # D8
    run = looking_up()
    assert run.apply(FOUND) == ["save b SUCCESS for [1]"]
    assert (run.wanted, run.state.records()["b"].status) == (0, "PENDING")
    assert run.saved(1) == ["success b.0"]
    assert (run.wanted, run.state.value(1)) == (1, "value")
    record = run.state.records()["b"]
    assert (record.cache, record.result, record.attempts) == (FOUND.cached, "stored", ())
    assert run.apply(FOUND) == []


@directed
def test_task_that_is_not_in_the_cache_runs_and_its_record_says_where_it_belongs() -> None:
    run = looking_up(is_fresh=True)
    assert run.apply(LookedUp(1, Cached("key"))) == []
    assert run.wanted == 1
    assert run.start() == ["start b.1", "start 1.1"]
    assert run.failed(AGAIN, 1) == ["retry b.1", "save b PENDING for []"]
    assert run.start() == ["start b.2", "start 1.2"]  # and is not looked up again
    assert run.succeeded(1, 2) == ["save b SUCCESS for [1]"]
    run.saved(1)
    assert run.state.records()["b"].cache == Cached("key")


@directed
def test_task_whose_cache_cannot_be_used_runs_with_a_warning() -> None:
    run = looking_up()
    assert run.apply(LookedUp(1, note="no key")) == ["note b: no key"]
    assert run.start() == ["start b.1", "start 1.1"]
    run.succeeded(1)
    run.saved(1)
    assert run.state.records()["b"].cache is None


@directed
def test_task_that_is_looked_up_when_the_run_stops_is_skipped() -> None:  # R2
    run = looking_up()
    assert run.stop() == ["save b SKIPPED, c SKIPPED for [1, 2]"]
    assert run.apply(FOUND) == []
    assert run.saved(1, 2)[:2] == ["skip b.0", "skip c.0"]
    assert run.apply(FOUND) == []


@directed
def test_cached_result_that_the_store_refuses_fails_its_task() -> None:
    run = looking_up()
    run.apply(FOUND)
    refusal = Refusal("not that", "not that", of_result=True)
    assert run.saved(1, refusals={1: refusal}) == ["save b FAILED for [1]"]
    assert run.saved(1) == ["failure b.1", "save c SKIPPED for [2]"]
    assert run.state.records()["b"].cache is None


@directed
def test_answer_of_the_cache_about_a_task_that_runs_is_a_bug() -> None:
    run = looking_up()
    run.apply(LookedUp(1))
    assert run.apply(LookedUp(1)) == []
    run.start()
    assert run.apply(LookedUp(1)) == []  # of an attempt that is over
    with pytest.raises(TransitionError, match="LookedUp.* is impossible for task 'b', attempt 1"):
        run.state.apply([LookedUp(1, attempt=1)], run.now)


@directed
def test_failure_is_saved_and_reported_and_skips_what_depends_on_it() -> None:
    run = Machine({"a": {}, "b": {"deps": ["a"]}, "c": {"deps": ["b"]}})
    run.start()
    assert run.failed() == ["save a FAILED for [0]"]
    assert run.saved(0) == ["failure a.1", "save b SKIPPED, c SKIPPED for [1, 2]"]
    assert run.saved(1, 2) == ["skip b.0", "skip c.0", "finish FAILED, None"]
    assert run.error("c") == "UPSTREAM_FAILED: the task 'a' upstream of it failed"


@directed
def test_retry_starts_at_once_or_after_its_delay() -> None:
    run = Machine({"a": {"retries": 2}})
    run.start()
    assert run.failed(AGAIN) == ["retry a.1", "save a PENDING for []"]
    assert run.start() == ["start a.2", "start 0.2"]
    later = Failure("text", "line", retryable=True, delay_s=3.0)
    assert run.failed(later, attempt=2) == ["retry a.2", "save a PENDING for []"]
    assert run.wanted == 0
    assert run.wait(Wait.DELAY) == []
    assert (run.now, run.wanted) == (103.0, 1)
    assert run.start() == ["start a.3", "start 0.3"]


@directed
def test_note_about_a_policy_is_logged() -> None:
    run = Machine()
    run.start()
    failure = Failure("text", "line", note="a predicate of its RetryPolicy failed")
    assert run.failed(failure) == [
        "note a: a predicate of its RetryPolicy failed",
        "save a FAILED for [0]",
    ]


@directed
def test_keyboard_interrupt_of_a_task_stops_the_run() -> None:  # A5, R2
    run = Machine({"a": {}, "b": {}})
    run.start(2)
    interrupt = Failure("KeyboardInterrupt", "KeyboardInterrupt", interrupts=True)
    assert run.failed(interrupt) == [
        "stop [1] RUN_CANCELLED: KeyboardInterrupt",
        "save a FAILED for [0]",
    ]
    assert run.state.stopping


@directed
def test_time_of_sync_code_starts_when_it_begins() -> None:  # A1
    run = Machine({"a": {"timeout_s": 5.0, "sync": True}})
    run.start()
    assert run.wait(Wait.TIMEOUT) == []  # it waits for a thread
    run.now = 107.0
    assert run.began() == []
    assert run.wait(Wait.TIMEOUT) == []
    assert run.wait(Wait.TIMEOUT) == ["stop [0] time is up"]
    assert run.now == 112.0


@directed
def test_timed_out_code_that_ends_is_retried_or_fails_as_timed_out() -> None:  # A4
    run = Machine(SLOW)
    run.start()
    assert run.wait(Wait.TIMEOUT) == ["stop [0] time is up"]
    assert run.answered(StopAnswer.WILLING, TIMEOUT_AGAIN) == []
    assert run.failed(ERROR) == ["retry a.1", "save a PENDING for []"]
    run.start()
    assert run.wait(Wait.TIMEOUT) == ["stop [0] time is up"]
    assert run.apply(StopAnswered(0, 2, StopAnswer.WILLING, TIMEOUT)) == []
    assert run.succeeded(attempt=2) == ["save a FAILED for [0]"]
    assert run.saved(0) == ["failure a.2", "finish FAILED, None"]
    first, second = run.state.records()["a"].attempts
    # Where the code was when its time was up, then why it ended.
    assert first.error == f"{ERROR.text}\n\n{TIMEOUT.text}"
    assert (second.error, second.reason) == (TIMEOUT.text, Reason.TIMEOUT)


@directed
def test_outcome_that_comes_before_the_answer_counts() -> None:
    run = Machine({"a": {"timeout_s": 5.0}, "b": {"timeout_s": 5.0}})
    run.start(2)
    assert run.wait(Wait.TIMEOUT) == ["stop [0] time is up", "stop [1] time is up"]
    assert run.succeeded() == ["save a SUCCESS for [0]"]
    assert run.failed(unit=1) == ["save b FAILED for [1]"]
    assert run.answered(StopAnswer.WILLING, TIMEOUT) == []  # too late to mean anything
    assert run.saved(0, 1) == ["success a.1", "failure b.1", "finish FAILED, None"]
    assert run.state.records()["b"].reason is Reason.ERROR


@directed
def test_executor_says_late_when_code_began() -> None:
    run = Machine({"a": {"timeout_s": 5.0, "sync": True}})
    run.start()
    run.began()
    run.wait(Wait.TIMEOUT)
    assert run.began() == []
    run.stop()
    assert run.answered(StopAnswer.UNWILLING, TIMEOUT) == [
        "give up 0",
        "abandoned a.1",
        "save a FAILED for [0]",
    ]


@directed
def test_code_that_ended_in_time_may_take_as_long_again_to_encode() -> None:
    run = Machine(SLOW)
    run.start()
    run.wait(Wait.TIMEOUT)
    assert run.answered(StopAnswer.ENDED, TIMEOUT) == []
    assert run.wait(Wait.TIMEOUT) == ["stop [0] time is up"]
    assert run.now == 110.0
    assert run.answered(StopAnswer.ENDED, TIMEOUT) == [
        "give up 0",
        "abandoned a.1",
        "save a FAILED for [0]",
    ]


@directed
def test_timed_out_call_that_never_begins_fails_at_once() -> None:
    run = Machine({"a": {"timeout_s": 5.0, "sync": True}})
    run.start()
    run.began()
    run.wait(Wait.TIMEOUT)
    assert run.answered(StopAnswer.WITHDRAWN, TIMEOUT) == ["save a FAILED for [0]"]
    assert run.released == 1


@directed
def test_abandoned_code_that_ends_by_an_error_is_retried_as_well() -> None:  # A2
    run = Machine(SLOW)
    run.start()
    run.wait(Wait.TIMEOUT)
    run.answered(StopAnswer.UNWILLING, TIMEOUT_AGAIN)
    assert run.failed() == ["retry a.1", "save a PENDING for []"]


@directed
def test_timed_out_code_that_does_not_end_in_its_grace_is_abandoned() -> None:  # A2, R1
    run = Machine(SLOW)
    run.start()
    run.wait(Wait.TIMEOUT)
    run.answered(StopAnswer.WILLING, TIMEOUT_AGAIN)
    assert run.wait(Wait.PATIENCE) == ["give up 0", "abandoned a.1", "save a FAILED for []"]
    assert run.now == 115.0
    assert (run.released, run.wanted) == (1, 0)
    assert run.succeeded() == ["retry a.1", "save a PENDING for []"]
    assert run.wanted == 1


@directed
def test_retry_waits_no_longer_than_another_timeout_for_abandoned_code() -> None:  # A2
    run = Machine(SLOW)
    run.start()
    run.wait(Wait.TIMEOUT)
    run.answered(StopAnswer.UNWILLING, TIMEOUT_AGAIN)
    assert run.wait(Wait.PATIENCE) == ["save a FAILED for [0]"]
    assert run.now == 110.0
    assert run.failed() == []
    assert run.saved(0) == ["failure a.1", "finish FAILED, None"]
    assert "Not retried: the timed-out attempt was still running after another 5 s" in run.error()


@directed
def test_stopped_run_does_not_wait_for_abandoned_code() -> None:  # R2
    run = Machine(SLOW)
    run.start()
    run.wait(Wait.TIMEOUT)
    run.answered(StopAnswer.UNWILLING, TIMEOUT_AGAIN)
    assert run.stop() == ["save a FAILED for [0]"]
    assert run.saved(0) == ["failure a.1", "finish FAILED, RUN_CANCELLED: Ctrl-C"]
    assert run.state.records()["a"].reason is Reason.TIMEOUT


@directed
def test_what_ran_when_the_run_stopped_is_failed_and_the_rest_is_skipped() -> None:  # R2
    run = Machine({"a": {}, "b": {"sync": True}, "c": {"deps": ["a"]}})
    run.start(2)
    assert run.stop() == ["stop [0, 1] RUN_CANCELLED: Ctrl-C"]
    assert run.stop() == []  # the first one counts
    assert run.apply(Started(1, 1, run.now)) == []
    assert run.succeeded() == ["save a FAILED for [0]"]
    assert run.failed(AGAIN, unit=1) == ["save b FAILED for [1]"]
    assert run.saved(0) == ["failure a.1"]
    assert run.saved(1) == ["failure b.1", "save c SKIPPED for [2]"]
    assert run.saved(2) == ["skip c.0", "finish FAILED, RUN_CANCELLED: Ctrl-C"]
    assert run.error("a") == run.error("b") == run.error("c") == "RUN_CANCELLED: Ctrl-C"


@directed
def test_stopped_call_that_never_begins_is_skipped() -> None:  # R2
    run = Machine({"a": {"sync": True}})
    run.start()
    run.stop()
    assert run.answered(StopAnswer.WITHDRAWN) == ["save a SKIPPED for [0]"]
    assert run.saved(0) == ["skip a.0", "finish FAILED, RUN_CANCELLED: Ctrl-C"]


@directed
def test_stopped_code_that_does_not_end_in_its_grace_is_abandoned() -> None:  # R1
    for answer, grace_s in ((StopAnswer.WILLING, 10.0), (StopAnswer.UNWILLING, 0.25)):
        run = Machine(SLOW)
        run.start()
        run.stop()
        assert run.answered(answer) == []
        assert run.wait(Wait.PATIENCE) == ["give up 0", "abandoned a.1", "save a FAILED for [0]"]
        assert run.now == 100.0 + grace_s
        assert run.saved(0) == ["failure a.1", "finish FAILED, RUN_CANCELLED: Ctrl-C"]
        assert run.error().endswith("it was abandoned and may still run.")


@directed
def test_stop_during_a_delay_ends_the_delay() -> None:
    run = Machine({"a": {"retries": 1}, "b": {}})
    run.start(2)
    run.failed(Failure("text", "line", retryable=True, delay_s=3.0))
    run.stop()
    assert run.state.deadlines.next() is None
    run.now += 3.0
    assert run.failed(unit=1) == ["save b FAILED for [1]"]
    assert run.saved(1) == ["failure b.1", "save a SKIPPED for [0]"]


@directed
def test_run_that_takes_too_long_is_stopped() -> None:
    run = Machine({"a": {"sync": True}}, 7.0)
    run.start()
    cause = "RUN_TIMED_OUT: the run took longer than timeout_s=7"
    assert run.wait(Wait.RUN) == [f"stop [0] {cause}"]
    assert run.failed() == ["save a FAILED for [0]"]
    assert run.saved(0) == ["failure a.1", f"finish FAILED, {cause}"]


@directed
def test_delay_that_would_end_after_the_time_of_the_run_does_not_count() -> None:
    run = Machine({"a": {"retries": 1}}, 7.0)
    run.start()
    run.failed(Failure("text", "line", retryable=True, delay_s=8.0))
    run.now = 110.0  # a late wake-up, after both
    assert run.apply(SlotsGranted({})) == ["save a SKIPPED for [0]"]
    assert run.saved(0)[0] == "skip a.1"
    assert run.stop() == []  # it has ended


@directed
def test_run_that_ends_when_its_time_is_up_has_not_timed_out() -> None:
    run = Machine(timeout_s=7.0)
    run.start()
    run.failed()
    run.now = 107.0
    assert run.saved(0) == ["failure a.1", "finish FAILED, None"]


@directed
def test_start_is_saved_only_if_the_attempt_runs_on() -> None:  # D8
    run = Machine({"a": {}, "b": {"deps": ["a"]}}, reports_starts=False, save_starts_after_s=0.5)
    assert run.start() == ["start 0.1"]
    assert run.state.deadlines.next() == 100.5
    assert run.wait(Wait.STARTS) == ["save a RUNNING for []"]
    run.succeeded()
    run.saved(0)
    assert run.start() == ["start 1.1"]
    assert run.succeeded(1) == ["save b SUCCESS for [1]"]
    assert run.wait(Wait.STARTS) == []
    assert run.state.deadlines.next() is None


@directed
def test_result_that_the_store_refuses_fails_its_task() -> None:  # D1
    run = Machine({"a": {"retries": 3}, "b": {"deps": ["a"]}})
    run.start()
    run.apply(Succeeded(0, 1, 104.0, 105.0, object(), object()))
    refusal = Refusal("Traceback ...\nno JSON", "no JSON", of_result=True)
    assert run.saved(0, refusals={0: refusal}) == ["save a FAILED for [0]"]
    assert run.saved(0) == ["failure a.1", "save b SKIPPED for [1]"]
    record = run.state.records()["a"]
    assert (record.error, record.started_at) == (refusal.text, 104.0)


@directed
def test_store_that_fails_ends_the_run_which_then_shows_it() -> None:  # R4
    run = Machine()
    run.start()
    run.succeeded()
    said = run.state.apply(
        [
            Saved([0], {0: Refusal("disk full", "disk full", of_result=False)}),
            StopRequested(Reason.RUN_BROKEN, "disk full", broken=True),
        ],
        run.now,
    )
    assert list(map(shown, said)) == ["failure a.1", "finish FAILED, RUN_BROKEN: disk full"]
    assert run.error() == "its result could not be saved: disk full"
    finish = said[-1]
    assert isinstance(finish, Finish)
    assert [record.name for record in finish.records] == ["a"]  # to be saved once more


@directed
def test_success_is_reported_with_its_value_when_its_consumers_were_skipped_before() -> None:
    run = Machine({"a": {}, "b": {}, "c": {"deps": ["a", "b"]}})
    run.start(2)
    run.failed()
    run.saved(0)
    run.succeeded(1)
    run.saved(2)
    report, *_ = run.state.apply([Saved([1])], run.now)
    assert isinstance(report, Report)
    assert report.value == "value of 1"
    assert run.state.value(1) is NoResult.RELEASED


TORN_DOWN: dict[str, dict[str, Any]] = {
    "setup": {},
    "use": {"deps": ["setup"]},
    "teardown": {"teardown_of": ["setup"], "retries": 1, "timeout_s": 5.0},
}


def set_up(tasks: dict[str, dict[str, Any]] = TORN_DOWN, **options: Any) -> Machine:
    """Return a run whose setup has succeeded, and whose second task runs."""
    run = Machine(tasks, **options)
    run.start()
    run.succeeded()
    run.saved(0)
    run.start()
    return run


@directed
def test_teardown_starts_once_its_start_is_saved_and_what_uses_its_setup_has_ended() -> None:
    run = set_up()
    assert run.failed(unit=1) == ["save use FAILED for [1]"]
    assert run.saved(1) == ["failure use.1"]
    assert run.start() == ["save teardown RUNNING for [2]"]
    assert run.saved(2) == ["start teardown.1", "start 2.1"]
    assert run.state.value(0) == "value of 0"
    assert run.succeeded(2) == ["save teardown SUCCESS for [2]"]
    assert run.saved(2) == ["success teardown.1", "finish FAILED, None"]


@directed
def test_start_of_a_teardown_is_saved_once() -> None:
    run = set_up(save_starts_after_s=0.5)
    run.succeeded(1)
    run.saved(1)
    assert run.start() == ["save teardown RUNNING for [2]"]
    assert run.wait(Wait.STARTS) == []
    run.saved(2)
    run.now += 1.0
    assert run.apply() == []


@directed
def test_teardown_of_what_failed_is_skipped_and_of_what_was_omitted_is_omitted() -> None:
    omits = Failure("nothing new", "nothing new", omits=True)
    for failure, status in ((ERROR, "SKIPPED"), (omits, "OMITTED")):
        run = Machine({"a": {}, "b": {}, "t": {"teardown_of": ["a"], "deps": ["b"]}})
        run.start(2)
        run.failed(failure)
        assert run.saved(0)[1:] == []  # its other dependency has not ended
        run.failed(unit=1)
        assert run.saved(1) == ["failure b.1", f"save t {status} for [2]"]
    run.saved(2)
    assert run.error("t") == "a task upstream of it was omitted"


@directed
def test_only_setups_decide_about_a_teardown() -> None:
    run = Machine({"a": {}, "b": {}, "t": {"teardown_of": ["a"], "deps": ["b"]}})
    run.start(2)
    run.succeeded()
    run.saved(0)
    run.failed(unit=1)
    run.saved(1)
    assert run.start() == ["save t RUNNING for [2]"]


@directed
def test_second_interrupt_may_come_out_of_a_task_that_stops() -> None:  # R2
    interrupt = Failure("KeyboardInterrupt", "KeyboardInterrupt", interrupts=True)
    for failure, is_skipped in ((ERROR, False), (interrupt, True)):
        tasks: dict[str, dict[str, Any]] = {"setup": {}, "a": {}, "b": {}}
        tasks["teardown"] = {"teardown_of": ["setup"]}
        run = Machine(tasks)
        run.start(3)
        run.succeeded(0)
        run.saved(0)
        run.failed(interrupt, unit=1)
        run.saved(1)
        run.failed(failure, unit=2)
        assert ("save teardown SKIPPED for [3]" in run.saved(2)) is is_skipped


def test_stop_runs_the_teardown_alone_and_the_second_interrupt_ends_it() -> None:  # R2
    tasks = {**TORN_DOWN, "after": {"deps": ["teardown"]}, "other": {"deps": ["setup"]}}
    run = set_up(tasks)
    assert run.stop(interrupts=True) == ["stop [1] RUN_CANCELLED: Ctrl-C"]
    run.failed(unit=1)
    skipped = ["failure use.1", "save other SKIPPED, after SKIPPED for [2, 4]"]
    assert run.saved(1) == skipped
    assert run.saved(2, 4) == ["skip other.0", "skip after.0"]
    assert run.start() == ["save teardown RUNNING for [3]"]
    run.saved(3)
    assert run.failed(AGAIN, unit=3) == ["retry teardown.1", "save teardown PENDING for []"]
    run.start()
    assert run.saved(3) == ["start teardown.2", "start 3.2"]
    assert run.stop() == []  # not an interrupt
    assert run.stop(interrupts=True) == ["stop [3] RUN_CANCELLED: Ctrl-C"]
    assert run.stop(interrupts=True) == []
    assert run.failed(AGAIN, unit=3, attempt=2) == ["save teardown FAILED for [3]"]
    assert run.saved(3) == ["failure teardown.2", "finish FAILED, RUN_CANCELLED: Ctrl-C"]


@directed
def test_teardown_that_runs_goes_on_when_the_run_stops() -> None:
    run = set_up()
    run.succeeded(1)
    run.saved(1)
    run.start()
    run.saved(2)
    assert run.stop() == []
    assert run.wait(Wait.TIMEOUT) == ["stop [2] time is up"]
    assert run.apply(StopAnswered(2, 1, StopAnswer.UNWILLING, TIMEOUT_AGAIN))[0] == "give up 2"
    assert run.stop() == []
    assert run.failed(unit=2)[0] == "retry teardown.1"
    run.start()
    run.saved(2)
    assert run.succeeded(2, attempt=2) == ["save teardown SUCCESS for [2]"]
    # All has succeeded, so the stop came too late to matter.
    assert run.saved(2) == ["success teardown.2", "finish SUCCESS, None"]


@directed
def test_second_interrupt_ends_a_teardown_in_every_phase() -> None:
    later = Failure("text", "line", retryable=True, delay_s=3.0)
    ends: dict[str, Callable[[Machine], object]] = {
        "waits for a slot": lambda run: None,
        "starts": lambda run: run.start(),
        "is delayed": lambda run: [run.start(), run.saved(2), run.failed(later, unit=2)],
        "lingers": lambda run: [
            run.start(),
            run.saved(2),
            run.wait(Wait.TIMEOUT),
            run.apply(StopAnswered(2, 1, StopAnswer.UNWILLING, TIMEOUT_AGAIN)),
        ],
    }
    told: dict[str, list[str]] = {}
    for name, end in ends.items():
        run = set_up()
        run.succeeded(1)
        run.saved(1)
        end(run)
        run.stop(interrupts=True)
        told[name] = run.stop(interrupts=True)
        if name == "starts":
            told[name] += run.saved(2)
        run.saved(2)
        assert run.state.is_finished
    assert told == {
        "waits for a slot": ["save teardown SKIPPED for [2]"],
        "starts": ["save teardown SKIPPED for [2]"],
        "is delayed": ["save teardown SKIPPED for [2]"],
        "lingers": ["save teardown FAILED for [2]"],
    }


@directed
def test_store_that_fails_ends_teardowns() -> None:  # R4
    run = set_up()
    run.succeeded(1)
    run.saved(1)
    run.start()
    refusal = Refusal("disk full", "disk full", of_result=False)
    assert run.saved(2, refusals={2: refusal}) == []
    broken = StopRequested(Reason.RUN_BROKEN, "disk full", broken=True)
    assert run.apply(broken) == ["save teardown SKIPPED for [2]"]
    assert run.saved(2) == ["skip teardown.0", "finish FAILED, RUN_BROKEN: disk full"]


@directed
def test_teardown_of_what_a_stop_has_skipped_is_skipped_by_the_same_reason() -> None:
    run = Machine({"first": {}, **TORN_DOWN, "setup": {"deps": ["first"]}})
    run.start()
    run.stop()
    run.failed()
    assert run.saved(0)[1:] == ["save setup SKIPPED, use SKIPPED for [1, 2]"]
    assert run.saved(1, 2)[2:] == ["save teardown SKIPPED for [3]"]
    assert run.saved(3)[0] == "skip teardown.0"
    assert run.error("teardown") == "RUN_CANCELLED: what it tears down was not set up"


@directed
def test_slots_that_are_of_no_use_any_more_are_given_back() -> None:
    run = Machine()
    assert run.wanted == 1
    run.start(3)
    assert run.released == 2


@directed
def test_limits_are_asked_again_when_a_time_has_come() -> None:
    run = Machine({"a": {"timeout_s": None}, "b": {"timeout_s": None}})
    run.ask_again_at = 105.0
    assert run.start() == ["start a.1", "start 0.1"]
    run.ask_again_at = math.inf
    assert run.apply(SlotsGranted({}, 107.0)) == []
    assert run.asked_at == [100.0, 100.0]
    assert run.wait(Wait.LIMITS) == []
    assert run.wait(Wait.LIMITS) == []
    assert run.asked_at == [100.0, 100.0, 105.0, 107.0]


@directed
def test_pause_is_asked_for_with_the_failure() -> None:
    run = Machine({"a": {"retries": 1}})
    run.start()
    busy = Failure("429", "429", retryable=True, delay_s=3.0, pauses=("api", "unknown"))
    note = "note a: RetryAfter asked to pause 'unknown', which is no limit of the engine"
    assert run.failed(busy) == [note, "retry a.1", "save a PENDING for []"]
    assert run.paused == [(("api", "unknown"), 103.0)]


@directed
def test_slot_is_free_while_a_result_is_encoded() -> None:
    run = Machine({"a": {}, "b": {}}, most_encoding=1)
    run.start(2)
    run.apply(CodeEnded(0, 1))
    assert run.released == 1
    run.apply(CodeEnded(1, 1))
    assert run.released == 1, "results do not pile up"
    run.now += 3
    run.succeeded(1)
    assert run.released == 2
    run.apply(Succeeded(0, 1, None, run.now - 3, "value", "stored"))
    assert run.released == 2
    run.saved(0, 1)
    record = run.state.records()["a"]
    assert (record.finished_at, record.encoded_at) == (run.now - 3, run.now)


@directed
def test_slot_is_given_back_once_if_the_time_is_up_or_the_run_stops_meanwhile() -> None:
    for event in (None, StopRequested(Reason.RUN_CANCELLED, "Ctrl-C")):
        run = Machine({"a": {"timeout_s": 5.0}}, most_encoding=1)
        run.start()
        if event is None:
            run.wait(Wait.TIMEOUT)
        else:
            run.apply(event)
        run.apply(CodeEnded(0, 1))
        assert run.released == 1
        run.answered(StopAnswer.UNWILLING, TIMEOUT)
        assert run.released == 1
        if event is not None:
            run.wait(Wait.PATIENCE)
        assert run.released == 1


@directed
def test_events_of_an_attempt_that_is_over_are_dropped() -> None:
    run = Machine({"a": {"retries": 1}})
    run.start()
    run.failed(AGAIN)
    for _ in range(2):  # while it waits, and while the next attempt runs
        run.began()
        run.answered(StopAnswer.WILLING, TIMEOUT)
        run.start()
    assert run.succeeded(attempt=2) == ["save a SUCCESS for [0]"]


@pytest.mark.parametrize(
    ("events", "phase"),
    [
        ([ONE, StopAnswered(0, 1, StopAnswer.WILLING, None)], "RUNNING"),
        ([ONE, Failed(0, 1, None, ERROR), Failed(0, 1, None, ERROR)], "FAILING"),
    ],
)
def test_impossible_event_raises_with_the_story_of_the_unit(
    events: list[Event], phase: str
) -> None:
    run = Machine()
    *before, last = events
    run.apply(*before)
    with pytest.raises(TransitionError) as raised:
        run.apply(last)
    story = f"run 'r1': {last!r} is impossible for task 'a', attempt 1, in phase {phase}"
    assert str(raised.value) == story


def test_every_row_and_every_deadline_is_taken_by_a_test_above() -> None:
    for test in DIRECTED:
        test()
    assert set(TRANSITIONS) <= TAKEN
    assert set(Wait) <= TAKEN


def test_unit_that_was_ready_when_the_run_stopped_has_waited_since() -> None:  # V3
    run = Machine({"a": {}, "b": {}})
    run.start()
    run.now += 2
    run.stop()
    run.answered(StopAnswer.WILLING)
    run.failed(ERROR)
    run.saved(0)
    run.saved(1)
    waited = run.state.records()["b"]
    assert (waited.status, waited.ready_at, waited.attempts) == ("SKIPPED", 100.0, ())
    assert (waited.granted_at, waited.started_at, waited.finished_at) == (None, None, 102.0)


def test_interrupt_of_timed_out_code_stops_the_run() -> None:  # A5 R2
    run = Machine()
    run.start()
    run.wait(Wait.TIMEOUT)
    run.answered(StopAnswer.WILLING, Failure("TaskTimeoutError: slow", "TaskTimeoutError: slow"))
    run.failed(Failure("KeyboardInterrupt", "KeyboardInterrupt", interrupts=True))
    assert run.state.stopping


def test_check_says_what_does_not_hold() -> None:
    run = Machine({"a": {}, "b": {"deps": ["a"]}})
    run.state.table.units[1].phase = UnitPhase.DONE
    with pytest.raises(AssertionError, match="open units"):
        run.state.check()
