"""Arguments of the public functions: keys of a recipe as keywords, and what a slip of the pen says."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from distill.errors import DistillError, Interrupted
from distill.machine.console import Console
from distill.machine.progress import ProgressCallback
from distill.machine.words import nearest

Progress = bool | ProgressCallback
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def public(function: F) -> F:
    """Let a function of `distill` name itself and the nearest word if it is called with a keyword that it lacks.

    Ctrl-C stays a KeyboardInterrupt, whose message says how to go on. Signature and docstring stay as they are.
    """
    name = f"distill.{function.__name__}"
    parameters = inspect.signature(function).parameters.values()
    words = [each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
    takes_keys = any(each.kind is each.VAR_KEYWORD for each in parameters)

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for word in options:
            if word not in words and not (takes_keys and _is_key(word)):
                raise _no_key(name, word, [*words, *(_keys() if takes_keys else ())])
        try:
            return function(*args, **options)
        except Interrupted as error:
            raise KeyboardInterrupt(str(error)) from None

    return cast(F, call)


def overrides_of(overrides: Mapping[str, Any] | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of a recipe by dotted key, from a mapping and from keywords, whose mappings are parts of a section.

    Args:
        overrides: dotted key -> value.
        keys: top-level or dotted key -> value; `prune={"flops": 0.3}` is `prune.flops=0.3`.
    """
    from distill.recipe.schema import Recipe

    given = {**(overrides or {}), **dict(_flat(Recipe, keys))}
    return {name: _plain(value) for name, value in given.items()}


def options_of(options: type[T], **values: Any) -> T:
    """A section of options such as `EvalOptions`, checked as on the command line; None is the default."""
    from distill.recipe.section import bind
    from distill.recipe.yaml import wrap

    given = {name: _plain(value) for name, value in values.items() if value is not None}
    return cast(T, bind(options, wrap({}, "arguments"), given))


def console_of(progress: Progress, quiet: bool) -> Console:
    """The console of a call from Python: the command line's if `progress` is True, otherwise one that prints nothing."""
    from distill.machine.program import ProgramConsole

    return Console(quiet=quiet) if progress is True else ProgramConsole(progress or None)


def _flat(section: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    from distill.recipe.keys import keys_of

    keys = keys_of(section)
    for name, value in values.items():
        if value and isinstance(value, Mapping) and name in keys and keys[name].section:
            yield from _flat(keys[name].type, value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _plain(value: Any) -> Any:
    """What a recipe file could say: a path is text, a tuple a list."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(_plain(value))


def _keys() -> list[str]:
    from distill.recipe.keys import keys_of
    from distill.recipe.schema import Recipe

    return list(keys_of(Recipe))


def _is_key(word: str) -> bool:
    return word.partition(".")[0] in _keys()


def _no_key(function: str, word: str, words: list[str]) -> DistillError:
    hint = nearest(word, words).replace("'", "") or f": there are {', '.join(words)}"
    return DistillError(f"{function}: no key {word}{hint}")
