"""Text that people read: the nearest name, a duration, a table in columns; and text of others, made harmless to show."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from html import escape

_LISTED = 5  # items that a message names
# Control characters, marks that turn the direction of a line, what is not seen, and what no encoding can write. Joiners are
# part of ordinary text and of emoji.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)


def visible(text: str) -> str:
    r"""Lines of text as they may be shown: characters that steer a terminal are escaped, such as `\x1b`; line ends stay.

    A class name, a path or a word of the command line may hold any of them, and a terminal would obey.
    """
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable(text: object, most: int | None = None) -> str:
    """Text from a file as it may be shown on one line: characters that steer a terminal or turn the line round are escaped.

    Args:
        text: anything; its `str`.
        most: characters of it that are shown; None for all.
    """
    whole = str(text)
    shown = whole[:most]
    safe = visible(shown).replace("\n", "\\n").replace("\t", "\\t")
    return safe + ("…" if len(shown) < len(whole) else "")


def brief(value: object, most: int = 60) -> str:
    """A value of others as a message quotes it: see `printable`.

    Of a list or a mapping only the kind is said: a small file can hold one that would never be written to its end.
    """
    if isinstance(value, (list, tuple, set, dict)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write one of thousands of digits
        return f"a number of {value.bit_length()} bits"
    return printable(value, most)


def abridge(items: Sequence[str], separator: str) -> str:
    """As many items as a message has room for."""
    return separator.join((*items[:_LISTED], *(["..."] if len(items) > _LISTED else [])))


def nearest(word: str, words: Iterable[str], before: str = "") -> str:
    """`, did you mean 'x'?` with the most similar of the words, after `before`; nothing if none is similar."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f", did you mean '{before}{close[0]}'?" if close else ""


def duration(seconds: float) -> str:
    """A time for people: "4.2 s", "42 s", "3 min 05 s", "1 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if round(seconds, 1) < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def text_table(rows: Iterable[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """The lines of a table in columns of spaces, aligned left.

    Args:
        rows: each with as many cells as the first, its title row included if it has one.
        numbers: align all columns but the first to the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = str.rjust if numbers else str.ljust
    return ["  ".join([row[0].ljust(widths[0]), *map(align, row[1:], widths[1:])]).rstrip() for row in rows]


def html_table(rows: Iterable[Sequence[str]]) -> str:
    """The same as HTML, for notebooks; the first row is the title row."""
    lines: list[str] = []
    for row in rows:
        tag = "td" if lines else "th"
        lines.append(f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"
