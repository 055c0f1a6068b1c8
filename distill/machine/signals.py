"""A process that is told to end does so as after Ctrl-C: what it was writing is removed, and it says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distill.machine import parallel

_NAMES = ("SIGTERM", "SIGHUP")  # `kill`, a batch system or a container that stops; a terminal that is closed


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the body when the process is told to end. A signal that is ignored (nohup) stays so.

    The same signal again ends the process at once, as Python may lose an exception that is raised in a callback.
    Under torchrun nothing changes: a process that waits for others would not get to run Python again.
    """
    numbers = [number for name in _NAMES if (number := getattr(signal, name, None)) is not None]
    if threading.current_thread() is not threading.main_thread() or parallel.world() > 1:
        numbers = []
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt
