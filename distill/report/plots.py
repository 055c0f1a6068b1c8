"""The plots of a run, drawn with matplotlib once and saved twice: PNG for files, SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.report import canvas, details, facts
from distill.report.canvas import COLOURS, HALF, Plot, draw, hover, label_lines, new_axes, series_colour, whole_epochs
from distill.report.confusion import confusion_plots
from distill.report.quality_plots import quality_plots
from distill.results.figures import epoch_score
from distill.results.results import Results
from distill.results.steps import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    History = Sequence[Mapping[str, Any]]

NO_LOSS = (
    "epoch",
    "map50_95",
    "map50",
    "beside_map50_95",
    "beside_map50",
    "top1",
    "top5",
    "lr",
    "precision",
    "recall",
    "seconds",
    "time",
    "step",
    "steps",
)
NAME = 14  # characters of a teacher's name beside its mark
BROKEN = 5.0  # a layer whose error is five times the variance of its output


def run_plots(results: Results, history: History) -> dict[str, Plot]:
    """Every plot there is data for, by file name."""
    return draw(
        {
            "accuracy": lambda: _accuracy(results),
            "training": lambda: _training(results, history),
            "losses": lambda: _losses(history),
            **quality_plots(results),
            **confusion_plots(results),
            "channels": lambda: _channels(results.plan.groups),
            "repair": lambda: _repair(details.errors(results.repair.layers) if results.repair else ()),
        }
    )


def _accuracy(results: Results) -> canvas.Drawing | None:
    """Quality over FLOPs, with the way down and up again: mAP, or without labels agreement with the teacher."""
    key, label = "score", results.measure
    if facts.by_agreement(results):
        key, label = "agreed", "agreement 50-95" if results.student.agreement is None else "agreement"
    networks = {results.titles[name]: (model, name) for name, model in facts.shown_models(results).items()}
    points = [
        (name, model.gflops, score)
        for name, (model, _) in networks.items()
        if (score := getattr(model, key)) is not None
    ]
    colours = {name: COLOURS[role] for name, (_, role) in networks.items()}
    if len(points) < 2:
        return None
    figure, axes = new_axes(HALF, "GFLOPs", label)
    axes.plot([x for _, x, _ in points], [y for _, _, y in points], color=COLOURS["line"], linewidth=1.2, zorder=1)
    others = [
        (other.name, other.gflops, score) for other in results.teachers if (score := getattr(other, key)) is not None
    ]
    colours |= {name: COLOURS["muted"] for name, *_ in others}
    points += others
    low, high, right = min(y for *_, y in points), max(y for *_, y in points), max(x for _, x, _ in points)
    pad = max(0.01, 0.12 * (high - low))
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(0, 1.3 * right)
    # Two columns of labels, beside the cut networks and beside the whole ones: only those of one column can collide.
    gap = 0.085 * (high - low + 2 * pad)
    for column in ([p for p in points if p[1] < 0.75 * right], [p for p in points if p[1] >= 0.75 * right]):
        for (name, x, y), height in zip(column, canvas.spread([y for *_, y in column], gap), strict=True):
            colour = colours[name]
            axes.scatter([x], [y], s=34, color=colour, zorder=3)
            axes.annotate(f"{name} {y:.3f}", (x, y), (x + 0.0455 * right, height), color=colour, va="center")
    return figure, f"{label} over FLOPs: " + ", ".join(f"{name} {y:.3f} at {x:.2f}" for name, x, y in points)


def _training(results: Results, history: History) -> canvas.Drawing | None:
    """The mAP of each epoch between the lines to beat: the teachers and the repaired network."""
    curve = [(row["epoch"], score) for row in history if (score := epoch_score(row)) is not None]
    if not curve:
        return None
    figure, axes = new_axes(HALF, "epoch", results.measure)
    epochs, values = [epoch for epoch, _ in curve], [value for _, value in curve]
    shown = [(name, model.score) for name, model in results.models.items() if name in ("teacher", "repaired")]
    lines = [(results.titles[name], level, COLOURS[name]) for name, level in shown if level is not None]
    lines += [
        (canvas.shortened(each.name, NAME), each.score, COLOURS["muted"])
        for each in results.teachers
        if each.score is not None
    ]
    for _, level, colour in lines:
        axes.axhline(level, color=colour, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    ink, size = COLOURS["student"], 3 if len(curve) > 20 else 4
    axes.plot(epochs, values, color=ink, linewidth=1.8, marker="o", markersize=size)
    epoch, best = max(curve, key=lambda point: point[1])
    axes.scatter([epoch], [best], s=90, facecolors="none", edgecolors=ink, linewidths=1.2)
    whole_epochs(axes, epochs)
    labels = [*lines, ("best epoch", best, ink)]
    label_lines(axes, [(f"{name} {level:.3f}", level, colour) for name, level, colour in labels])
    alt = f"{results.measure} per epoch: from {values[0]:.3f} to {values[-1]:.3f}, best {best:.3f} in epoch {epoch}"
    return figure, alt


def _losses(history: History) -> canvas.Drawing | None:
    """Each loss as part of its first value: their scales differ too much for one axis."""
    names = [name for name in dict.fromkeys(key for row in history for key in row) if name not in NO_LOSS]
    curves = {name: [(row["epoch"], row[name]) for row in history if _is_finite(row.get(name))] for name in names}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1 and curve[0][1] > 0}
    if not curves:
        return None
    figure, axes = new_axes(HALF, "epoch", "loss, first epoch = 1")
    ends = []
    for number, (name, curve) in enumerate(curves.items()):
        relative = [value / curve[0][1] for _, value in curve]
        ends.append((name, relative[-1], series_colour(number)))
        axes.plot([epoch for epoch, _ in curve], relative, color=series_colour(number), linewidth=1.6)
    whole_epochs(axes, [row["epoch"] for row in history])
    label_lines(axes, ends)
    return figure, "Losses per epoch: " + ", ".join(f"{name} to {end:.2f}" for name, end, _ in ends)


def _channels(groups: Sequence[Group]) -> canvas.Drawing | None:
    """Width of every layer, before in grey and what was kept in colour."""
    if not groups:
        return None
    figure, axes = canvas.layer_axes([group.name for group in groups], "channels")
    places = range(len(groups))
    before, after = [group.before for group in groups], [group.after for group in groups]
    axes.bar(places, before, width=0.8, color=COLOURS["bar"], label="cut")
    axes.bar(places, after, width=0.8, color=COLOURS["student"], label="kept")
    canvas.legend(axes)
    axes.set_ylim(0, 1.15 * max(before))
    _say_layers(axes, [f"{group.name}: {group.before} → {group.after} channels" for group in groups])
    return figure, f"Channels per layer: {sum(after)} of {sum(before)} kept in {len(groups)} groups"


def _repair(layers: Sequence[details.Error]) -> canvas.Drawing | None:
    """Error of every layer on images it was not fitted to, before and after."""
    if not layers:
        return None
    figure, axes = canvas.layer_axes([layer.name for layer in layers], "relative error")
    places = range(len(layers))
    before, after = [layer.before for layer in layers], [layer.after for layer in layers]
    axes.vlines(places, after, before, color=COLOURS["bar"], linewidth=1.4, zorder=1)
    axes.scatter(places, before, s=16, color=COLOURS["pruned"], label="after the cut", zorder=2)
    axes.scatter(places, after, s=16, color=COLOURS["repaired"], label="after repair", zorder=3)
    canvas.legend(axes)
    if max(*before, *after) > BROKEN:  # it would press all other layers onto the axis
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 1.2 * max(*before, *after))
    _say_layers(axes, [f"{layer.name}: {layer.before:.3f} → {layer.after:.3f}" for layer in layers])
    repaired = sum(layer.changed for layer in layers)
    return figure, f"Error of {len(layers)} layers before and after repair; {repaired} were mended"


def _say_layers(axes: Axes, texts: Sequence[str]) -> None:
    """Let the whole height above each layer say what it is: a bar of 8 channels is hard to hit."""
    for place, text in enumerate(texts):
        hover(axes.axvspan(place - 0.5, place + 0.5, alpha=0, color=COLOURS["paper"]), text)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
