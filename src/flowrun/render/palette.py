"""The colours of the statuses.

Chosen after Okabe and Ito's palette, so that the usual colour blindnesses keep them apart,
and dark (or light) enough for small text: a contrast of 4.5 to 1 on their own ground.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from flowrun.report import TaskStatusName


class Shade(NamedTuple):
    """The colour of lines and text, and the ground they stand on."""

    ink: str
    ground: str


LIGHT: dict[TaskStatusName, Shade] = {
    "SUCCESS": Shade("#00694d", "#e9f6f1"),
    "FAILED": Shade("#a83200", "#fdeee6"),
    "SKIPPED": Shade("#5b6270", "#f1f2f4"),
    "RUNNING": Shade("#00599c", "#e8f2fb"),
    "PENDING": Shade("#5b6270", "#ffffff"),
}
