"""What a task can know: the run's context and its own attempt (V2, A7)."""

from __future__ import annotations

import contextvars
import copy
import pickle
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import pytest

from flowrun import Attempt, FlowrunError, RunContext, current_attempt
from flowrun.context import CURRENT
from flowrun.errors import AttemptCancelledError, NoCurrentAttemptError


@dataclass(frozen=True)
class Settings:
    token: str = "s3cret"
    limit: int = 3

    def doubled(self) -> int:
        return 2 * self.limit


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


def test_attributes_and_methods_are_read_through() -> None:
    context = RunContext(Settings())
    assert (context.token, context.limit, context.doubled()) == ("s3cret", 3, 6)
    assert context.deps == Settings()
    with pytest.raises(AttributeError, match="tokn"):
        context.tokn  # noqa: B018


def test_keys_of_a_mapping_are_attributes() -> None:
    context: RunContext[dict[str, object]] = RunContext({"url": "http://x", "items": 3})
    assert (context.url, context.items, context.get("url")) == ("http://x", 3, "http://x")
    assert not hasattr(context, "token")
    with pytest.raises(AttributeError) as caught:
        context.tokn  # noqa: B018
    assert str(caught.value) == "the run's context has no key 'tokn'; its keys: 'items', 'url'"


def test_missing_key_of_a_mapping_shows_no_value_and_makes_none() -> None:  # V2
    deps: defaultdict[object, object] = defaultdict(dict, {"token": "s3cret", 7: "seven"})
    with pytest.raises(AttributeError) as caught:
        RunContext(deps).url  # noqa: B018
    assert "s3cret" not in str(caught.value)
    assert "url" not in deps


def test_no_text_of_a_context_shows_a_value() -> None:  # V2
    context: RunContext[Settings] = RunContext(Settings())
    for text in (repr(context), str(context), f"{context}", repr([context])):
        assert "s3cret" not in text
        assert "RunContext[Settings]" in text


def test_contexts_are_equal_by_what_they_wrap() -> None:
    assert RunContext(Settings()) == RunContext(Settings())
    assert RunContext(Settings()) != RunContext(Settings(limit=4))
    assert RunContext(Settings()) != Settings()
    assert hash(RunContext(Settings())) == hash(RunContext(Settings()))
    with pytest.raises(TypeError, match="unhashable"):
        hash(RunContext(Unhashable()))


@pytest.mark.parametrize(
    "twin_of",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_context_survives_copies_without_recursion(twin_of: object) -> None:
    twin = twin_of(RunContext(Settings(limit=7)))  # type: ignore[operator]
    assert type(twin) is RunContext
    assert twin.limit == 7


def test_half_made_context_has_no_attributes_and_does_not_recurse() -> None:
    # Unpickling looks attributes up on an object whose ``deps`` does not exist yet.
    half: RunContext[Settings] = RunContext.__new__(RunContext)
    for name in ("deps", "limit", "__setstate_of_nobody__"):
        with pytest.raises(AttributeError):
            getattr(half, name)


def test_attempt_knows_what_it_is_and_its_keys() -> None:  # D9
    attempt = Attempt("r", "d", "t", 2)
    assert (attempt.run_id, attempt.dag_name, attempt.task_name, attempt.attempt) == (
        "r",
        "d",
        "t",
        2,
    )
    assert repr(attempt) == "<Attempt 2 of 't' in run 'r'>"
    others = [Attempt("q", "d", "t", 2), Attempt("r", "d", "u", 2), Attempt("r", "d", "t", 3)]
    assert len({attempt.attempt_key, *(other.attempt_key for other in others)}) == 4
    assert attempt.idempotency_key == others[2].idempotency_key == "r/t"
    assert [other.idempotency_key for other in others[:2]] == ["q/t", "r/u"]
    others[0].first_run_id = "r"
    assert (others[0].idempotency_key, others[0].attempt_key) == ("r/t", "q/t/2")


def test_time_left_counts_down_and_stops_at_zero() -> None:
    assert Attempt("r", "d", "t", 1).time_left_s is None
    now = time.monotonic()
    left = Attempt("r", "d", "t", 1, now + 100).time_left_s
    assert left is not None
    assert 0 < left <= 100
    assert Attempt("r", "d", "t", 1, now - 100).time_left_s == 0.0


def test_time_left_is_read_on_the_clock_of_the_run() -> None:
    attempt = Attempt("r", "d", "t", 1, deadline=50.0, monotonic=lambda: 20.0)
    assert attempt.time_left_s == 30.0


def test_attempt_can_be_armed_once_its_clock_starts_and_disarmed() -> None:  # A1
    attempt = Attempt("r", "d", "t", 1)
    attempt.deadline = time.monotonic() + 100
    assert attempt.time_left_s is not None
    attempt.deadline = None
    assert attempt.time_left_s is None


def test_attempt_that_is_told_to_stop_says_why_and_others_are_not_told() -> None:  # A2
    told, other = Attempt("r", "d", "t", 1), Attempt("r", "d", "t", 2)
    told.raise_if_cancelled()
    assert not told.cancelled
    told.tell("it timed out after 3 s")
    assert told.cancelled
    with pytest.raises(
        AttemptCancelledError, match="task 't', attempt 1: it timed out after 3 s"
    ) as caught:
        told.raise_if_cancelled()
    assert isinstance(caught.value, FlowrunError | RuntimeError)
    assert not other.cancelled
    other.raise_if_cancelled()


def test_who_listens_is_told_once_or_more_and_nothing_after_that_has_ended() -> None:
    attempt, heard = Attempt("r", "d", "t", 1), list[str]()

    def other(cause: str) -> None:
        heard.append(f"other: {cause}")

    attempt.listen(heard.append)
    attempt.listen(other)
    attempt.listen_no_more(other)
    attempt.tell("stop")
    assert heard == ["stop"]
    attempt.listen(other)  # too late to hear it otherwise
    assert heard == ["stop", "other: stop"]


def test_outside_a_task_there_is_no_current_attempt() -> None:
    with pytest.raises(NoCurrentAttemptError, match=r"inside a task .*copy_context\(\)") as caught:
        current_attempt()
    assert isinstance(caught.value, RuntimeError)


def test_threads_find_the_attempt_only_with_the_context_of_the_task() -> None:  # A7
    attempt = Attempt("r", "d", "t", 1)
    found: dict[str, object] = {}

    def look(label: str) -> None:
        try:
            found[label] = current_attempt()
        except NoCurrentAttemptError:
            found[label] = None

    def inside() -> None:
        CURRENT.set(attempt)
        assert current_attempt() is attempt
        carried = contextvars.copy_context()
        empty = contextvars.Context()
        threads = [
            threading.Thread(target=empty.run, args=(look, "without")),
            threading.Thread(target=carried.run, args=(look, "with")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    contextvars.copy_context().run(inside)
    assert found == {"without": None, "with": attempt}
    look("after")
    assert found["after"] is None
