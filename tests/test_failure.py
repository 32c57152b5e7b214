"""Error texts, whatever the error is (A6, V2)."""

from __future__ import annotations

import pickle

import pytest

from flowrun import errors
from flowrun.failure import bounded, error_line, error_text, redacted, type_and_message


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Monster(Hostile):
    @property
    def __cause__(self) -> None:  # type: ignore[override]
        raise RuntimeError


def test_hostile_exceptions_still_have_a_text() -> None:
    assert error_line(Hostile()) == "Hostile: <its text cannot be formatted>"
    assert error_text(Hostile()).startswith(("Hostile", "tests.", "test_"))
    assert error_text(Monster()) == "Monster: <its text cannot be formatted>"


def test_line_is_short_and_one() -> None:
    assert error_line(ValueError()) == "ValueError"
    assert error_line(ValueError("one\ntwo")) == "ValueError: one"
    assert len(error_line(ValueError("x" * 10_000))) == 500


def test_text_is_bounded_in_bytes() -> None:
    assert len(bounded("\u20ac" * 100_000).encode()) <= 64 * 1024
    assert bounded("x" * 70_000 + "end").endswith("end")
    assert bounded("short") == "short"


def test_redact_that_fails_hides_everything() -> None:
    def broken(text: str) -> str:
        raise ValueError(text)

    assert redacted("secret", None) == "secret"
    assert redacted("secret", lambda text: text.upper()) == "SECRET"
    assert redacted("secret", broken) == "<hidden: redact failed with ValueError>"
    assert redacted("secret", lambda text: None) == "<hidden: redact returned NoneType, not str>"  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "error",
    [
        errors.TaskDefinitionError("t", None, "p"),
        errors.TaskTypeError("t", "d", "p"),
        errors.CycleError("d", ["p"]),
        errors.GraphError("d", ["p", "q"]),
        errors.UnknownDagError("d", ["e"], ["t"]),
        errors.UnknownDagError(7, []),
        errors.UnknownTaskError("d", "t", ["u"]),
        errors.UnknownRunError("r"),
        errors.RunAliveError("r", "p"),
        errors.RunCancelledError("r", "c"),
        errors.RemoteTaskError("m.E", "text"),
        errors.ResultNotStorableError("p", "r", "t"),
        errors.DamagedRecordError("r", "t", "p"),
        errors.DamagedRecordError("r", None, "p"),
        errors.RunLostError("r"),
        errors.EngineClosedError("run"),
        errors.NoCurrentAttemptError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_whole(error: Exception) -> None:
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_long_lists_and_odd_names_are_kept_short() -> None:
    assert errors.listed([str(number) for number in range(30)]).endswith("and 10 more")
    assert errors.listed([]) == "none"
    assert len(str(errors.UnknownRunError("x" * 10_000))) < 400
    assert "\\x1b" in str(errors.UnknownRunError("\x1b[31m"))


class Ambiguous(Exception):
    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


def test_error_whose_truth_value_raises_keeps_its_text_and_frames() -> None:  # A5
    try:
        raise Ambiguous("the real text")
    except Ambiguous as error:
        text = error_text(error)
    assert "the real text" in text
    assert "test_failure.py" in text


def test_error_that_was_never_raised_and_cannot_be_formatted_has_its_message() -> None:  # A5
    assert error_text(Ambiguous("never raised")).endswith("Ambiguous: never raised")


@pytest.mark.parametrize(
    ("text", "reason", "found"),
    [
        ("ValueError: no rows: 3", "ERROR", ("ValueError", "no rows: 3")),
        ("ValueError", "ERROR", ("ValueError", "")),
        ("a.b.<locals>.Err_2: x", "ERROR", ("a.b.<locals>.Err_2", "x")),
        ("TaskTimeoutError: too long", "TIMEOUT", ("TaskTimeoutError", "too long")),
        ("UPSTREAM_FAILED: the task 'a' failed", "UPSTREAM_FAILED", (None, "the task 'a' failed")),
        (
            "its result could not be saved: full",
            "ERROR",
            (None, "its result could not be saved: full"),
        ),
        ("nothing new today", "SKIP_TASK", (None, "nothing new today")),
    ],
)
def test_class_and_message_of_a_stored_error(
    text: str, reason: str, found: tuple[str | None, str]
) -> None:
    assert type_and_message(text, reason) == found
