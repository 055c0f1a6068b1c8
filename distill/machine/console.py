"""What a run tells the person who watches it: headers, lines, warnings and bars; on a terminal, in a pipe, in a log."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TextIO, TypeVar

from distill.machine.words import duration

T = TypeVar("T")

REDRAW_S = 0.1  # a bar is redrawn at most this often
PLAIN_S = 10.0  # without a terminal, and in the log, a bar says nothing for this long,
PLAIN_SHARE = 0.1  # then a line for every tenth,
PLAIN_LATEST_S = 60.0  # and one a minute where a tenth takes longer


class Console:
    """Progress for people, on stderr; results that a program may read are for stdout.

    Args:
        stream: where to write; stderr by default.
        quiet: only warnings are shown. The log still gets everything.

    Attributes:
        warnings: the text of every warning so far.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.warnings: list[str] = []
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        self._bars: list[Bar] = []  # the last one is drawn
        self._log_path: Path | None = None
        self._log: TextIO | None = None
        self._waiting: list[str] = []  # for a log whose folder is not there yet

    def header(self, title: str, note: str = "") -> None:
        """Start a stage."""
        self.line(f"\n== {title} ==" + (f"  {note}" if note else ""))

    def line(self, text: str = "") -> None:
        self.record(text)
        if not self._quiet:
            self._show(text)

    def warn(self, text: str) -> None:
        """Show a warning, even where quiet, and remember it for the report."""
        self.warnings.append(text)
        self.record(f"warning: {text}")
        self._show(f"warning: {text}")

    def result(self, text: str) -> None:
        """Print a result to stdout, and keep it in the log."""
        self.record(text)
        self._erase()
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
        self._redraw()

    def track(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items, with a bar that moves when the next one is asked for."""
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        with self.bar(label, total) as bar:
            for item in iterable:
                yield item
                bar.advance()

    @contextlib.contextmanager
    def bar(self, label: str, total: int | None = None) -> Iterator[Bar]:
        """Show a bar while the body runs, and leave a line when it is through. The innermost bar is the one that shows."""
        bar = Bar(self, label, total)
        self._erase()
        self._bars.append(bar)
        self._redraw()
        try:
            yield bar
        except BaseException:
            self._remove(bar)
            raise
        self._remove(bar)
        self.line(bar.summary())

    def log_to(self, path: Path) -> None:
        """Write all that was and will be said to a file too, once its folder is there."""
        self.close()
        self._log_path = path

    def close(self) -> None:
        """Take unfinished bars off the screen and close the log."""
        self._erase()
        self._bars.clear()
        with contextlib.suppress(OSError):  # a full disk was reported when a line was written
            self._write_log()
            if self._log is not None:
                self._log.close()
        self._log = self._log_path = None

    def record(self, text: str) -> None:
        """Put a line into the log alone."""
        self._waiting.append(text)
        self._write_log()

    def _write_log(self) -> None:
        if self._log is None and self._log_path is not None and self._log_path.parent.is_dir():
            self._log = self._log_path.open("a", encoding="utf-8", buffering=1)
        if self._log is not None:
            self._log.write("".join(f"{line}\n" for line in self._waiting))
            self._waiting.clear()

    def _show(self, text: str) -> None:
        self._erase()
        self._put(f"{text}\n")
        self._redraw()

    def _erase(self) -> None:
        if self._live and self._bars:
            self._put("\r\x1b[K")

    def _remove(self, bar: Bar) -> None:
        self._erase()
        if bar in self._bars:
            self._bars.remove(bar)
        self._redraw()

    def _redraw(self) -> None:
        if self._live and self._bars:
            self._bars[-1].draw()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):  # not a real terminal
            return 80

    def _put(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


class Bar:
    """Progress of one loop. Made by `Console.bar`."""

    def __init__(self, console: Console, label: str, total: int | None) -> None:
        self._console, self._label, self._total = console, label, total
        self._done, self._note = 0, ""
        self._start = self._spoke = self._painted = time.monotonic()
        self._spoken = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more items done; `note` stands behind the bar until the next one."""
        self._done += n
        self._note = note or self._note
        now = time.monotonic()
        if self._console._live and self._console._bars[-1:] == [self] and now - self._painted >= REDRAW_S:
            self.draw()
        silent, more = now - self._spoke, self._done - self._spoken
        finished = self._total is not None and self._done >= self._total
        tenth = self._total is None or more >= PLAIN_SHARE * self._total
        if silent >= PLAIN_S and not finished and (tenth or silent >= PLAIN_LATEST_S):
            self._spoke, self._spoken = now, self._done
            text = f"{self._progress()}{self._eta()}{self._tail()}"
            self._console.record(text)
            if not self._console._live and not self._console._quiet:
                self._console._show(text)

    def summary(self) -> str:
        """What is left of it when the work is done."""
        return f"{self._progress()} in {duration(time.monotonic() - self._start)}{self._tail()}"

    def draw(self) -> None:
        """Draw the bar over the terminal's last line."""
        columns = self._console._columns() - 1
        text = f"{self._progress()}{self._eta()}{self._tail()}"
        room = min(columns - len(text) - 3, 30)
        if self._total and room >= 5:
            filled = min(room, room * self._done // self._total)
            text = f"[{'#' * filled}{'.' * (room - filled)}] {text}"
        self._console._put(f"\r{text[: max(columns, 0)]}\x1b[K")
        self._painted = time.monotonic()

    def _progress(self) -> str:
        return f"{self._label} {self._done}" + (f"/{self._total}" if self._total is not None else "")

    def _eta(self) -> str:
        if not self._total or not 0 < self._done < self._total:
            return ""
        return f", {duration((time.monotonic() - self._start) / self._done * (self._total - self._done))} left"

    def _tail(self) -> str:
        return f"  {self._note}" if self._note else ""
