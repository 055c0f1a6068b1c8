"""A slip in the name of a keyword, said with the name of the function that the user called and the nearest word."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def public(*, more: Iterable[str] = ()) -> Callable[[F], F]:
    """Let a function of `prune` refuse keywords that it lacks in a line of its own. Signature and docstring stay.

    Args:
        more: the keywords that its `**options` take; none if it has no such.
    """

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters.values()
        words = [each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
        words += more

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            for word in options:
                if word not in words:
                    close = difflib.get_close_matches(word, words, n=1)
                    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(words)}"
                    raise TypeError(f"prune.{function.__name__}: no keyword {word}, {hint}")
            return function(*args, **options)

        return cast(F, call)

    return decorate
