"""Processes that measure: one for each repetition, the candidates in turns."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.jobs import FLOOR, FLOWRUN, Answer, Job

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE_S = 12.0
_TWICE_IS_TOO_LONG_S = 25.0
_NO_CLOSE_RACE = 5.0  # a lead over a peer that no load on the machine explains
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Exit)\b")


@dataclass(frozen=True)
class Comparison:
    """What flowrun took beside another, both in the same minutes.

    Attributes:
        job: What flowrun did.
        other: Who else did it.
        ours: Seconds of each of flowrun's repetitions.
        theirs: Seconds of each of the other's.
        problem: Why there is no figure, if there is none.
        others_fault: The problem is the other's.
    """

    job: Job
    other: str
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    problem: str = ""
    others_fault: bool = False

    @property
    def ratio(self) -> float:
        """Return the median of the ratios of neighbours: load that lasts hits both of a pair."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        """Return the ratio of each repetition to the other's beside it."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def our_time(self) -> float:
        """Return flowrun's median, in seconds."""
        return statistics.median(self.ours)

    @property
    def their_time(self) -> float:
        """Return the other's median, in seconds."""
        return statistics.median(self.theirs)


class Bench:
    """Starts the processes, and knows with what.

    Args:
        scratch: A folder on the disk that is measured, for bytecode and files of stores.
        timeout_s: How long one process may take.
    """

    def __init__(self, scratch: Path, timeout_s: float) -> None:
        self.scratch = scratch
        self.timeout_s = timeout_s
        self.pythons: dict[str, Path] = {}

    def compare(self, job: Job, other: str = FLOOR, repetitions: int = 3) -> Comparison:
        """Do a job in turns: the other, flowrun, the other, flowrun."""
        ours: list[float] = []
        theirs: list[float] = []
        job = replace(job, side=FLOWRUN)
        began = time.monotonic()
        for turn in range(repetitions):
            took = time.monotonic() - began
            if turn and other != FLOOR and ours[0] * _NO_CLOSE_RACE < theirs[0]:
                break
            if turn and took > (_TWICE_IS_TOO_LONG_S if turn == 1 else _PATIENCE_S):
                break  # what takes so long varies little
            their = self.answer(replace(job, side=other))
            if their.problem:
                return Comparison(job, other, problem=their.problem, others_fault=True)
            our = self.answer(job)
            if our.problem:
                return Comparison(job, other, problem=f"flowrun: {our.problem}")
            if our.digest != their.digest:
                return Comparison(job, other, problem="the results differ")
            ours.append(our.seconds)
            theirs.append(their.seconds)
        return Comparison(job, other, tuple(ours), tuple(theirs))

    def answer(self, job: Job) -> Answer:
        """Do a job in a process of its own."""
        return self.ask(job.side, ["-m", "benchmarks.child", job.dump()])

    def ask(self, side: str, arguments: Sequence[str]) -> Answer:
        """Run a Python process of one side, and return its answer.

        It has a process group of its own, so that nothing that a peer starts is left behind.
        """
        with subprocess.Popen(
            [self.pythons.get(side, sys.executable), *arguments],
            cwd=self.scratch,
            env=self._environment(side),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=self.timeout_s)
            except subprocess.TimeoutExpired:
                return Answer(problem=f"not done after {self.timeout_s:g} s")
            finally:
                _end_group(process)
        answer = Answer.load(output)
        if answer.problem == "no answer":
            return Answer(problem=_reason(process.returncode, errors))
        return answer

    def _environment(self, side: str) -> dict[str, str]:
        environment = dict(os.environ)
        # Whoever starts the benchmarks may have switched bytecode off; an import without it
        # is not what users have.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(self.scratch / f"bytecode-{side}")
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        return environment


def _reason(code: int, errors: str) -> str:
    """Return the exception's own line, if a process has ended with one."""
    lines = [line for line in errors.splitlines() if line.strip()]
    own = [line for line in lines if _EXCEPTION.match(line)]
    last = (own or lines or ["no message"])[-1]
    return f"exit code {code}: {last}" if not own else last


def _end_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
