"""Plots of how good each network is: precision over recall, and what each class has lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distill.report import canvas, facts
from distill.report.canvas import COLOURS, HALF, hover, new_axes, series_colour
from distill.report.format import signed
from distill.results.figures import ModelResult
from distill.results.quality import Curves
from distill.results.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSES = 4  # whose curves are shown: more cover each other
BARS = 24  # classes in the bar plot; of more, the ends


def quality_plots(results: Results) -> dict[str, Callable[[], canvas.Drawing | None]]:
    """What draws each plot, by its file name."""
    return {
        "precision": lambda: _mean_precision(results),
        "precision-classes": lambda: _class_precision(results),
        "classes": lambda: _class_changes(results),
    }


def class_scores(results: Results) -> tuple[dict[str, float], dict[str, float]]:
    """AP50-95 of each class before and after; without labels agreement, which is 1 before."""
    before, after = results.teacher.per_class, results.student.per_class
    if before is None or after is None:
        shares = results.student.agreement_per_class or {}
        return dict.fromkeys(shares, 1.0), shares
    return before, {name: after.get(name, 0.0) for name in before}


def _pairs(results: Results) -> dict[str, tuple[ModelResult, Curves]]:
    """Teacher, repaired network and student, as far as they have curves."""
    names = dict.fromkeys(name for name in ("teacher", "repaired", results.chosen) if name in results.models)
    return {
        name: (results.models[name], curves)
        for name in names
        if (curves := results.models[name].curves) is not None and curves.precision
    }


def _recall(values: Sequence[float]) -> list[float]:
    return [place / (len(values) - 1) for place in range(len(values))]


def _mean_precision(results: Results) -> canvas.Drawing | None:
    """Precision over recall of each network, mean over the classes."""
    pairs = _pairs(results)
    if len(pairs) < 2:
        return None
    figure, axes = _precision_axes("precision, mean over classes")
    for name, (_, curves) in pairs.items():
        axes.plot(
            _recall(curves.precision), curves.precision, color=COLOURS[name], linewidth=1.8, label=results.titles[name]
        )
    _legend(axes)
    means = ", ".join(f"{results.titles[name]} {_mean(curves.precision):.3f}" for name, (_, curves) in pairs.items())
    return figure, f"Precision over recall at an IoU of 0.5, mean over classes; area below: {means}"


def _class_precision(results: Results) -> canvas.Drawing | None:
    """The same of the classes that changed most: the teacher dashed, the student solid."""
    pairs, (before, after) = _pairs(results), class_scores(results)
    if not {"teacher", results.chosen} <= set(pairs) or results.chosen == "teacher":
        return None
    teacher, student = pairs["teacher"][1].precision_of, pairs[results.chosen][1].precision_of
    both = [name for name in teacher if name in student]
    if len(both) < 2:  # the mean shows the only one
        return None
    shown = sorted(both, key=lambda name: after.get(name, 0.0) - before.get(name, 0.0))[:CLASSES]
    figure, axes = _precision_axes("precision")
    for place, name in enumerate(shown):
        style, colour = (0, (4, 2)), series_colour(place)
        axes.plot(_recall(teacher[name]), teacher[name], color=colour, linewidth=1.1, linestyle=style)
        axes.plot(_recall(student[name]), student[name], color=colour, linewidth=1.8, label=canvas.shortened(name, 22))
    first = results.titles["teacher"]
    axes.plot([], [], color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (4, 2)), label=f"dashed: {first}")
    _legend(axes)
    return figure, f"Precision over recall of {', '.join(shown)}: the {first} dashed, the {results.chosen} solid"


def _precision_axes(ylabel: str) -> tuple[Figure, Axes]:
    figure, axes = new_axes(HALF, "recall (IoU 0.5)", ylabel)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    return figure, axes


def _legend(axes: Axes) -> None:
    """In the corner that curves of precision leave empty."""
    axes.legend(frameon=False, loc="lower left", labelcolor=COLOURS["ink"], handlelength=1.6)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _class_changes(results: Results) -> canvas.Drawing | None:
    """A bar for each class, the greatest loss above; of many classes the two ends."""
    before, after = class_scores(results)
    changes = {name: after[name] - before[name] for name in sorted(before, key=lambda name: after[name] - before[name])}
    if len(changes) < 2 or results.chosen == "teacher" or all(signed(change) == "0.000" for change in changes.values()):
        return None
    names = list(changes)
    rows = [(name, canvas.shortened(name, 22)) for name in names]
    if len(rows) > BARS:
        head, tail = 2 * BARS // 3, BARS - 2 * BARS // 3
        rows = [*rows[:head], ("", f"… {len(rows) - BARS} classes …"), *rows[-tail:]]
    figure, axes = new_axes((HALF[0], 0.75 + 0.21 * max(len(rows), 3)), _change_label(results), "")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    low, high = min(0.0, changes[names[0]]), max(0.0, changes[names[-1]])
    room = 0.16 * (high - low)
    for place, (name, _) in enumerate(rows):
        if not name:
            continue
        change = changes[name]
        side, align = (-1, "right") if change < 0 else (1, "left")
        axes.barh(place, change, height=0.66, color=COLOURS["pruned" if change < 0 else "good"])
        axes.text(
            change + side * room / 8, place, signed(change), ha=align, va="center", size=8, color=COLOURS["muted"]
        )
        place_of_name = axes.axhspan(place - 0.5, place + 0.5, alpha=0, color=COLOURS["paper"])
        hover(place_of_name, f"{name}: {before[name]:.3f} → {after[name]:.3f} ({signed(change)})")
    axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlim(low - room if low else -room / 8, high + room)
    axes.set_yticks(range(len(rows)), [label for _, label in rows])
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    said = ", ".join(f"{name} {signed(changes[name])}" for name in names[:5])
    return figure, f"{_change_label(results)}, the greatest loss first: {said}"


def _change_label(results: Results) -> str:
    return "change of agreement 50-95" if facts.by_agreement(results) else "change of AP50-95"
