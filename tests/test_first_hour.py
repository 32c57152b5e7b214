"""Each message on the page of the first hour is what is said to the line above it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from .test_docs import ROOT, programs

PAGE = ROOT / "docs" / "first_hour.md"

_SESSION = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines_and_answers() -> list[tuple[str, str]]:
    """Return each line typed at the prompt, and what the page says is shown."""
    found: list[tuple[str, str]] = []
    for session in _SESSION.findall(PAGE.read_text(encoding="utf-8")):
        for entry in session.split(">>> ")[1:]:
            line, _, answer = entry.partition("\n")
            found.append((line, answer.strip()))
    return found


async def answer_to(line: str, names: dict[str, Any], shown: io.StringIO) -> str:
    """Return what a prompt shows: the error, else a text returned, what is printed, warned of.

    Args:
        line: What is typed.
        names: The variables of the prompt.
        shown: The screen; a log handler writes to it later, too.
    """
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    before = len(shown.getvalue())
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(shown),
    ):
        warnings.simplefilter("always")
        try:
            try:
                code = compile(line, "<prompt>", "eval", flags)
            except SyntaxError:  # a statement
                code = compile(line, "<prompt>", "exec", flags)
            value: Any = eval(code, names)
            if code.co_flags & inspect.CO_COROUTINE:
                value = await value
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        text = repr(value) if isinstance(value, str) else ""
        del value  # a coroutine warns when it is deleted
    warnings_shown = [f"{one.category.__name__}: {one.message}" for one in warned]
    return "\n".join([text, shown.getvalue()[before:], *warnings_shown]).strip()


@pytest.fixture
def unconfigured_logging() -> Iterator[None]:
    """Have the root logger as a new program has it, and put it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_each_message_on_the_page_is_what_is_said(unconfigured_logging: None) -> None:
    names: dict[str, Any] = {}
    shown = io.StringIO()
    exec("\n".join(programs(PAGE)[0].source), names)
    wrong: list[str] = []

    async def type_all() -> None:
        for line, expected in lines_and_answers():
            pattern = re.escape(expected).replace(re.escape("..."), ".*")
            answer = await answer_to(line, names, shown)
            if not re.fullmatch(pattern, answer, re.DOTALL):
                wrong.append(f"{line}\n  says {answer}\n  page {expected}")

    asyncio.run(type_all())
    names["engine"].close()
    assert not wrong, "\n".join(wrong)


def test_the_page_has_messages() -> None:
    answers = [answer for _, answer in lines_and_answers() if "Error: " in answer]
    assert len(answers) > 20
    assert len({answer.partition(":")[0] for answer in answers}) > 10


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("1 + 'a'", "TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
        ("text = 'a'; print(text)", "a"),
        ("await asyncio.sleep(0, 'slept')", "'slept'"),
        ("1", ""),
        ("asyncio.sleep(0)", "RuntimeWarning: coroutine 'sleep' was never awaited"),
    ],
)
async def test_the_prompt_of_these_tests_shows_what_a_prompt_shows(line: str, answer: str) -> None:
    assert await answer_to(line, {"asyncio": asyncio}, io.StringIO()) == answer
