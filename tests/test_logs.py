"""What a log shows of texts that a task has chosen: it mostly ends on somebody's screen (V1)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from flowrun import DagEndEvent, Engine, fn_hook
from flowrun.errors import StoreError
from flowrun.escape import for_terminal

from .conftest import WAIT_S
from .third_party import ThirdPartyStore

MakeEngine = Callable[..., Engine]

HOSTILE = "\x1b]0;owned\x07\x1b[2K\r\u202eall is well\x9b31m\u200b"
SHOWN = r"\x1b]0;owned\x07\x1b[2K\r\u202eall is well\x9b31m\u200b"


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    """Collect what every part of flowrun logs."""
    caplog.set_level(logging.DEBUG, "flowrun")


def can_be_shown(caplog: pytest.LogCaptureFixture) -> bool:
    """Return whether all that a usual handler writes is escaped, tracebacks included."""
    shown = [logging.Formatter("%(message)s").format(record) for record in caplog.records]
    return bool(shown) and all(text == for_terminal(text, multiline=True) for text in shown)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("redact", [None, str])
async def test_error_of_a_task_is_escaped_in_the_log_and_kept_as_it_was(  # V1
    make_engine: MakeEngine,
    caplog: pytest.LogCaptureFixture,
    is_async: bool,
    redact: Callable[[str], str] | None,
) -> None:
    Hostile = type(f"Bad{HOSTILE}", (Exception,), {})
    engine = make_engine(redact=redact)

    async def fails_async() -> None:
        raise Hostile(HOSTILE)

    def fails() -> None:
        raise Hostile(HOSTILE)

    engine.task(name="a", dag="d", retries=1)(fails_async if is_async else fails)
    engine.task(name="b", dag="d", deps=["a"])(lambda: 1)
    run_id = await engine.run_once("d")
    told = [message for message in caplog.messages if f"Bad{SHOWN}: {SHOWN}" in message]
    assert [message.split(":")[0] for message in told] == [
        "task 'a' attempt 1 failed and will be retried in 0 s",
        "traceback of task 'a'",
        "task 'a' failed",
        "traceback of task 'a'",
    ]
    assert can_be_shown(caplog)
    assert HOSTILE in (engine.get_run_report(run_id)["tasks"]["a"]["error"] or "")


@pytest.mark.parametrize("redact", [None, str])
async def test_error_of_a_hook_that_repeats_a_tasks_text_is_escaped(  # V1
    make_engine: MakeEngine,
    caplog: pytest.LogCaptureFixture,
    redact: Callable[[str], str] | None,
) -> None:
    def repeats(event: DagEndEvent) -> None:
        raise ValueError(HOSTILE)

    engine = make_engine(hooks=[fn_hook(on_dag_end=repeats)], redact=redact)
    engine.task(name="a", dag="d")(lambda: 1)
    await engine.run_once("d")
    (told,) = [message for message in caplog.messages if "hook" in message]
    assert f"ValueError: {SHOWN}" in told
    assert can_be_shown(caplog)


@pytest.mark.parametrize("redact", [None, str])
async def test_error_of_a_store_is_escaped(  # V1
    make_engine: MakeEngine,
    caplog: pytest.LogCaptureFixture,
    redact: Callable[[str], str] | None,
) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store, redact=redact)
    ran: list[int] = []
    engine.task(name="a", dag="d")(lambda: ran.append(1))

    def refuse(what: str) -> None:
        if what == "save" and ran:  # not the start, of which the store may be told before
            raise OSError(HOSTILE)

    store.before = refuse
    with pytest.raises(StoreError):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    engine.close()
    told = {message.split()[2] for message in caplog.messages if SHOWN in message}
    assert told == {"broke:", "failed:", "task", "still"}
    assert can_be_shown(caplog)


async def test_what_a_log_does_not_want_is_not_put_together(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("flowrun.escape.for_terminal", lambda *args, **_: asked.append(args))
    caplog.set_level(logging.ERROR, "flowrun")
    engine = make_engine()

    @engine.task(dag="d", retries=1)
    def fails() -> None:
        raise ValueError

    engine.task(name="b", dag="d", deps=["fails"])(lambda: 1)
    await engine.run_once("d")
    assert asked == []
