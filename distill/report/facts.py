"""results.json in words and tables: what the report and the last screen say of the networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.report.format import difference, digits, percent, signed, speed
from distill.results.figures import Latency, ModelResult
from distill.results.results import Results

SEED_SPREAD = 0.006  # of mAP50-95 on a small validation set: two seeds of one training differ by about this much


@dataclass(frozen=True)
class Table:
    """Text in rows. The first column names the row, the others hold figures; `columns` is the header."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: str | None = None  # the column to look at


@dataclass(frozen=True)
class Quantity:
    """One row of the comparison: its name, its value, how that is printed, and how a change of it is."""

    name: str
    value: Callable[[Any], float | None]  # of a network of the run, or of another teacher
    show: Callable[[float], str]
    change: Callable[[float, float], str]


QUALITIES = (
    Quantity("mAP50-95", lambda network: network.map50_95, "{:.3f}".format, difference),
    Quantity("mAP50", lambda network: network.map50, "{:.3f}".format, difference),
    Quantity("mAP50-95 without NMS", lambda network: network.map50_95_without_nms, "{:.3f}".format, difference),
    Quantity("top-1", lambda network: network.top1, "{:.3f}".format, difference),
    Quantity("top-5", lambda network: network.top5, "{:.3f}".format, difference),
    Quantity("agreement", lambda network: network.agreement, "{:.3f}".format, difference),
    Quantity("agreement 50-95", lambda network: network.agreement50_95, "{:.3f}".format, difference),
    Quantity("agreement 50", lambda network: network.agreement50, "{:.3f}".format, difference),
)
COSTS = (
    Quantity("params (M)", lambda network: network.params, lambda value: digits(value / 1e6), percent),
    Quantity("GFLOPs", lambda network: network.gflops, digits, percent),
    Quantity("size (MB)", lambda network: network.size_mb, digits, percent),
)


def comparison(results: Results) -> Table:
    """A column for each network, other teachers first, and what the result changed of the original."""
    shown, before, after = shown_models(results), results.teacher, results.student
    networks, others = list(shown.values()), results.teachers
    same = before == after or bool(others) and not results.cut  # one network, so one cost
    rows = []
    more = (Quantity(name, value, "{:.3f}".format, difference) for name, value in results.beside_figures.items())
    for quantity in (*QUALITIES, *more, *COSTS):
        values = [quantity.value(network) for network in (*others, *networks)]
        if all(value is None for value in values):
            continue
        cells = ["" if value is None else quantity.show(value) for value in values]
        first, last = quantity.value(before), quantity.value(after)
        still = same if quantity.change is percent else before == after
        change = "" if first is None or last is None or still else quantity.change(first, last)
        name = f"GFLOPs at {results.imgsz} px" if quantity.name == "GFLOPs" else quantity.name
        rows.append((name, *cells, change))
    for name, first_latency in before.latencies.items():
        change = "" if same else speed(first_latency.median, after.latencies[name].median)
        ranges = (_range(network.latencies[name]) for network in networks)
        rows.insert(-1, (f"latency, {name} (ms)", *("" for _ in others), *ranges, change))
    columns = (*(other.name for other in others), *(results.titles[name] for name in shown))
    return Table(("", *columns, "change"), tuple(rows), strong=results.titles[results.chosen])


def shown_models(results: Results) -> dict[str, ModelResult]:
    """The networks of tables and plots: without that of a cut that cut nothing, if it began to learn from other teachers."""
    hidden = results.teachers and not results.cut and results.chosen != "pruned"
    return {name: model for name, model in results.models.items() if not (hidden and name == "pruned")}


def _range(latency: Latency) -> str:
    """Median and range: "17.0 [15.3–20.4]"."""
    return f"{digits(latency.median)} [{digits(latency.p10)}–{digits(latency.p90)}]"


def latency_note(results: Results, *, spread: bool = True) -> str:
    """How latency was measured. `spread`: whether the table shows the range beside the median."""
    runs = max(network.latency_ms.runs for network in results.models.values())
    statistic = "median [10th to 90th percentile]" if spread else "median"
    devices = {each.runtime: each.device for each in results.teacher.deployed} | {"PyTorch": results.device}
    where = f"on {results.device}"
    if len(set(devices.values())) > 1:
        where = " and ".join(f"in {name} on {device}" for name, device in devices.items())
    return f"Latency: {statistic} of {runs} forward passes at batch 1 {where}, taking turns."


def headline_latency(results: Results) -> tuple[float, float, str]:
    """Milliseconds of the teacher and of the student, and where: in the first runtime of the exports, else in PyTorch."""
    name = next(iter(results.teacher.latencies))
    where = f"in {name}" if results.teacher.deployed else ""
    return results.teacher.latencies[name].median, results.student.latencies[name].median, where


def _faster(results: Results) -> str:
    """How much faster the student is, and where: "1.7× faster in ONNX Runtime"."""
    before, after, where = headline_latency(results)
    words = speed(before, after)
    return f"{words} {where}".strip() if words else ""


def verdict(results: Results) -> str:
    """The run in one sentence, with the good and the bad in it."""
    return ": ".join(filter(None, [gain(results), judgement(results)]))


def gain(results: Results) -> str:
    """What was won and what was lost: "Half the FLOPs, 1.7× faster, mAP50-95 0.631 → 0.624 (−0.007)"."""
    if len(results.models) < 2:
        return "Nothing to compare yet"
    before, after = results.teacher, results.student
    parts = [*_cheaper(results)]
    if before.score is not None and after.score is not None:
        change = difference(before.score, after.score)
        parts.append(f"{results.measure} {before.score:.3f} → {after.score:.3f} ({change})")
        free = before.map50_95_without_nms, after.map50_95_without_nms
        if free[0] is not None and free[1] is not None:
            parts.append(f"without NMS {free[0]:.3f} → {free[1]:.3f} ({difference(free[0], free[1])})")
        if before.beside is not None and after.beside is not None:
            then, now = before.beside.map50_95, after.beside.map50_95
            parts.append(f"of {after.beside.name}s {then:.3f} → {now:.3f} ({difference(then, now)})")
    elif after.agreed is not None:
        of_task = "" if after.beside is None else f", of {after.beside.name}s {after.beside.map50_95:.3f}"
        parts.append(f"agreement with the teacher {after.agreed:.3f}{of_task}")
    if results.teachers:
        known = ((other, other.score) for other in results.teachers)
        names = [other.name if score is None else f"{other.name} {score:.3f}" for other, score in known]
        parts.append(f"taught by {' and '.join(['the original'] * results.taught_by_original + names)}")
    return ", ".join(filter(None, parts))


def _cheaper(results: Results) -> list[str]:
    """What the result costs, in words: beside what it was before the cut; if nothing was, beside its largest teacher."""
    before, after = results.teacher, results.student
    if results.cut or not results.teachers:
        share = after.gflops / before.gflops
        return ["Half the FLOPs" if 0.485 <= share <= 0.505 else f"{share:.0%} of the FLOPs", _faster(results)]
    largest = max(results.teachers, key=lambda other: other.gflops)
    return [f"{after.gflops / largest.gflops:.0%} of the FLOPs of {largest.name}"]


def judgement(results: Results) -> str:
    """Whether the result was accepted, and by what limit."""
    if results.accepted is None:
        return "" if results.data.labelled else "not judged, there are no labels to measure mAP with"
    return f"{'accepted' if results.accepted else 'not accepted'} (limit {signed(-results.accept.map_drop)})"


def findings(results: Results) -> list[str]:
    """What the reader must know: the run's own warnings, and what the numbers say when they are put side by side."""
    lines = list(results.warnings)
    teacher, best = results.teacher.score, results.student.score
    if results.cut and teacher is not None and best is not None and best > teacher:  # else one network, trained on
        if results.teachers:
            lines.append(
                f"The smaller network beats the original ({best:.3f} against {teacher:.3f}): others taught it."
            )
            return lines
        beaten = f"The smaller network beats its teacher ({best:.3f} against {teacher:.3f})"
        lines.append(
            f"{beaten}, which happens if the teacher was not trained to its end. A finished one is harder to match: train it on "
            "(`distill run finetune`), and run again before you trust the comparison."
            if best > teacher + SEED_SPREAD
            else f"{beaten}, by no more than two runs of one recipe differ."
        )
    return lines


def by_agreement(results: Results) -> bool:
    """Whether the networks are compared by agreement with the teacher: there is no mAP."""
    networks = results.models.values()
    labelled = any(network.score is not None for network in networks)
    return not labelled and any(network.agreed is not None for network in networks)


def agreement_note(results: Results, *, brief: bool = False) -> str:
    """What agreement means and what it was measured on; empty if it was not. `brief`: in one line of a terminal."""
    agreement = results.agreement
    if not agreement or not by_agreement(results):
        return ""
    if results.student.agreement is not None:
        held = "held-back images" if agreement.held_back else "images, the same that were learned from"
        text = f"Agreement: on how many of {agreement.images} {held} the likeliest class is the teacher's."
        return text if brief else f"{text} It says how alike two networks are and not how right."
    if brief:
        kind = "held-back images" if agreement.held_back else "images it learned from"
        return f"Agreement: AP against the teacher's own boxes on {agreement.images} {kind}."
    kind = (
        "held-back images, which nothing was calibrated or trained on"
        if agreement.held_back
        else "images, the same that were learned from, which makes it look too good"
    )
    return (
        f"Agreement: average precision measured against what the teacher sees, as a share of the best there can be. The "
        f"teacher sees {sum(agreement.teacher_boxes.values())} boxes with a score of {agreement.confidence:g} or more on "
        f"{agreement.images} {kind}. 1 is the teacher itself. It says how alike two networks are and not how right: "
        "accept.map_drop, a limit on mAP, judges nothing here."
    )


def per_class(results: Results) -> Table | None:
    """Each class before and after, the greatest loss first; without labels, its agreement. None if nothing changed it."""
    if results.chosen == "teacher":
        return None
    before, after = results.teacher.per_class or {}, results.student.per_class or {}
    both = sorted(((key, before[key], after[key]) for key in before if key in after), key=lambda row: row[2] - row[1])
    if both:
        rows = tuple((key, f"{old:.3f}", f"{new:.3f}", difference(old, new)) for key, old, new in both)
        return Table(("class", results.titles["teacher"], results.titles[results.chosen], "change"), rows)
    boxes = results.agreement.teacher_boxes if results.agreement else {}
    shares = sorted((results.student.agreement_per_class or {}).items(), key=lambda row: row[1])
    counted = tuple((key, str(boxes.get(key, "")), f"{share:.3f}") for key, share in shares)
    return Table(("class", "teacher boxes", "agreement 50-95"), counted) if counted else None
