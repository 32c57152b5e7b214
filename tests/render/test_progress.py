"""Live progress: what a terminal shows, and what a file gets."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import threading
from collections.abc import Callable

import pytest

from flowrun import Engine, current_attempt
from flowrun.hooks import DagEndEvent, DagStartEvent, TaskOmitEvent, TaskStartEvent
from flowrun.render.progress import ProgressHook

MakeEngine = Callable[..., Engine]


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self.changed:
            self.changed.notify_all()
            return super().write(text)

    def wait_for(self, pattern: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: re.search(pattern, self.getvalue()), 10)


def screen(text: str) -> str:
    """Return what is left on the screen when redrawn lines have been erased."""
    lines: list[str] = [""]
    for part in re.split(r"(\r\x1b\[\d+A|\x1b\[[JK]|\n)", text):
        match = re.match(r"\r\x1b\[(\d+)A", part)
        if match:
            lines = [*lines[: len(lines) - 1 - int(match[1])], ""]
        elif part == "\n":
            lines.append("")
        elif part not in {"\x1b[K", "\x1b[J"}:
            lines[-1] += part
    return "\n".join(lines)


def declare(engine: Engine) -> None:
    calls: list[int] = []

    @engine.task(dag="etl")
    def extract() -> int:
        return 1

    @engine.task(dag="etl", deps=[extract], retries=1)
    def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            msg = "first \x1b[2J time"
            raise ValueError(msg)

    @engine.task(dag="etl", deps=[flaky])
    def broken() -> None:
        msg = "never"
        raise KeyError(msg)

    engine.task(name="after", dag="etl", deps=[broken])(lambda: None)


async def test_plain_lines_where_there_is_no_terminal(make_engine: MakeEngine) -> None:
    out = io.StringIO()
    engine = make_engine(hooks=[ProgressHook(out)])
    declare(engine)
    run_id = await engine.run_once("etl")
    lines = [re.sub(r"\d+\.\d s", "N s", line) for line in out.getvalue().splitlines()]
    assert lines == [
        f"run {run_id} of etl: 4 tasks",
        "* extract",
        "+ extract  N s",
        "* flaky",
        "~ flaky: ValueError: first \\x1b[2J time, again",
        "* flaky (attempt 2)",
        "+ flaky  N s",
        "* broken",
        "x broken: KeyError: 'never'",
        "- after skipped",
        "x etl failed in N s: 2 succeeded, 1 failed, 1 skipped",
    ]


async def test_terminal_is_redrawn_and_prints_and_logs_stay_above(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    engine = make_engine(hooks=[ProgressHook(terminal)], max_parallel=20)
    go_on = asyncio.Event()

    @engine.task(dag="d", timeout_s=None)
    async def waits() -> None:
        await go_on.wait()

    for number in range(15):
        engine.task(name=f"more{number}", dag="d", timeout_s=None)(waits)
    try:
        run = asyncio.create_task(engine.run_once("d"))
        await asyncio.to_thread(terminal.wait_for, r"16 running")
        print("half ", end="")
        print("a line")
        logging.getLogger("mine").warning("a log line")
        await asyncio.to_thread(terminal.wait_for, r"0/16 done, 16 running\x1b\[K\n\x1b\[J\r")
        go_on.set()
        await run
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.stream is terminal
    assert sys.stdout is terminal
    text = terminal.getvalue()
    assert "* waits  0." in text
    assert "  and 4 more" in text
    left = screen(text)
    assert "half a line\n" in left
    assert "a log line\n" in left
    assert "running" not in left
    assert re.search(r"\x1b\[32m\+\x1b\[0m d succeeded in .* 16 succeeded", left)


async def test_terminal_shows_the_progress_of_the_attempt_that_runs(
    make_engine: MakeEngine,
) -> None:
    terminal = Terminal()
    engine = make_engine(hooks=[ProgressHook(terminal, live=True)])
    go_on = asyncio.Event()

    @engine.task(dag="d", retries=1)
    async def load() -> None:
        if current_attempt().attempt == 2:
            await go_on.wait()
            return
        current_attempt().progress(1, 3, "r\x1bows")
        await asyncio.to_thread(terminal.wait_for, r"\* load  1 of 3 r\\x1bows \(33 %\)  \d\.\d s")
        raise OSError

    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.to_thread(terminal.wait_for, r"\* load \(attempt 2\)  \d\.\d s")
    go_on.set()
    await run


async def test_no_color_and_dumb_terminals(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    engine = make_engine(hooks=[ProgressHook(terminal, live=True)])
    declare(engine)
    await engine.run_once("etl")
    assert "x broken: KeyError" in screen(terminal.getvalue())
    assert "\x1b[3" not in terminal.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    dumb = Terminal()
    engine = make_engine(hooks=[ProgressHook(dumb)])
    declare(engine)
    await engine.run_once("etl")
    assert "\x1b" not in dumb.getvalue()


async def test_two_runs_at_once_end_one_after_the_other(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    engine = make_engine(hooks=[ProgressHook(terminal, live=True)])
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.task(dag="long", timeout_s=None)
    async def wait() -> None:
        begun.set()
        await go_on.wait()

    engine.task(name="quick", dag="short")(lambda: 1)
    long = asyncio.create_task(engine.run_once("long"))
    await begun.wait()
    await engine.run_once("short")
    go_on.set()
    await long
    left = screen(terminal.getvalue())
    ends = [line for line in left.splitlines() if "succeeded in" in line]
    assert [re.sub(r".*\x1b\[0m (.*) in .*: ", r"\1, ", line) for line in ends] == [
        "short succeeded, 1 succeeded",
        "long succeeded, 1 succeeded",
    ]


async def test_cancelled_run_leaves_nothing_drawn(make_engine: MakeEngine) -> None:
    terminal = Terminal()
    engine = make_engine(hooks=[ProgressHook(terminal, live=True)])
    begun = asyncio.Event()

    @engine.task(dag="d", retries=1)
    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    run = asyncio.create_task(engine.run_once("d"))
    await begun.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert "running" not in screen(terminal.getvalue())


def test_task_that_a_broken_run_leaves_is_drawn_no_more() -> None:
    terminal = Terminal()
    hook = ProgressHook(terminal, live=True)
    for run in ("one", "two"):
        hook.on_dag_start(DagStartEvent(run, "d", 0.0, ("a",), None))
    hook.on_task_start(TaskStartEvent("one", "d", "a", 0.0, 1))
    terminal.wait_for("0/2 done, 1 running")
    hook.on_dag_end(DagEndEvent("one", "d", 0.0, "FAILED", 1.0, "the disk is full"))
    terminal.wait_for("0/1 done, 0 running")
    hook.on_dag_end(DagEndEvent("two", "d", 0.0, "FAILED", 1.0, "the disk is full"))
    assert "running" not in screen(terminal.getvalue())


def test_terminal_that_goes_away_is_drawn_on_no_more() -> None:
    gone = threading.Event()

    class Gone(Terminal):
        def write(self, text: str) -> int:
            if gone.is_set():
                drawing.append(threading.current_thread())
                raise OSError(5, "Input/output error")
            return super().write(text)

    drawing: list[threading.Thread] = []
    terminal = Gone()
    hook = ProgressHook(terminal, live=True)
    hook.on_dag_start(DagStartEvent("one", "d", 0.0, ("a",), None))
    terminal.wait_for("0/1 done")
    gone.set()
    for thread in threading.enumerate():
        if thread.name == "flowrun-progress":
            thread.join(10)
    assert [thread.name for thread in drawing] == ["flowrun-progress"]
    gone.clear()
    hook.on_dag_end(DagEndEvent("one", "d", 0.0, "SUCCESS", 1.0, None))
    assert "d succeeded in 1.0 s" in terminal.getvalue()


def test_run_that_ends_while_somebody_logs_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    hook = ProgressHook(terminal, live=True)
    try:
        hook.on_dag_start(DagStartEvent("one", "d", 0.0, ("a",), None))
        terminal.wait_for("0/1 done")
        end = DagEndEvent("one", "d", 0.0, "SUCCESS", 1.0, None)
        ending = threading.Thread(target=hook.on_dag_end, args=(end,), daemon=True)
        handler.acquire()  # as who logs does
        try:
            ending.start()
            terminal.wait_for(r"A\x1b\[J$")  # the drawing has been erased; now the handler's turn
            handler.stream.write("a log line\n")
        finally:
            handler.release()
        ending.join(10)
        assert not ending.is_alive()
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.stream is terminal
    left = screen(terminal.getvalue())
    assert left.index("a log line\n") < left.index("d succeeded")


def test_nothing_is_drawn_in_the_middle_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Terminal):
        times = 0

        def fileno(self) -> int:  # before each drawing
            with self.changed:
                self.times += 1
                self.changed.notify_all()
            return super().fileno()

    terminal = Asked()
    monkeypatch.setattr(sys, "stdout", terminal)
    hook = ProgressHook(terminal, live=True)
    hook.on_dag_start(DagStartEvent("one", "d", 0.0, ("a",), None))
    print("half", end="", flush=True)
    with terminal.changed:
        asked = terminal.times
        assert terminal.changed.wait_for(lambda: terminal.times >= asked + 2, 10)
    assert terminal.getvalue().endswith("half")
    print(" a line")
    assert screen(terminal.getvalue()).endswith("\nhalf a line\n0/1 done, 0 running\n")
    hook.on_dag_end(DagEndEvent("one", "d", 0.0, "SUCCESS", 1.0, None))


def test_stream_that_somebody_has_replaced_meanwhile_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    hook = ProgressHook(terminal, live=True)
    hook.on_dag_start(DagStartEvent("one", "d", 0.0, ("a",), None))
    assert sys.stdout is not terminal
    assert sys.stdout.isatty()
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    hook.on_dag_end(DagEndEvent("one", "d", 0.0, "SUCCESS", 1.0, None))
    assert sys.stdout is mine


def test_durations_are_written_for_people() -> None:
    from flowrun.render.progress import seconds

    assert (seconds(0.04), seconds(59.94), seconds(61), seconds(3725)) == (
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "62 min 05 s",
    )


@pytest.mark.parametrize("live", [False, True])
def test_omitted_task_is_a_line_and_a_count(live: bool) -> None:
    out = io.StringIO()
    hook = ProgressHook(out, live=live)
    hook.on_dag_start(DagStartEvent("one", "d", 0.0, ("a",), None))
    hook.on_task_omit(TaskOmitEvent("one", "d", "a", error="nothing new"))
    hook.on_dag_end(DagEndEvent("one", "d", 0.0, "SUCCESS", 1.0, None))
    lines = screen(out.getvalue()).splitlines()[1:]
    assert lines == ["- a omitted: nothing new"] * (not live) + [
        "+ d succeeded in 1.0 s: 1 omitted"
    ]


async def test_items_of_a_mapped_task_count_with_it(make_engine: MakeEngine) -> None:
    stream = io.StringIO()
    engine = make_engine(hooks=[ProgressHook(stream)])
    engine.task("pages", dag="etl")(lambda: [0, 1, 2])

    @engine.task(dag="etl", map_over="pages", map_errors="collect", retries=1)
    def fetch(pages: int) -> None:
        if pages == 1:
            raise ValueError(pages)

    await engine.run_once("etl")
    text = stream.getvalue()
    assert "* fetch\n" in text
    assert "fetch[1]: ValueError: 1, again\n" in text
    assert "fetch[1]: ValueError: 1\n" in text
    assert "fetch[0]" not in text
    assert re.search(r"etl succeeded in .*: 2 succeeded\n$", text)
