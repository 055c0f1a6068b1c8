"""The report as Markdown, as GitHub shows it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from distill.report.document import Block, Code, Document, Figure, Fold, Terms, Text
from distill.report.facts import Table
from distill.report.plots import Plot


def render_markdown(document: Document, plots: Mapping[str, Plot]) -> str:
    """The whole document; plots are links to the files in plots/."""
    judgement = f": {document.judgement}" if document.judgement else ""
    parts = [f"# {escape(document.gain + judgement)}", escape(f"{document.name} · {document.about}")]
    parts += [f"> **Note:** {escape(warning)}" for warning in document.warnings]
    for section in document.sections:
        parts += [f"## {escape(section.title)}", *(_block(block, plots) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Plain text that Markdown takes for nothing else, on one line; `code` between backticks stays code."""
    text = " ".join(text.split())
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([\\*_\[\]|#`~])", r"\\\1", html.escape(piece, quote=False))
        for piece in pieces
    )


def _block(block: Block, plots: Mapping[str, Plot]) -> str:
    match block:
        case Text():
            return escape(block.text)
        case Table():
            return _table(block)
        case Code():
            return _fenced(block)
        case Figure():
            return f"![{escape(plots[block.name].alt)}](plots/{block.name}.png)"
        case Terms():
            return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in block.pairs)
        case Fold():
            inner = _block(block.block, plots)
            return f"<details><summary>{html.escape(block.title)}</summary>\n\n{inner}\n\n</details>"


def _table(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    rows = [[escape(cell) for cell in row] for row in (table.columns, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _fenced(code: Code) -> str:
    """A fence longer than any run of backticks inside it."""
    text = "\n".join(code.lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{code.language}\n{text}\n{fence}"
