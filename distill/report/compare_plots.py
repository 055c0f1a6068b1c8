"""The figures of a comparison: where each run ended, and how it got there."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from distill.report.canvas import COLOURS, STYLE, new_axes, png, spread, svg, whole_epochs
from distill.report.compare_facts import Standing, with_spread
from distill.report.plots import HALF, SERIES, Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(found: Sequence[Standing]) -> dict[str, Plot]:
    """Every figure there is data for, by file name."""
    import matplotlib

    plots = {}
    with matplotlib.rc_context(STYLE):
        for name, drawn in {"compare": _ends(found), "curves": _curves(found)}.items():
            if drawn is not None:
                plots[name] = Plot(png(drawn[0]), svg(drawn[0], name), drawn[1])
    return plots


def _ends(found: Sequence[Standing]) -> tuple[Figure, str] | None:
    """A dot for each seed and a bar for their mean; a ring where training started."""
    if not found:
        return None
    figure, axes = new_axes((HALF[0], 0.9 + 0.42 * max(len(found), 3)), "mAP50-95", "")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    for place, standing in enumerate(found):
        colour, values = _colour(place), standing.values()
        axes.scatter(
            standing.values("start"), [place] * len(values), s=26, facecolors="none", edgecolors=COLOURS["muted"]
        )
        axes.scatter(values, [place] * len(values), s=26, color=colour, alpha=0.75, linewidths=0, zorder=3)
        axes.vlines(mean(values), place - 0.3, place + 0.3, color=colour, linewidth=2.4, zorder=2)
    axes.set_yticks(range(len(found)), [standing.name for standing in found])
    axes.set_ylim(len(found) - 0.4, -0.6)  # the first arm above
    axes.set_xlabel("mAP50-95 (dot: a seed, bar: mean, ring: start)")
    ends = (f"{each.name} {with_spread(f'{mean(each.values()):.3f}', each.values())}" for each in found)
    return figure, f"mAP50-95 of each arm: {', '.join(ends)}"


def _curves(found: Sequence[Standing]) -> tuple[Figure, str] | None:
    """mAP after each epoch, the mean over seeds; epoch 0 is the start."""
    curves = {standing.name: curve for standing in found if len(curve := _curve(standing)) > 1}
    if not curves:
        return None
    figure, axes = new_axes(HALF, "epoch", "mAP50-95, mean over seeds")
    places = [place for place, standing in enumerate(found) if standing.name in curves]
    for place, curve in zip(places, curves.values()):
        axes.plot(list(curve), list(curve.values()), color=_colour(place), linewidth=1.6)
    whole_epochs(axes, [epoch for curve in curves.values() for epoch in curve])
    low, high = axes.get_ylim()
    ends = [list(curve.values())[-1] for curve in curves.values()]
    for name, place, height in zip(curves, places, spread(ends, 0.075 * (high - low))):
        axes.text(1.02, height, name[:22], transform=axes.get_yaxis_transform(), color=_colour(place), va="center")
    return figure, "mAP50-95 per epoch: " + ", ".join(f"{name} to {end:.3f}" for name, end in zip(curves, ends))


def _curve(standing: Standing) -> dict[int, float]:
    """Epoch -> mean over seeds, of the epochs that were measured in all of them."""
    curves = [[run["start"], *run["history"]] for run in standing.runs]
    columns = enumerate(zip(*curves, strict=False))
    return {epoch: mean(column) for epoch, column in columns if all(value is not None for value in column)}


def _colour(place: int) -> str:
    return COLOURS[SERIES[place % len(SERIES)]]
