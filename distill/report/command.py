"""The command that a run or a comparison was started with, from its resolved recipe."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from distill.recipe import load as recipes

UNSET = "???"
# What names a run and where it computes; the machine stands beside the figures.
_NO_PART = ("name", "device", "workers")
_WHOLE = ("losses", "train", "sparsify")  # mappings that a word replaces as one


def command(verb: str, name: str, recipe: Mapping[str, Any]) -> str:
    """A line for a shell: the words in which the recipe differs from the shipped one of its name.

    Args:
        verb: `run` or `compare`.
        name: of the recipe; one that is not shipped is taken for a file beside the user, with nothing to differ from.
        recipe: resolved, every key with its value, as plain data.
    """
    if name not in recipes.shipped():
        return f"distill {verb} {shlex.quote(f'{name}.yaml')}"
    changes = (f"{key}={_flow(value)}" for key, value in _changes(recipe, _resolved(name)))
    return " ".join([f"distill {verb} {name}", *map(shlex.quote, changes)])


def _resolved(name: str) -> dict[str, Any]:
    """A shipped recipe with every key; what it leaves to its user is UNSET."""
    given = yaml.safe_load(recipes.find(name).read_text(encoding="utf-8"))
    unset = {key: UNSET for key, value in given.items() if value == UNSET}
    resolved = yaml.safe_load(recipes.to_yaml(recipes.load(name, dict.fromkeys(unset, "unset"))))
    return {**resolved, **unset}


def _changes(recipe: Mapping[str, Any], base: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in recipe.items():
        before = base.get(key)
        if value == before or prefix + key in _NO_PART:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping) and key not in _WHOLE:
            yield from _changes(value, before, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _flow(value: Any) -> str:
    """A value on one line, as YAML reads it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
