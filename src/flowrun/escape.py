"""Escape names, errors and results for the place where they are shown (V1).

The store keeps the original text.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Listed, because a scan of ``unicodedata`` would add a tenth of a second to every import.
# ZERO WIDTH JOINER and NON-JOINER are not in it: emoji and several scripts need them, and they
# cannot reorder or hide other text.
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls but TAB and LINE FEED: see _HIDDEN_LINE
    "\u00ad\u061c\u180e"  # soft hyphen, Arabic letter mark, Mongolian vowel separator
    "\u200b\u200e\u200f"  # zero width space, left-to-right and right-to-left mark
    "\u2028-\u202e"  # line and paragraph separator, embeddings and overrides
    "\u2060-\u206f"  # word joiner, invisible operators, isolates
    "\ud800-\udfff"  # lone surrogates: no encoding has them
    "\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff"  # byte order mark, noncharacters
    "\U000e0000-\U000e007f"  # tags: a whole hidden alphabet
)
_HIDDEN_TEXT = re.compile(f"[{_HIDDEN}]")
_HIDDEN_LINE = re.compile(f"[{_HIDDEN}\t\n]")
_MERMAID_UNSAFE = re.compile(r"[^\w .,:()+-]")
_NEAR_CONTROLS = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_AS_EMOJI = "\ufe0f"  # makes a narrow sign a wide emoji, on most terminals
_FLAGS = "".join(map(chr, range(0x1F1E6, 0x1F200)))  # two letters make a flag
_LAST_BYTE = 0xFF
_LAST_SHORT = 0xFFFF


def for_terminal(text: str, *, multiline: bool = False, ascii_only: bool = False) -> str:
    r"""Return the text with every character escaped that controls or reorders a screen.

    An escape becomes ``\x1b``, a right-to-left override ``\u202e``.

    Args:
        text: Any text, also with lone surrogates.
        multiline: Keep line feeds, and expand tabulators to four columns.
        ascii_only: Also escape everything that is not ASCII.

    Example:
        >>> for_terminal("red \x1b[31m")
        'red \\x1b[31m'
    """
    if multiline:
        shown = _HIDDEN_TEXT.sub(_written_out, text.replace("\r\n", "\n").expandtabs(4))
    else:
        shown = _HIDDEN_LINE.sub(_written_out, text)
    return shown.encode("ascii", "backslashreplace").decode() if ascii_only else shown


def for_html(text: str, *, multiline: bool = False) -> str:
    """Return the text for an HTML or SVG element or a quoted attribute of one.

    Example:
        >>> for_html("<b> & 'c'")
        '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return html.escape(for_terminal(text, multiline=multiline), quote=True)


def for_mermaid(text: str) -> str:
    """Return the text for a quoted Mermaid label; syntax of Mermaid becomes ``#code;``.

    Example:
        >>> for_mermaid('say "hi"')
        'say #34;hi#34;'
    """
    return _MERMAID_UNSAFE.sub(lambda found: f"#{ord(found[0])};", for_terminal(text))


def for_dot(text: str) -> str:
    r"""Return the text for a quoted Graphviz label.

    Graphviz reads ``\N`` and HTML entities even inside quotes, so both are broken up.

    Example:
        >>> for_dot('a "b" &lt;')
        'a \\"b\\" &amp;lt;'
    """
    visible = for_terminal(text).replace("&", "&amp;")
    return visible.replace("\\", "\\\\").replace('"', '\\"')


def columns(text: str) -> int:
    """Return how many terminal columns an escaped line takes."""
    if text.isascii():
        return len(text)
    return sum(map(_column, text))


def shortened(text: str, width: int, mark: str = "…") -> str:
    """Return an escaped line cut to ``width`` columns, with a mark where it was cut.

    Example:
        >>> shortened("transform_orders", 8)
        'transfo…'
    """
    if len(text) * 2 <= width or columns(text) <= width:
        return text
    position = 0
    room = width - len(mark) - _column(text[0])
    while room >= 0:
        position += 1
        room -= _column(text[position])
    # Half a flag is as wide as a whole one.
    return text[:position].rstrip(_FLAGS) + mark[: max(width, 0)]


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return an escaped line filled with spaces up to ``width`` columns."""
    blank = " " * (width - columns(text))
    return blank + text if right else text + blank


def _column(character: str) -> int:
    if character.isascii() or character == _AS_EMOJI:
        return 1
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _written_out(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    if character in _NEAR_CONTROLS:
        return _NEAR_CONTROLS[character]
    if code <= _LAST_BYTE:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= _LAST_SHORT else f"\\U{code:08x}"
