"""The points of a sweep: the product of the values that keys of a recipe are given, each point a recipe of its own."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from distill.errors import DistillError
from distill.recipe.load import changed
from distill.recipe.schema import Recipe
from distill.results.sweep import SEED

OPENING, CLOSING, QUOTES = "[{", "]}", "\"'"
LONGEST = 80  # characters of a folder's name


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str  # of its folder
    values: dict[str, str]  # of the keys that are varied, as they were typed
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """What is run."""

    recipe: Recipe  # with the first value of each key
    axes: dict[str, tuple[str, ...]]  # key -> its values; the last one is the seed
    points: tuple[Point, ...]


def read_words(words: Sequence[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Split the words of the command line into those with one value, and key -> values of those with several.

    A comma inside brackets, braces or quotes separates no values: `prune.protect=[a,b]` is one value.

    Raises:
        DistillError: an empty value, or one that is given twice.
    """
    single, several = [], {}
    for word in words:
        key, equals, text = word.partition("=")
        values = tuple(split_values(text))
        if not equals or len(values) < 2:
            single.append(word)
            continue
        if "" in values:
            raise DistillError(f"{word}: a value is missing beside a comma: give values as in {key}=0.7,0.5")
        if key in several:
            raise DistillError(f"{key} is given twice: give all its values at once, as in {key}=0.7,0.5")
        for value in values:
            if values.count(value) > 1:
                raise DistillError(f"{word}: {value} is given twice")
        several[key] = values
    return single, several


def split_values(text: str) -> Iterator[str]:
    """The values between the commas of a word that are in no brackets, braces or quotes, without blanks around them."""
    depth, quote, value = 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif (
            character in QUOTES and not value.strip() or character in QUOTES and depth
        ):  # an apostrophe inside a word is none
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        elif character == "," and depth <= 0:
            yield value.strip()
            value = ""
            continue
        value += character
    yield value.strip()


def plan(
    recipe: Recipe,
    before: Mapping[str, Sequence[str]] | None = None,
    *,
    several: Mapping[str, Sequence[str]],
    seeds: int | None = None,
) -> Sweep:
    """Make the points of a sweep.

    Args:
        recipe: with the first value of each key in `several`.
        before: the axes of the sweep that is resumed; new values and seeds join them.
        several: key -> the values that it takes.
        seeds: how many seeds each point is run with, from the recipe's on; 1 if None.

    Raises:
        DistillError: nothing to sweep, a value that its key does not take, or a key that the earlier sweep has not varied.
    """
    axes = {key: tuple(values) for key, values in several.items()}
    if seeds is not None and SEED in axes:
        raise DistillError("--seeds and several values of seed are both given: leave one out")
    if seeds is not None and seeds < 1:
        raise DistillError(f"--seeds {seeds}: give at least 1")
    if seeds is not None or SEED not in axes and not before:
        axes[SEED] = tuple(str(recipe.seed + number) for number in range(seeds or 1))
    if before is not None:
        if new := [key for key in axes if key not in before]:
            raise DistillError(f"the sweep was started without values of {new[0]}: start a new one")
        axes = {key: tuple(dict.fromkeys((*before[key], *axes.get(key, ())))) for key in before}
        recipe = changed(recipe, [f"{key}={values[0]}" for key, values in axes.items() if key in several])
    axes[SEED] = axes.pop(SEED)  # last: the seeds of one choice follow each other
    if all(len(values) == 1 for values in axes.values()):
        raise DistillError("nothing to sweep: give a key several values, as in prune.flops=0.7,0.5, or --seeds 3")
    products = itertools.product(*axes.values())
    return Sweep(recipe, axes, tuple(_point(recipe, dict(zip(axes, values, strict=True))) for values in products))


def label(values: Mapping[str, str]) -> str:
    """A point in words, "prune.flops=0.7 seed=0"."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def _point(recipe: Recipe, values: dict[str, str]) -> Point:
    name = _folder(values)
    own = changed(recipe, [f"{key}={value}" for key, value in values.items()])
    return Point(name, values, replace(own, name=f"{recipe.name}-{name}"))


def _folder(values: Mapping[str, str]) -> str:
    """A name that a file system takes, and that no other values have: "flops-0.7-seed-0"."""
    last = [key.rpartition(".")[2] for key in values]
    short = values if len(set(last)) < len(last) else dict(zip(last, values.values(), strict=True))
    raw = "-".join(f"{key}-{value}" for key, value in short.items())
    safe = re.sub(r"[^\w.-]+", "_", raw).lstrip(".-")
    if safe == raw and len(safe) <= LONGEST:
        return safe
    return f"{safe[:LONGEST]}-{hashlib.sha256(label(values).encode()).hexdigest()[:6]}"
