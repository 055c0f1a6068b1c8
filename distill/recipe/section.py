"""Dataclasses of keys as sections of a recipe: read from a mapping, overridden key by key, written and listed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from distill.errors import DistillError
from distill.losses.spec import LossSpec, TeacherSpec
from distill.machine.words import brief, nearest
from distill.recipe import losses, teachers
from distill.recipe.keys import Key, keys_of
from distill.recipe.reading import Node, read_list, read_scalar
from distill.recipe.yaml import Item, read, wrap

UNSET = "???"
Overrides = Mapping[str, Any] | Sequence[str]


class Named(NamedTuple):
    """How a mapping of the user's own names, which are no keys, is read, written and overridden by name."""

    read: Callable[[Node], Any]
    write: Callable[[Any], dict[str, Any]]
    assign: Callable[[Item, str, Item], Item]


NAMED = {
    LossSpec: Named(losses.read_losses, losses.write_losses, losses.assign),
    TeacherSpec: Named(teachers.read_teachers, teachers.write_teachers, teachers.assign),
}


def bind(
    cls: Any,
    item: Item,
    overrides: Overrides = (),
    problems: Sequence[str] = (),
    *,
    folders: tuple[Path, ...] = (),
    files: bool = False,
    check: Callable[[Any, Item], list[str]] | None = None,
) -> Any:
    """Fill a dataclass of keys from a document and overrides, or raise every complaint at once.

    Args:
        cls: the dataclass.
        item: the document.
        overrides: as of `load.load`; they replace what the document says.
        problems: complaints about the document so far.
        folders: where the files of the user's functions may lie.
        files: complain about files that have to be there and are not.
        check: called with the result, or None if a key is wrong, and its document; gives further complaints.

    Raises:
        DistillError: with one line for each complaint.
    """
    problems = list(problems)
    keys = dict(walk(cls))
    for name, value, where in _pairs(overrides, problems) if isinstance(item.value, dict) else ():
        new = _parse(keys.get(name), name, value, where, problems)
        item = item if new is None else _assign(cls, item, name, new)
    result = _read(Key(cls), Node(item, "", problems, folders, tuple(keys), files))
    if check is not None:
        problems += check(None if problems else result, item)
    if problems:
        raise DistillError("\n".join(sorted(problems, key=_line)))
    return result


def write(key: Key, value: Any) -> Any:
    """A value as plain data, such that reading it gives the value back."""
    if value is None:
        return "auto" if key.none == "auto" else None
    if key.section:
        return {name: write(each, getattr(value, name)) for name, each in keys_of(key.type).items()}
    if key.type in NAMED:
        return NAMED[key.type].write(value)
    return list(value) if key.many else value


def walk(cls: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every key that can be given, by its dotted path."""
    for name, key in keys_of(cls).items():
        if not key.section or key.none or key.short:  # other sections are always there: only their keys are given
            yield prefix + name, key
        if key.section:
            yield from walk(key.type, f"{prefix}{name}.")


def _read(key: Key, node: Node) -> Any:
    """The value of a key; None after a complaint."""
    if key.none == "null" and node.item.value is None or key.none == "auto" and node.item.text == "auto":
        return None
    node = replace(node, item=_in_full(key, node.item))
    value = node.item.value
    mapping = key.section or key.type in NAMED
    if mapping and not isinstance(value, dict):
        return node.refuse(key)
    if mapping:
        return _read_section(key.type, node) if key.section else NAMED[key.type].read(node)
    if key.many and key.required and value == []:
        return node.complain(f"{node.path} is empty: give {node.path}={key.example} ({key.help})")
    return read_list(key, node) if key.many else read_scalar(key, node)


def _in_full(key: Key, item: Item) -> Item:
    """The value of a key without a short form: a section as a mapping, a list as a list."""
    if not is_set(item) or isinstance(item.value, dict):
        return item
    if key.short and (keys_of(key.type)[key.short].many or not isinstance(item.value, list)):
        return replace(item, value={key.short: item}, text="")
    return replace(item, value=[item], text="") if key.single and not isinstance(item.value, list) else item


def _read_section(cls: Any, node: Node) -> Any:
    keys, values, items = keys_of(cls), {}, node.item.value
    for name in [name for name in items if name not in keys]:
        _refuse_unknown(name, keys, node.child(name, items[name]))
    for name, key in keys.items():
        child = node.child(name, items.get(name, node.item))
        if name in items and child.item.text != UNSET:
            values[name] = _read(key, child)
        elif name not in items and key.section and not key.none:  # keys in it may be required
            values[name] = _read(key, replace(child, item=replace(node.item, value={})))
        elif key.required or name in items and not key.may_be_unset:
            mend = f"{child.path}={key.example or '...'}" if key.many else key.example or f"{child.path}=..."
            child.complain(f"{child.path} is not set: give {mend} ({key.help})")
            values[name] = None
    group = getattr(cls, "EXACTLY_ONE", ())
    chosen = [name for name in items if name in group and is_set(items[name])]
    if group and len(chosen) != 1:
        text = f"{node.path}: give exactly one of {', '.join(group)}; got {' and '.join(chosen) or 'none'}"
        replace(node, item=items[chosen[1]] if chosen else node.item).complain(text, at_key=True)
    return cls(**values)


def _refuse_unknown(name: str, keys: Mapping[str, Key], node: Node) -> None:
    hint = nearest(name, keys, node.path[: -len(name)])
    elsewhere = [path for path in node.names if path.endswith(f".{name.rpartition('.')[2]}")]
    if not hint and elsewhere:  # a good name in the wrong place
        hint = f", did you mean {' or '.join(elsewhere)}?"
    elif not hint:
        few = len(node.names) < 10
        hint = f": there are {', '.join(node.names)}" if few else ": distill ls keys prints those there are"
    node.complain(f"unknown key '{brief(node.path, 200)}'{hint}", at_key=True)


def is_set(item: Item | None) -> bool:
    """Whether a key has a value."""
    return item is not None and item.value is not None and item.text != UNSET


def _assign(cls: Any, item: Item | None, path: str, new: Item) -> Item:
    """The mapping `item` with `new` at a dotted path; `item` is left as it is."""
    name, _, rest = path.partition(".")
    key = keys_of(cls).get(name, Key(None))
    values = dict(item.value) if item is not None and isinstance(item.value, dict) else {}
    if not rest and key.short and _in_full(key, new) is not new:
        rest = key.short  # the section's other keys stay
    if rest and key.section:
        before = values.get(name)
        new = _assign(key.type, before and _in_full(key, before), rest, new)
    elif rest and key.type in NAMED:
        before = values.get(name) or wrap(write(key, key.default), new.where)
        new = NAMED[key.type].assign(before, rest, new)
    elif rest:
        new = Item({rest: new}, new.where, "", new.key)
    group = getattr(cls, "EXACTLY_ONE", ())
    for other in group if name in group and is_set(new) else ():
        # prune.ratio=0.3 replaces the file's budget. Two budgets on the command line contradict each other.
        if other != name and other in values and values[other].where != new.where:
            del values[other]
    return Item(values | {name: new}, item.where if item else new.where, "", item.key if item else new.key)


def _parse(key: Key | None, name: str, value: Any, where: str, problems: list[str]) -> Item | None:
    """The value of an override, read as YAML if it is text; None after a complaint."""
    if not isinstance(value, str):
        return wrap(value, where)
    if key is not None and key.short and not value.startswith("{"):
        key = keys_of(key.type)[key.short]
    word = key is not None and key.type is str and (not key.many or key.single and value[:1] != "[")
    if word and value[:1] not in ("'", '"') and value not in ("null", "~"):
        return Item(value, where, value, where)  # the shell has read the quotes: a path may hold #, : and [
    complaints: list[str] = []
    item = read(value, where, complaints, lines=False)
    problems += [text.replace(where, f"{where}: {name}", 1) for text in complaints]
    return None if complaints else item


def _pairs(overrides: Overrides, problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    """Key, value and source of each override."""
    if isinstance(overrides, Mapping):
        yield from ((name, value, "overrides") for name, value in overrides.items())
        return
    seen = set()
    for word in overrides:
        name, equals, value = word.partition("=")
        if not equals or not name:
            problems.append(f"command line: '{brief(word, 200)}' is not key=value")
        elif name in seen:
            problems.append(f"command line: {brief(name, 200)} is given twice")
        else:
            yield name, value, "command line"
        seen.add(name)


def _line(problem: str) -> tuple[float, float]:
    """Sorts complaints as the file is read, those of the command line behind."""
    place = re.match(r".*?:([0-9]+):([0-9]+): ", problem)
    return (int(place[1]), int(place[2])) if place else (math.inf, 0)
