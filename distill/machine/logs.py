"""Python's `logging` of this project, on the console of a command: decisions that help in a bug report.

Code says them to `logging.getLogger(__name__)`. The log of a run has all of them, and `-v` shows them too. From Python
they go where the caller's own configuration of `logging` sends them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from distill.machine.console import Console

PACKAGES = ("distill", "prune")


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._console.warn(record.getMessage())
        else:
            self._console.debug(f"{record.name}: {self.format(record)}")


@contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Hand what this project logs to a console while the body runs: warnings as such, all else as `Console.debug`."""
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    handler = _ConsoleHandler(console)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False  # or another handler would show the same lines again
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
