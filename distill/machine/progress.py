"""How a function that takes long reports progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

# progress(iterable, label, total) returns an iterable of the same items; `Console.track` is one.
ProgressCallback = Callable[[Iterable[Any], str, int], Iterable[Any]]
