"""The keys of a recipe as a JSON schema, with which editors complete and check recipe files."""

from __future__ import annotations

from typing import Any

from distill.losses.registry import BUILTIN
from distill.losses.spec import LossSpec
from distill.recipe.keys import Key, keys_of
from distill.recipe.losses import OPTIONS
from distill.recipe.schema import Recipe
from distill.recipe.section import UNSET, write

_FUNCTION = ".*:.*"  # my_file.py:my_function or package.module:name
_TYPES = {int: "integer", float: "number", bool: "boolean", str: ["string", "number", "boolean"]}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe file."""
    options = {name: _property(key) for name, key in OPTIONS.items()}
    loss = {"anyOf": [options["weight"], {"type": "object", "properties": options}]}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe"}
    return head | _section(Recipe) | {"$defs": {"loss": loss}}


def _section(cls: Any) -> dict[str, Any]:
    keys = keys_of(cls)
    properties = {name: _property(key) for name, key in keys.items()}
    required = [name for name, key in keys.items() if key.required]
    schema = {"type": "object", "properties": properties, "additionalProperties": False, "required": required}
    if group := getattr(cls, "EXACTLY_ONE", ()):
        # null counts as left out, as in the recipe that a run writes
        schema["oneOf"] = [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in group]
    return schema


def _property(key: Key) -> dict[str, Any]:
    schema = _value(key)
    others: list[dict[str, Any]] = {"auto": [{"const": "auto"}], "null": [{"type": "null"}], "": []}[key.none]
    if key.required or key.may_be_unset:
        others.append({"const": UNSET})  # to be given on the command line
    schema = {"anyOf": [schema, *others]} if others else schema
    if not key.required and (key.default is None or not key.section) and (key.default != "" or key.empty):
        schema["default"] = write(key, key.default)
    return {"description": key.help, **schema}


def _value(key: Key) -> dict[str, Any]:
    if key.type is LossSpec:
        loss = {"$ref": "#/$defs/loss"}
        names = {"properties": dict.fromkeys(BUILTIN, loss), "patternProperties": {_FUNCTION: loss}}
        return {"type": "object", **names, "additionalProperties": False}
    if key.section:
        return _section(key.type)
    if key.words and not key.path:
        own = [{"type": "string", "pattern": _FUNCTION}] if key.function else []
        schema: dict[str, Any] = {"anyOf": [{"enum": list(key.words)}, *own]}
    else:
        schema = {"type": _TYPES[key.type], **key.bounds}
        if key.type is str and not key.empty:
            schema["minLength"] = 1
    return {"type": "array", "items": schema} if key.many else schema
