"""How a run goes on: what the driver decides before the run begins. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrun.scheduler.stand_ins import StandIn

_NO_STAND_INS: Mapping[int, StandIn] = {}
_NO_CACHES: Mapping[int, bool] = {}
_NO_CHOICES: Mapping[int, frozenset[int]] = {}

SAVE_STARTS_AFTER_S = 0.01
"""The store is given the start of an attempt that runs for longer; most end before."""


@dataclass(frozen=True)
class RunSettings:
    """How a run goes on.

    Attributes:
        offset: What makes epoch seconds of the monotonic clock's.
        cancel_grace_s: How long an attempt that will end is waited for.
        thread_grace_s: How long a thread that was only told to stop is waited for.
        is_saved_at_once: Whether the answer to a ``Save`` is the next event.
        reports_starts: Whether anyone wants to know of starts.
        reports_successes: Whether anyone wants to know of successes.
        save_starts_after_s: After how long starts are saved, if their attempts still run;
            ``None``: never.
        fails_fast: Whether the first final failure ends the run.
        kept_choices: What the branches that a resume keeps have chosen, by branch.
        named: Units that a resume was told to run, whatever a branch chooses.
        stand_ins: Values that stand for the results of tasks, which have no attempt.
        cached: Tasks with a cache, and whether they have to run all the same.
        most_encoding: For how many attempts a slot is free while their results are encoded.
        validates: Check all invariants after every call.
    """

    offset: float
    cancel_grace_s: float
    thread_grace_s: float
    is_saved_at_once: bool = False
    reports_starts: bool = True
    reports_successes: bool = True
    save_starts_after_s: float | None = SAVE_STARTS_AFTER_S
    fails_fast: bool = False
    kept_choices: Mapping[int, frozenset[int]] = field(default_factory=lambda: _NO_CHOICES)
    named: frozenset[int] = frozenset()
    stand_ins: Mapping[int, StandIn] = field(default_factory=lambda: _NO_STAND_INS)
    cached: Mapping[int, bool] = field(default_factory=lambda: _NO_CACHES)
    most_encoding: int = 0
    validates: bool = False
