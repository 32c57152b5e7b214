"""What bounds the units of all runs of an engine: slots, and limits that tasks name (R3).

``Limits`` decides, and is pure. ``SharedLimits`` puts the engine's lock around it and sends grants
to the runs' inboxes. ``RunLimits`` is the view of one run.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowrun.config import Limit
    from flowrun.registry import TaskSpec

H = TypeVar("H")

Needs: TypeAlias = tuple[tuple[str, int], ...]
"""What one unit needs at once: a slot, and each limit with its weight.

A weight of 0 takes nothing but counts for the limit's rate: a run inside a task uses what that
task holds.
"""
Amounts: TypeAlias = "dict[Needs, int]"
"""How many units of each kind."""

SLOT = ""
"""The name of the engine's ``max_parallel``."""


class Limits(Generic[H]):
    """A number of slots, named limits, and who holds or waits for what.

    A unit gets everything that it needs at once, or nothing. The holder that has waited longest
    gets the next free slot; if it wants more it goes to the end of the line. A limit that is taken
    holds up only units that need it; of those, the one that has waited longest gets it first, so
    that light ones do not starve a heavy one.

    Args:
        capacity: Number of slots.
        named: The other limits.

    Attributes:
        free: What is free of each limit; limits without a bound are not in it.
        held: What each holder holds.
        waiting: What each holder wants, the longest waiting first.
        wake_at: When each holder that only waits for a time should ask again.
    """

    def __init__(self, capacity: int, named: Mapping[str, Limit] | None = None) -> None:
        named = named or {}
        self._capacity: dict[str, int] = {SLOT: capacity}
        self._capacity.update(
            {name: limit.count for name, limit in named.items() if limit.count is not None}
        )
        self.free = self._capacity.copy()
        self.held: dict[H, dict[str, int]] = {}
        self.waiting: dict[H, Amounts] = {}
        self.wake_at: dict[H, float] = {}
        self._rates = {
            name: _Window(limit.rate.count, limit.rate.per_s)
            for name, limit in named.items()
            if limit.rate is not None
        }
        self._has_named = bool(named)
        self._paused_until: dict[str, float] = {}
        self._order = itertools.count()
        self._since: dict[tuple[H, Needs], int] = {}
        # What units of a kind wait for now, since when, and for how long they have waited before.
        self._lacking: dict[tuple[H, Needs], tuple[str, float]] = {}
        self._waits: dict[tuple[H, Needs], dict[str, float]] = {}

    def exchange(
        self, holder: H, released: Amounts, wanted: Amounts, now: float
    ) -> dict[H, Amounts]:
        """Take back what a holder needs no more, and note what it wants now.

        Args:
            holder: The holder.
            released: Units that have ended.
            wanted: Units that could start, those of higher priority first.
            now: A reading of the monotonic clock.

        Returns:
            The units that may start by this, by holder.

        Raises:
            ValueError: It releases more than it holds.
        """
        held, free = self.held.get(holder), self.free
        if held is None:
            held = self.held[holder] = {}
        for needs, count in released.items():
            for name, weight in needs:
                left = held.get(name, 0) - weight * count
                if left < 0:
                    msg = f"{holder!r} releases {name or 'slots'!r}, of which it holds too little"
                    raise ValueError(msg)
                held[name] = left
                if name in free:
                    free[name] += weight * count
        if self.wake_at:
            self.wake_at.pop(holder, None)
        if wanted:
            self.waiting[holder] = dict(wanted)  # a holder that already waits keeps its place
        else:
            self.waiting.pop(holder, None)
        if self.waiting or self._lacking:
            return self._grant(now)
        return {}

    def leave(self, holder: H, now: float) -> dict[H, Amounts]:
        """Take everything back from a holder, grants that are on their way included."""
        self.waiting.pop(holder, None)
        self.wake_at.pop(holder, None)
        self.held.pop(holder, None)
        self._lacking = {key: each for key, each in self._lacking.items() if key[0] != holder}
        self._waits = {key: each for key, each in self._waits.items() if key[0] != holder}
        # Counted anew, for a bare KeyboardInterrupt may have come between two lines of an exchange.
        for name, capacity in self._capacity.items():
            self.free[name] = capacity - sum(held.get(name, 0) for held in self.held.values())
        return self._grant(now)

    def pause(self, names: Iterable[str], until: float) -> None:
        """Let no unit start before a time that needs one of these limits; the latest counts."""
        for name in names:
            self._paused_until[name] = max(until, self._paused_until.get(name, until))

    def add_slot(self, name: str) -> None:
        """Add one slot of its own name, for the runs inside one task."""
        self._capacity[name] = self.free[name] = 1

    def remove_slot(self, name: str) -> None:
        """Remove a slot that :meth:`add_slot` has added."""
        del self._capacity[name], self.free[name]

    def _grant(self, now: float) -> dict[H, Amounts]:
        granted: dict[H, Amounts] = {}
        reserved = self._reserved(now) if self._has_named else {}
        goes_on = True
        while goes_on and self.waiting:
            goes_on = False
            for holder in list(self.waiting):
                needs = self._next(holder, reserved, now)
                if needs is not None:
                    goes_on = True
                    self._take(holder, needs, now)
                    own = granted.setdefault(holder, {})
                    own[needs] = own.get(needs, 0) + 1
        if self._has_named:
            self._note_waits(reserved, now)
        return granted

    def waited(self, holder: H, needs: Needs, now: float) -> dict[str, float]:
        """Return how long units of one kind have waited for each named limit until now."""
        waits: dict[str, float] = dict(self._waits.get((holder, needs), {}))
        name, since = self._lacking.get((holder, needs), ("", now))
        if name:
            waits[name] = waits.get(name, 0.0) + max(now - since, 0.0)
        return waits

    def _note_waits(self, reserved: Mapping[str, int], now: float) -> None:
        """Note what is waited for from now on: a named limit that is lacking, else the slot."""
        lacking: dict[tuple[H, Needs], tuple[str, float]] = {}
        for holder, wanted in self.waiting.items():
            for needs in wanted:
                name = self._lack(holder, needs, reserved, now)
                if name:
                    lacking[holder, needs] = name, now
        for key, (name, since) in self._lacking.items():
            if lacking.get(key, ("", now))[0] == name:
                lacking[key] = name, since
            else:
                self._waits[key] = self.waited(*key, now)
        self._lacking = lacking

    def _lack(self, holder: H, needs: Needs, reserved: Mapping[str, int], now: float) -> str:
        """Return the named limit that a unit waits for, or an empty text."""
        for name, weight in needs[1:]:
            is_reserved = name in reserved and reserved[name] < self._since[holder, needs]
            if is_reserved or self.free.get(name, weight) < weight:
                return name
            if self._opens_at(name, now) > now:
                return name
        return ""

    def _next(self, holder: H, reserved: Mapping[str, int], now: float) -> Needs | None:
        """Return what a holder may start now, the first of what it wants."""
        free = self.free
        for needs in self.waiting[holder]:
            for name, weight in needs:
                if free.get(name, weight) < weight:
                    break
                if name != SLOT and self._opens_at(name, now) > now:
                    break
                if name in reserved and reserved[name] < self._since[holder, needs]:
                    break
            else:
                return needs
        return None

    def _opens_at(self, name: str, now: float) -> float:
        """Return when the rate of a limit, or its pause, allows the next unit."""
        opens_at = self._paused_until.get(name, now)
        window = self._rates.get(name)
        return opens_at if window is None else max(opens_at, window.opens_at(now))

    def _reserved(self, now: float) -> dict[str, int]:
        """Return since when the longest waiting unit waits for each limit that is lacking.

        Also note who waits for nothing but a time.
        """
        found: dict[str, int] = {}
        since, self._since, self.wake_at = self._since, {}, {}
        for holder, wanted in self.waiting.items():
            for needs in wanted:
                place = since.get((holder, needs))
                self._since[holder, needs] = next(self._order) if place is None else place
        for (holder, needs), place in sorted(self._since.items(), key=lambda item: item[1]):
            opens_at = now
            for name, weight in needs:
                if name != SLOT and self.free.get(name, weight) < weight:
                    found.setdefault(name, place)
                opens_at = max(opens_at, self._opens_at(name, now))
            if opens_at > now:
                self.wake_at[holder] = min(opens_at, self.wake_at.get(holder, inf))
        return found

    def _take(self, holder: H, needs: Needs, now: float) -> None:
        held, free = self.held[holder], self.free
        for name, weight in needs:
            held[name] = held.get(name, 0) + weight
            if name in free:
                free[name] -= weight
            if name in self._rates:
                self._rates[name].note(now)
        if self._has_named:  # its next unit of this kind waits from now on
            self._since[holder, needs] = next(self._order)
        wanted = self.waiting.pop(holder)
        wanted[needs] -= 1
        if not wanted[needs]:
            del wanted[needs]
        if wanted:
            self.waiting[holder] = wanted  # at the end of the line


class _Window:
    """At most ``count`` units start in any ``per_s`` seconds."""

    def __init__(self, count: int, per_s: float) -> None:
        self._count = count
        self._per_s = per_s
        self._starts: deque[float] = deque()

    def opens_at(self, now: float) -> float:
        if len(self._starts) < self._count:
            return now
        return self._starts[0] + self._per_s

    def note(self, now: float) -> None:
        self._starts.append(now)
        if len(self._starts) > self._count:
            self._starts.popleft()


class SlotHolder(Protocol):
    """A run, as the limits know it."""

    def grant(self, slots: Amounts, ask_again_at: float) -> bool:
        """Take what was granted, from any thread; return ``False`` if the run is gone."""
        ...


class SharedLimits:
    """The limits of an engine; safe to use from several event loops in several threads.

    Args:
        capacity: Number of slots.
        named: The other limits.
    """

    def __init__(self, capacity: int, named: Mapping[str, Limit] | None = None) -> None:
        self.named = dict(named or {})
        self._limits: Limits[SlotHolder] = Limits(capacity, named)
        self._lock = threading.Lock()
        self._told: dict[SlotHolder, float] = {}

    def exchange(
        self, holder: SlotHolder, released: Amounts, wanted: Amounts, now: float
    ) -> tuple[Amounts, float]:
        """Give back what has ended, and ask for what could start.

        Returns:
            What is granted at once, and when to ask again. What is granted later comes through
            ``holder.grant``.
        """
        with self._lock:
            granted = self._limits.exchange(holder, released, wanted, now)
            own = granted.pop(holder, {})
            wake_at = self._limits.wake_at.get(holder, inf)
            news = self._news(holder)
        if granted or news:
            self._send(granted, news)
        return own, wake_at

    def waited(self, holder: SlotHolder, needs: Needs, now: float) -> dict[str, float]:
        """Return how long a holder's units of one kind have waited for each named limit."""
        with self._lock:
            return self._limits.waited(holder, needs, now)

    def leave(self, holder: SlotHolder, now: float) -> None:
        """Give everything back: the holder's run is over. Calling it twice is fine."""
        with self._lock:
            granted = self._limits.leave(holder, now)
            self._told.pop(holder, None)
            news = self._news(None)
        self._send(granted, news, now)

    def pause(self, names: Sequence[str], until: float) -> Sequence[str]:
        """Hold limits for everybody until a time; return those that do not exist."""
        with self._lock:
            self._limits.pause([name for name in names if name in self.named], until)
        return [name for name in names if name not in self.named]

    def add_slot(self, name: str) -> None:
        """Add a slot for the runs inside one task."""
        with self._lock:
            self._limits.add_slot(name)

    def remove_slot(self, name: str) -> None:
        """Remove such a slot."""
        with self._lock:
            self._limits.remove_slot(name)

    def _news(self, asking: SlotHolder | None) -> dict[SlotHolder, float]:
        """Return which other runs have to know when to ask again; the lock is held."""
        wake_at = self._limits.wake_at
        if not wake_at:
            return {}
        news = {
            holder: at
            for holder, at in wake_at.items()
            if holder is not asking and self._told.get(holder) != at
        }
        self._told = dict(wake_at)
        return news

    def _send(
        self,
        granted: Mapping[SlotHolder, Amounts],
        news: Mapping[SlotHolder, float],
        now: float = 0.0,
    ) -> None:
        for holder in {**granted, **news}:
            if not holder.grant(granted.get(holder, {}), news.get(holder, inf)):
                self.leave(holder, now)


class RunLimits:
    """The limits as one run uses them.

    Args:
        shared: The engine's.
        slot: The slot that its units need.
        covered: What the task holds in which it runs.
    """

    def __init__(
        self, shared: SharedLimits, slot: str = SLOT, covered: Mapping[str, int] | None = None
    ) -> None:
        self.shared = shared
        self.slot = slot
        self._covered = covered or {}

    def needs_of(self, specs: Iterable[TaskSpec]) -> list[Needs]:
        """Return what the unit of each task needs; most need a slot alone, and share that."""
        slot: Needs = ((self.slot, 1),)
        return [self.needs(spec.uses) if spec.uses else slot for spec in specs]

    def needs(self, uses: Iterable[tuple[str, int]]) -> Needs:
        """Return what a unit needs whose task uses these limits."""
        covered = self._covered
        weights = [(name, 0 if covered.get(name, 0) >= each else each) for name, each in uses]
        return ((self.slot, 1), *weights)
