"""Text that people read: the nearest name, a duration, a table in columns; and text of others, made harmless to show."""

from __future__ import annotations

import difflib
import re
import textwrap
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


def nearest(word: str, words: Iterable[str], before: str = "", likeness: float = 0.6) -> str:
    """`, did you mean 'x'?` with the most similar of the words, after `before`; nothing if none is similar.

    `likeness`, 0 to 1, is how similar it must be.
    """
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=likeness)
    return f", did you mean '{before}{close[0]}'?" if close else ""


def duration(seconds: float) -> str:
    """A time for people: "4.2 s", "42 s", "3 min 05 s", "1 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if round(seconds, 1) < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def text_table(rows: Iterable[Sequence[str]], *, numbers: bool = False, width: int | None = None) -> list[str]:
    """The lines of a table in columns of spaces, aligned left.

    Args:
        rows: each with as many cells as the first, its title row included if it has one.
        numbers: align all columns but the first to the right.
        width: of the terminal; the last column is wrapped to it. None: no line is broken.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = str.rjust if numbers else str.ljust
    lines = ["  ".join([row[0].ljust(widths[0]), *map(align, row[1:], widths[1:])]).rstrip() for row in rows]
    if width is None or numbers:
        return lines
    hang = sum(each + 2 for each in widths[:-1])
    return [piece for line in lines for piece in wrap(line, width, hang)]


def html_table(rows: Iterable[Sequence[str]]) -> str:
    """The same as HTML, for notebooks; the first row is the title row."""
    lines: list[str] = []
    for row in rows:
        tag = "td" if lines else "th"
        lines.append(f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"


WARNING = "yellow"  # the colour of a warning, by rich's name

# What a line may begin with, below which the rest of it is aligned: "Use it:  ", "warning: ", or a cell of a table.
_LEAD = re.compile(r" *(?:[A-Za-z][\w ]{,12}: +|\w+ {2,})?")
_COMMAND = re.compile(r"(?:cd|distill|pip|python3?|torchrun|yolo) ")


def wrap(line: str, width: int, hang: int | None = None) -> list[str]:
    """A line in pieces of at most `width` characters, broken between words; those after the first are indented.

    A word that is longer stays whole. The pieces of a shell command end in a backslash, so that it can be copied.

    Args:
        line: of text, without a line break.
        width: of the terminal, in characters.
        hang: indentation of the further pieces; None aligns them below what follows the line's label, if it has one.
    """
    if len(line) <= width:
        return [line]
    lead = _LEAD.match(line)
    start = lead.end() if lead and lead.end() < width // 2 else 0
    if " " not in line[start:].strip():  # an address
        return [line]
    command = hang is None and bool(_COMMAND.match(line, start))
    hang = start + 2 * (command or not line[:start].strip()) if hang is None else hang
    if hang > width // 2:
        hang = 4
    pieces = textwrap.wrap(
        line,
        width - 2 * command,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{piece} \\" for piece in pieces[:-1]] + pieces[-1:] if command else pieces
