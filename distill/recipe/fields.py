"""The kinds of value a key of a recipe may hold: each says what it expects, reads it and writes it back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.machine.words import nearest
from distill.recipe.yaml import Item


@dataclass
class Context:
    """What reading needs beside the values: where complaints go, every known key, where files may lie."""

    problems: list[str]
    known: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()

    def complain(self, item: Item, text: str, *, at_key: bool = False) -> None:
        self.problems.append(f"{item.key if at_key else item.where}: {text}")


class Kind:
    """A kind of value. `str(kind)` is what a message says was expected."""

    def __str__(self) -> str:
        return "a value"

    def read(self, item: Item, path: str, context: Context) -> Any:
        """The value; or None, after a complaint that names the dotted `path`."""
        raise NotImplementedError

    def write(self, value: Any) -> Any:
        """The value as plain data, such that `read` gives it back."""
        return value

    def assign(self, old: Item | None, rest: str, make: Callable[[Kind], Item]) -> Item:
        """`old` with what stands at the dotted path `rest` replaced by `make(its kind)`; `old` itself is untouched."""
        new = make(self)
        return Item({rest: new}, new.where, "", new.key) if rest else new

    def refuse(self, item: Item, path: str, context: Context, more: str = "") -> None:
        context.complain(item, f"{path}: expected {self}, got {show(item)}{more}")


def show(item: Item) -> str:
    """A value as a message quotes it."""
    if isinstance(item.value, (dict, list)):
        return "a mapping" if isinstance(item.value, dict) else "a list"
    if item.value is None:
        return "nothing"
    text = item.text if len(item.text) <= 60 else item.text[:57] + "..."
    return repr(text) if isinstance(item.value, str) else text


@dataclass(frozen=True)
class Number(Kind):
    """A finite number. `open`: the ends are not allowed themselves."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    whole: bool = False
    step: int = 1

    def __str__(self) -> str:
        text = "a whole number" if self.whole else "a number"
        if math.isfinite(self.high):
            text += f" in ({self.low:g}, {self.high:g})" if self.open else f" in [{self.low:g}, {self.high:g}]"
        elif math.isfinite(self.low):
            text += f" > {self.low:g}" if self.open else f" >= {self.low:g}"
        return text + (f", a multiple of {self.step}" if self.step > 1 else "")

    def read(self, item: Item, path: str, context: Context) -> Any:
        value = item.value
        right = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        if right and (self.low < value < self.high or not self.open and value in (self.low, self.high)):
            if not self.whole:
                return float(value)
            if value % self.step == 0:
                return value
        return self.refuse(item, path, context)


@dataclass(frozen=True)
class Text(Kind):
    """A word or sentence as it is written: `device: 0` is the text 0. `empty`: it may have no characters."""

    empty: bool = False

    def __str__(self) -> str:
        return "a word"

    def read(self, item: Item, path: str, context: Context) -> Any:
        if isinstance(item.value, (dict, list)) or item.value is None or not (item.text or self.empty):
            return self.refuse(item, path, context)
        return item.text


@dataclass(frozen=True)
class File(Text):
    """A path from the current folder, made absolute where it exists, so that a run goes on from any folder.

    `words` are no paths, whatever there is in the folder.
    """

    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "a path"

    def read(self, item: Item, path: str, context: Context) -> Any:
        text = super().read(item, path, context)
        if text is None or text in self.words:
            return text
        try:
            place = Path(text).expanduser()
            return str(place.absolute()) if place.exists() else text
        except (OSError, RuntimeError):  # a name that is too long, or of nobody's home: it is not there either
            return text


@dataclass(frozen=True)
class Choice(Kind):
    words: tuple[str, ...]

    def __str__(self) -> str:
        return "one of " + ", ".join(self.words)

    def read(self, item: Item, path: str, context: Context) -> Any:
        if item.text in self.words:
            return item.text
        return self.refuse(item, path, context, nearest(item.text, self.words))


class Flag(Kind):
    def __str__(self) -> str:
        return "true or false"

    def read(self, item: Item, path: str, context: Context) -> Any:
        return item.value if isinstance(item.value, bool) else self.refuse(item, path, context)


@dataclass(frozen=True)
class Auto(Kind):
    """The word `auto`, read as None: the program chooses. Or a value of another kind."""

    kind: Kind

    def __str__(self) -> str:
        return f"auto or {self.kind}"

    def read(self, item: Item, path: str, context: Context) -> Any:
        if item.text == "auto":
            return None
        if item.value is None or isinstance(item.value, str):
            return self.refuse(item, path, context)
        return self.kind.read(item, path, context)

    def write(self, value: Any) -> Any:
        return "auto" if value is None else self.kind.write(value)


@dataclass(frozen=True)
class Nullable(Kind):
    """A value of another kind, or null, read as None."""

    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind}, or null"

    def read(self, item: Item, path: str, context: Context) -> Any:
        return None if item.value is None else self.kind.read(item, path, context)

    def write(self, value: Any) -> Any:
        return None if value is None else self.kind.write(value)


@dataclass(frozen=True)
class Many(Kind):
    """A list, read as a tuple."""

    kind: Kind
    example: str

    def __str__(self) -> str:
        return f"a list such as {self.example}"

    def read(self, item: Item, path: str, context: Context) -> Any:
        if not isinstance(item.value, list):
            return self.refuse(item, path, context)
        return tuple(self.kind.read(child, f"{path}[{index}]", context) for index, child in enumerate(item.value))

    def write(self, value: Any) -> Any:
        return [self.kind.write(child) for child in value]
