"""Text for the last screen of a command: it must show on a terminal of any encoding."""

from __future__ import annotations

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
