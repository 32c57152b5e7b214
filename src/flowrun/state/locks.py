"""What the standard library's locks do not say in public."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import threading


def is_held(lock: threading.RLock) -> bool:
    """Return whether the calling thread holds a lock.

    Who has tried to take it without waiting cannot know otherwise, once Ctrl-C has come: that may
    be between the taking and the noting of it. ``threading.Condition`` asks in the same way.
    """
    return bool(cast("Any", lock)._is_owned())  # noqa: SLF001 - see above
