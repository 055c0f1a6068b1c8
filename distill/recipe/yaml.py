"""A strict reader of YAML that remembers where everything stands, and the writer that matches it.

YAML 1.1 reads `1e-3` as text, `on` as a truth value, `012` as ten and the last of two equal keys as the only one. Here
scalars follow the core schema of YAML 1.2, every key is unique, and each value keeps its file:line:column and its
characters for messages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from distill.errors import DistillError

# Tag, pattern, first characters: the core schema, less .inf and .nan, which no setting can mean.
_SCALARS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), [*"~nN", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?\d+$", re.ASCII), list("-+0123456789")),
    ("float", re.compile(r"[-+]?(?:\.\d+|\d+\.\d*|\d+(?=[eE]))(?:[eE][-+]?\d+)?$", re.ASCII), list("-+.0123456789")),
)
_TAG = "tag:yaml.org,2002:"
_MAX_DEPTH = 50  # of lists in lists: PyYAML takes a time that grows with its square


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            problem = "aliases (*name) are not read here: write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)


@dataclass(frozen=True)
class Item:
    """One value with its place."""

    value: Any  # None, bool, int, float, str, a list of items or a dict of items
    where: str  # such as `r.yaml:3:9`; a source without lines is named alone
    text: str = ""  # a scalar as it was written
    key: str = ""  # where the key stands; equal to `where` if there is none

    def plain(self) -> Any:
        """The value without places: what `yaml.safe_load` would give."""
        if isinstance(self.value, dict):
            return {name: item.plain() for name, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


def read(text: str, source: str, problems: list[str], *, lines: bool = True) -> Item | None:
    """Read one YAML document.

    Args:
        text: the document.
        source: what to call it in messages.
        problems: gets one line for each thing that is wrong.
        lines: name line and column too; False for text that is no file.

    Returns:
        The document, or None if it is not YAML. An empty one is an item of value None.
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        place = _place(source, error.problem_mark or error.context_mark, lines)
        problems.append(f"{place}: bad YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        problems.append(f"{source}: bad YAML: character {error.character!r} is not allowed in a text file")
    else:
        return Item(None, source, "", source) if node is None else _convert(node, "", source, lines, problems)
    return None


def wrap(value: Any, where: str) -> Item:
    """Turn plain Python data into items that all stand at `where`."""
    if isinstance(value, dict):
        return Item({str(name): wrap(child, where) for name, child in value.items()}, where, "", where)
    if isinstance(value, (list, tuple)):
        return Item([wrap(child, where) for child in value], where, "", where)
    if value is None or isinstance(value, (bool, int, float)):
        return Item(value, where, dump(value), where)
    return Item(str(value), where, str(value), where)


def dump(data: Any) -> str:
    """Write plain data so that `read` gives the same back: one key a line, lists and options on one line."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    return text.removesuffix("...\n").strip() if not isinstance(data, (dict, list)) else text


def flatten(text: str, source: str) -> list[str]:
    """A document as `dotted.key: value` lines, for comparing two of them."""
    problems: list[str] = []
    item = read(text, source, problems)
    if item is None or problems:
        raise DistillError("\n".join(problems))
    return list(_leaves(item.plain(), ""))


def _leaves(data: Any, path: str) -> Iterator[str]:
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield f"{path}: {dump(data)}"


def _place(source: str, mark: Any, lines: bool) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}" if lines and mark is not None else source


def _convert(node: Any, key: str, source: str, lines: bool, problems: list[str]) -> Item:
    where = _place(source, node.start_mark, lines)
    key = key or where
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Item] = {}
        for name, child in node.value:
            at = _place(source, name.start_mark, lines)
            if not isinstance(name, yaml.ScalarNode):
                problems.append(f"{at}: a key must be a word")
            elif name.value in values:
                problems.append(f"{at}: key '{name.value}' is there twice, first at {values[name.value].key}")
            else:
                values[name.value] = _convert(child, at, source, lines, problems)
        return Item(values, where, "", key)
    if isinstance(node, yaml.SequenceNode):
        return Item([_convert(child, "", source, lines, problems) for child in node.value], where, "", key)
    return Item(_scalar(node, where, problems), where, node.value, key)


def _scalar(node: Any, where: str, problems: list[str]) -> Any:
    tag, text = node.tag.removeprefix(_TAG), node.value
    try:
        if tag == "int":
            return int(text)
        if tag == "float" and math.isfinite(value := float(text)):
            return value
    except ValueError:  # an explicit tag on something else, or thousands of digits
        pass
    if tag in ("int", "float"):
        problems.append(f"{where}: {text[:40]!r} is no number that can be used")
    elif tag == "bool":
        return text.lower() == "true"
    elif tag not in ("str", "null"):
        problems.append(f"{where}: tag '{node.tag}' is not read here: write the plain value")
    return text if tag == "str" else None
