"""Text for screens, pages and graph languages."""

from __future__ import annotations

import html
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrun.escape import (
    columns,
    for_dot,
    for_html,
    for_mermaid,
    for_terminal,
    padded,
    shortened,
)

ANY_TEXT = st.text(st.characters())  # lone surrogates included
HARMLESS_FORMAT = {"\u200c", "\u200d"}


def test_no_control_override_or_surrogate_is_left() -> None:  # V1
    reorders = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category in {"Cc", "Cs", "Zl", "Zp"} or unicodedata.bidirectional(character) in reorders:
            shown = for_terminal(character)
            assert shown.isascii() and shown.isprintable(), hex(code)
            assert f"{code:x}" in shown or character in "\t\n\r"


def test_invisible_format_characters_are_written_out_but_joiners_stay() -> None:  # V1
    assert for_terminal("a\u200bb\ufeffc\u00add\U000e0041") == "a\\u200bb\\ufeffc\\xadd\\U000e0041"
    assert for_terminal("👩\u200d🔬 می\u200cخواهم") == "👩\u200d🔬 می\u200cخواهم"


@pytest.mark.parametrize("text", ["plain", "naïve café", "名前", "עברית", "🧪", "C:\\new\\table"])
def test_ordinary_text_stays_as_it_was(text: str) -> None:
    assert for_terminal(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\ud800", "\\ud800"),
        ("\x9b2J", "\\x9b2J"),
        ("\ufffe", "\\ufffe"),
    ],
)
def test_what_controls_a_screen_is_written_out(text: str, shown: str) -> None:  # V1
    assert for_terminal(text) == shown


def test_several_lines_keep_their_breaks_and_nothing_else() -> None:
    text = "Traceback:\r\n\tline\rover\x1b[2K\u2028"
    shown = "Traceback:\n    line\\rover\\x1b[2K\\u2028"
    assert for_terminal(text, multiline=True) == shown


def test_ascii_only_writes_out_the_rest() -> None:
    assert for_terminal("café 🧪", ascii_only=True) == "caf\\xe9 \\U0001f9ea"


@given(ANY_TEXT)
def test_any_text_can_be_encoded_and_printed_once_escaped(text: str) -> None:  # V1
    for multiline in (False, True):
        for_terminal(text, multiline=multiline).encode("utf-8")
        assert "\x1b" not in for_terminal(text, multiline=multiline)


@given(ANY_TEXT)
def test_html_holds_no_markup_and_reads_as_the_escaped_text(text: str) -> None:  # V1
    shown = for_html(text)
    assert not set(shown) & set("<>\"'")
    assert html.unescape(shown) == for_terminal(text)


@given(ANY_TEXT)
def test_mermaid_label_has_nothing_that_mermaid_reads_but_its_own_codes(text: str) -> None:  # V1
    shown = for_mermaid(text)
    assert not set(shown) & set("\"'`<>[]{}|\\&%$@!*~^=\n")
    assert all(piece.partition(";")[0].isdigit() for piece in shown.split("#")[1:])


def test_mermaid_label_keeps_ordinary_names_readable() -> None:
    assert for_mermaid("load_orders (daily), v1.2") == "load_orders (daily), v1.2"
    assert for_mermaid("`c` #35;") == "#96;c#96; #35;35#59;"


@given(ANY_TEXT)
def test_dot_label_ends_where_it_should(text: str) -> None:  # V1
    shown = for_dot(text)
    bare = shown.replace("\\\\", "").replace('\\"', "")
    assert '"' not in bare
    assert "\\" not in bare


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("名前", 4), ("e\u0301", 1), ("👩\u200d🔬", 4), ("", 0), ("é", 1)],
)
def test_columns_counts_wide_and_combining_characters(text: str, width: int) -> None:
    assert columns(text) == width


@given(ANY_TEXT, st.integers(0, 30))
def test_shortened_never_exceeds_its_width(text: str, width: int) -> None:
    safe = for_terminal(text)
    for mark in ("…", "..."):
        shown = shortened(safe, width, mark)
        assert columns(shown) <= width
        assert shown == safe or columns(safe) > width


def test_shortened_cuts_between_wide_characters() -> None:
    assert shortened("名前が長い", 6) == "名前…"
    assert shortened("transform", 6, "...") == "tra..."
    assert shortened("transform", 2, "...") == ".."


def test_padded_fills_up_to_columns_not_characters() -> None:
    assert padded("名", 4) == "名  "
    assert padded("7", 3, right=True) == "  7"
