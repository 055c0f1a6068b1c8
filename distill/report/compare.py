"""compare.json → compare.md, compare.html and plots/: which way of training ends higher, and by more than noise."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.report import compare_facts as facts
from distill.report import plain, plain_table, write_files
from distill.report.format import value_text
from distill.report.render import report_files
from distill.results.comparison import Arm, ComparisonResults

WIDTH = 100  # columns of the last screen, about those of its table


def summary(results: ComparisonResults, folder: Path) -> str:
    """The last screen. Plain ASCII."""
    table = facts.comparison(results)
    lines = [*plain_table(table), ""] if table else []
    lines += [line for note in facts.notes(results) for line in textwrap.wrap(note, WIDTH)]
    lines += ["", f"{'. '.join(filter(None, (facts.gain(results), facts.judgement(results))))}."]
    lines += [f"warning: {finding}" for finding in facts.findings(results)]
    lines.append(f"{folder / 'compare.html'}")
    return plain("\n".join(lines))


def write(folder: Path) -> None:
    """Write compare.md, compare.html and plots/*.png from the compare.json in the same folder.

    Raises:
        DistillError: there is no compare.json, or it is not one of ours.
        RunError: the disk is full, or not writable.
    """
    from distill.report.compare_plots import comparison_plots

    results = ComparisonResults.read(folder)
    plots = comparison_plots(facts.standings(results))
    arms = [(arm.name, arm_text(arm)) for arm in results.arms]
    write_files(folder, report_files("compare", plots, results=results, facts=facts, arms=arms, folder=folder))


def arm_text(arm: Arm) -> str:
    """An arm in words, and the keys that make it, which are all that it differs in."""
    if not isinstance(arm.overrides, Mapping):
        return arm.help  # the user's own: its help is what was typed
    return " ".join([arm.help, *(f"{key}={_typed(value)}" for key, value in arm.overrides.items())])


def _typed(value: Any) -> str:
    """A value as on the command line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_typed(inner)}' for key, inner in value.items())}}}"
    return "null" if value is None else value_text(value)
