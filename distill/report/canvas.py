"""Axes, labels and files in one style, shared by all plots of a report."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from distill.machine import private
from distill.results.networks import NETWORKS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Drawing = tuple[Figure, str]  # with its description for readers who do not see it

# Role -> its colour on a light page and on a dark one. A PNG has the light ones; in an SVG each becomes the CSS variable
# of the same name, so that it follows the theme of the page.
THEME = {
    "ink": ("#1c2126", "#e3e7ea"),
    "muted": ("#6a737c", "#98a2ac"),
    "line": ("#dde1e5", "#2d343b"),
    "bar": ("#c9cfd6", "#434c55"),
    "paper": ("#fcfcfa", "#14181c"),
    "raised": ("#f2f3f1", "#1d2328"),
    "good": ("#2c7a4b", "#6cc592"),
    **{network.name: (network.color, network.dark) for network in NETWORKS},
}
COLOURS = {role: light for role, (light, _) in THEME.items()}
SERIES = ("student", "repaired", "sparse", "pruned", "averaged", "teacher", "muted")
_HOVER = "hover:"  # begins the id of a mark that says something
HALF = (5.2, 3.1)  # inches; two of these stand side by side on a wide page
FULL = (9.6, 2.9)
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


@dataclass(frozen=True)
class Plot:
    """One figure: `png` for a file, `svg` for the page, `alt` for readers who see neither."""

    png: bytes
    svg: str
    alt: str


def draw(drawings: Mapping[str, Callable[[], Drawing | None]]) -> dict[str, Plot]:
    """Plots by name; those that have no data are left out. matplotlib's global settings stay as they are."""
    private.settle()
    import matplotlib

    plots = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a class name in a script that the font lacks
        for name, function in drawings.items():
            if (drawing := function()) is not None:
                figure, alt = drawing
                plots[name] = Plot(_png(figure), _svg(figure, name), alt)
    return plots


def new_axes(size: tuple[float, float], xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """A figure of `size` inches and its only axes."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def series_colour(number: int) -> str:
    """Colour of the n-th curve."""
    return COLOURS[SERIES[number % len(SERIES)]]


def whole_epochs(axes: Axes, epochs: Sequence[int]) -> None:
    """Put ticks on whole epochs only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(set(epochs)) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)


def label_lines(axes: Axes, labels: Sequence[tuple[str, float, str]]) -> None:
    """Write labels (text, height, colour) right of the axes, cut if long, moved apart until none covers another."""
    low, high = axes.get_ylim()
    heights = spread([height for _, height, _ in labels], 0.075 * (high - low))
    for (text, _, colour), height in zip(labels, heights, strict=True):
        axes.text(1.02, height, text[:22], transform=axes.get_yaxis_transform(), color=colour, va="center")


def layer_axes(names: Sequence[str], ylabel: str) -> tuple[Figure, Axes]:
    """Wide axes with a place for every layer, labelled by blocks ("model.4.cv1.conv" -> "4") so that it can be read."""
    figure, axes = new_axes(FULL, "block of the network, in order of execution", ylabel)
    blocks = [re.sub(r"^model\.(\d+)\b.*$", r"\1", name).split(".")[0] for name in names]
    first: list[int] = []
    for place, block in enumerate(blocks):
        new = place == 0 or block != blocks[place - 1]
        if new and (not first or place - first[-1] >= len(names) / 40):
            first.append(place)
    axes.set_xticks(first, [blocks[place][:12] for place in first])
    axes.set_xlim(-0.8, len(names) - 0.2)
    return figure, axes


def legend(axes: Axes) -> None:
    """A legend in one row above the data."""
    axes.legend(
        frameon=False, loc="upper left", ncols=2, labelcolor=COLOURS["muted"], borderaxespad=0, handletextpad=0.4
    )


def hover(artist: Artist, text: str) -> None:
    """Let a mark say something when a mouse rests on it, in the page."""
    artist.set_gid(f"{_HOVER}{text}")


def shortened(text: str, most: int) -> str:
    """A label of at most so many letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Heights of labels at `values`, moved apart until each is `gap` from the next; their order stays."""
    order = sorted(range(len(values)), key=values.__getitem__)
    heights = list(values)
    for _ in range(50):
        for lower, upper in pairwise(order):
            missing = gap - (heights[upper] - heights[lower])
            if missing > 1e-9:
                heights[lower] -= missing / 2
                heights[upper] += missing / 2
    return heights


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure, name: str) -> str:
    """The bare `<svg>` element, scaling with the page, in the page's colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # a rule for "*", which would reach the whole page
    svg = re.sub(rf"<g id=([\"']){_HOVER}(.*?)\1>", r"<g><title>\2</title>", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"'?DejaVu Sans'?[^;\"]*", "inherit", svg)
    # Ids are unique within a figure only, and a page has several.
    svg = re.sub(r'\bid="', f'id="{name}-', svg).replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for colour, role in {colour: role for role, colour in COLOURS.items()}.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg.strip()
