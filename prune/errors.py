"""The one error, and the one warning, that a caller of `prune` is meant to read."""

from __future__ import annotations


class PruneError(ValueError):
    """A request that cannot be met: one line that says what, where and how to mend it."""


class PruneWarning(UserWarning):
    """What was asked for is done, and does not mean what one would think: one line."""
