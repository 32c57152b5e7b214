"""How long an attempt may take, and how often, how soon and on which errors it is retried.

Also the checks of the numbers that a caller gives, one rule and one wording for all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TypeAlias, cast

from flowrun.errors import NonRetryableError, ResultNotStorableError, RetryAfter, SkipTask

ErrorMatcher: TypeAlias = (
    type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
)
"""Exception type(s), or a predicate that is given the exception."""
DelayFunction: TypeAlias = Callable[[BaseException, int], float]
"""Given the exception and the number of the retry, returns the seconds to wait."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a task is retried; an ``int`` in its place means retries without delay.

    The wait before retry *n* (the first is 1) is ``delay_s * backoff ** (n - 1)``, at most
    ``max_delay_s``, spread evenly by ``jitter`` to both sides. Waiting holds no slot.

    Args:
        retries: Further attempts after the first, 0 or more.
        delay_s: Seconds before the first retry; or a function that is given the error and the
            number of the retry, and returns the seconds to wait, which ``max_delay_s`` bounds and
            ``backoff`` and ``jitter`` leave alone.
        backoff: Factor from one wait to the next, 1 or more.
        max_delay_s: No wait is longer than this many seconds.
        jitter: Share of the wait, 0 to 1, by which it is varied at random.
        retry_on: Only these errors are retried: exception types or a predicate.
        no_retry_on: These errors never are; it wins over ``retry_on``.

    Raises:
        ValueError: A number is out of its range.
        TypeError: A value is of the wrong type.

    Example:
        >>> policy = RetryPolicy(3, delay_s=1, retry_on=ConnectionError)
        >>> [policy.delay_before(retry, 0.5) for retry in (1, 2, 3)]
        [1.0, 2.0, 4.0]
        >>> policy.allows(ConnectionResetError(), failures=3)
        True
        >>> policy.allows(KeyError("id"), failures=1)
        False
    """

    retries: int
    delay_s: float | DelayFunction = 0
    backoff: float = 2
    max_delay_s: float = 60
    jitter: float = 0
    retry_on: ErrorMatcher = BaseException
    no_retry_on: ErrorMatcher = ()

    def __post_init__(self) -> None:
        """Check every value."""
        check_int("retries", self.retries, least=0)
        if not callable(self.delay_s):
            _check_number("delay_s", self.delay_s, low=0)
        _check_number("backoff", self.backoff, low=1)
        _check_number("max_delay_s", self.max_delay_s, low=0)
        _check_number("jitter", self.jitter, low=0, high=1)
        _check_matcher("retry_on", self.retry_on)
        _check_matcher("no_retry_on", self.no_retry_on)

    def allows(
        self,
        error: BaseException,
        failures: int,
        tell: Callable[[str], object] | None = None,
    ) -> bool:
        """Return whether another attempt follows after ``failures`` failed ones.

        A group of errors is retried only if each of its errors would be. A predicate that raises
        counts as "do not retry"; the task then fails with ``error``.

        Args:
            error: The error of the last attempt.
            failures: Number of failed attempts.
            tell: Called with a text for the log if a predicate raises.
        """
        errors = leaves(error)
        if failures > self.retries or any(isinstance(one, _NEVER) for one in errors):
            return False
        if isinstance(error, RetryAfter):
            return True
        try:
            return all(_matches(self.retry_on, one) for one in errors) and not any(
                _matches(self.no_retry_on, one) for one in errors
            )
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # noqa: BLE001 - a user's predicate must not end the run
            if tell is not None:
                # Not with its text, which no redact function has seen.
                kind = type(failure).__qualname__
                tell(f"a predicate of its RetryPolicy failed with {kind}, so it is not retried")
            return False

    def delay_before(
        self,
        retry: int,
        chance: float,
        error: BaseException | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> float:
        """Return the seconds to wait before the ``retry``-th retry.

        Args:
            retry: 1 for the first retry.
            chance: A random number from 0 to 1 that places the wait within its jitter.
            error: The error of the last attempt.
            tell: Called with a text for the log if the function ``delay_s`` fails; then the wait
                is ``max_delay_s``.
        """
        if isinstance(error, RetryAfter):
            return error.delay_s
        if callable(self.delay_s):
            return self._asked_delay(self.delay_s, error or Exception(), retry, tell)
        if not self.delay_s:
            return 0.0
        try:
            wait = min(self.delay_s * self.backoff ** (retry - 1), self.max_delay_s)
        except OverflowError:
            wait = self.max_delay_s
        return min(wait * (1 + self.jitter * (2 * chance - 1)), self.max_delay_s)

    def _asked_delay(
        self,
        function: DelayFunction,
        error: BaseException,
        retry: int,
        tell: Callable[[str], object] | None,
    ) -> float:
        try:
            delay_s = function(error, retry)
            _check_number("delay_s", delay_s, low=0)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # noqa: BLE001 - a user's function must not end the run
            if tell is not None:
                kind = type(failure).__qualname__
                tell(f"the delay_s of its RetryPolicy failed with {kind}; it waits max_delay_s")
            return self.max_delay_s
        return min(delay_s, self.max_delay_s)


_LARGEST = sys.float_info.max


def _check_number(name: str, value: object, *, low: float, high: float = _LARGEST) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        msg = f"{name} must be a number, not {type(value).__name__}"
        raise TypeError(msg)
    if not low <= value <= high:  # also refuses NaN, and an int that no float can hold
        bounds = f"from {low} to {high}" if high != _LARGEST else f"{low} or more, and finite"
        msg = f"{name} must be {bounds}, not {value}"
        raise ValueError(msg)


def check_int(what: str, number: object, *, least: int | None = None, none: str = "") -> int:
    """Return a number that has to be an ``int``, of ``least`` or more.

    Args:
        what: The number, as the message names it.
        number: The number.
        least: The smallest that is allowed; ``None`` for no bound.
        none: What ``None`` would mean, where it is allowed as well: "for no bound".

    Raises:
        TypeError: It is of another type; a ``bool`` is no number.
        ValueError: It is below ``least``.
    """
    other = f", or None {none}" if none else ""
    if not isinstance(number, int) or isinstance(number, bool):
        msg = f"{what} must be an int{other}, not {number!r:.80}"
        raise TypeError(msg)
    if least is not None and number < least:
        msg = f"{what} must be {least} or more{other}, not {number}"
        raise ValueError(msg)
    return number


def check_seconds(what: str, duration_s: object, *, none: str = "") -> None:
    """Check a duration in seconds, which has to be finite and above 0.

    Args:
        what: The duration, as the message names it.
        duration_s: The duration.
        none: As for :func:`check_int`.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of that range.
    """
    if not isinstance(duration_s, int | float) or isinstance(duration_s, bool):
        other = f", or None {none}" if none else ""
        msg = f"{what} must be a number of seconds{other}, not {duration_s!r:.80}"
        raise TypeError(msg)
    if not 0 < duration_s < inf:
        msg = f"{what} must be finite and above 0, not {duration_s!r}"
        raise ValueError(msg)


def checked_timeout(timeout_s: object) -> float | None:
    """Return the time limit of an attempt or a run in seconds; ``None`` for no limit."""
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        msg = f"timeout_s must be seconds or None, not {timeout_s!r:.80}"
        raise TypeError(msg)
    if not 0 < timeout_s <= _LARGEST:
        msg = f"timeout_s must be finite and above 0, not {timeout_s!r}; use None for no timeout"
        raise ValueError(msg)
    return float(timeout_s)


def checked_retries(retries: object) -> RetryPolicy:
    """Return the policy that a task's ``retries`` stand for."""
    if isinstance(retries, RetryPolicy):
        return retries
    if isinstance(retries, bool) or not isinstance(retries, int):
        msg = f"retries must be an int or a RetryPolicy, not {retries!r:.80}"
        raise TypeError(msg)
    return RetryPolicy(retries)


def _check_matcher(name: str, matcher: object) -> None:
    if callable(matcher) and not isinstance(matcher, type):
        return
    kinds = cast("tuple[object, ...]", matcher) if isinstance(matcher, tuple) else (matcher,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            msg = f"{name} takes exception types or a predicate, not {kind!r}"
            raise TypeError(msg)


def _matches(matcher: ErrorMatcher, error: BaseException) -> bool:
    if isinstance(matcher, type | tuple):
        return isinstance(error, matcher)
    return bool(matcher(error))


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors that a group is made of, at any depth; of another error itself."""
    found: list[BaseException] = []
    stack = [error]
    while stack:
        one = stack.pop()
        if isinstance(one, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", one)
            stack.extend(reversed(group.exceptions))
        else:
            found.append(one)
    return found


_NEVER = (NonRetryableError, ResultNotStorableError, SkipTask, KeyboardInterrupt)
NO_RETRIES = RetryPolicy(0)
