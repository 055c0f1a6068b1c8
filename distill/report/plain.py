"""Text for the last screen of a command: it must show on a terminal of any encoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.machine.words import text_table
from distill.report.facts import Table

ASCII: dict[str, str | int | None] = {"→": "->", "×": "x", "–": "-", "−": "-", "±": "+-"}


def plain(text: str) -> str:
    """Text for terminals of any encoding."""
    return text.translate(str.maketrans(ASCII))


def plain_table(table: Table) -> list[str]:
    """A table for the terminal; without the range of the latency."""
    return text_table([table.columns, *([cell.split(" [")[0] for cell in row] for row in table.rows)], numbers=True)


def report_line(page: Path) -> str:
    """The last line of a command that made a page: its address, which terminals open on a click."""
    return f"Report:  {page.absolute().as_uri()}"


def summary_of(
    table: Table | None, notes: Sequence[str], sentences: Sequence[str], findings: Sequence[str], page: Path
) -> str:
    """The last screen of a command that made many runs. Plain ASCII.

    Args:
        table: the figures; None if there are none yet.
        notes: how to read them.
        sentences: the gain and the judgement; an empty one is left out.
        findings: what the reader must know first.
        page: the page that was made.
    """
    lines = [*plain_table(table), ""] if table else []
    lines += [*notes, "", f"{'. '.join(filter(None, sentences))}."]
    lines += [f"warning: {finding}" for finding in findings]
    return plain("\n".join([*lines, report_line(page)]))
