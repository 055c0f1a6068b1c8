"""The losses of a recipe: built-in names and the user's own functions, each with its weight and options."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.losses.registry import RENAMED
from distill.losses.spec import ALWAYS, FADES, TAKEN, LossSpec, Ramp
from distill.machine.words import nearest
from distill.recipe.fields import Choice, Context, Kind, Number
from distill.recipe.yaml import Item, wrap

# my_losses.py:my_kd or package.module:my_kd
_CUSTOM = re.compile(r"(?P<place>[^:]+|[A-Za-z]:[^:]+):(?P<function>[A-Za-z_]\w*)$")
_WEIGHT = Number(low=0)
_SPAN: dict[str, Kind] = {"warmup": Number(low=0, high=1), "until": Number(low=0, high=1), "fade": Choice(FADES)}


@dataclass(frozen=True)
class Losses(Kind):
    """A mapping of names to weights, or to `{weight: …, option: …}`, read as a tuple of LossSpec."""

    names: Callable[[], tuple[str, ...]]
    default: tuple[LossSpec, ...]

    def __str__(self) -> str:
        return "a mapping of loss names to weights"

    def read(self, item: Item, path: str, context: Context) -> Any:
        if not isinstance(item.value, dict):
            return self.refuse(item, path, context)
        found = [self._read_one(name, child, path, context) for name, child in item.value.items()]
        losses = tuple(loss for loss in found if loss is not None and loss.weight)
        labels = [loss.label for loss in losses]
        for label in sorted({label for label in labels if labels.count(label) > 1}):
            context.complain(item, f"{path}: two losses are called '{label}': rename one of the functions")
        for loss in losses:
            if loss.label in TAKEN:
                text = f"'{loss.label}' is the name of another term of the training: rename the function"
                context.complain(item, f"{path}.{loss.name}: {text}")
        return losses

    def write(self, value: Any) -> Any:
        return {loss.name: _write_one(loss) for loss in value}

    def assign(self, old: Item | None, rest: str, make: Callable[[Kind], Item]) -> Item:
        if not rest:
            return make(self)
        if old is None:
            old = wrap(self.write(self.default), make(_WEIGHT).where)
        held = dict(old.value) if isinstance(old.value, dict) else {}
        name, option = self._split(rest, held)
        new = make(_WEIGHT)
        if option:
            before = held.get(name)
            options = {} if before is None else before.value if isinstance(before.value, dict) else {"weight": before}
            new = Item(options | {option: new}, new.where, "", new.key)
        return Item(held | {name: new}, old.where, "", old.key)

    def _split(self, rest: str, held: dict[str, Item]) -> tuple[str, str]:
        """`score_bce.temperature` or `my.py:kd.temperature` → name and option; names may hold dots themselves."""
        for name in held:
            if rest == name or rest.startswith(f"{name}."):
                return name, rest[len(name) + 1 :]
        start = rest.rfind(":") + 1
        name, _, option = rest[start:].partition(".")
        return rest[:start] + name, option

    def _read_one(self, name: str, item: Item, path: str, context: Context) -> LossSpec | None:
        here = f"{path}.{name}"
        full = self._find(name, item, here, context)
        options = dict(item.value) if isinstance(item.value, dict) else {"weight": item}
        weight = options.pop("weight", None)
        number = 1.0 if weight is None else _WEIGHT.read(weight, f"{here}.weight" if options else here, context)
        span = _read_span(options, here, context)
        if full is None or number is None or span is None:
            return None
        return LossSpec(full, number, {option: child.plain() for option, child in options.items()}, span)

    def _find(self, name: str, item: Item, here: str, context: Context) -> str | None:
        """The name as LossSpec keeps it, or None after a complaint."""
        if name in RENAMED:
            context.complain(item, f"{here}: this loss is called '{RENAMED[name]}' now", at_key=True)
            return None
        if custom := _CUSTOM.match(name):
            place = custom["place"]
            if not place.endswith(".py"):
                return name
            tried = [Path(folder, Path(place).expanduser()) for folder in context.folders]
            file = next((file for file in tried if file.is_file()), None)
            if file is not None:
                return f"{file.absolute()}:{custom['function']}"
            looked = " or ".join(dict.fromkeys(str(file) for file in tried))
            context.complain(item, f"{here}: no file {looked}", at_key=True)
            return None
        names = self.names()
        if name in names:
            return name
        hint = nearest(name, names) or f": built in are {', '.join(names)}; your own is file.py:function"
        context.complain(item, f"unknown loss '{name}'{hint}", at_key=True)
        return None


def _read_span(options: dict[str, Item], here: str, context: Context) -> Ramp | None:
    """Take what a span is made of out of the options; None after a complaint."""
    given = {name: options.pop(name) for name in _SPAN if name in options}
    values = {name: _SPAN[name].read(item, f"{here}.{name}", context) for name, item in given.items()}
    if None in values.values():
        return None
    span = Ramp(**values)
    if span.warmup >= span.until:
        item = given["until"] if "until" in given else given["warmup"]
        text = f"{here}: until {span.until:g} leaves nothing after warmup {span.warmup:g}: weight: 0 leaves a loss out"
        context.complain(item, text)
        return None
    return span


def _write_one(loss: LossSpec) -> Any:
    span = {name: getattr(loss.ramp, name) for name in _SPAN if getattr(loss.ramp, name) != getattr(ALWAYS, name)}
    return {"weight": loss.weight} | span | loss.options if span or loss.options else loss.weight
