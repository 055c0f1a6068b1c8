"""How a key of a recipe is declared: a type, bounds, a default and a help text, from which everything else follows."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, replace
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from distill.losses.spec import LossSpec, TeacherSpec

LIBRARIES = ("timm/", "torchvision/")  # what the names of classifiers begin with
ARCHITECTURES = (".yaml", ".yml")  # endings of the names of architectures, such as yolov8s.yaml

# How a message words a bound of JSON schema, and what it means.
BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": (">=", operator.ge),
    "exclusiveMinimum": (">", operator.gt),
    "maximum": ("<=", operator.le),
    "exclusiveMaximum": ("<", operator.lt),
    "multipleOf": ("a multiple of", lambda value, step: value % step == 0),
}


def key(help: str = "", default: Any = MISSING, bounds: Mapping[str, float] | None = None, **attributes: Any) -> Any:
    """Declare a field of a dataclass as a key of a recipe. Its type is the annotation.

    Args:
        help: one sentence for `distill ls keys` and editors; a section's is its docstring.
        default: the value if the key is left out; a class is called for one. Without a default the key is required.
        bounds: of a number, by the names in BOUNDS.
        **attributes: what else a `Key` has.
    """
    metadata = {"help": help, "bounds": bounds or {}, **attributes}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """What a key of a recipe may hold, and what it means."""

    type: Any  # bool, int, float, str, LossSpec or, for a section, a dataclass of keys
    default: Any = None
    help: str = ""
    required: bool = False  # the key has no default
    many: bool = False  # a list of such values, read as a tuple
    single: bool = False  # of a list: one value stands for a list of one
    none: str = ""  # the word that is read as None: null or auto
    bounds: Mapping[str, float] = field(default_factory=dict)  # of a number, by the names in BOUNDS
    words: tuple[str, ...] = ()  # the only words allowed; beside a path or a function: words that name none
    path: bool = False  # the path of an existing file is made absolute, so that a run can be resumed from any folder
    given: bool = False  # the path is of something that has to be there before the work begins
    built: bool = False  # or the path is the name of an architecture, which ultralytics knows
    named: tuple[str, ...] = ()  # or it begins with one of these, and is a name in a library
    function: bool = False  # file.py:function or package.module:function
    empty: bool = False  # the word may be empty
    example: str = ""  # of a list; or what to give if the key is required

    @property
    def section(self) -> bool:
        """Whether the value is a mapping of keys, read as a dataclass."""
        return dataclasses.is_dataclass(self.type) and not self.many

    @property
    def short(self) -> str:
        """The key of this section that is set by a value in place of the mapping; empty if there is none."""
        return getattr(self.type, "SHORT", "") if self.section else ""

    @property
    def may_be_unset(self) -> bool:
        """Whether `???` is read as null: another key may be given in its place."""
        return self.none == "null" and not self.section

    def __str__(self) -> str:
        """What a message says was expected."""
        if self.type is LossSpec:
            text = "a mapping of loss names to weights"
        elif self.type is TeacherSpec:
            text = "a mapping of teachers to weights"
        elif self.many or self.section:
            text = f"a list such as {self.example}" if self.many else "a mapping of keys"
            if self.single or self.short:
                one = replace(self, many=False) if self.single else keys_of(self.type)[self.short]
                text = f"{replace(one, none='')} or {text}"
        elif self.words and not self.path:
            text = f"one of {', '.join(self.words)}" + (", or file.py:function" if self.function else "")
        elif self.type in (bool, str):
            text = "true or false" if self.type is bool else "a path" if self.path else "a word"
        else:
            bounds = " and ".join(f"{BOUNDS[name][0]} {bound:g}" for name, bound in self.bounds.items())
            text = f"a {'whole ' if self.type is int else ''}number {bounds}"
        return {"": text, "auto": f"auto or {text}", "null": f"{text}, or null"}[self.none]


@cache
def keys_of(cls: type) -> dict[str, Key]:
    """The keys of a section by name, in the order of the file.

    A section may name one of its keys as its short form, `SHORT: ClassVar = "images"`: `section: value` is then
    `section: {images: value}`.
    """
    hints, keys = get_type_hints(cls), {}
    for each in dataclasses.fields(cls):
        types = get_args(hints[each.name]) or (hints[each.name],)  # of float, float | None, tuple[str, ...]
        required = each.default is each.default_factory is MISSING
        default = None if required else each.default if each.default_factory is MISSING else each.default_factory()
        many = get_origin(hints[each.name]) is tuple
        single = many and each.name == getattr(cls, "SHORT", "")
        attributes: dict[str, Any] = {"many": many, "single": single, "required": required}
        attributes |= {"none": "null"} if NoneType in types else {}
        attributes |= dict(each.metadata) | {"help": each.metadata["help"] or types[0].__doc__}
        keys[each.name] = Key(types[0], default, **attributes)
    return keys
