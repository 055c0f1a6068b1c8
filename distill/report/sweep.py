"""sweep.json → sweep.md, sweep.html and plots/: accuracy against cost, and which runs no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.machine.files import write_files
from distill.report import canvas
from distill.report import sweep_facts as facts
from distill.report.canvas import COLOURS, HALF, Plot, draw, new_axes
from distill.report.plain import summary_of
from distill.report.sweep_facts import Choice, Cost
from distill.results.sweep import SweepResults

MOST_LABELS = 12  # beyond these only the front is named


def summary(sweep: SweepResults, folder: Path) -> str:
    """The last screen. Plain ASCII."""
    table = facts.table(sweep, brief=True)
    notes, sentences = facts.notes(sweep) if table else [], (facts.gain(sweep), facts.judgement(sweep))
    return summary_of(table, notes, sentences, facts.findings(sweep), folder / "sweep.html")


def write(folder: Path) -> None:
    """Write sweep.md, sweep.html and plots/*.png from the sweep.json in the same folder.

    Raises:
        DistillError: there is no sweep.json, or it is not one of ours.
        RunError: the disk is full, or not writable.
    """
    from distill.report.render import report_files

    sweep = SweepResults.read(folder)
    plots = sweep_plots(sweep)
    write_files(folder, report_files("sweep", plots, sweep=sweep, facts=facts, folder=folder))


def sweep_plots(sweep: SweepResults) -> dict[str, Plot]:
    """Every plot there is data for, by file name."""
    made, label = facts.choices(sweep), facts.judged_by(sweep)
    teachers = [run for run in sweep.points if run.teacher is not None]
    by_flops = [(run.teacher_gflops, run.teacher or 0.0) for run in teachers]
    by_latency = [(run.teacher_latency_ms, run.teacher or 0.0) for run in teachers]
    return draw(
        {
            "pareto-gflops": lambda: _pareto(made, facts.COSTS["GFLOPs"], "GFLOPs", label, by_flops),
            "pareto-latency": lambda: _pareto(made, facts.COSTS["latency"], "latency (ms)", label, by_latency),
        }
    )


def _pareto(
    made: Sequence[Choice], cost: Cost, axis: str, label: str, teachers: Sequence[tuple[float, float]]
) -> canvas.Drawing | None:
    """Every choice by its number, and a line through those that no other one beats; the teacher as a square."""
    points = [(choice, cost(choice), choice.score) for choice in made if choice.score is not None]
    if not points:
        return None
    best = facts.front(made, cost)
    figure, axes = new_axes(HALF, axis, label)
    for x, y in teachers[:1]:
        axes.scatter([x], [y], s=36, marker="s", color=COLOURS["teacher"])
        axes.annotate(
            "teacher", (x, y), (-6, 0), textcoords="offset points", color=COLOURS["teacher"], ha="right", va="center"
        )
    line = sorted((x, y) for choice, x, y in points if choice in best)
    axes.plot([x for x, _ in line], [y for _, y in line], color=COLOURS["student"], linewidth=1.4, zorder=1)
    for choice, x, y in points:
        on_front, colour = choice in best, COLOURS["student"] if choice in best else COLOURS["muted"]
        axes.scatter([x], [y], s=38, facecolors=colour if on_front else "none", edgecolors=colour, zorder=3)
        if on_front or len(points) <= MOST_LABELS:
            axes.annotate(str(choice.number), (x, y), (5, -4), textcoords="offset points", color=colour, va="top")
    low, high = min(y for *_, y in points), max([y for *_, y in points] + [y for _, y in teachers])
    pad = max(0.01, 0.15 * (high - low))
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(0, 1.15 * max([x for _, x, _ in points] + [x for x, _ in teachers]))
    return figure, f"{label} over {axis}; on the Pareto front: " + ", ".join(
        f"{choice.name} {choice.score:.3f} at {x:.2f}" for choice, x, _ in points if choice in best
    )
