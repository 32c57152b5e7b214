"""Where in the user's code an error arose, read from the text of its traceback."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flowrun.failure import CHAIN_LINKS

_FRAME = re.compile(r'^[ |]*File "([^"]+)", line (\d+)')


_OWN_CODE = (str(Path(__file__).parents[1]), f"site-packages{os.sep}flowrun{os.sep}")


_LIBRARIES = re.compile(
    r"[\\/](lib[\\/]python3[.\d]*|site-packages|dist-packages|Lib)[\\/]|^<frozen"
)


def place_of(error: str) -> tuple[str, str] | None:
    r"""Return where a traceback's text says that the error arose: ``file:line``, and that line.

    That is the last frame of the task's own code, or, if all are of libraries, the last one that
    is not flowrun's.

    Example:
        >>> place_of('Traceback (most recent call last):\n  File "a.py", line 3\n    1 / 0\nE')
        ('a.py:3', '1 / 0')
    """
    found: tuple[str, str] | None = None
    is_library = True
    lines = error.split("\n")
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line in CHAIN_LINKS:
            found, is_library = None, True
        if line.startswith("  +-"):  # the errors in a group begin
            break
        frame = _FRAME.match(line)
        if frame is None or any(own in frame[1] for own in _OWN_CODE):
            continue
        in_library = _LIBRARIES.search(frame[1]) is not None
        if found is None or is_library or not in_library:
            source = "" if _FRAME.match(after) else after.lstrip(" |")
            found, is_library = (f"{frame[1]}:{frame[2]}", source), in_library
    return found
