"""What a run tells the person who watches it: stages, lines, warnings and bars; on a terminal, in a pipe, in a log."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from distill.machine.faults import write_fault
from distill.machine.progress import Bar, Pace, Stage
from distill.machine.words import WARNING, duration, text_table, visible, wrap

if TYPE_CHECKING:
    from distill.machine.display import Display

T = TypeVar("T")

DEFAULT_COLUMNS = 80


class Console:
    """Progress for people, on stderr; results that a program may read are for stdout.

    A terminal gets colours and a live display below the lines; only one console at a time may show one. A pipe and the
    log get plain lines.

    Args:
        stream: where to write; stderr by default.
        quiet: show only warnings. The log still gets everything.
        verbose: show what `debug` is told too.

    Attributes:
        warnings: the text of every warning so far.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False, verbose: bool = False) -> None:
        self.warnings: list[str] = []
        self._stream = sys.stderr if stream is None else stream
        self._quiet, self._verbose = quiet, verbose
        replace_unencodable(self._stream, sys.stdout)
        self._stage: Stage | None = None
        self._bars: list[Bar] = []  # the last one is the innermost
        self._pace = Pace()
        self._log_path: Path | None = None
        self._log: TextIO | None = None
        self._waiting: list[str] = []  # lines for a log whose folder does not exist yet

    def stage(self, title: str, index: int, total: int, *, work: float = 0.0, after: float = 0.0) -> None:
        """Start a stage of a run.

        Args:
            title: its name.
            index: its number, from 1.
            total: the number of stages.
            work: what it costs in any unit that all stages of the run share, such as images; 0 if that is not known.
            after: the cost of all later stages in the same unit.
        """
        if self._stage is not None:
            self.calibrate(self._stage.work, self._stage.seconds)
        self._stage = Stage(f"stage {index} of {total}", title, work, after)
        self.header(title, f"{self._stage.number}{self._estimate()}")
        self._update()

    def calibrate(self, work: float, seconds: float) -> None:
        """Let the estimate of the remaining time know what some work took; `stage` does it for each finished stage."""
        if work and seconds:  # 0: not known
            self._pace.work += work
            self._pace.seconds += seconds

    def header(self, title: str, note: str = "") -> None:
        """Show where something new begins."""
        self.line(f"\n== {title} ==" + (f"  {note}" if note else ""), "bold cyan")

    def line(self, text: str = "", style: str = "") -> None:
        """Show a line; `style` is rich's, for terminals."""
        self.record(text)
        if not self._quiet:
            self._show(text, style)

    def warn(self, text: str) -> None:
        """Show a warning, even if quiet, and remember it for the report."""
        self.warnings.append(text)
        self.record(f"warning: {text}")
        self._show(f"warning: {text}", WARNING)

    def debug(self, text: str) -> None:
        """Put a line into the log that helps to find a fault, and show it if verbose."""
        self.record(f"debug: {text}")
        if self._verbose:
            self._show(f"debug: {text}", "dim")

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Show what the work begins with, a fact in a line."""
        self.line()
        for row in text_table(rows):
            self.line(row)

    def result(self, text: str) -> None:
        """Print a result to stdout, and keep it in the log."""
        text = visible(text)
        self.record(text)
        if self._display is not None:
            self._display.show(False)
        if is_terminal(sys.stdout):
            from distill.machine.display import print_result

            print_result(sys.stdout, text)
        else:
            print(fitted(text, sys.stdout), flush=True)
        self._update()

    def track(self, iterable: Iterable[T], label: str, total: int, unit: str = "") -> Iterator[T]:
        """Yield the items, with a bar that moves when the next one is asked for."""
        with self.bar(label, total, unit) as bar:
            for item in iterable:
                yield item
                bar.advance()

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str = "") -> Iterator[Bar]:
        """Show a bar while the body runs, inside those that are shown already, and leave a line when it is through."""
        bar = Bar(self._say_of_bar, label, total, unit)
        self._bars.append(bar)
        self._update()
        try:
            yield bar
        finally:
            with contextlib.suppress(ValueError):  # `close` has removed it
                self._bars.remove(bar)
            self._update()
        self.line(bar.summary())

    def for_run(self, *, quiet: bool) -> Console:
        """A console for one run of many, with a log of its own. `quiet`: it shows only warnings."""
        return RunConsole(quiet=quiet)

    def log_to(self, path: Path) -> None:
        """Write all that was and will be said to a file too, as soon as its folder exists."""
        self.close()
        self._log_path = path

    def close(self) -> None:
        """Take the live display off the screen and close the log."""
        self._stage = None
        self._bars.clear()
        self._update()
        with contextlib.suppress(OSError):  # a full disk was reported when a line was written
            self._write_log()
            if self._log is not None:
                self._log.close()
        self._log = self._log_path = None

    def record(self, text: str) -> None:
        """Put a line into the log alone."""
        self._waiting.append(visible(text))
        self._write_log()

    def _say_of_bar(self, text: str) -> None:
        """A line that stands for a bar where there is no live display."""
        self.record(text)
        if not self._quiet and self._display is None:
            self._show(text)

    def _write_log(self) -> None:
        if self._log is None and self._log_path is not None and self._log_path.parent.is_dir():
            try:
                self._log = self._log_path.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise write_fault(error, self._log_path) from error
        if self._log is not None:
            self._log.write("".join(f"{line}\n" for line in self._waiting))
            self._waiting.clear()

    @cached_property
    def _display(self) -> Display | None:
        if not is_terminal(self._stream):
            return None
        from distill.machine.display import Display  # rich takes a while to import

        return Display(self._stream, self._live_text)

    def _show(self, text: str, style: str = "") -> None:
        text = visible(text)
        if self._display is not None:
            self._display.print(text, style)
        else:
            self._stream.write(f"{fitted(text, self._stream)}\n")
            self._stream.flush()

    def _update(self) -> None:
        if not self._quiet and self._display is not None:
            self._display.show(bool(self._stage or self._bars))

    def _live_text(self) -> tuple[list[Bar], str]:
        """The live display: the bars, and a last line on the whole run."""
        bars, stage = list(self._bars), self._stage
        if stage is None:
            return bars, ""
        return bars, f"{stage.number}: {stage.title}, {duration(stage.seconds)} so far{self._estimate()}"

    def _estimate(self) -> str:
        """`, run: about 12 min left`; nothing while that is not known."""
        left = self._pace.seconds_left(self._stage, list(self._bars)) if self._stage else None
        if left is None:
            return ""
        hours, minutes = divmod(max(1, round(left / 60)), 60)
        return f", run: about {f'{hours} h {minutes:02} min' if hours else f'{minutes} min'} left"


class RunConsole(Console):
    """The console of one run of many: its results go into its log, for the whole has a table of its own."""

    def result(self, text: str) -> None:
        """Keep a result in the log alone."""
        self.record(text)

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Keep what the run begins with in the log alone."""
        for row in text_table(rows):
            self.record(row)


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream is; None if it is none, where no line should be broken."""
    if not stream.isatty():
        return None
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns) or DEFAULT_COLUMNS
    except (OSError, ValueError):
        return DEFAULT_COLUMNS


def fitted(text: str, stream: TextIO) -> str:
    """A text with its long lines broken between words, if the stream is a terminal."""
    width = width_of(stream)
    return text if width is None else "\n".join(piece for line in text.split("\n") for piece in wrap(line, width))


def replace_unencodable(*streams: TextIO) -> None:
    """Have the streams write a ? for a character that their encoding lacks, instead of failing."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
