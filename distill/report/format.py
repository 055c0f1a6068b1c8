"""How values are written: three figures, real minus signs, words for ratios that are hard to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def signed(value: float) -> str:
    """A difference of mAP with its sign, "−0.007"; a difference that rounds to nothing has none."""
    text = f"{abs(value):.3f}"
    return text if text == "0.000" else ("+" if value > 0 else "−") + text


def difference(before: float, after: float) -> str:
    """Change of mAP with its sign."""
    return signed(after - before)


def percent(before: float, after: float) -> str:
    """Relative change, "−51%"."""
    if not before:
        return ""
    change = round(100 * (after / before - 1))
    return f"{'+' if change > 0 else '−' if change < 0 else ''}{abs(change)}%"


def speed(before: float, after: float) -> str:
    """Two durations as one word, "1.7× faster". Below 5 % it is not worth a claim."""
    if not before or not after:
        return ""
    ratio = before / after
    if 1 / 1.05 < ratio < 1.05:
        return "as fast"
    return f"{ratio:.1f}× faster" if ratio > 1 else f"{1 / ratio:.1f}× slower"


def digits(value: float) -> str:
    """Three significant figures without an exponent: "2.50", "10.9", "128"."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def value_text(value: Any) -> str:
    """A value of a recipe or a schedule as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return "–" if value is None else str(value)


def percent_text(share: float) -> str:
    """A share as percent with two figures, "12%", "0.34%"; one that is almost nothing says so."""
    value = 100 * share
    if abs(value) < 0.01:
        return "0%" if value == 0 else "less than 0.01%"
    if abs(value) >= 10:
        return f"{value:.0f}%"
    return f"{float(f'{value:.2g}'):g}%"


def apart(first: float, second: float) -> tuple[str, str]:
    """Two figures with as many digits as tell them apart: three, unless they differ by less."""
    for count in range(3, 7):
        texts = f"{first:.{count}f}", f"{second:.{count}f}"
        if texts[0] != texts[1]:
            break
    return texts
