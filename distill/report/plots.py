"""The report's figures, drawn with matplotlib once and saved twice: PNG for files, SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.report.agreement import measured
from distill.report.canvas import COLOURS, STYLE, colour, name_layers, new_axes, png, spread, svg, whole_epochs
from distill.report.facts import Results, repaired_layers, stage_map, stages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = ("student", "repaired", "other", "pruned", "more", "teacher", "muted")
HISTORY_EXTRAS = ("epoch", "map50_95", "map50", "lr", "precision", "recall", "seconds", "time", "step", "steps")

BLOWN_UP = 5.0  # an error of five times the variance of what it is an error of
HALF = (5.2, 3.1)  # inches; two of these stand side by side on a wide page
FULL = (9.6, 2.9)


@dataclass(frozen=True)
class Plot:
    """One figure: `png` for plots/, `svg` for the page, `alt` for who sees neither."""

    png: bytes
    svg: str
    alt: str


def draw(results: Results, history: Sequence[Mapping[str, Any]]) -> dict[str, Plot]:
    """Every figure there is data for, by file name. Nothing of matplotlib's global state is touched for good."""
    import matplotlib

    plots = {}
    with matplotlib.rc_context(STYLE):
        for name, (figure, alt) in _figures(results, history).items():
            plots[name] = Plot(png(figure), svg(figure, name), alt)
    return plots


def _figures(results: Results, history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Figure, str]]:
    figures = {
        "accuracy": _accuracy(results),
        "training": _training(results, history),
        "losses": _losses(history),
        "channels": _channels((results.get("plan") or {}).get("groups") or ()),
        "repair": _repair(repaired_layers(results)),
    }
    return {name: drawn for name, drawn in figures.items() if drawn is not None}


def _accuracy(results: Results) -> tuple[Figure, str] | None:
    """mAP over FLOPs, with the way down and up again; agreement with the teacher where there are no labels."""
    key, label = ("agreement50_95", "agreement 50-95") if measured(results) else ("map50_95", "mAP50-95")
    points = [
        (name, model["gflops"], model[key])
        for name, model in stages(results).items()
        if model.get("gflops") and model.get(key) is not None
    ]
    if len(points) < 2:
        return None
    figure, axes = new_axes(HALF, "GFLOPs", label)
    axes.plot([x for _, x, _ in points], [y for _, _, y in points], color=COLOURS["line"], linewidth=1.2, zorder=1)
    low, high = min(y for *_, y in points), max(y for *_, y in points)
    pad = max(0.01, 0.12 * (high - low))
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(0, 1.3 * max(x for _, x, _ in points))
    # Two columns of labels, beside the cut networks and beside the whole ones: only those of one column can collide.
    gap, right = 0.085 * (high - low + 2 * pad), 0.75 * max(x for _, x, _ in points)
    for column in ([p for p in points if p[1] < right], [p for p in points if p[1] >= right]):
        for (name, x, y), height in zip(column, spread([y for *_, y in column], gap)):
            axes.scatter([x], [y], s=34, color=colour(name), zorder=3)
            place = (x + 0.035 * axes.get_xlim()[1], height)
            axes.annotate(f"{name} {y:.3f}", (x, y), place, color=colour(name), va="center")
    return figure, f"{label} over FLOPs: " + ", ".join(f"{name} {y:.3f} at {x:.2f}" for name, x, y in points)


def _training(results: Results, history: Sequence[Mapping[str, Any]]) -> tuple[Figure, str] | None:
    """mAP of each epoch between the lines to beat: the teacher and the repaired network."""
    curve = [(row["epoch"], row["map50_95"]) for row in history if row.get("map50_95") is not None]
    if not curve:
        return None
    figure, axes = new_axes(HALF, "epoch", "mAP50-95")
    epochs, values = [epoch for epoch, _ in curve], [value for _, value in curve]
    lines = [(name, level) for name in ("teacher", "repaired") if (level := stage_map(results, name)) is not None]
    for name, level in lines:
        axes.axhline(level, color=colour(name), linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(
        epochs, values, color=colour("student"), linewidth=1.8, marker="o", markersize=3 if len(curve) > 20 else 4
    )
    best = max(curve, key=lambda point: point[1])
    axes.scatter([best[0]], [best[1]], s=90, facecolors="none", edgecolors=colour("student"), linewidths=1.2)
    whole_epochs(axes, epochs)
    low, high = axes.get_ylim()
    labels = [*((name, level, colour(name)) for name, level in lines), ("best epoch", best[1], colour("student"))]
    for (name, level, ink), height in zip(labels, spread([level for _, level, _ in labels], 0.075 * (high - low))):
        axes.text(1.02, height, f"{name} {level:.3f}", transform=axes.get_yaxis_transform(), color=ink, va="center")
    return (
        figure,
        f"mAP50-95 per epoch: from {values[0]:.3f} to {values[-1]:.3f}, best {best[1]:.3f} in epoch {best[0]}",
    )


def _losses(history: Sequence[Mapping[str, Any]]) -> tuple[Figure, str] | None:
    """Each loss as part of its first value: their scales differ too much for one axis."""
    names = [name for name in dict.fromkeys(key for row in history for key in row) if name not in HISTORY_EXTRAS]
    curves = {name: [(row["epoch"], row[name]) for row in history if _number(row.get(name))] for name in names}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1 and curve[0][1] > 0}
    if not curves:
        return None
    figure, axes = new_axes(HALF, "epoch", "loss, first epoch = 1")
    ends = []
    for number, (name, curve) in enumerate(curves.items()):
        relative = [value / curve[0][1] for _, value in curve]
        ends.append(relative[-1])
        axes.plot([x for x, _ in curve], relative, color=COLOURS[SERIES[number % len(SERIES)]], linewidth=1.6)
    whole_epochs(axes, [row["epoch"] for row in history])
    low, high = axes.get_ylim()
    for number, (name, height) in enumerate(zip(curves, spread(ends, 0.075 * (high - low)))):
        colour = COLOURS[SERIES[number % len(SERIES)]]
        axes.text(1.02, height, name[:22], transform=axes.get_yaxis_transform(), color=colour, va="center")
    return figure, "Losses per epoch: " + ", ".join(f"{name} to {end:.2f}" for name, end in zip(curves, ends))


def _channels(groups: Sequence[Mapping[str, Any]]) -> tuple[Figure, str] | None:
    """Width of every layer, before in grey and what was kept in colour."""
    if not groups:
        return None
    figure, axes = new_axes(FULL, "", "channels")
    places = range(len(groups))
    before, after = [group["before"] for group in groups], [group["after"] for group in groups]
    axes.bar(places, before, width=0.8, color=COLOURS["bar"], label="cut")
    axes.bar(places, after, width=0.8, color=COLOURS["student"], label="kept")
    name_layers(axes, [str(group["name"]) for group in groups])
    axes.legend(frameon=False, loc="upper left", ncols=2, labelcolor=COLOURS["muted"], borderaxespad=0)
    axes.set_ylim(0, 1.15 * max(before))
    return figure, f"Channels per layer: {sum(after)} of {sum(before)} kept in {len(groups)} groups"


def _repair(layers: Sequence[Mapping[str, Any]]) -> tuple[Figure, str] | None:
    """Error of every layer on images it was not fitted to, before and after."""
    if not layers:
        return None
    figure, axes = new_axes(FULL, "", "relative error")
    places = range(len(layers))
    before, after = [layer["error_before"] for layer in layers], [layer["error_after"] for layer in layers]
    axes.vlines(places, after, before, color=COLOURS["bar"], linewidth=1.4, zorder=1)
    axes.scatter(places, before, s=16, color=COLOURS["pruned"], label="after the cut", zorder=2)
    axes.scatter(places, after, s=16, color=COLOURS["repaired"], label="after repair", zorder=3)
    name_layers(axes, [str(layer["name"]) for layer in layers])
    axes.legend(
        frameon=False, loc="upper left", ncols=2, labelcolor=COLOURS["muted"], borderaxespad=0, handletextpad=0.2
    )
    if max(*before, *after) > BLOWN_UP:  # one layer that broke would press all others onto the axis
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 1.2 * max(*before, *after))
    mended = sum(layer.get("changed", True) for layer in layers)
    return figure, f"Error of {len(layers)} layers before and after repair; {mended} were mended"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
