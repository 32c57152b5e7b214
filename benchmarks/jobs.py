"""One measurement: what is asked of a process, and what it answers; standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

FLOOR = "floor"
FLOWRUN = "flowrun"
EXTRAS = "extras"


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        side: ``"floor"``, ``"flowrun"`` or the name of a peer's module.
        kind: What is measured, a key of the side's ``KINDS``.
        shape: A key of ``SHAPES``.
        size: Number of tasks.
        max_parallel: Tasks at the same time.
        turns: How often it is done within the process, each time from the start; the median
            counts.
    """

    side: str
    kind: str
    shape: str
    size: int
    max_parallel: int = 4
    turns: int = 1

    def dump(self) -> str:
        """Return it as one word of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Job:
        """Return what :meth:`dump` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Answer:
    """What came of one process.

    Attributes:
        seconds: The time of one run, without the start of the interpreter.
        digest: Stands for every task's result.
        figures: Whatever else was measured.
        problem: Why there is no figure, if there is none.
    """

    seconds: float = 0.0
    digest: int = 0
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    problem: str = ""

    def dump(self) -> str:
        """Return it as one line."""
        return _MARK + json.dumps(asdict(self))

    @classmethod
    def load(cls, output: str) -> Answer:
        """Return what :meth:`dump` wrote, found among what else a process printed."""
        for line in reversed(output.splitlines()):
            if line.startswith(_MARK):
                return cls(**json.loads(line.removeprefix(_MARK)))
        return cls(problem="no answer")


_MARK = "answer: "
