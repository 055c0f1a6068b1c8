"""Single values of a document: numbers, words, paths and the names of functions, with a complaint about what does not fit."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.machine.words import brief, nearest, printable
from distill.recipe.keys import ARCHITECTURES, BOUNDS, Key
from distill.recipe.yaml import Item

# my_losses.py:my_kd or package.module:my_kd; a drive of Windows has a colon too
_FUNCTION = re.compile(r"(?P<place>[^:]+|[A-Za-z]:[^:]+):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Node:
    """A value on its way from a document into a dataclass."""

    item: Item
    path: str = ""  # dotted
    problems: list[str] = field(default_factory=list)  # gets one line for each thing that is wrong
    folders: tuple[Path, ...] = ()  # where the files of the user's functions may lie
    names: tuple[str, ...] = ()  # the dotted paths of all keys
    files: bool = False  # whether a path has to be there if its key says so

    def child(self, name: str, item: Item) -> Node:
        """The value of a key in this mapping."""
        return replace(self, item=item, path=f"{self.path}.{name}" if self.path else name)

    def complain(self, text: str, *, at_key: bool = False) -> Any:
        """Say what is wrong with the value, or with its key, where it stands. Returns None, as reading it does."""
        self.problems.append(f"{self.item.key if at_key else self.item.where}: {text}")

    def refuse(self, expected: object, hint: str = "") -> Any:
        """Say what was expected in its place. Returns None."""
        return self.complain(f"{self.path or 'a recipe'}: expected {expected}, got {_show(self.item)}{hint}")


def read_scalar(key: Key, node: Node) -> Any:
    """Read a bool, a number or a word; None after a complaint."""
    value = node.item.value
    if key.type is str:
        return _read_word(key, node)
    if key.type is bool:
        fits = isinstance(value, bool)
    else:
        fits = isinstance(value, int if key.type is int else (int, float)) and not isinstance(value, bool)
        fits = fits and math.isfinite(value)
        fits = fits and all(BOUNDS[name][1](value, bound) for name, bound in key.bounds.items())
    return key.type(value) if fits else node.refuse(key)


def read_list(key: Key, node: Node) -> tuple[Any, ...] | None:
    """Read a list of such values, with None in the place of each that is complained about; None if it is no list."""
    if not isinstance(node.item.value, list):
        return node.refuse(key)
    nodes = [replace(node, item=item, path=f"{node.path}[{index}]") for index, item in enumerate(node.item.value)]
    return tuple(read_scalar(replace(key, many=False, none=""), child) for child in nodes)


def _read_word(key: Key, node: Node) -> str | None:
    """A word or sentence as it is written: `device: 0` is the word 0."""
    text = node.item.text
    if isinstance(node.item.value, (dict, list)) or node.item.value is None or not (text or key.empty):
        return node.refuse(key)
    if key.function:
        return read_function(key.words, node)
    built = key.built and Path(text).suffix in ARCHITECTURES or text.startswith(key.named)
    if key.given and node.files and not built and text not in key.words and (missing := missing_file(text)):
        return node.complain(f"{node.path}: {missing}")
    if not key.words or text in key.words or key.path:
        return _absolute(text) if key.path and text not in key.words else text
    return node.refuse(key, nearest(text, key.words))


def read_function(builtin: Collection[str], node: Node) -> str | None:
    """Read the name of a function, built in or the user's own, whose file gets an absolute path; None after a complaint."""
    name = node.item.text
    custom = _FUNCTION.fullmatch(name)
    if custom is None and name not in builtin:
        hint = nearest(name, builtin) or f": built in are {', '.join(builtin)}; your own is file.py:function"
        return node.complain(f"{node.path}: unknown name '{brief(name, 200)}'{hint}")
    if custom is None or not custom["place"].endswith(".py"):
        return name
    files = [Path(folder, os.path.expanduser(custom["place"])) for folder in node.folders]
    for file in files:
        if os.path.isfile(file):
            return f"{file.absolute()}:{custom['name']}"
    return node.complain(f"{node.path}: no file {' or '.join(dict.fromkeys(brief(file, 200) for file in files))}")


def missing_file(text: str) -> str:
    """What a message says of a path at which there is nothing; empty if there is something."""
    try:
        path = Path(text).expanduser()
        if path.exists():
            return ""
        hint = nearest(path.name, (file.name for file in path.parent.iterdir())) if path.parent.is_dir() else ""
    except (OSError, RuntimeError):  # the name is too long, or its ~user does not exist
        path, hint = Path(text), ""
    place = "" if path.is_absolute() else f" in {Path.cwd()}"
    return f"there is no {printable(text, 200)}{place}{hint}"


def _absolute(text: str) -> str:
    try:
        path = Path(text).expanduser()
        return str(path.absolute()) if path.exists() else text
    except (OSError, RuntimeError):  # the name is too long, or its ~user does not exist: there is no such file
        return text


def _show(item: Item) -> str:
    """A value as a message quotes it."""
    if isinstance(item.value, (dict, list)):
        return "a mapping" if isinstance(item.value, dict) else "a list"
    if item.value is None:
        return "nothing"
    text = item.text if len(item.text) <= 60 else item.text[:57] + "..."
    return repr(text) if isinstance(item.value, str) else text
