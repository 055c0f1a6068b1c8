"""Text that people read: the nearest name, a duration, a table in columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_JOINERS_AND_BLANKS = "\u200c\u200d\u00a0\u3000"  # not printable to Python, and part of ordinary text and of emoji


def printable(text: object, most: int | None = None) -> str:
    """Text from a file as it may be shown: characters that steer a terminal or turn the line round are escaped.

    Args:
        text: anything; its `str`.
        most: characters of it that are shown; None for all.
    """
    whole = str(text)
    shown = whole[:most]
    safe = (c if c.isprintable() or c in _JOINERS_AND_BLANKS else c.encode("unicode_escape").decode() for c in shown)
    return "".join(safe) + ("…" if len(shown) < len(whole) else "")


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
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = str.rjust if numbers else str.ljust
    return ["  ".join([row[0].ljust(widths[0]), *map(align, row[1:], widths[1:])]).rstrip() for row in rows]
