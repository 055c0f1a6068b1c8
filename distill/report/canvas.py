"""Axes, labels and files in one style: what every figure of the report shares."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn as they are in the PNG; in the SVG each becomes the CSS variable of the same name, so that it follows the theme.
COLOURS = {
    "ink": "#1c2126",
    "muted": "#6a737c",
    "line": "#dde1e5",
    "bar": "#c9cfd6",
    "teacher": "#5b6670",
    "pruned": "#c2554b",
    "repaired": "#c98a1b",
    "student": "#2563a8",
    "other": "#7a5ba6",
    "more": "#2a8a80",
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.formatter.useoffset": False,
    "text.parse_math": False,  # a "$" in a layer's name is a "$"
    "svg.fonttype": "none",
    "svg.hashsalt": "distill",
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
}


def new_axes(size: tuple[float, float], xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def whole_epochs(axes: Axes, epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(set(epochs)) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Label the first layer of each block ("model.4.cv1.conv" → "4"); a name for each would not be readable."""
    blocks = [re.sub(r"^model\.(\d+)\b.*$", r"\1", name).split(".")[0] for name in names]
    first: list[int] = []
    for place, block in enumerate(blocks):
        new = place == 0 or block != blocks[place - 1]
        if new and (not first or place - first[-1] >= len(names) / 40):
            first.append(place)
    axes.set_xticks(first, [blocks[place][:12] for place in first])
    axes.set_xlim(-0.8, len(names) - 0.2)
    axes.set_xlabel("block of the network, in order of execution")


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Heights for labels at `values`, moved apart until each is `gap` from the next; the order stays."""
    order = sorted(range(len(values)), key=values.__getitem__)
    heights = list(values)
    for _ in range(50):
        for lower, upper in pairwise(order):
            missing = gap - (heights[upper] - heights[lower])
            if missing > 1e-9:
                heights[lower] -= missing / 2
                heights[upper] += missing / 2
    return heights


def colour(stage: str) -> str:
    return COLOURS.get(stage, COLOURS["other"])


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The bare `<svg>` element, scaling with the page, in the page's colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # a rule for "*", which would reach the whole page
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"'?DejaVu Sans'?[^;\"]*", "inherit", svg)
    # Ids are unique within a figure only, and a page holds several.
    svg = re.sub(r'\bid="', f'id="{name}-', svg).replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg.strip()
