"""The report as one HTML page that needs nothing beside itself: no script, no font, no image to load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

from distill.report.canvas import COLOURS
from distill.report.document import Block, Code, Document, Figure, Fold, Section, Terms, Text
from distill.report.facts import Table
from distill.report.plots import Plot

# The same roles as canvas.COLOURS, for a dark page.
DARK = {
    "ink": "#e3e7ea",
    "muted": "#98a2ac",
    "line": "#2d343b",
    "bar": "#434c55",
    "teacher": "#a9b4be",
    "pruned": "#e0837a",
    "repaired": "#dfae54",
    "student": "#6ea8e6",
    "other": "#ad91d8",
    "more": "#5fbdb2",
}
PAGE = {"paper": ("#fcfcfa", "#14181c"), "raised": ("#f2f3f1", "#1d2328"), "good": ("#2c7a4b", "#6cc592")}

STRONG = ' class="strong"'
STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:62rem;margin:0 auto;padding:3.5rem 1.5rem 5rem}
p{margin:.6rem 0;max-width:46rem;overflow-wrap:anywhere}
.quiet,.about{color:var(--muted);font-size:.875rem}
.name{color:var(--muted);font-size:.8125rem;letter-spacing:.02em;margin:0}
h1{font-size:clamp(1.4rem,1.1rem + 1.6vw,2.1rem);line-height:1.25;font-weight:600;letter-spacing:-.015em;margin:.5rem 0 .75rem;
max-width:48rem;text-wrap:balance}
h2{font-size:1.125rem;font-weight:600;letter-spacing:-.005em;margin:3.25rem 0 .9rem}
.warning{border-left:3px solid var(--repaired);background:var(--raised);padding:.65rem 1rem;margin:1.25rem 0 0;max-width:none}
.warning+.warning{margin-top:.5rem}
.judgement{font-weight:600;margin:0 0 .75rem}
.yes{color:var(--good)}.no{color:var(--pruned)}
.scroll{overflow-x:auto;margin:.25rem 0 1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9375rem}
th,td{text-align:right;padding:.5rem .75rem;white-space:nowrap;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--muted);font-weight:500;font-size:.8125rem}
th:first-child,td:first-child{text-align:left;padding-left:0}
tbody th{font-weight:400}
th:last-child,td:last-child{padding-right:0}
td small{display:block;color:var(--muted);font-size:.75rem;line-height:1.3}
td.strong{font-weight:600}
td.strong small{font-weight:400}
pre{background:var(--raised);border-radius:6px;padding:.7rem .9rem;margin:.5rem 0;overflow-x:auto;font-size:.84375rem;line-height:1.5}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
p code{font-size:.9em}
pre.command code{user-select:all;-webkit-user-select:all}
figure{margin:0;overflow-x:auto;min-width:0}
figure svg{display:block;width:100%;height:auto;stroke-linejoin:round}
figure.half{max-width:30rem}
figure.wide svg{min-width:44rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.5rem 2.5rem;margin:1rem 0 1.5rem}
.terms{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.5rem;margin:.5rem 0 1.25rem;font-size:.9375rem}
.terms dt{color:var(--muted)}
.terms dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
details{margin:.75rem 0}
summary{cursor:pointer;color:var(--muted);font-size:.9375rem}
details[open] summary{margin-bottom:.5rem}
details td,details th{padding-top:.2rem;padding-bottom:.2rem;font-size:.875rem}
@media (max-width:34rem){main{padding:1.75rem 1rem 3rem}h2{margin-top:2.5rem}.terms{column-gap:1rem}
table{font-size:.8125rem}th,td{padding:.45rem .2rem}thead th{font-size:.75rem}td small{font-size:.625rem}
td:last-child{white-space:normal}pre.command{white-space:pre-wrap;overflow-wrap:anywhere}}
@media print{main{padding:0;max-width:none}pre{white-space:pre-wrap}}
"""


def render_html(document: Document, plots: Mapping[str, Plot]) -> str:
    """The whole page. Everything that came from outside is escaped."""
    tone = {True: "yes", False: "no", None: "quiet"}[document.accepted]
    judgement = f'<p class="judgement {tone}">{escape(document.judgement)}</p>' if document.judgement else ""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">',
        f"<title>{escape(document.name)}: {escape(document.gain)}</title>",
        f"<style>{_theme()}{STYLE}</style></head><body><main><header>",
        f'<p class="name">{escape(document.name)}</p><h1>{escape(document.gain)}</h1>{judgement}',
        f'<p class="about">{escape(document.about)}</p>',
        *(f'<p class="warning" role="note">{_prose(warning)}</p>' for warning in document.warnings),
        "</header>",
        *(_section(section, plots) for section in document.sections),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _theme() -> str:
    light = {**COLOURS, **{name: pair[0] for name, pair in PAGE.items()}}
    dark = {**DARK, **{name: pair[1] for name, pair in PAGE.items()}}

    def rules(colours: Mapping[str, str]) -> str:
        return ";".join(f"--{name}:{colour}" for name, colour in colours.items())

    return (
        f":root{{color-scheme:light dark;{rules(light)}}}@media (prefers-color-scheme:dark){{:root{{{rules(dark)}}}}}"
    )


def _section(section: Section, plots: Mapping[str, Plot]) -> str:
    """Plots that stand next to each other in the section stand side by side where the page is wide enough."""
    parts: list[str] = []
    row: list[str] = []
    for block in (*section.blocks, None):
        if isinstance(block, Figure) and not block.wide:
            row.append(_figure(block, plots))
            continue
        if row:
            parts.append(f'<div class="figures">{"".join(row)}</div>')
            row = []
        if block is not None:
            parts.append(_block(block, plots))
    return f"<section><h2>{escape(section.title)}</h2>\n{''.join(parts)}</section>"


def _block(block: Block, plots: Mapping[str, Plot]) -> str:
    match block:
        case Text():
            return f'<p class="quiet">{_prose(block.text)}</p>' if block.quiet else f"<p>{_prose(block.text)}</p>"
        case Table():
            return _table(block)
        case Code(language="sh"):
            return "".join(f'<pre class="command"><code>{escape(line)}</code></pre>' for line in block.lines)
        case Code():
            return f"<pre><code>{escape(chr(10).join(block.lines))}</code></pre>"
        case Figure():
            return _figure(block, plots)
        case Terms():
            pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in block.pairs)
            return f'<dl class="terms">{pairs}</dl>'
        case Fold():
            return f"<details><summary>{escape(block.title)}</summary>{_block(block.block, plots)}</details>"


def _figure(figure: Figure, plots: Mapping[str, Plot]) -> str:
    plot = plots[figure.name]
    svg = plot.svg.replace("<svg", f'<svg role="img" aria-label="{escape(plot.alt)}"', 1)
    return f'<figure class="{"wide" if figure.wide else "half"}">{svg}</figure>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(_cell(cell, column == table.strong) for cell, column in zip(row[1:], table.columns[1:], strict=True))
        + "</tr>"
        for row in table.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str, strong: bool) -> str:
    """A figure; the spread that follows some of them in brackets goes below, in small."""
    value, bracket, spread = text.partition(" [")
    below = f"<small>{escape(spread.removesuffix(']'))}</small>" if bracket else ""
    return f"<td{STRONG if strong else ''}>{escape(value)}{below}</td>"


def _prose(text: str) -> str:
    """Escaped text in which `words` between backticks are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
