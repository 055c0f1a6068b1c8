"""What a report is made of, before it is Markdown or HTML. Text is plain: each renderer escapes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distill.report.facts import Table


@dataclass(frozen=True)
class Text:
    """A paragraph. `quiet` ones explain what stands above them."""

    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Code:
    """Lines to copy: commands, each on its own, or a whole file."""

    lines: tuple[str, ...]
    language: str = "sh"


@dataclass(frozen=True)
class Figure:
    """A plot by its name in plots/. `wide` ones have a bar for every layer."""

    name: str
    wide: bool = False


@dataclass(frozen=True)
class Terms:
    """Names and what they stand for."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fold:
    """Detail that is closed until somebody opens it."""

    title: str
    block: Table | Code


Block = Text | Table | Code | Figure | Terms | Fold


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """The whole report.

    Attributes:
        name: the recipe's name.
        about: what was run on what, in a line.
        gain: what was won and lost, the one sentence to read when there is time for one.
        judgement: whether that was good enough; empty where nothing was judged.
        accepted: the same, for the eye.
        warnings: what the reader must know before believing the rest.
    """

    name: str
    about: str
    gain: str
    judgement: str
    accepted: bool | None
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]


def fold(title: str, table: Table | None) -> Fold | None:
    """A closed table, where there is one."""
    return Fold(title, table) if table is not None else None


def section(title: str, blocks: Iterable[Block | None]) -> Section | None:
    """A section of the blocks that there are; None where only explanations would be left."""
    kept = tuple(block for block in blocks if block is not None)
    return Section(title, kept) if any(not isinstance(block, Text) or not block.quiet for block in kept) else None
