"""compare.json → compare.md, compare.html and plots/: which way of training ends higher, and by more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from distill.machine.files import write_files
from distill.report import canvas
from distill.report import compare_facts as facts
from distill.report.canvas import COLOURS, HALF, Plot, draw, label_lines, new_axes, series_colour, whole_epochs
from distill.report.compare_facts import Standing
from distill.report.format import value_text
from distill.report.plain import summary_of
from distill.results.comparison import Arm, ComparisonResults


def summary(results: ComparisonResults, folder: Path) -> str:
    """The last screen. Plain ASCII."""
    sentences = facts.gain(results), facts.judgement(results)
    table, findings = facts.comparison(results), facts.findings(results)
    return summary_of(table, facts.notes(results), sentences, findings, folder / "compare.html")


def write(folder: Path) -> None:
    """Write compare.md, compare.html and plots/*.png from the compare.json in the same folder.

    Raises:
        DistillError: there is no compare.json, or it is not one of ours.
        RunError: the disk is full, or not writable.
    """
    from distill.report.render import report_files

    results = ComparisonResults.read(folder)
    plots = comparison_plots(facts.standings(results), results.measure)
    networks = {arm.name: facts.network_text(arm) for arm in facts.standings(results)}
    arms = [(arm.name, " · ".join(filter(None, [arm_text(arm), networks.get(arm.name)]))) for arm in results.arms]
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


def comparison_plots(arms: Sequence[Standing], measure: str = "mAP50-95") -> dict[str, Plot]:
    """Every plot there is data for, by file name."""
    return draw({"compare": lambda: _ends(arms, measure), "curves": lambda: _curves(arms, measure)})


def _ends(arms: Sequence[Standing], measure: str) -> canvas.Drawing | None:
    """A dot for each seed and a bar for their mean; a ring where training started."""
    if not arms:
        return None
    figure, axes = new_axes(
        (HALF[0], 0.9 + 0.42 * max(len(arms), 3)), f"{measure} (dot: a seed, bar: mean, ring: start)", ""
    )
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    for place, arm in enumerate(arms):
        colour, places = series_colour(place), [place] * len(arm.runs)
        starts = [run.start for run in arm.runs]
        axes.scatter(starts, places, s=26, facecolors="none", edgecolors=COLOURS["muted"])
        axes.scatter(arm.values, places, s=26, color=colour, alpha=0.75, linewidths=0, zorder=3)
        axes.vlines(mean(arm.values), place - 0.3, place + 0.3, color=colour, linewidth=2.4, zorder=2)
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)  # the first arm above
    return figure, f"{measure} of each arm: {', '.join(f'{arm.name} {arm.score}' for arm in arms)}"


def _curves(arms: Sequence[Standing], measure: str) -> canvas.Drawing | None:
    """Mean over seeds of mAP after each epoch; epoch 0 is the start."""
    curves = [(arm.name, series_colour(place), _curve(arm)) for place, arm in enumerate(arms)]
    curves = [curve for curve in curves if len(curve[2]) > 1]
    if not curves:
        return None
    figure, axes = new_axes(HALF, "epoch", f"{measure}, mean over seeds")
    for _, colour, curve in curves:
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=1.6)
    whole_epochs(axes, [epoch for *_, curve in curves for epoch in curve])
    ends = [(name, list(curve.values())[-1], colour) for name, colour, curve in curves]
    label_lines(axes, ends)
    return figure, f"{measure} per epoch: " + ", ".join(f"{name} to {end:.3f}" for name, end, _ in ends)


def _curve(arm: Standing) -> dict[int, float]:
    """Epoch -> mean over seeds, of the epochs that were measured in all of them."""
    columns = enumerate(zip(*([run.start, *run.history] for run in arm.runs), strict=False))
    return {epoch: mean(column) for epoch, column in columns if all(value is not None for value in column)}
