"""Words for messages: the nearest name, a duration."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str], before: str = "") -> str:
    """`, did you mean 'x'?` for the most similar of the words; nothing where none is similar. `before` goes in front of x."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f", did you mean '{before}{close[0]}'?" if close else ""
