"""The state machine, and what a task is told of its surroundings."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from flowrun import Attempt, RunContext, RunRecord, TaskRecord
from flowrun.errors import AttemptCancelledError
from flowrun.state.records import Reason, RunStatus, TransitionError, run_status


def in_state(status: str) -> TaskRecord:
    task = TaskRecord("t")
    if status in ("RUNNING", "SUCCESS", "FAILED"):
        task.start(1.0, 0.5)
    if status == "SUCCESS":
        task.succeed(2.0, 1)
    if status == "FAILED":
        task.fail(2.0, "boom", Reason.ERROR)
    if status == "SKIPPED":
        task.skip(2.0, Reason.UPSTREAM_FAILED, "why")
    return task


CHANGES: dict[str, tuple[set[str], Callable[[TaskRecord], object]]] = {
    "start": ({"PENDING"}, lambda task: task.start(3.0, 3.0)),
    "succeed": ({"RUNNING"}, lambda task: task.succeed(3.0, 1)),
    "fail": ({"RUNNING"}, lambda task: task.fail(3.0, "x", Reason.ERROR)),
    "withdraw": ({"RUNNING"}, lambda task: task.withdraw()),
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
    assert task.status == status
    if status in allowed:
        apply(task)
        if change == "withdraw":  # as if it had never been started
            assert (task.status, task.attempt, task.started_at) == ("PENDING", 0, None)
    else:
        with pytest.raises(TransitionError, match=f"cannot {change} while it is {status}"):
            apply(task)
        assert task.status == status


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


def test_run_finishes_once() -> None:
    run = RunRecord("r", "d", 1.0, {"t": in_state("SUCCESS")})
    run.finish(2.0)
    with pytest.raises(TransitionError, match="has already finished"):
        run.finish(3.0)
    assert repr(run) == "<RunRecord 'r' of DAG 'd'>"
    assert repr(run.tasks["t"]) == "<TaskRecord 't' SUCCESS attempt=1>"


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
