"""The keys of a recipe as a JSON schema, with which editors complete and check recipe files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill.losses.registry import BUILTIN
from distill.losses.spec import LossSpec, TeacherSpec
from distill.recipe.keys import Key, keys_of
from distill.recipe.losses import OPTIONS
from distill.recipe.schema import Recipe
from distill.recipe.section import UNSET, write
from distill.recipe.teachers import WEIGHT

_FUNCTION = ".*:.*"  # my_file.py:my_function or package.module:name
_TYPES = {int: "integer", float: "number", bool: "boolean", str: ["string", "number", "boolean"]}


def json_schema(cls: type = Recipe) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a file of keys, by default a recipe."""
    options = {name: _property(key) for name, key in OPTIONS.items()}
    loss = {"anyOf": [options["weight"], {"type": "object", "properties": options}]}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": cls.__name__}
    return head | _section(cls) | {"$defs": {"loss": loss}}


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
    schemas: list[dict[str, Any]] = _values(key)
    schemas += {"auto": [{"const": "auto"}], "null": [{"type": "null"}], "": []}[key.none]
    if key.required or key.may_be_unset:
        schemas.append({"const": UNSET})  # to be given on the command line
    schema = {"anyOf": schemas} if len(schemas) > 1 else schemas[0]
    if not key.required and (key.default is None or not key.section) and (key.default != "" or key.empty):
        schema["default"] = write(key, key.default)
    return {"description": key.help, **schema}


def _values(key: Key) -> list[dict[str, Any]]:
    """What a key may hold, in full and in short."""
    schemas = [_value(key)]
    if key.short:
        schemas += _values(keys_of(key.type)[key.short])
    if key.single:
        schemas.append(_value(replace(key, many=False)))
    return schemas


def _value(key: Key) -> dict[str, Any]:
    if key.type is LossSpec:
        return _losses()
    if key.type is TeacherSpec:
        weight = _property(WEIGHT)
        options = {"weight": weight, "losses": _losses()}
        whole = {"type": "object", "properties": options, "additionalProperties": False}
        return {"type": "object", "additionalProperties": {"anyOf": [weight, whole]}}
    if key.section:
        return _section(key.type)
    if key.words and not key.path:
        own = [{"type": "string", "pattern": _FUNCTION}] if key.function else []
        schema: dict[str, Any] = {"anyOf": [{"enum": list(key.words)}, *own]}
    else:
        schema = {"type": _TYPES[key.type], **key.bounds}
        if key.type is str and not key.empty:
            schema["minLength"] = 1
    least = {"minItems": 1} if key.required else {}
    return {"type": "array", "items": schema, **least} if key.many else schema


def _losses() -> dict[str, Any]:
    loss = {"$ref": "#/$defs/loss"}
    names = {"properties": dict.fromkeys(BUILTIN, loss), "patternProperties": {_FUNCTION: loss}}
    return {"type": "object", **names, "additionalProperties": False}
