"""What becomes of a task once all its dependencies have ended: it runs, is skipped or omitted."""

from __future__ import annotations

from enum import IntEnum

from flowrun.registry import TriggerRule


class Verdict(IntEnum):
    """What a trigger rule decides."""

    RUN = 0
    SKIP = 1
    OMIT = 2


def verdict(rule: TriggerRule, total: int, bad: int, omitted: int) -> Verdict:
    """Decide by a rule.

    Args:
        rule: The task's rule.
        total: Number of its dependencies, all of which have ended.
        bad: How many of them FAILED or were SKIPPED.
        omitted: How many of them were OMITTED.
    """
    succeeded = total - bad - omitted
    is_met = {
        TriggerRule.ALL_SUCCESS: succeeded == total,
        TriggerRule.ALL_DONE: True,
        TriggerRule.ONE_SUCCESS: succeeded > 0,
        TriggerRule.ONE_FAILED: bad > 0,
        TriggerRule.NONE_FAILED: bad == 0,
        TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS: bad == 0 and succeeded > 0,
    }[rule]
    if is_met or not total:
        return Verdict.RUN
    return Verdict.SKIP if bad and rule is not TriggerRule.ONE_FAILED else Verdict.OMIT
