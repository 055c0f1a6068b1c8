"""How the student was trained and repaired, in words with units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from distill.report.compare_facts import rate_text
from distill.report.details import Error
from distill.report.format import percent_text, value_text

BETAS = {"AdamW": "first beta", "Adam": "first beta"}  # what `momentum` is to them


def schedule(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A schedule as pairs of a name and words. A value that is not there is left out."""
    if not values:
        return []
    pairs = [
        ("length", _words(values, "{epochs} epochs, {steps} steps of {batch} images") + _labelled(values)),
        ("optimizer", _words(values, "{optimizer}, weight decay {weight_decay:g}") + _momentum(values)),
        ("learning rate", _rate(values)),
        ("BatchNorm", _batchnorm(values)),
        ("augmentation", _augmentation(values)),
        ("weights", _words(values, "averaged over the last {averaged:.0%} of the steps so far")),
        ("validation", _validation(values)),
    ]
    return [(name, text) for name, text in pairs if text]


def _words(values: Mapping[str, Any], text: str) -> str:
    """The text with its values; empty if one of them is missing."""
    try:
        return text.format_map(values)
    except KeyError:
        return ""


def _labelled(values: Mapping[str, Any]) -> str:
    labelled, batch = values.get("labelled"), values.get("batch")
    if labelled is None or batch is None:
        return ""
    return ", all with labels" if labelled == batch else f", {labelled} with labels and {batch - labelled} without"


def _momentum(values: Mapping[str, Any]) -> str:
    if "momentum" not in values:
        return ""
    return f", {BETAS.get(values.get('optimizer', ''), 'momentum')} {value_text(values['momentum'])}"


def _rate(values: Mapping[str, Any]) -> str:
    if "lr" not in values:
        return ""
    text = f"up to {rate_text(values['lr'])}"
    if values.get("warmup_steps"):
        text += f" in {values['warmup_steps']} steps of warm-up"
    return text + (f", then down to {rate_text(values['lr'] * values['lrf'])} by cosine" if "lrf" in values else "")


def _batchnorm(values: Mapping[str, Any]) -> str:
    if values.get("freeze_bn"):
        return "keeps its statistics"
    if values.get("bn_momentum") is None:
        return ""
    return f"statistics move by {percent_text(values['bn_momentum'])} a step"


def _augmentation(values: Mapping[str, Any]) -> str:
    """How training images are changed, in words: scaled by up to ±10%, moved by up to 5% of the size, no mosaic."""
    words = []
    if values.get("scale"):
        words.append(f"scaled by up to ±{percent_text(values['scale'])}")
    if values.get("translate"):
        words.append(f"moved by up to {percent_text(values['translate'])} of the size")
    if values.get("fliplr"):
        words.append(f"flipped in {percent_text(values['fliplr'])} of the cases")
    if values.get("mosaic"):
        ends = values.get("close_mosaic")
        last = f", but in the last {ends} epochs" if ends else ""
        words.append(f"mosaic of four images in {percent_text(values['mosaic'])} of the cases{last}")
    elif values.get("mosaic") is not None:
        words.append("no mosaic")
    return ", ".join(words)


def _validation(values: Mapping[str, Any]) -> str:
    every = values.get("val_every")
    if not every:
        return ""
    return "after each epoch" if every == 1 else f"after every {every} epochs, and after the last"


def fell(parts: Sequence[Error]) -> str:
    """The median error of repaired layers or blocks before and after; of those alone that repair has changed."""
    changed = [part for part in parts if part.changed]
    if not changed:
        return "none of them was better for it, so all stay as they were"
    before, after = median(part.before for part in changed), median(part.after for part in changed)
    first, last = percent_text(before), percent_text(after)
    if first == last:
        return f"the median error of these was {first} and stays there"
    return (
        f"the median error of these fell from {first} to {last}"
        if after < before
        else (f"the median error of these rose from {first} to {last}")
    )
