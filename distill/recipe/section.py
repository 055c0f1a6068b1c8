"""A dataclass as a section of a recipe: it reads itself from a mapping, takes overrides and lists its keys."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.words import nearest
from distill.recipe.fields import Context, Kind, Nullable, Text
from distill.recipe.yaml import Item, dump, read, wrap

UNSET = "???"
FEW = 10  # keys that a message can name
LISTED = "distill ls keys prints those there are"
Overrides = Mapping[str, Any] | Sequence[str]


def key(kind: Kind, help: str, default: Any = MISSING, *, rivals: str = "", example: str = "") -> Any:
    """Declare a field of a dataclass as a key of a recipe.

    Args:
        kind: what it may hold.
        help: one sentence for `distill ls keys`.
        default: its value when it is left out; a class is called for one; without a default the key is required.
        rivals: a word shared by keys of which exactly one must be given.
        example: what to give where a required key is missing; `key=...` if empty.
    """
    metadata = {"kind": kind, "help": help, "rivals": rivals, "example": example}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Section(Kind):
    """A mapping whose keys are the fields of the dataclass `cls`. `optional`: null, read as None, leaves it out."""

    cls: Any
    optional: bool = False

    def __str__(self) -> str:
        return "a mapping of keys" + (", or null" if self.optional else "")

    @property
    def fields(self) -> dict[str, Field[Any]]:
        return {each.name: each for each in dataclasses.fields(self.cls)}

    def read(self, item: Item, path: str, context: Context) -> Any:
        if item.value is None and self.optional:
            return None
        if not isinstance(item.value, dict):
            return self.refuse(item, path or "a recipe", context)
        for name, child in item.value.items():
            if name not in self.fields:
                self._refuse_unknown(child, path, name, context)
        values = {}
        for name, each in self.fields.items():
            kind, here, child = each.metadata["kind"], _join(path, name), item.value.get(name)
            if child is None and isinstance(kind, Section) and not kind.optional:
                child = Item({}, item.where, "", item.key)  # its own keys may be required
            if child is not None and child.text != UNSET:
                values[name] = kind.read(child, here, context)
            elif child is not None and not isinstance(kind, Nullable) or _required(each):
                example = each.metadata["example"] or f"{here}=..."
                context.complain(child or item, f"{here} is not set: give {example} ({each.metadata['help']})")
                values[name] = None
        self._check_rivals(item, path, context)
        return self.cls(**values)

    def write(self, value: Any) -> Any:
        if value is None:
            return None
        return {name: each.metadata["kind"].write(getattr(value, name)) for name, each in self.fields.items()}

    def assign(self, old: Item | None, rest: str, make: Callable[[Kind], Item]) -> Item:
        if not rest:
            return make(self)
        name, _, rest = rest.partition(".")
        kind = self.fields[name].metadata["kind"] if name in self.fields else Kind()
        held = dict(old.value) if old is not None and isinstance(old.value, dict) else {}
        new = kind.assign(held.get(name), rest, make)
        for other in self._rivals(name) if _given(new) else ():
            # prune.ratio=0.3 means "that instead": the file's budget goes. Two of the command line contradict each other.
            if other in held and held[other].where != new.where:
                del held[other]
        return Item(held | {name: new}, old.where if old else new.where, "", old.key if old else new.key)

    def _rivals(self, name: str) -> list[str]:
        group = self.fields[name].metadata["rivals"] if name in self.fields else ""
        return [
            each.name for each in self.fields.values() if group == each.metadata["rivals"] != "" and each.name != name
        ]

    def _check_rivals(self, item: Item, path: str, context: Context) -> None:
        first = next((name for name in self.fields if self._rivals(name)), None)
        if first is None:
            return
        names = [first, *self._rivals(first)]
        given = [name for name in names if name in item.value and _given(item.value[name])]
        given.sort(key=list(item.value).index)
        if len(given) != 1:
            got = f"got {' and '.join(given)}" if given else "got none"
            at = item.value[given[1]] if given else item
            context.complain(at, f"{path}: give exactly one of {', '.join(names)}; {got}", at_key=True)

    def _refuse_unknown(self, item: Item, path: str, name: str, context: Context) -> None:
        hint = nearest(name, self.fields, _join(path, ""))
        if not hint:  # perhaps a good name in the wrong place
            elsewhere = [known for known in context.known if known.endswith(f".{name.rpartition('.')[2]}")]
            listed = f"there are {', '.join(context.known)}" if len(context.known) < FEW else LISTED
            hint = f", did you mean {' or '.join(elsewhere)}?" if elsewhere else f": {listed}"
        context.complain(item, f"unknown key '{_join(path, name)}'{hint}", at_key=True)


def bind(
    cls: Any,
    item: Item,
    overrides: Overrides = (),
    problems: Sequence[str] = (),
    *,
    folders: tuple[Path, ...] = (),
    check: Callable[[Any, Item], list[str]] | None = None,
) -> Any:
    """Fill a dataclass of keys from a document and overrides, or raise every complaint at once.

    Args:
        cls: the dataclass.
        item: the document.
        overrides: as of `recipe.load`; they replace what the document says.
        problems: complaints there are already.
        folders: where the files of custom losses may lie.
        check: called with the result and its document when every key is right; gives further complaints.

    Raises:
        DistillError: with one line for each complaint.
    """
    section, context = Section(cls), Context(list(problems), tuple(row[0] for row in rows(cls)), folders)
    for name, value, where in _pairs(overrides, context.problems) if isinstance(item.value, dict) else ():
        try:
            item = section.assign(item, name, partial(_override, name=name, value=value, where=where))
        except DistillError as error:
            context.problems.append(str(error))
    result = section.read(item, "", context)
    if check is not None and not context.problems:
        context.problems += check(result, item)
    if context.problems:
        raise DistillError("\n".join(sorted(context.problems, key=_line)))
    return result


def rows(cls: Any, path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every key of a dataclass and of its sections: dotted key, type, default (as in a recipe file), help."""
    for each in dataclasses.fields(cls):
        kind, here = each.metadata["kind"], _join(path, each.name)
        value = each.default_factory() if each.default_factory is not MISSING else each.default
        if not isinstance(kind, Section):
            default = "(required)" if _required(each) else dump(kind.write(value)).strip()
            yield here, str(kind).removeprefix("a "), default, each.metadata["help"]
            continue
        if kind.optional:
            default = "(required)" if _required(each) else "null" if value is None else "(as below)"
            yield here, str(kind).removeprefix("a "), default, each.metadata["help"]
        yield from rows(kind.cls, here)


def _given(item: Item) -> bool:
    return item.value is not None and item.text != UNSET


def _required(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _line(problem: str) -> tuple[float, float]:
    """Sorts complaints as the file is read, those of the command line behind."""
    place = re.match(r".*?:([0-9]+):([0-9]+): ", problem)
    return (int(place[1]), int(place[2])) if place else (math.inf, 0)


def _pairs(overrides: Overrides, problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    """Key, value and source of each override."""
    if isinstance(overrides, Mapping):
        yield from ((name, value, "overrides") for name, value in overrides.items())
        return
    seen = set()
    for word in overrides:
        name, equals, value = word.partition("=")
        if not equals or not name:
            problems.append(f"command line: '{word}' is not key=value")
        elif name in seen:
            problems.append(f"command line: {name} is given twice")
        else:
            yield name, value, "command line"
        seen.add(name)


def _override(kind: Kind, name: str, value: Any, where: str) -> Item:
    if not isinstance(value, str):
        return wrap(value, where)
    inner = kind.kind if isinstance(kind, Nullable) else kind
    if isinstance(inner, Text) and value[:1] not in ("'", '"') and value not in ("null", "~"):
        return Item(value, where, value, where)  # the shell has read the quotes: a path may hold #, : and [
    problems: list[str] = []
    item = read(value, where, problems, lines=False)
    if item is None or problems:
        raise DistillError("\n".join(text.replace(where, f"{where}: {name}", 1) for text in problems))
    return item
