"""results.json → report.md, report.html and plots/: a pure function of what a run has measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.files import write_bytes
from distill.machine.words import text_table
from distill.report.agreement import note
from distill.report.facts import Results, Table, comparison, findings, latency_note, verdict
from distill.report.sections import commands, compose

__all__ = ["findings", "plain", "plain_table", "read", "summary_table", "verdict", "write", "write_files"]

ASCII: dict[str, str | int | None] = {"→": "->", "×": "x", "–": "-", "−": "-", "±": "+-"}


def write(run_dir: Path) -> None:
    """Write report.md, report.html and plots/*.png into a run folder.

    Args:
        run_dir: a folder with a results.json and, where the student was trained, a metrics.csv. Nothing else is read,
            so a report can be made again at any time. Each file appears whole or not at all.

    Raises:
        DistillError: there is no results.json, or it is not one of ours.
        RunError: the disk is full, or not writable.
    """
    from distill.report.markdown import render_markdown
    from distill.report.page import render_html
    from distill.report.plots import draw

    results, history = read(run_dir)
    plots = draw(results, history)
    document = compose(results, run_dir, plots)
    files = {f"plots/{name}.png": plot.png for name, plot in plots.items()}
    files["report.md"] = render_markdown(document, plots).encode()
    files["report.html"] = render_html(document, plots).encode()
    write_files(run_dir, files)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a report, each whole or not at all. Raises `RunError`: the disk is full, or not writable."""
    for name, content in files.items():
        write_bytes(folder / name, content)


def read(run_dir: Path) -> tuple[Results, list[dict[str, Any]]]:
    """The results of a run, and one dict per epoch of training: from metrics.csv, or from results.json without it."""
    file = run_dir / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistillError(f"{file}: not there; a run writes it when it ends, `distill run --resume` goes on") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DistillError(f"{file}: no JSON: {error}") from error
    if not isinstance(results, dict) or not isinstance(results.get("models"), dict):
        raise DistillError(f"{file}: no 'models' in it; is it the results.json of a run?")
    metrics = run_dir / "metrics.csv"
    if metrics.is_file():
        with metrics.open(newline="", encoding="utf-8") as stream:
            rows = [
                {key.strip(): _number(value) for key, value in row.items() if key} for row in csv.DictReader(stream)
            ]
    else:
        rows = [dict(row) for row in results.get("history") or ()]
    return results, [row for row in rows if isinstance(row.get("epoch"), int | float)]


def summary_table(results: Results, run_dir: Path | None = None) -> str:
    """The last screen of a run: the table, the verdict, what to watch out for, and what to do next. Plain ASCII.

    Args:
        results: what is in results.json.
        run_dir: the run folder as the user would type it; default: paths relative to it.
    """
    lines = []
    table = comparison(results)
    if table is not None:
        notes = [note(results, brief=True), latency_note(results, spread=False)]
        lines += [*plain_table(table), *filter(None, notes), ""]
    lines.append(f"{verdict(results)}.")
    lines += [f"warning: {finding}" for finding in findings(results)]
    labels = ("Use it:", "", "")
    lines += [f"{label:9}{command}" for label, command in zip(labels, commands(results, run_dir or Path()))]
    return plain("\n".join(lines))


def plain(text: str) -> str:
    """Text for terminals of any encoding."""
    return text.translate(str.maketrans(ASCII))


def plain_table(table: Table) -> list[str]:
    """A table for the terminal; without the spread of the latency."""
    return text_table([table.columns, *([cell.split(" [")[0] for cell in row] for row in table.rows)], numbers=True)


def _number(value: str | None) -> Any:
    """A cell of metrics.csv: a number where it is one, None where it is empty."""
    try:
        number = float(value or "")
    except ValueError:
        return value.strip() if value and value.strip() else None
    return int(number) if number.is_integer() else number
