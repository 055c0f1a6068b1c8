"""Templates to files: HTML and Markdown come from the same words, and everything else in them is escaped."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from distill.machine.words import visible
from distill.report.canvas import THEME, Plot
from distill.report.format import apart, digits

TEMPLATES = Path(__file__).parent / "templates"


def report_files(page: str, plots: Mapping[str, Plot], **facts: Any) -> dict[str, bytes]:
    """The files of a report by their names in its folder.

    Args:
        page: name of its template, which is also the name of its files.
        plots: by name; the template leaves out those that are missing.
        facts: what else the template shows. A name that is shown and not given is an error.
    """
    texts = {f"{page}.{suffix}": render(page, suffix, plots=plots, **facts).encode() for suffix in ("md", "html")}
    return {f"plots/{name}.png": plot.png for name, plot in plots.items()} | texts


def render(page: str, suffix: str, **facts: Any) -> str:
    """The template `page` as text, "md" or "html"."""
    text = _environment(suffix).get_template(f"{page}.jinja").render(facts)
    if suffix == "md":  # surplus blank lines go, but for those of a code block
        block_or_gap = re.compile(r"^(`{3,})\w+\n.*?^\1$|\n{3,}", re.DOTALL | re.MULTILINE)
        text = block_or_gap.sub(lambda match: match[0] if match[1] else "\n\n", text)
    return visible(text).strip() + "\n"


@cache
def _environment(suffix: str) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=markdown if suffix == "md" else None,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"parts": f"{suffix}.jinja", "theme": THEME}
    environment.filters |= {
        "prose": _markdown_prose if suffix == "md" else _html_prose,
        "unbroken": _unbroken,
        "markdown": markdown,
        "fenced": _fenced,
        "digits": digits,
        "apart": apart,
        "shell": lambda path: shlex.quote(str(path)),
    }
    return environment


def markdown(value: object) -> Markup:
    """Plain text on one line, escaped so that Markdown takes it for nothing else. Markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(_escaped(re.sub(r"\s+", " ", str(value))))


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]|#`~])", r"\\\1", html.escape(text, quote=False))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown_prose(text: str) -> Markup:
    """A paragraph; of plain text, `words` between backticks stay code."""
    if isinstance(text, Markup):
        return Markup(_one_line(text))
    pieces = re.split(r"(`[^`]+`)", _one_line(text))
    return Markup("".join(piece if piece.startswith("`") else _escaped(piece) for piece in pieces))


def _html_prose(text: str) -> Markup:
    """A paragraph in which `words` between backticks are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", _one_line(escape(text))))


def _unbroken(text: str) -> Markup:
    """HTML whose words with a hyphen, such as mAP50-95, stay on one line."""
    return Markup(re.sub(r"\w+-\w+", r'<span class="word">\g<0></span>', str(escape(text))))


def _fenced(text: str, language: str) -> Markup:
    """A code block with a fence longer than any run of backticks inside it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text}\n{fence}")
