"""The one error a caller of `prune` is meant to read."""

from __future__ import annotations


class PruneError(ValueError):
    """A request that cannot be met: one line that says what, where and how to mend it."""
