"""RetryPolicy: what it allows, how long it waits, what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flowrun import NonRetryableError, RetryPolicy
from flowrun.errors import ResultNotStorableError


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"retries": -1}, ValueError, "retries must be 0 or more"),
        ({"retries": "3"}, TypeError, "retries must be an int, not '3'"),
        ({"retries": True}, TypeError, "retries must be an int"),
        ({"delay_s": -1}, ValueError, "delay_s must be 0 or more, and finite"),
        ({"delay_s": math.nan}, ValueError, "delay_s must be"),
        ({"delay_s": "1"}, TypeError, "delay_s must be a number"),
        ({"backoff": 0.5}, ValueError, "backoff must be 1 or more"),
        ({"max_delay_s": math.inf}, ValueError, "max_delay_s must be"),
        ({"jitter": 1.5}, ValueError, "jitter must be from 0 to 1"),
        ({"retry_on": "ValueError"}, TypeError, "retry_on takes exception types"),
        ({"retry_on": (ValueError, 3)}, TypeError, "retry_on takes exception types"),
        ({"no_retry_on": int}, TypeError, "no_retry_on takes exception types"),
    ],
)
def test_policy_that_cannot_be_followed_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RetryPolicy(**{"retries": 1, **options})


def test_delays_grow_and_are_bounded() -> None:
    policy = RetryPolicy(10, delay_s=1, backoff=3, max_delay_s=20)
    assert [policy.delay_before(retry, 0.5) for retry in range(1, 6)] == [1, 3, 9, 20, 20]
    assert policy.delay_before(100_000, 0.5) == 20
    assert RetryPolicy(3, delay_s=1, backoff=2.5).delay_before(100_000, 0.5) == 60
    assert RetryPolicy(3).delay_before(1, 0.5) == 0


def test_jitter_spreads_to_both_sides_and_not_beyond_the_bound() -> None:
    policy = RetryPolicy(10, delay_s=10, jitter=0.5, max_delay_s=12)
    assert [policy.delay_before(1, chance) for chance in (0.0, 0.5, 1.0)] == [5, 10, 12]


def test_what_is_retried() -> None:
    policy = RetryPolicy(2, retry_on=(ValueError, OSError), no_retry_on=FileNotFoundError)
    assert policy.allows(ValueError(), failures=1)
    assert policy.allows(OSError(), failures=2)
    assert not policy.allows(OSError(), failures=3)
    assert not policy.allows(KeyError(), failures=1)
    assert not policy.allows(FileNotFoundError(), failures=1)
    for never in (NonRetryableError(), ResultNotStorableError("x")):
        assert not RetryPolicy(5).allows(never, failures=1)


def test_predicate_decides_and_one_that_raises_means_no() -> None:
    def broken(error: BaseException) -> bool:
        raise RuntimeError

    assert RetryPolicy(1, retry_on=lambda error: "x" in str(error)).allows(ValueError("x"), 1)
    assert not RetryPolicy(1, retry_on=broken).allows(ValueError(), 1)
    assert not RetryPolicy(1, no_retry_on=broken).allows(ValueError(), 1)


def grouped(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("outer", [ExceptionGroup("inner", list(errors))])


def test_group_is_retried_only_if_each_of_its_errors_would_be() -> None:
    policy = RetryPolicy(2, retry_on=OSError, no_retry_on=PermissionError)
    assert policy.allows(grouped(ConnectionError(), TimeoutError()), 1)
    assert not policy.allows(grouped(ConnectionError(), ValueError()), 1)
    assert not policy.allows(grouped(ConnectionError(), PermissionError()), 1)
    assert not RetryPolicy(2).allows(grouped(ValueError(), NonRetryableError("no")), 1)
    interrupted = BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError()])
    assert not RetryPolicy(2).allows(interrupted, 1)


def test_predicate_is_asked_about_each_error_of_a_group() -> None:
    asked: list[BaseException] = []
    first, second = ValueError(1), ValueError(2)

    def predicate(error: BaseException) -> bool:
        asked.append(error)
        return True

    assert RetryPolicy(1, retry_on=predicate).allows(grouped(first, second), 1)
    assert asked == [first, second]


def test_function_for_the_delay_that_fails_is_told_to_whoever_wants_it() -> None:
    def interrupt(error: BaseException, retry: int) -> float:
        raise KeyboardInterrupt

    assert (
        RetryPolicy(1, delay_s=lambda error, retry: -1.0, max_delay_s=7).delay_before(1, 0.5) == 7
    )
    with pytest.raises(KeyboardInterrupt):
        RetryPolicy(1, delay_s=interrupt).delay_before(1, 0.5)
