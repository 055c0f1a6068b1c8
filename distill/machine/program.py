"""The console of a Python program: lines and warnings go to `logging`, loops to the program's own progress."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from distill.machine.console import Console
from distill.machine.progress import Bar, ProgressCallback

LOGGER = logging.getLogger("distill")


class ProgramConsole(Console):
    """Prints nothing. Python shows warnings on stderr unless the program configures `logging` otherwise.

    Args:
        progress: called as progress(iterable, label, total, unit) for each loop; what it returns is iterated over.
    """

    def __init__(self, progress: ProgressCallback | None = None) -> None:
        super().__init__(io.StringIO())
        self._progress = progress

    def warn(self, text: str) -> None:
        """Log a warning, and remember it for the report."""
        self.warnings.append(text)
        self.record(f"warning: {text}")
        LOGGER.warning(text)

    def result(self, text: str) -> None:
        """Keep a result in the log alone: the program has it."""
        self.record(text)

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "") -> Iterator[Bar]:
        """Let the program show a loop."""
        with super().bar(label, total, unit) as bar:
            if self._progress is None:
                yield bar
                return
            shown = ShownBar(self._progress, label, total, unit)
            try:
                yield shown
            finally:
                shown.close()
            bar.advance(total, shown.note)

    def for_run(self, *, quiet: bool) -> Console:
        """The same for one run of many, with a log of its own."""
        return ProgramConsole(self._progress)

    def _show(self, text: str, style: str = "") -> None:
        if text.strip():
            LOGGER.info(text.strip())


class ShownBar(Bar):
    """Moves the program's own progress: each item of `range(total)` is taken when one is done."""

    def __init__(self, progress: ProgressCallback, label: str, total: int, unit: str) -> None:
        super().__init__(lambda text: None, label, total, unit)
        self._items = iter(progress(range(total), label, total, unit))
        next(self._items, None)  # the first is begun

    def advance(self, n: int = 1, note: str = "") -> None:
        """Take the next items."""
        super().advance(n, note)
        for _ in range(n):
            next(self._items, None)

    def close(self) -> None:
        """End a loop that was left early, and the program's bar with it."""
        close = getattr(self._items, "close", None)
        if close is not None:
            close()
