"""results.json → report.md, report.html and plots/: a pure function of what a run has measured."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.files import write_files
from distill.report import advice, details, facts
from distill.report.plain import plain, plain_table, report_line
from distill.results.curve import CurveResults
from distill.results.results import Results


def write(run_dir: Path) -> None:
    """Write report.md, report.html and plots/*.png into a run folder, each whole or not at all.

    Nothing but its results.json, metrics.csv, curve.json and pictures is read, so a report can be made again at any time.

    Raises:
        DistillError: there is no results.json, or it is not one of this version.
        RunError: the disk is full, or not writable.
    """
    from distill.report import pictures, training
    from distill.report.curve import curve_plots, trained_by
    from distill.report.plots import run_plots
    from distill.report.render import report_files

    results, curve = Results.read(run_dir), CurveResults.read(run_dir)
    lines = advice.advice(results, run_dir, curve)
    plots = run_plots(results, history(run_dir, results))
    if lines and curve is not None:
        plots |= curve_plots(curve, trained_by(run_dir, curve))
    files = report_files(
        "report",
        plots,
        results=results,
        facts=facts,
        details=details,
        training=training,
        pictures=pictures,
        advice=lines,
        run_dir=run_dir,
    )
    write_files(run_dir, files)


def history(run_dir: Path, results: Results) -> list[dict[str, Any]]:
    """A row for each epoch of training: of metrics.csv, or of results.json if that file is missing.

    Raises:
        DistillError: metrics.csv is damaged.
    """
    file = run_dir / "metrics.csv"
    rows = [dict(row) for row in results.history]
    if file.is_file():
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                rows = [{key.strip(): _number(row[key]) for key in row if key} for row in csv.DictReader(stream)]
        except (OSError, ValueError, csv.Error) as error:
            raise DistillError(f"{file} is damaged ({error}): remove it, and results.json's rows are shown") from None
    return [row for row in rows if isinstance(row.get("epoch"), int | float)]


def _number(cell: str | None) -> int | float | str | None:
    """A cell of metrics.csv: a number if it is one, None if it is empty."""
    text = (cell or "").strip()
    try:
        number = float(text)
    except ValueError:
        return text or None
    return int(number) if number.is_integer() else number


def summary_table(results: Results, run_dir: Path | None = None) -> str:
    """The last screen of a run: the table, the verdict, what to watch out for, and what to do next. Plain ASCII.

    `run_dir` is the run folder as the user would type it; by default paths are relative to it, and the report is not named.
    """
    notes = [facts.agreement_note(results, brief=True), facts.latency_note(results, spread=False)]
    lines = [*plain_table(facts.comparison(results)), *filter(None, notes), "", f"{facts.verdict(results)}."]
    lines += [f"warning: {finding}" for finding in facts.findings(results)]
    curve = CurveResults.read(run_dir) if run_dir is not None else None
    lines += [f"to do: {line}" for line in advice.advice(results, run_dir or Path(), curve)]
    if run_dir is not None:
        lines.append(report_line(run_dir / "report.html"))
    commands = details.commands(results, run_dir or Path())
    lines += [f"{'' if number else 'Use it:':9}{command}" for number, command in enumerate(commands)]
    return plain("\n".join(lines))
