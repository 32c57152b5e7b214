"""A small sequential model of what the contract says of one run.

It knows no phases, queues or deadlines. It takes the same events as the run state, one after the
other, and says what must follow: which tasks may start, what is reported, which values are kept,
how each task ends. Written from the contract and the promises, not from the code:

- A task starts only if all its parents are SUCCESS, in the graph's order (R6).
- A failure is retried if the retry policy allows it and the run goes on, after the delay.
- What depends on a task that failed for good is SKIPPED; with a trigger rule, all that it depends
  on ends first, and then the rule says whether it runs, is SKIPPED or OMITTED.
- A task that says so is OMITTED, and so is what a branch has not chosen.
- After a stop nothing starts. What ran is FAILED, what had not started is SKIPPED (R2).
- A teardown runs once all that depends on its setups, and its own dependencies, have ended, if its
  setups succeeded. A stop does not end it, but the second interrupt and a broken store do. Its
  start is saved before its code begins.
- A task that outlives its timeout is abandoned. Its retry waits for the code to end, at most as
  long again as the timeout (A2).
- An outcome counts, and is reported, once the store has answered (D8).
- A value is kept as long as a consumer may need it (I2).
- A task with a cache is looked up once, before its first attempt may start. What is found is its
  result, without an attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from flowrun.graph import Graph
from flowrun.scheduler.limits import Needs
from flowrun.scheduler.messages import (
    CodeEnded,
    Event,
    Failed,
    LookedUp,
    Refusal,
    Saved,
    SlotsGranted,
    Started,
    StopAnswer,
    StopAnswered,
    StopRequested,
    Succeeded,
)
from flowrun.scheduler.stand_ins import StandIn
from flowrun.state import Cached, Reason

SUCCESS, FAILED, SKIPPED, OMITTED = "SUCCESS", "FAILED", "SKIPPED", "OMITTED"


class Outcome(NamedTuple):
    """How a task ends."""

    status: str
    reason: Reason | None = None
    value: object = None


class Told(NamedTuple):
    """What hooks and log are told of one task."""

    kind: str
    attempt: int
    reason: Reason | None = None


class Task:
    """What the model knows of one task."""

    def __init__(self) -> None:
        self.attempt = 0
        self.reasons: list[Reason | None] = []  # of its ended attempts
        self.begins: list[float] = []  # of their code, as far as the run knows (A1)
        self.running = False
        self.start_saved: bool | None = None  # unless its start has not to be saved, or is
        self.begun_at = 0.0  # the code of its attempt
        self.times_out_from: float | None = None
        self.told = ""  # "timeout" or "stop", once its attempt was told to stop
        self.answered = False  # the attempt said that it is still running
        self.timeout: Any = None  # its failure, if it does not end in time
        self.overdue = False  # its code ended in time, and encoding its result may take as long
        self.encoding = False  # its code has ended, and its slot is free
        self.given_up_at: float | None = None  # unless it ends before
        self.retry_at = 0.0
        self.waits_for_code_until: float | None = None  # and may not start before (A2)
        self.retry_delay_s = 0.0
        self.follows: frozenset[int] | None = None  # what a branch has chosen
        self.saving: Outcome | None = None
        self.outcome: Outcome | None = None  # saved, so it counts
        self.looks_up = False  # the cache was asked, and has not answered
        self.has_looked_up = False
        self.cached: Cached | None = None  # what the cache has answered

    @property
    def from_cache(self) -> bool:
        """Whether its result was found in the cache."""
        return self.cached is not None and self.cached.run_id is not None

    @property
    def pending(self) -> bool:
        """Whether it has not ended and has no attempt."""
        return not self.running and self.saving is None and self.outcome is None


class ContractModel:
    """The model of one run.

    Args:
        graph: Whose children and parents it uses.
        carried: Values of the tasks that a resume keeps, by number.
        run_timeout_at: When the run's own time is up.
        graces: How long code that will end, and a thread that was only told, is waited for.
        needs: What each task needs at once to start.
        fails_fast: Whether the first final failure ends the run.
        cached: Tasks with a cache.
    """

    def __init__(
        self,
        graph: Graph,
        carried: dict[int, object],
        run_timeout_at: float | None,
        graces: tuple[float, float],
        *,
        needs: Sequence[Needs],
        fails_fast: bool = False,
        cached: Collection[int] = (),
        most_encoding: int = 0,
    ) -> None:
        self.graph = graph
        self.most_encoding = most_encoding
        self.needs = needs
        self.fails_fast = fails_fast
        self.cached = cached
        self.cancel_grace_s, self.thread_grace_s = graces
        self.tasks = [Task() for _ in graph.names]
        for number, value in carried.items():
            self.tasks[number].outcome = Outcome(SUCCESS, None, value)
        self.run_timeout_at = run_timeout_at
        self.stopped: Reason | None = None
        self.broken = False
        self.interrupts = 0
        self.setups = [
            [self.graph.index[str(name)] for name in spec.teardown_of] for spec in graph.specs
        ]
        self.now = 0.0
        self.reports: dict[int, list[Told]] = {}
        self.told_of_stop: set[int] = set()  # who must be told in this step
        self.asked_for: list[int] = []  # for whom the cache must be asked in this step
        self.saved_starts: list[int] = []  # of teardowns, in this step

    def begin(self) -> None:
        """Decide about the tasks that depend on those that were carried over."""
        for number, task in enumerate(self.tasks):
            branches = [self.tasks[parent].follows for parent in self.graph.parents[number]]
            is_chosen = all(follows is None or number in follows for follows in branches)
            if task.pending and not is_chosen and not self.setups[number]:
                task.saving = Outcome(OMITTED, Reason.NOT_CHOSEN)
            elif task.pending:
                self.judge(number)

    # -- one step ----------------------------------------------------------------------------

    def step(self, events: Sequence[Event], now: float, slots: Counter[Needs]) -> list[int]:
        """Take events, then what is due; return which tasks start."""
        self.now = now
        self.reports = {}
        self.told_of_stop = set()
        for event in events:
            self.take(event)
        for number, task in enumerate(self.tasks):
            if task.given_up_at is not None and task.given_up_at <= now and task.running:
                self.given_up(number, task)
            elif task.waits_for_code_until is not None and task.waits_for_code_until <= now:
                self.fail_waiting(number)
        if self.run_timeout_at is not None and self.run_timeout_at <= now:
            self.stop(Reason.RUN_TIMED_OUT)
        starts = [number for number in self.saved_starts if self.begins_after_save(number)]
        self.saved_starts = []
        if self.stopped is not None and not self.holds_up_skips:
            for number, task in enumerate(self.tasks):
                if task.pending and self.ends(number):
                    task.saving = Outcome(SKIPPED, self.stopped)
        left = slots.copy()
        for number in self.startable():
            if left[self.needs[number]] > 0:
                left[self.needs[number]] -= 1
                self.take_slot(number)
                if self.setups[number]:
                    self.tasks[number].start_saved = False
                else:
                    starts.append(number)
        for number in starts:
            self.report(number, Told("start", self.tasks[number].attempt))
        return starts

    @property
    def holds_up_skips(self) -> bool:
        """Whether something that a stop ends still runs, or an outcome is not saved."""
        return any(
            task.saving or (task.running and self.ends(number))
            for number, task in enumerate(self.tasks)
        )

    def begins_after_save(self, number: int) -> bool:
        """Return whether a teardown whose start was saved begins; else it does not start."""
        task = self.tasks[number]
        is_saved, task.start_saved = task.start_saved, None
        if is_saved and not self.ends(number):
            return True
        task.running = False
        task.attempt -= 1
        return False

    def ends(self, number: int) -> bool:
        """Return whether the run was stopped, and a task is not spared."""
        is_spared = self.setups[number] and self.spares_teardowns
        return self.stopped is not None and not is_spared

    @property
    def spares_teardowns(self) -> bool:
        return not self.broken and self.interrupts < 2

    def startable(self) -> list[int]:
        """Return the tasks that may start now: by priority, then in the graph's order."""
        found = [
            number
            for number, task in enumerate(self.tasks)
            if task.pending
            and not self.ends(number)
            and task.retry_at <= self.now
            and task.waits_for_code_until is None
            and not task.looks_up
            and self.rule_says(number) == "run"
        ]
        return sorted(found, key=lambda number: -self.graph.specs[number].priority)

    def rule_says(self, number: int) -> str:
        """Return what the trigger rule of a task says: wait, run, SKIPPED or OMITTED."""
        if any(self.tasks[each].outcome is None for each in self.comes_after(number)):
            return "wait"
        judged = self.setups[number] or self.graph.parents[number]
        outcomes = [self.tasks[parent].outcome for parent in judged]
        statuses = [outcome.status for outcome in outcomes if outcome is not None]
        rule = str(self.graph.specs[number].trigger_rule)
        bad = FAILED in statuses or SKIPPED in statuses
        good = SUCCESS in statuses
        runs = {
            "all_success": all(status == SUCCESS for status in statuses),
            "all_done": True,
            "one_success": good,
            "one_failed": bad,
            "none_failed": not bad,
            "none_failed_min_one_success": good and not bad,
        }
        if runs[rule] or not statuses:
            return "run"
        return SKIPPED if bad and rule != "one_failed" else OMITTED

    def comes_after(self, number: int) -> list[int]:
        """Return what has to end before a task can be judged."""
        users = [
            child
            for setup in self.setups[number]
            for child in self.graph.children[setup]
            if setup not in self.setups[child]
        ]
        return [*self.graph.parents[number], *users]

    def succeeded(self, number: int) -> bool:
        outcome = self.tasks[number].outcome
        return outcome is not None and outcome.status == SUCCESS

    def take_slot(self, number: int) -> None:
        task = self.tasks[number]
        task.running = True
        task.encoding = False
        task.attempt += 1
        task.told, task.answered, task.overdue, task.given_up_at = "", False, False, None
        task.begun_at = self.now
        task.times_out_from = None

    def is_overdue(self, number: int) -> bool:
        """Return whether the time of an attempt is up (A1), and it was not told before."""
        task, timeout_s = self.tasks[number], self.graph.specs[number].timeout_s
        if not task.running or task.times_out_from is None or timeout_s is None:
            return False
        is_told = task.told and number not in self.told_of_stop
        return not is_told and task.times_out_from + timeout_s <= self.now

    def tell(self, number: int, why: str) -> None:
        """Note that the run has told an attempt to stop."""
        self.tasks[number].told = why
        self.told_of_stop.discard(number)

    # -- events ------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        match event:
            case SlotsGranted():
                pass
            case StopRequested(reason=reason, broken=broken, interrupts=interrupts):
                self.stop(reason, broken=broken, interrupts=interrupts)
            case Saved(units=units, refusals=refusals):
                for number in units:
                    self.saved(number, (refusals or {}).get(number))
            case LookedUp(unit=unit, cached=cached, found=found):
                self.answered(self.tasks[unit], cached, found)
            case Succeeded() | Failed() if not self.tasks[event.unit].running:  # given up before
                task = self.tasks[event.unit]
                if task.waits_for_code_until is not None and event.attempt == task.attempt:
                    task.waits_for_code_until = None
                    self.retry(event.unit)
            case _:
                task = self.tasks[event.unit]
                if task.running and event.attempt == task.attempt:
                    self.of_attempt(event.unit, task, event)

    def answered(self, task: Task, cached: Cached | None, found: StandIn | None) -> None:
        if not task.looks_up:
            return  # the run was stopped meanwhile
        task.looks_up = False
        task.cached = cached
        if found is not None:
            task.saving = Outcome(SUCCESS, None, found.value)
            task.follows = found.follows

    def of_attempt(self, number: int, task: Task, event: Any) -> None:
        match event:
            case Started(at=at):
                task.begun_at = task.times_out_from = at
            case CodeEnded():
                encoding = [each for each in self.tasks if each.running and each.encoding]
                task.encoding = len(encoding) < self.most_encoding
            case StopAnswered(answer=StopAnswer.WITHDRAWN) if task.told == "stop":
                task.running = False  # it has not started, so it is skipped
                task.attempt -= 1
            case StopAnswered(answer=StopAnswer.WITHDRAWN, timeout=timeout):
                self.failed(number, Reason.TIMEOUT, timeout)
            case StopAnswered(answer=answer) if task.told == "stop":
                grace_s = self.cancel_grace_s
                if answer is not StopAnswer.WILLING:
                    grace_s = self.thread_grace_s
                task.given_up_at = self.now + grace_s
            case StopAnswered(answer=StopAnswer.ENDED) if not task.overdue:
                task.told = ""  # in time; its result may take as long again to encode
                task.overdue = True
                task.times_out_from = self.now
            case StopAnswered(answer=answer, timeout=timeout):
                task.answered = True
                task.timeout = timeout
                if answer is StopAnswer.WILLING:
                    task.given_up_at = self.now + self.cancel_grace_s
                else:
                    self.given_up(number, task)
            case Succeeded() | Failed():
                self.ended(number, task, event)

    def ended(self, number: int, task: Task, event: Succeeded | Failed) -> None:
        interrupted = isinstance(event, Failed) and event.failure.interrupts
        if interrupted:
            self.stop(Reason.RUN_CANCELLED, but=number, interrupts=True)
        task.begun_at = event.started_at or task.begun_at
        omits = isinstance(event, Failed) and event.failure.omits
        if task.told == "stop":
            self.failed(number, self.stopped, None)
        elif omits and not (task.told == "timeout" and task.answered):
            task.running = False
            task.reasons.append(Reason.SKIP_TASK)
            task.begins.append(task.begun_at)
            task.saving = Outcome(OMITTED, Reason.SKIP_TASK)
        elif task.told == "timeout" and task.answered:
            self.failed(number, Reason.TIMEOUT, task.timeout)
        elif isinstance(event, Succeeded):
            task.running = False
            task.saving = Outcome(SUCCESS, None, event.value)
            task.follows = event.follows
        else:
            reason = Reason.RUN_CANCELLED if interrupted else Reason.ERROR
            self.failed(number, reason, event.failure)

    def given_up(self, number: int, task: Task) -> None:
        self.report(number, Told("abandoned", task.attempt))
        if task.told == "stop":
            self.failed(number, self.stopped, None)
            return
        self.failed(number, Reason.TIMEOUT, task.timeout, code_ended=False)

    def failed(
        self, number: int, reason: Reason | None, failure: Any, *, code_ended: bool = True
    ) -> None:
        task = self.tasks[number]
        task.running = False
        task.reasons.append(reason)
        task.begins.append(task.begun_at)
        if failure is None or not failure.retryable or self.ends(number):
            task.saving = Outcome(FAILED, reason)
            return
        task.retry_delay_s = failure.delay_s
        if code_ended:
            self.retry(number)
        else:
            task.waits_for_code_until = self.now + (self.graph.specs[number].timeout_s or 0.0)

    def retry(self, number: int) -> None:
        task = self.tasks[number]
        task.retry_at = self.now + task.retry_delay_s
        self.report(number, Told("retry", task.attempt, task.reasons[-1]))

    def fail_waiting(self, number: int) -> None:
        task = self.tasks[number]
        task.waits_for_code_until = None
        task.saving = Outcome(FAILED, task.reasons[-1])

    def stop(
        self, reason: Reason, but: int = -1, *, broken: bool = False, interrupts: bool = False
    ) -> None:
        spared = self.spares_teardowns
        self.broken = self.broken or broken
        self.interrupts += interrupts
        if self.stopped is not None and self.spares_teardowns == spared:
            return
        if self.all_over and not (broken and self.stopped is None):
            return
        self.stopped = self.stopped or reason
        for number, task in enumerate(self.tasks):
            if not self.ends(number):
                continue
            if task.running and task.start_saved is None and not task.told and number != but:
                self.told_of_stop.add(number)
                task.told = "stop"
            if task.waits_for_code_until is not None:
                self.fail_waiting(number)
            task.looks_up = False

    def saved(self, number: int, refusal: Refusal | None) -> None:
        task = self.tasks[number]
        if task.start_saved is not None:
            task.start_saved = refusal is None
            self.saved_starts.append(number)
            return
        outcome, task.saving = task.saving, None
        assert outcome is not None, f"{number} had nothing to save"
        if refusal is not None and outcome.status == SUCCESS:
            task.follows = None
            if task.from_cache:
                task.attempt, task.begun_at, task.cached = 1, self.now, None
            if refusal.of_result:
                self.failed(number, Reason.ERROR, None)
                return
            task.reasons.append(Reason.RUN_BROKEN)
            task.begins.append(task.begun_at)
            outcome = Outcome(FAILED, Reason.RUN_BROKEN)
        task.outcome = outcome
        if outcome.status == SUCCESS and not task.from_cache:
            task.reasons.append(None)
            task.begins.append(task.begun_at)
        kinds = {SUCCESS: "success", FAILED: "failure", SKIPPED: "skip", OMITTED: "omit"}
        self.report(number, Told(kinds[outcome.status], task.attempt, outcome.reason))
        if outcome.status == FAILED and self.fails_fast:
            self.stop(Reason.FAIL_FAST)
        if self.stopped is None and outcome.status == FAILED:
            self.skip_after(number)
        for after, other in enumerate(self.tasks):
            if number not in self.comes_after(after) or not other.pending or self.ends(after):
                continue
            is_chosen = task.follows is None or after in task.follows or self.setups[after]
            if not is_chosen and number in self.graph.parents[after]:
                other.saving = Outcome(OMITTED, Reason.NOT_CHOSEN)
            else:
                self.judge(after)

    def judge(self, number: int) -> None:
        says, task = self.rule_says(number), self.tasks[number]
        if says == "run" and number in self.cached and not task.has_looked_up:
            task.looks_up = task.has_looked_up = True
            self.asked_for.append(number)
        if says in {SKIPPED, OMITTED}:
            by_rule = str(self.graph.specs[number].trigger_rule) != "all_success"
            reason = Reason.RULE_NOT_MET if by_rule else Reason.UPSTREAM_OMITTED
            reason = self.stopped or Reason.UPSTREAM_FAILED if says == SKIPPED else reason
            self.tasks[number].saving = Outcome(says, reason)

    def skip_after(self, number: int) -> None:
        for child in self.graph.children[number]:
            needs_it = str(self.graph.specs[child].trigger_rule) == "all_success"
            needs_it = needs_it and not self.setups[child]
            if needs_it and self.tasks[child].pending:
                self.tasks[child].saving = Outcome(SKIPPED, Reason.UPSTREAM_FAILED)
                self.skip_after(child)

    def report(self, number: int, report: Told) -> None:
        self.reports.setdefault(number, []).append(report)

    # -- what holds between steps --------------------------------------------------------------

    @property
    def all_over(self) -> bool:
        return all(task.outcome is not None for task in self.tasks)

    def next_due(self) -> float | None:
        """Return when the run has to look again at the latest; ``None`` if it waits for nobody."""
        dues: list[float] = []
        for number, task in enumerate(self.tasks):
            timeout_s = self.graph.specs[number].timeout_s
            if task.running and not task.told and task.times_out_from is not None and timeout_s:
                dues.append(task.times_out_from + timeout_s)
            if task.pending and task.retry_at > self.now and not self.ends(number):
                dues.append(task.retry_at)
            if task.waits_for_code_until is not None:
                dues.append(task.waits_for_code_until)
            if task.running and task.given_up_at is not None:
                dues.append(task.given_up_at)
        if self.run_timeout_at is not None and self.stopped is None and not self.all_over:
            dues.append(self.run_timeout_at)
        return min(dues, default=None)

    def needed_value(self, number: int) -> tuple[bool, object]:
        """Return whether a task has a value that somebody may still need, and which."""
        task = self.tasks[number]
        if task.saving is not None and task.saving.status == SUCCESS:
            return True, task.saving.value
        consumers = [self.tasks[child] for child in self.graph.children[number]]
        if self.succeeded(number) and any(child.outcome is None for child in consumers):
            assert task.outcome is not None
            return True, task.outcome.value
        return False, None
