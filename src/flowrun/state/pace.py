"""When an event loop may wait for a disk."""

from __future__ import annotations

_SLOW_S = 0.001
_STUCK_S = 0.01
_EACH_S = 0.00001
_LEAST_FACTOR = 10.0
_MOST_FACTOR = 1_000_000.0


class Pace:
    """When an event loop may save by itself: as long as that is quick.

    It is not where one save took longer than ten milliseconds, or the last ones longer than one
    each: a single one may have waited for a processor only. Then it pauses for ten times as long
    as that save took; for a hundred times if that is found again, and so on. So a slow disk
    stops the loop a few times, and then hardly ever.

    Attributes:
        not_before: When it may try again, by the monotonic clock.
    """

    __slots__ = ("_factor", "_usual_s", "not_before")

    def __init__(self) -> None:
        self.not_before = 0.0
        self._factor = _LEAST_FACTOR
        self._usual_s = 0.0

    def took(self, began: float, ended: float, number: int) -> None:
        """Take note of a save of so many successes, by the monotonic clock."""
        took_s = ended - began - _EACH_S * number
        self._usual_s += (took_s - self._usual_s) / 8
        if took_s > _SLOW_S and (took_s > _STUCK_S or self._usual_s > _SLOW_S):
            self.not_before = ended + self._factor * took_s
            self._factor = min(self._factor * 10.0, _MOST_FACTOR)
        elif self._factor > _LEAST_FACTOR:
            self._factor = max(self._factor * 0.9, _LEAST_FACTOR)
