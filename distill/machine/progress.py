"""Progress of a loop, of a stage and of a whole run, and how long each will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.machine.words import duration

# progress(iterable, label, total, unit) returns an iterable of the same items; `Console.track` is one.
ProgressCallback = Callable[[Iterable[Any], str, int, str], Iterable[Any]]

# Called after each epoch of a training with its row: `stage`, `epoch`, `lr`, the losses by name, `map50_95`, `map50`.
EpochCallback = Callable[[Mapping[str, Any]], object]

PLAIN_S = 10.0  # without a terminal, and in the log, a bar says nothing for this long,
PLAIN_SHARE = 0.1  # then a line for every tenth,
PLAIN_LATEST_S = 60.0  # and one a minute if a tenth takes longer


class Bar:
    """Progress of one loop. Made by `Console.bar`.

    Args:
        say: takes a line from time to time, for those who see no live display.
        label: what the loop does.
        total: number of items.
        unit: what the items are; with "%" their share is shown.
    """

    def __init__(self, say: Callable[[str], None], label: str, total: int, unit: str) -> None:
        self._say, self._label, self._total, self._unit = say, label, total, unit
        self._done, self.note = 0, ""
        self._start = self._last_line = time.monotonic()
        self._last_done = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more items done; `note` stands behind the bar until the next one."""
        self._done += n
        self.note = note or self.note
        now = time.monotonic()
        silent, more = now - self._last_line, self._done - self._last_done
        tenth = more >= PLAIN_SHARE * self._total
        if silent >= PLAIN_S and self._done < self._total and (tenth or silent >= PLAIN_LATEST_S):
            self._last_line, self._last_done = now, self._done
            self._say(self.text() + self._tail())

    def share(self) -> float:
        """The share of the items that is done."""
        return min(self._done / self._total, 1.0) if self._total else 0.0

    def seconds_left(self) -> float:
        """Expected time to the end, at the pace so far; 0 if that cannot be told."""
        share = self.share()
        return (time.monotonic() - self._start) * (1 / share - 1) if share else 0.0

    def text(self) -> str:
        """Label, count, unit and time left."""
        left = self.seconds_left()
        return self._counted() + (f", {duration(left)} left" if left else "")

    def summary(self) -> str:
        """The line that remains when the work is done."""
        return f"{self._counted()} in {duration(time.monotonic() - self._start)}{self._tail()}"

    def _counted(self) -> str:
        if self._unit == "%":
            return f"{self._label} {self.share():.0%}"
        return f"{self._label} {self._done}/{self._total}" + (f" {self._unit}" if self._unit else "")

    def _tail(self) -> str:
        return f"  {self.note}" if self.note else ""


@dataclass(frozen=True)
class Stage:
    """A stage that is running: see `Console.stage`."""

    number: str
    title: str
    work: float
    after: float
    start: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.monotonic() - self.start


@dataclass
class Pace:
    """How long work took so far, in the unit of `Console.stage`."""

    work: float = 0.0
    seconds: float = 0.0

    def seconds_left(self, stage: Stage, bars: Sequence[Bar]) -> float | None:
        """Expected time to the end of the run; None until a finished stage or a bar of the first one tells the pace."""
        left = max((bar.seconds_left() for bar in bars), default=0.0)
        work, seconds = self.work, self.seconds
        if not work and left:
            work, seconds = stage.work, stage.seconds + left
        if not work or not stage.work + stage.after:
            return None
        pace = seconds / work
        return max(left, pace * stage.work - stage.seconds) + pace * stage.after
