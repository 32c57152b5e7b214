"""The state machine, and what a task is told of its surroundings."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from flowrun import Attempt, RunContext, RunRecord, TaskRecord
from flowrun.errors import AttemptCancelledError
from flowrun.state.records import Cached, Reason, TaskStatus, TransitionError
from flowrun.state.run_records import RunStatus, run_status

from .runs import failed, running, succeeded


def in_state(status: str) -> TaskRecord:
    task = TaskRecord("t")
    if status == "SUCCESS":
        return succeeded(task, 1)
    if status == "FAILED":
        return failed(task)
    if status == "SKIPPED":
        return task.skip(2.0, Reason.UPSTREAM_FAILED, "why")
    return running(task) if status == "RUNNING" else task


CHANGES: dict[str, tuple[set[str], Callable[[TaskRecord], object]]] = {
    "start": ({"PENDING"}, lambda task: task.start(3.0, 3.0)),
    "succeed": ({"RUNNING"}, lambda task: task.succeed(3.0, 1)),
    "fail": ({"RUNNING"}, lambda task: task.fail(3.0, "x", Reason.ERROR)),
    "withdraw": ({"RUNNING"}, lambda task: task.withdraw()),
    "begin": ({"RUNNING"}, lambda task: task.begun(3.0)),
    "wait": ({"PENDING"}, lambda task: task.waited(3.0, ())),
    "expand": ({"PENDING"}, lambda task: task.expand(3.0, 2.0, 1)),
    "retry": ({"FAILED"}, lambda task: task.retry()),
    "amend": ({"FAILED"}, lambda task: task.amend("more")),
    "skip": ({"PENDING"}, lambda task: task.skip(3.0, Reason.RUN_CANCELLED, "x")),
    "release": ({"SUCCESS"}, lambda task: task.release()),
}


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCESS", "FAILED", "SKIPPED"])
@pytest.mark.parametrize("change", CHANGES)
def test_only_the_contracts_transitions_are_possible(status: str, change: str) -> None:
    allowed, apply = CHANGES[change]
    task = in_state(status)
    if status in allowed:
        assert isinstance(apply(task), TaskRecord)
    else:
        with pytest.raises(TransitionError, match=f"cannot {change} while it is {status}"):
            apply(task)
    assert task == in_state(status)  # a record is a value


def test_attempt_that_was_withdrawn_leaves_no_trace() -> None:
    task = failed(TaskRecord("t")).retry()
    withdrawn = running(task, 5.0).withdraw()
    assert (withdrawn.status, withdrawn.attempt, withdrawn.started_at) == ("PENDING", 1, None)
    assert withdrawn.attempts == task.attempts


def test_attempts_are_those_that_have_ended() -> None:  # A6
    task = failed(TaskRecord("t"), "first").retry()
    assert [attempt.error for attempt in task.attempts] == ["first"]
    assert [attempt.error for attempt in running(task).attempts] == ["first"]
    twice = failed(task, "second").amend("second, longer")
    assert [attempt.error for attempt in twice.attempts] == ["first", "second, longer"]
    skipped = twice.retry().skip(9.0, Reason.RUN_CANCELLED, "why")
    assert skipped.attempts == twice.attempts
    done = succeeded(twice.retry())
    assert [attempt.number for attempt in done.attempts] == [1, 2, 3]
    assert (done.attempts[2].error, done.attempts[2].reason) == (None, None)
    assert TaskRecord("t", status=TaskStatus.SUCCESS).attempts == ()  # as a store may hold it


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["SUCCESS", "SUCCESS"], "SUCCESS"),
        (["SUCCESS", "PENDING"], "RUNNING"),
        (["SUCCESS", "RUNNING"], "RUNNING"),
        (["SUCCESS", "FAILED", "PENDING"], "FAILED"),
        (["SKIPPED", "RUNNING"], "FAILED"),
    ],
)
def test_run_status_by_the_contracts_rule(statuses: list[str], expected: str) -> None:
    assert run_status(statuses) is RunStatus(expected)


def test_value_stands_in_for_an_attempt() -> None:
    done = TaskRecord("t", ("a",)).stand_in(3.0, [1])
    assert (done.status, done.attempt, done.attempts) == ("SUCCESS", 0, ())
    assert (done.result, done.started_at, done.finished_at) == ([1], None, 3.0)
    with pytest.raises(TransitionError, match="'t' cannot be overridden while it is SUCCESS"):
        done.stand_in(4.0, 1)
    cached = TaskRecord("t", cache=Cached("key")).stand_in(3.0, [1], Cached("key", "earlier"))
    assert (cached.status, cached.cache) == ("SUCCESS", ("key", "earlier"))


def test_place_in_the_cache_stays_through_all_attempts() -> None:
    task = TaskRecord("t", cache=Cached("key"))
    for number in range(3):
        task = task.start(number, number).fail(number, "boom", Reason.ERROR).retry()
    assert task.start(9.0, 9.0).succeed(9.5, 1).cache == Cached("key")


def test_run_finishes_once() -> None:
    run = RunRecord("r", "d", 1.0, {"t": in_state("SUCCESS")})
    ended = run.finish(2.0)
    assert (ended.finished_at, ended.alive, ended.tasks) == (2.0, False, run.tasks)
    assert (run.finished_at, run.alive) == (None, True)
    with pytest.raises(TransitionError, match="has already finished"):
        ended.finish(3.0)
    other = run.finish(2.0, "why", {"t": in_state("FAILED")})
    assert (other.status, other.error) == ("FAILED", "why")
    assert repr(run) == "<RunRecord 'r' of DAG 'd'>"
    assert repr(run.tasks["t"]) == "<TaskRecord 't' SUCCESS attempt=1>"


def test_summary_shows_what_a_list_shows() -> None:
    tasks = {name: TaskRecord(name) for name in "ab"} | {"t": in_state("SUCCESS")}
    run = RunRecord("r", "d", 1.0, tasks, {"n": 1}, "r0", ("t",), "r9", params={"day": "x"})
    summary = run.summary()
    assert summary.task_counts == {"PENDING": 2, "SUCCESS": 1}
    assert (summary.status, summary.metadata) == ("RUNNING", {"n": 1})
    assert summary.params == {"day": "x"}
    assert (summary.resumed_from, summary.targets, summary.started_by) == ("r0", ("t",), "r9")


def test_context_shows_its_type_and_no_value() -> None:  # V2
    class Secrets:
        token = "s3cret"

    secrets = Secrets()
    context = RunContext(secrets)
    assert context.token == "s3cret"
    assert repr(context) == "RunContext[Secrets]"
    assert context == RunContext(secrets)
    assert context != RunContext(Secrets())
    assert context != secrets
    assert hash(context) == hash(RunContext(secrets))
    with pytest.raises(AttributeError):
        context.nothing  # noqa: B018


def test_context_can_be_copied_and_pickled() -> None:
    context = RunContext({"a": 1})
    assert copy.deepcopy(context) == context
    assert pickle.loads(pickle.dumps(context)) == context


def test_attempt_that_was_told_to_stop() -> None:
    attempt = Attempt("r", "d", "t", 2, deadline=0.0)
    assert attempt.time_left_s == 0.0
    attempt.raise_if_cancelled()
    attempt.tell("the run was cancelled")
    assert attempt.cancelled
    with pytest.raises(AttemptCancelledError, match="task 't', attempt 2: the run was cancelled"):
        attempt.raise_if_cancelled()
    assert repr(attempt) == "<Attempt 2 of 't' in run 'r'>"
