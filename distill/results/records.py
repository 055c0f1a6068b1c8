"""Frozen dataclasses to plain data and back: the one place where records go to JSON and come from it."""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

R = TypeVar("R")


_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 60


class Brief:
    """A record whose `repr` is a line, however much it holds. Its dataclass is declared with `repr=False`."""

    def __repr__(self) -> str:
        values = ((each.name, getattr(self, each.name)) for each in dataclasses.fields(cast(Any, self)) if each.repr)
        return f"{type(self).__name__}({', '.join(f'{name}={_SHORT.repr(value)}' for name, value in values)})"


class RecordError(ValueError):
    """Plain data that is not the record it should be: says which value, and what it should be."""


def of_format(content: Any, version: int) -> Mapping[str, Any]:
    """The content of a JSON file, if it is a mapping of this `format`. Raises `RecordError` otherwise."""
    if not isinstance(content, Mapping) or content.get("format") != version:
        raise RecordError(f"expected format {version}")
    return content


def from_plain(record: type[R], data: Any, path: str = "") -> R:
    """Read a record that `dataclasses.asdict` made plain, perhaps by way of JSON.

    Args:
        record: a frozen dataclass. Its fields are scalars, `dict`, `tuple[X, ...]`, other records, or one of these or None.
        data: plain data. Keys that the record does not have are passed over.
        path: where the data lies, for messages.

    Raises:
        RecordError: a value is missing or of another type.
    """
    if not isinstance(data, Mapping):
        raise RecordError(f"{path or record.__name__}: expected a mapping, got {type(data).__name__}")
    values, kinds = {}, _fields(cast(Any, record))
    for name, kind in kinds.items():
        if name in data:
            values[name] = _value(kind, data[name], f"{path}.{name}" if path else name)
    try:
        return record(**values)
    except TypeError:
        missing = next(name for name in kinds if name not in values)
        raise RecordError(f"{path or record.__name__}: no '{missing}'") from None


_fields = cache(typing.get_type_hints)  # of a dataclass: the types of its fields by name


def _value(kind: Any, value: Any, path: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        return _value(next(option for option in inner if option is not type(None)), value, path)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_plain(kind, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        items = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(items) == len(value):
            return tuple(
                _value(item, each, f"{path}[{i}]") for i, (item, each) in enumerate(zip(items, value, strict=True))
            )
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _value(inner[1], each, f"{path}.{key}") for key, each in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or type(value) is not bool):
        return value
    raise RecordError(f"{path}: expected {getattr(kind, '__name__', kind)}, got {value!r:.40}")
