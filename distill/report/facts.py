"""results.json in words and tables: every number that the report and the last screen show is made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distill.machine.words import duration
from distill.report.format import digits, percent, signed, speed

Results = Mapping[str, Any]

STAGES = ("teacher", "pruned", "repaired", "student")
NOISE = 0.006  # of mAP50-95 on a small validation set: two seeds of one training differ by about this much


@dataclass(frozen=True)
class Table:
    """Text in rows. The first column names the row, the others hold figures; `columns` is the header."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: str | None = None  # the column to look at


@dataclass(frozen=True)
class Quantity:
    """One row of the comparison: how to find a value in a stage, print it, and print what became of it."""

    name: str
    find: Callable[[Mapping[str, Any]], float | None]
    show: Callable[[Mapping[str, Any]], str]
    change: Callable[[float, float], str]


def stages(results: Results) -> dict[str, Mapping[str, Any]]:
    """The networks that were measured, in the order they came about."""
    models = results.get("models") or {}
    order = [name for name in STAGES if name in models] + [name for name in models if name not in STAGES]
    return {name: models[name] for name in order}


def chosen(results: Results) -> str:
    """Name of the stage whose figures are those of student.pt."""
    models = stages(results)
    name = results.get("chosen")
    return name if name in models else next(reversed(models), "student")


def stage_map(results: Results, name: str) -> float | None:
    """mAP50-95 of a stage, None where there were no labels or no such stage."""
    return stages(results).get(name, {}).get("map50_95")


def comparison(results: Results) -> Table | None:
    """The table of the last screen: a column for each stage, and what became of the teacher in the result."""
    models = stages(results)
    if not models:
        return None
    before, after = models.get("teacher"), models[chosen(results)]
    rows = []
    for quantity in _quantities():
        values = [quantity.find(model) for model in models.values()]
        if all(value is None for value in values):
            continue
        cells = ["" if value is None else quantity.show(model) for value, model in zip(values, models.values())]
        first, last = (quantity.find(before) if before else None), quantity.find(after)
        change = quantity.change(first, last) if first is not None and last is not None and before != after else ""
        rows.append((quantity.name, *cells, change))
    return Table(("", *models, "change"), tuple(rows), strong=chosen(results))


def _quantities() -> list[Quantity]:
    def plain(name: str, key: str, show: Callable[[float], str], change: Callable[[float, float], str]) -> Quantity:
        return Quantity(name, lambda model: model.get(key), lambda model: show(model[key]), change)

    def difference(before: float, after: float) -> str:
        return signed(after - before)

    return [
        plain("mAP50-95", "map50_95", "{:.3f}".format, difference),
        plain("mAP50", "map50", "{:.3f}".format, difference),
        plain("agreement 50-95", "agreement50_95", "{:.3f}".format, difference),
        plain("agreement 50", "agreement50", "{:.3f}".format, difference),
        plain("params (M)", "params", lambda value: digits(value / 1e6), percent),
        plain("GFLOPs", "gflops", digits, percent),
        Quantity("latency (ms)", lambda model: (model.get("latency_ms") or {}).get("median"), _latency, speed),
        plain("size (MB)", "size_mb", digits, percent),
    ]


def _latency(model: Mapping[str, Any]) -> str:
    latency = model["latency_ms"]
    spread = f" [{digits(latency['p10'])}–{digits(latency['p90'])}]" if "p10" in latency and "p90" in latency else ""
    return digits(latency["median"]) + spread


def latency_note(results: Results, *, spread: bool = True) -> str:
    """How the latency was taken; empty where it was not. `spread`: whether the range is shown beside the median."""
    runs = [model["latency_ms"].get("runs", 0) for model in stages(results).values() if model.get("latency_ms")]
    if not runs:
        return ""
    what = "median [10th to 90th percentile]" if spread else "median"
    device = f" on {results['device']}" if results.get("device") else ""
    return f"Latency: {what} of {max(runs)} forward passes at batch 1{device}, taking turns."


def verdict(results: Results) -> str:
    """The run in one sentence, with the good and the bad in it."""
    return ": ".join(filter(None, [gain(results), judgement(results)]))


def gain(results: Results) -> str:
    """What was won and what was lost: "Half the FLOPs, 1.7× faster, mAP50-95 0.631 → 0.624 (−0.007)"."""
    models = stages(results)
    if "teacher" not in models or len(models) < 2:
        return "Nothing to compare yet"
    before, after = models["teacher"], models[chosen(results)]
    parts = []
    if before.get("gflops") and after.get("gflops"):
        share = after["gflops"] / before["gflops"]
        parts.append("Half the FLOPs" if 0.485 <= share <= 0.505 else f"{share:.0%} of the FLOPs")
    if before.get("latency_ms") and after.get("latency_ms"):
        parts.append(speed(before["latency_ms"]["median"], after["latency_ms"]["median"]))
    old, new = stage_map(results, "teacher"), stage_map(results, chosen(results))
    if old is not None and new is not None:
        parts.append(f"mAP50-95 {old:.3f} → {new:.3f} ({signed(new - old)})")
    elif after.get("agreement50_95") is not None:
        parts.append(f"agreement with the teacher {after['agreement50_95']:.3f}")
    return ", ".join(filter(None, parts))


def judgement(results: Results) -> str:
    """Whether the result was accepted, and by what limit; empty where nobody asked."""
    limit = (results.get("accept") or {}).get("map_drop")
    bound = "" if limit is None else f" (limit {signed(-limit)})"
    if results.get("accepted") is None:
        labelled = (results.get("data") or {}).get("labelled", True)
        return "" if labelled else "not judged, there are no labels to measure mAP with"
    return ("accepted" if results["accepted"] else "not accepted") + bound


def findings(results: Results) -> list[str]:
    """What the reader must know: the run's own warnings, and what the numbers say when they are put side by side."""
    found = [str(warning) for warning in results.get("warnings") or ()]
    teacher, best = stage_map(results, "teacher"), stage_map(results, chosen(results))
    plan = results.get("plan") or {}
    cut = plan.get("flops_after") != plan.get("flops_before")  # else it is one network, trained on
    if cut and teacher is not None and best is not None and best > teacher:
        beaten = f"The smaller network beats its teacher ({best:.3f} against {teacher:.3f})"
        found.append(
            f"{beaten}: the teacher was not finished. Train it longer and run again before you trust the comparison."
            if best > teacher + NOISE
            else f"{beaten}, by no more than two runs differ. If more training would help, the teacher was not finished."
        )
    return found


def per_class(results: Results) -> Table | None:
    """mAP50-95 of each class before and after, the greatest loss first."""
    before = stages(results).get("teacher", {}).get("per_class") or {}
    after = stages(results).get(chosen(results), {}).get("per_class") or {}
    both = [(name, before[name], after[name]) for name in before if name in after]
    if not both or chosen(results) == "teacher":
        return None
    both.sort(key=lambda row: row[2] - row[1])
    rows = ((str(name), f"{old:.3f}", f"{new:.3f}", signed(new - old)) for name, old, new in both)
    return Table(("class", "teacher", chosen(results), "change"), tuple(rows))


def channels(results: Results) -> Table | None:
    """Width of every layer that lost channels."""
    groups = [group for group in (results.get("plan") or {}).get("groups") or () if group["after"] != group["before"]]
    if not groups:
        return None
    rows = (
        (str(group["name"]), str(group["before"]), str(group["after"]), percent(group["before"], group["after"]))
        for group in groups
    )
    return Table(("layer", "channels", "kept", "change"), tuple(rows))


def repaired_layers(results: Results) -> list[Mapping[str, Any]]:
    """The layers that repair has measured."""
    layers = (results.get("repair") or {}).get("layers") or ()
    return [layer for layer in layers if layer.get("error_before") is not None and layer.get("error_after") is not None]


def repairs(results: Results) -> Table | None:
    """Held-out error of every layer around its repair."""
    layers = repaired_layers(results)
    if not layers:
        return None
    rows = (
        (
            str(layer["name"]),
            f"{layer['error_before']:.3f}",
            f"{layer['error_after']:.3f}",
            "" if layer.get("changed", True) else "left as it was",
        )
        for layer in layers
    )
    return Table(("layer", "error after the cut", "after repair", ""), tuple(rows))


def exports(results: Results) -> Table | None:
    """What was exported, and how far its output is from the checkpoint's."""
    made = results.get("exports") or ()
    if not made:
        return None
    rows = (
        (
            str(item["format"]),
            str(item["file"]),
            digits(item["size_mb"]) if item.get("size_mb") is not None else "",
            "not checked" if item.get("max_abs_diff") is None else f"{item['max_abs_diff']:.1e}",
        )
        for item in made
    )
    return Table(("format", "file", "size (MB)", "difference"), tuple(rows))


def timings(results: Results) -> Table | None:
    """How long each stage took."""
    seconds = results.get("seconds") or {}
    if not seconds:
        return None
    rows = [(str(name), duration(value)) for name, value in seconds.items()]
    return Table(("stage", "time"), (*rows, ("total", duration(sum(seconds.values())))))
