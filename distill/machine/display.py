"""The live display of a terminal, below the lines that scroll; this is the one module that uses rich."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distill.machine.progress import Bar
from distill.machine.words import WARNING, wrap

BAR_COLUMNS = 30  # at most
REDRAWS = 4  # a second


class Display:
    """Lines in colour, and bars that are redrawn by a thread. `NO_COLOR` in the environment turns colours off.

    `stream` is the terminal; `content` is called at each redraw and gives the bars and a last line.
    """

    def __init__(self, stream: TextIO, content: Callable[[], tuple[list[Bar], str]]) -> None:
        self._content = content
        self._console = Console(file=stream, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REDRAWS,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def print(self, text: str, style: str = "") -> None:
        """Write lines above the live display, broken between words."""
        print_wrapped(self._console, text, style)

    def show(self, visible: bool) -> None:
        """Draw the live display anew, or take it off the screen."""
        if visible:
            self._live.start()
            self._live.refresh()
        else:
            self._live.stop()

    def _render(self) -> RenderableType:
        bars, last = self._content()
        rows: list[RenderableType] = []
        for bar in bars:
            rows.append(self._row(bar.share(), bar.text()))
            rows += [Text(bar.note, "dim")] if bar.note else []
        # Never empty: rich before 14.3 would leave a blank line when the display is taken off.
        return Group(*rows, Text(last, "dim")) if last or not rows else Group(*rows)

    def _row(self, share: float, text: str) -> RenderableType:
        room = min(self._console.width - len(text) - 2, BAR_COLUMNS)
        if room < 5:
            return Text(text)
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=1.0, completed=share, width=room, complete_style="cyan"), Text(text))
        return row


def print_result(stream: TextIO, text: str) -> None:
    """Write lines to a terminal, warnings in colour."""
    console = Console(file=stream, highlight=False)
    for line in text.split("\n"):
        print_wrapped(console, line, WARNING if line.startswith("warning:") else "")


def print_wrapped(console: Console, text: str, style: str) -> None:
    """Write each line of a text in pieces that fit the terminal."""
    for line in text.split("\n"):
        for piece in wrap(line, console.width):
            console.print(Text(piece, style), soft_wrap=True)
