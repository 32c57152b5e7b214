"""A real terminal: what a person sees while a script, or the command line, runs a DAG."""

from __future__ import annotations

import codecs
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flowrun.cli.arguments import COMMANDS

from ..conftest import WAIT_S

termios = pytest.importorskip("termios", reason="there are no pseudo-terminals here")
pexpect = pytest.importorskip("pexpect", reason="pexpect (dependency group 'dev') is not here")
pyte = pytest.importorskip("pyte", reason="pyte (dependency group 'dev') is not here")

# From 3.12 on: pexpect forks, and pytest-xdist has threads; the child only starts a program.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

MOVES = re.compile(r"\x1b\[\d+A|\x1b\[[JKH]|\x1b\[2J")
COLOURS = re.compile(r"\x1b\[\d*m")


class Person:
    """Sits before a terminal: sees its screen, types, and makes its window wider or narrower."""

    def __init__(self, folder: Path, command: list[str], lines: int, columns: int, **env: str):
        environment = {**os.environ, "TERM": "xterm-256color", **env}
        # Unbuffered, ``print`` writes a line and its end apart, and another's line comes between.
        for name in {"NO_COLOR", "COLUMNS", "LINES", "PYTHONUNBUFFERED"} - set(env):
            environment.pop(name, None)
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            cwd=str(folder),
            env=environment,
            dimensions=(lines, columns),
            timeout=WAIT_S,
            # Where the tests are a background job of a shell, they and theirs ignore it.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.child.delaybeforesend = None
        self.folder = folder
        self.screen = pyte.Screen(columns, lines)
        self.written = ""
        self._stream = pyte.Stream(self.screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._modes = termios.tcgetattr(self.child.child_fd)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without the empty lines at its end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    def sees(self, pattern: str) -> list[str]:
        """Look until a line that matches stands on the screen."""
        return self.looks_until(
            lambda: any(re.search(pattern, line) for line in self.lines), pattern
        )

    def looks_until(self, is_there: Callable[[], object], what: object = None) -> list[str]:
        deadline = time.monotonic() + WAIT_S
        while not is_there():
            assert time.monotonic() < deadline, (what, self.lines)
            try:
                self._read()
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert is_there(), (what, self.lines)
        return self.lines

    def resizes(self, lines: int, columns: int) -> None:
        self.screen.resize(lines, columns)
        self.child.setwinsize(lines, columns)  # the kernel sends SIGWINCH

    def opens(self, gate: str) -> None:
        """Let the task go on that waits at this gate."""
        (self.folder / gate).write_text("")

    def waits_for_the_end(self) -> int:
        """Return the exit code as a shell would tell it; the terminal must be sane again."""
        try:
            while True:
                self._read()
        except pexpect.EOF:
            with suppress(termios.error):  # not every system tells once the other side has gone
                assert termios.tcgetattr(self.child.child_fd) == self._modes
            self.child.wait()
        assert not self.screen.cursor.hidden
        assert self.screen.cursor.attrs.fg == "default"
        assert self.screen.cursor.x == 0
        code = self.child.exitstatus
        return int(128 + self.child.signalstatus if code is None else code)

    def _read(self) -> None:
        text = self._decoder.decode(self.child.read_nonblocking(1 << 16, WAIT_S))
        self.written += text
        self._stream.feed(text)


@pytest.fixture
def sit(tmp_path: Path) -> Iterator[Callable[..., Person]]:
    """Start a program in a terminal; it is ended with the test."""
    people: list[Person] = []

    def sit_before(*command: str, lines: int = 24, columns: int = 80, **env: str) -> Person:
        person = Person(tmp_path, [sys.executable, *command], lines, columns, **env)
        people.append(person)
        return person

    yield sit_before
    for person in people:
        person.child.close(force=True)


@pytest.fixture
def run_script(tmp_path: Path, sit: Callable[..., Person]) -> Callable[..., Person]:
    """Run a script that shows its progress, with a FIFO for each of its gates."""

    def start(body: str, *, gates: str = "", **options: Any) -> Person:
        for gate in gates.split():
            os.mkfifo(tmp_path / gate)
        script = textwrap.dedent(HEAD) + textwrap.dedent(body) + textwrap.dedent(TAIL)
        (tmp_path / "script.py").write_text(script, encoding="utf-8")
        return sit("script.py", **options)

    return start


HEAD = """
    import asyncio, logging, sys
    from flowrun import ProgressHook, build_default_engine

    # Its own log lines would say each failure a second time.
    logging.getLogger("flowrun").addHandler(logging.NullHandler())
    engine = build_default_engine(hooks=[ProgressHook()], max_parallel=40, max_workers=40)

    def gate(name):
        with open(name) as fifo:
            fifo.read()

    def task(name, *gates, **options):
        @engine.task(name=name, dag="etl", timeout_s=None, **options)
        def waits():
            for name in gates:
                gate(name)

"""
TAIL = """
    async def main():
        async with engine:
            return await engine.run_once("etl")

    report = engine.get_run_report(asyncio.run(main()))
    print("after", flush=True)
    sys.exit(report["status"] != "SUCCESS")
"""


def test_running_tasks_counts_retries_and_failures(run_script: Callable[..., Person]) -> None:
    person = run_script(
        """
        task("extract", "extracted")
        tries = []

        @engine.task(dag="etl", retries=1)
        def flaky():
            tries.append(1)
            if len(tries) == 1:
                raise ValueError("first time")
            gate("tried")

        @engine.task(dag="etl")
        def broken():
            raise KeyError("rate")

        task("after", deps=[broken])
        """,
        gates="extracted tried",
    )
    person.sees("^2/4 done, 2 running")
    lines = person.sees(r"^\* flaky \(attempt 2\)  \d+\.\d s$")
    assert re.fullmatch(r"run \S+ of etl: 4 tasks", lines[0])
    assert set(lines[1:3]) == {
        "~ flaky: ValueError: first time, again",
        "x broken: KeyError: 'rate'",
    }
    assert re.fullmatch(r"\* extract  \d+\.\d s", lines[3])
    assert lines[5] == "2/4 done, 2 running, 1 failed, 1 skipped"
    assert len(lines) == 6
    before = person.screen.display[3]
    person.looks_until(lambda: person.screen.display[3] != before)  # its time goes on
    signs = {
        person.screen.buffer[line][0].data: person.screen.buffer[line][0].fg for line in (1, 2)
    }
    assert signs == {"~": "brown", "x": "red"}
    person.opens("tried")
    person.sees("^3/4 done, 1 running, 1 failed, 1 skipped, 1 succeeded$")
    person.opens("extracted")
    assert person.waits_for_the_end() == 1
    assert person.lines[:3] == lines[:3]  # failures and retries stay
    assert re.fullmatch(
        r"x etl failed in \d+\.\d s: 1 failed, 1 skipped, 2 succeeded", person.lines[3]
    )
    assert person.lines[4:] == ["after"]


def test_prints_and_logs_stay_whole_and_above(run_script: Callable[..., Person]) -> None:
    person = run_script(
        """
        import threading

        logging.basicConfig(format="%(message)s")
        apart = logging.getLogger("apart")
        apart.propagate = False
        apart.addHandler(logging.StreamHandler())
        together = threading.Barrier(8)

        def talk(number):
            gate("talk") if number == 0 else None
            together.wait()
            for turn in range(20):
                print("said", number, turn, "end")
            sys.stdout.writelines([f"wrote {number}\\n"])

        for number in range(8):
            engine.task(name=f"talk{number}", dag="etl", timeout_s=None)(
                lambda number=number: talk(number))

        @engine.task(dag="etl", timeout_s=None)
        def piecewise():
            gate("talk2")
            print("half", end=" ", flush=True)
            gate("half")
            print("a line")
            print("left open", end="")

        @engine.task(dag="etl", deps=[piecewise], timeout_s=None)
        async def warn():
            logging.getLogger("mine").warning("a log line")
            apart.warning("from a logger of its own")
            await asyncio.to_thread(gate, "end")
        """,
        gates="talk talk2 half end",
        lines=220,
    )
    person.sees("^0/10 done, 9 running$")
    person.opens("talk")
    person.sees("^8/10 done, 1 running, 8 succeeded$")
    said = [line for line in person.lines if "said" in line or "wrote" in line]
    assert sorted(said) == sorted(
        [f"said {number} {turn} end" for number in range(8) for turn in range(20)]
        + [f"wrote {number}" for number in range(8)]
    )
    person.opens("talk2")
    lines = person.sees("^half$")  # nothing is drawn beside or below a line that goes on
    assert lines[-1] == "half"
    person.opens("half")
    lines = person.sees("^9/10 done, 1 running, 9 succeeded$")
    assert lines[169] == "half a line"
    assert lines[170:172] == ["a log line", "from a logger of its own"]
    assert lines[172].startswith("* warn  ")
    assert len(lines) == 174
    person.opens("end")
    assert person.waits_for_the_end() == 0
    assert person.lines[172] == "left open"
    assert person.lines[173].startswith("+ etl succeeded in ")
    assert person.lines[174:] == ["after"]


@pytest.mark.parametrize("again", [60, 100])
def test_resizing_leaves_no_garbage(run_script: Callable[..., Person], again: int) -> None:
    person = run_script(
        """
        for number in range(9):
            task(f"transform_the_orders_of_customers_in_{number}", f"gate{number}")

        @engine.task(dag="etl")
        def broken():
            raise ValueError("a failure with a message that is longer than fifty columns")
        """,
        gates=" ".join(f"gate{number}" for number in range(9)),
    )
    wide = person.sees("^1/10 done, 9 running, 1 failed$")
    assert len(wide) == 12
    person.resizes(20, 40)
    narrow = person.looks_until(
        lambda: (
            len([line for line in person.lines if line.startswith("* transform_the_order")]) == 9
            and "…" in person.lines[-2]
            and person.lines[-1] == "1/10 done, 9 running, 1 failed"
        )
    )
    assert narrow[0].startswith("run ")
    text = "".join(narrow)
    assert text.count("broken") == 1
    assert "longer than fifty columns" in text  # what had been said stands there still
    assert [line for line in narrow if line.startswith("*")] == narrow[-10:-1]
    person.resizes(20, again)
    widened = person.looks_until(
        lambda: (
            all("customers_in_" in line for line in person.lines[-10:-1])
            and person.lines[-1].startswith("1/10")
        )
    )
    assert sum("done" in line for line in widened) == 1
    assert sum(line.startswith("*") for line in widened) == 9
    person.resizes(6, again)
    small = person.looks_until(lambda: "  and 7 more" in person.lines)
    assert [line[:1] for line in small[-4:]] == ["*", "*", " ", "1"]
    person.resizes(3, again)
    person.looks_until(lambda: person.lines[-1].startswith("1/10") and len(person.lines) <= 2)
    person.resizes(24, again)
    person.looks_until(lambda: sum(line.startswith("*") for line in person.lines) == 9)
    for number in range(9):
        person.opens(f"gate{number}")
    assert person.waits_for_the_end() == 1
    assert not any(line.startswith("*") or "running" in line for line in person.lines)
    assert person.lines[-1] == "after"
    assert person.lines[-2].startswith("x etl failed")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not here")
def test_resizing_leaves_no_garbage_where_the_terminal_wraps_lines_anew(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    body = """
        for number in range(3):
            task(f"transform_the_orders_of_customers_in_{number}", "gate")
    """
    script = textwrap.dedent(HEAD) + textwrap.dedent(body) + textwrap.dedent(TAIL)
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "TMUX"}

    def tmux(*words: str) -> str:
        command = ["tmux", "-u", "-f", "/dev/null", "-S", str(tmp_path / "socket"), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=WAIT_S, env=environment
        ).stdout

    def looks_until(is_there: Callable[[list[str]], object]) -> list[str]:
        deadline = time.monotonic() + WAIT_S
        while True:
            lines = tmux("capture-pane", "-p").rstrip().split("\n")
            if is_there(lines):
                return lines
            assert time.monotonic() < deadline, lines

    start = ["new-session", "-d", "-x", "80", "-y", "24", "-c", str(tmp_path)]
    try:
        tmux(*start, f"'{sys.executable}' script.py; read wait")
        looks_until(lambda lines: lines[-1] == "0/3 done, 3 running")
        tmux("resize-window", "-x", "30", "-y", "20")
        lines = looks_until(lambda lines: lines[-1] == "0/3 done, 3 running" and "…" in lines[-2])
        assert [line[:1] for line in lines if not line[:1].isalnum()] == ["*"] * 3
        tmux("resize-window", "-x", "90", "-y", "24")
        lines = looks_until(lambda lines: "customers_in_" in lines[-2])
        assert sum(line.startswith("*") for line in lines) == 3
    finally:
        tmux("kill-server")


def test_forty_columns_and_wide_names(run_script: Callable[..., Person]) -> None:
    person = run_script(
        """
        task("注文を変換する" * 6, "gate0")
        task("🚀🧪é 🌍" * 8, "gate1")

        @engine.task(name="long", dag="etl")
        def long():
            raise ValueError("no " * 4000)
        """,
        gates="gate0 gate1",
        columns=40,
    )
    lines = person.sees("^1/3 done, 2 running, 1 failed$")
    running = [line for line in lines if line.startswith("*")]
    assert len(running) == 2
    for line in running:
        assert re.search(r"…  \d+\.\d s$", line)
    assert "…" in "".join(lines[2:6])  # the report tells the whole of it
    assert len(lines) == 9
    person.opens("gate0")
    person.opens("gate1")
    assert person.waits_for_the_end() == 1
    assert not any(line.startswith("*") for line in person.lines)


def test_no_color(run_script: Callable[..., Person]) -> None:
    person = run_script(
        """
        @engine.task(dag="etl", retries=1)
        def broken():
            raise KeyError("rate")

        task("waits", "gate")
        """,
        gates="gate",
        NO_COLOR="1",
    )
    person.sees("^1/2 done, 1 running, 1 failed$")
    person.opens("gate")
    assert person.waits_for_the_end() == 1
    assert "x broken: KeyError: 'rate'" in person.lines
    assert "\x1b" in person.written
    assert "\x1b" not in MOVES.sub("", person.written)


def test_hostile_names_and_errors_control_nothing(run_script: Callable[..., Person]) -> None:  # V1
    person = run_script(
        r"""
        task("\u202egnp.exe", "gate")

        @engine.task(name="<b>\u2066&", dag="etl")
        def broken():
            raise ValueError("\x1b[?25l\x1b[31m red \x1b(0 \x1b]0;title\x07")
        """,
        gates="gate",
    )
    lines = person.sees("^1/2 done, 1 running, 1 failed$")
    assert lines[1] == r"x <b>\u2066&: ValueError: \x1b[?25l\x1b[31m red \x1b(0 \x1b]0;title\x07"
    assert lines[2].startswith(r"* \u202egnp.exe  ")
    person.opens("gate")
    assert person.waits_for_the_end() == 1
    left = COLOURS.sub("", MOVES.sub("", person.written))
    assert not set(left) & set("\x1b\x07\x9b\u202e")
    assert person.screen.title == ""


def test_ctrl_c_in_a_script_leaves_a_sane_terminal(run_script: Callable[..., Person]) -> None:
    person = run_script(
        """
        @engine.task(dag="etl")
        async def waits():
            await asyncio.Event().wait()
        """,
        lines=200,
    )
    person.sees("^0/1 done, 1 running$")
    person.child.sendintr()
    assert person.waits_for_the_end() == 130, person.lines
    assert not any("running" in line for line in person.lines)
    assert any(line.startswith("x etl failed") for line in person.lines)


# The command line.

JOBS = """
    import asyncio, contextlib, time
    from flowrun import SqliteStateStore, build_default_engine

    engine = build_default_engine(state_store=SqliteStateStore("runs.db"))

    @engine.task(dag="quick")
    def hello():
        print("hello")

    @engine.task(dag="broken")
    def broken():
        raise ValueError("no rows")

    @engine.task(dag="slow", timeout_s=None)
    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            print("cleaned up")

    @engine.task(dag="stubborn", timeout_s=None)
    async def deaf():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            print("told")

    @engine.task(dag="blocking", timeout_s=None)
    async def blocks():
        while True:
            time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS), encoding="utf-8")
    return tmp_path


def test_command_line_shows_progress_and_then_the_report(
    jobs: Path, sit: Callable[..., Person]
) -> None:
    person = sit("-m", "flowrun", "run", "jobs:engine", "quick")
    assert person.waits_for_the_end() == 0
    # Hooks are told in a thread of their own, so the task may have been faster.
    assert sum(line.startswith("run ") for line in person.lines[:2]) == 1
    assert "hello" in person.lines[:2]
    assert any(line.startswith("+ quick succeeded in ") for line in person.lines)
    assert any(line.startswith("quick: Succeeded in ") for line in person.lines)
    assert person.lines[-1].startswith("✔ hello ")
    assert "running" not in "\n".join(person.lines)


def test_error_of_a_failure_is_said_once(jobs: Path, sit: Callable[..., Person]) -> None:
    person = sit("-m", "flowrun", "run", "jobs:engine", "broken", lines=40)
    assert person.waits_for_the_end() == 1
    assert "x broken: failed" in person.lines
    assert [line.strip() for line in person.lines if "ValueError: no rows" in line] == [
        "ValueError: no rows"
    ]


@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_first_interrupt_cancels_and_records(  # R2
    jobs: Path, sit: Callable[..., Person], by: str
) -> None:
    person = sit("-m", "flowrun", "run", "jobs:engine", "slow")
    person.sees(r"^\* wait  ")
    interrupt(person, by)
    assert person.waits_for_the_end() == 130
    assert "cleaned up" in person.lines
    assert person.lines[-1] == "interrupted"
    assert not any("running" in line for line in person.lines)
    listed = sit("-m", "flowrun", "runs", "runs.db", columns=120)
    assert listed.waits_for_the_end() == 0
    assert re.search(r"failed .* slow  1 failed", listed.lines[1])


@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("dag", ["stubborn", "blocking"])
def test_second_interrupt_exits_at_once(
    jobs: Path, sit: Callable[..., Person], dag: str, by: str
) -> None:
    person = sit("-m", "flowrun", "run", "jobs:engine", dag)
    person.sees("^0/1 done, 1 running$")
    interrupt(person, by)
    person.sees("^told$" if dag == "stubborn" else "^interrupted: ")
    interrupt(person, by)
    assert person.waits_for_the_end() == 130


def interrupt(person: Person, by: str) -> None:
    if by == "Ctrl-C":
        person.child.sendintr()
    else:
        person.child.kill(signal.SIGTERM)


def test_off_a_terminal_there_is_one_plain_line_per_change(jobs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flowrun", "run", "jobs:engine", "quick"],
        cwd=jobs,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    shown = [re.sub(r"\d+\.\d s", "N s", line) for line in done.stderr.splitlines()]
    assert shown[0].endswith(" of quick: 1 task")
    assert shown[1:] == ["* hello", "+ hello  N s", "+ quick succeeded in N s: 1 succeeded"]
    assert done.stdout.startswith("hello\nquick: Succeeded in ")
    assert "\x1b" not in done.stdout + done.stderr


LOOK = """
    from flowrun import SqliteStateStore, build_default_engine

    engine = build_default_engine(state_store=SqliteStateStore("runs.db"))
    engine.task("a", dag="d")(lambda: 1)
    engine.task("b", dag="d", deps=["a"])(lambda: 1 / 0)
"""


def colours(person: Person) -> set[tuple[str, str]]:
    """Return what is shown in colour, word by word."""
    found: set[tuple[str, str]] = set()
    for number, line in enumerate(person.screen.display):
        cells = [person.screen.buffer[number][column] for column in range(person.screen.columns)]
        for word in re.finditer(r"\S+", line):
            colour = cells[word.start()].fg
            if colour != "default":
                found.add((word[0], colour))
    return found


def test_colours_where_the_terminal_has_them(tmp_path: Path, sit: Callable[..., Person]) -> None:
    (tmp_path / "jobs.py").write_text(textwrap.dedent(LOOK), encoding="utf-8")
    person = sit("-m", "flowrun", "run", "jobs:engine", "d", lines=40)
    assert person.waits_for_the_end() == 1
    assert {("✔", "green"), ("✘", "red"), ("Failed", "red")} <= colours(person)
    person = sit("-m", "flowrun", "resume", "jobs:engine", "latest", lines=40)
    assert person.waits_for_the_end() == 1
    assert "  resumed from    " in person.written
    assert ("✘", "red") in colours(person)
    assert "\x1b[2m✔ a" in person.written  # what was kept is dim
    for words, shown in (
        (("report", "runs.db"), {("✘", "red"), ("Failed", "red")}),
        (("runs", "runs.db"), {("failed", "red")}),
        (("report", "runs.db", "nonsense"), {("flowrun:", "red")}),
        (("list", "jobs:engine"), set()),
    ):
        person = sit("-m", "flowrun", *words, lines=40, columns=120)
        person.waits_for_the_end()
        assert shown <= colours(person), words
        assert bool(shown) is bool(colours(person)), words
        for mode in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            plain = sit("-m", "flowrun", *words, lines=40, columns=120, **mode)
            plain.waits_for_the_end()
            assert "\x1b" not in plain.written
            assert plain.lines == person.lines


EVERYTHING = """
    import logging
    from flowrun import Cache, SchedulerConfig, SqliteStateStore, build_default_engine

    logging.getLogger("shop").setLevel("INFO")
    engine = build_default_engine(
        state_store=SqliteStateStore("runs.db"), config=SchedulerConfig(keep_logs=True)
    )

    @engine.task(dag="d", cache=Cache())
    def pages():
        return [3, 0, 1]

    @engine.task(dag="d", map_over="pages")
    def fetch(pages):
        logging.getLogger("shop").info("page %d", pages)
        return 6 / pages

    @engine.task(dag="d")
    def load(fetch):
        return sum(fetch)
"""

SCREENS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("--help", 0, (r"^usage: flowrun", r"^ +explain  ")),
    ("--version", 0, (r"^flowrun \d",)),
    ("validate jobs:engine", 0, (r"^d: fine, 3 tasks",)),
    ("list jobs:engine", 0, (r"^d +pages, fetch, load$",)),
    ("show jobs:engine d", 0, (r"fetch",)),
    ("run jobs:engine d", 1, (r"^✘ fetch", r"ZeroDivisionError", r"^⊘ load")),
    ("runs runs.db", 0, (r"failed .* d ",)),
    ("report runs.db latest", 0, (r"^d: Failed in ", r"^✔ pages")),
    ("explain runs.db latest", 0, (r"^d: \d+ ms", r"^fetch +failed: ")),
    ("explain runs.db latest load", 0, (r"^load of d: ", r"^load +skipped: ")),
    ("error runs.db latest fetch", 0, (r"ZeroDivisionError: division by zero",)),
    ("result runs.db latest pages", 0, (r"^\[3, 0, 1\]$",)),
    ("result runs.db latest load", 1, (r"^flowrun: ",)),
    ("logs runs.db latest fetch", 0, (r"page 3", r"page 0", r"page 1")),
    ("cache ls runs.db", 0, (r" d +pages ",)),
    ("resume jobs:engine latest", 1, (r"^✔ pages .* kept from the earlier run$", r"^✘ fetch")),
    ("cache clear runs.db", 0, (r"^1 result cleared",)),
    ("prune runs.db --keep-last 1", 0, (r"^1 run deleted",)),
    ("completion bash", 0, (r"complete .*flowrun",)),
)


def test_every_command_in_a_terminal(tmp_path: Path, sit: Callable[..., Person]) -> None:
    (tmp_path / "jobs.py").write_text(textwrap.dedent(EVERYTHING), encoding="utf-8")
    assert {line.split()[0] for line, _, _ in SCREENS} >= set(COMMANDS)
    for line, code, shown in SCREENS:
        person = sit("-m", "flowrun", *line.split(), lines=200, columns=100)
        assert (person.waits_for_the_end(), line) == (code, line), person.lines
        for pattern in shown:
            assert any(re.search(pattern, each) for each in person.lines), (line, person.lines)
