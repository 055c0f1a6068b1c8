"""curve.json in words and tables: how far one can go."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from distill.machine.words import duration
from distill.report.facts import Table
from distill.report.format import digits, signed, value_text
from distill.results.curve import CurvePoint, CurveResults
from distill.results.results import Results

KEYS = {"flops": "FLOPs kept", "params": "parameters kept", "ratio": "channels cut"}


class Trained(NamedTuple):
    """What training made of one network: its GFLOPs, and its score before and after."""

    gflops: float
    before: float
    after: float


def table(curve: CurveResults) -> Table:
    """A row for each budget; the first one is the teacher."""
    repaired = any(point.repaired is not None for point in curve.points)
    columns = (KEYS[curve.key], "GFLOPs", "FLOPs", "params (M)", "after cut", "after repair", "drop", "accepted")
    teacher = ("teacher", digits(curve.teacher_gflops), "100%", digits(curve.teacher_params / 1e6))
    rows = ((*teacher, figure(curve.teacher), figure(curve.teacher), "", ""), *(_row(curve, p) for p in curve.points))
    shown = [
        place
        for place, column in enumerate(columns)
        if (repaired or column != "after repair") and (curve.map_drop is not None or column != "accepted")
    ]
    strong = "after repair" if repaired else "after cut"
    return Table(
        tuple(columns[place] for place in shown), tuple(tuple(row[place] for place in shown) for row in rows), strong
    )


def _row(curve: CurveResults, point: CurvePoint) -> tuple[str, ...]:
    drop = "" if curve.teacher is None or point.score is None else _fine(point.score - curve.teacher)
    return (
        f"{point.budget:g}",
        digits(point.gflops),
        f"{curve.share(point):.0%}",
        digits(point.params / 1e6),
        figure(point.pruned),
        figure(point.repaired),
        drop,
        {True: "yes", False: "no", None: ""}[curve.accepts(point)],
    )


def _fine(value: float) -> str:
    """A difference to four digits: the limit of `accept` is a few thousandths."""
    return f"{value:+.4f}".replace("-", "−")


def figure(score: float | None) -> str:
    """A score as it is printed; empty if there is none."""
    return "" if score is None else f"{score:.3f}"


def gain(curve: CurveResults) -> str:
    """How far one can go, in one sentence: "58% of the FLOPs would be accepted"."""
    if curve.map_drop is not None and curve.kept is not None:
        return f"{curve.share(curve.kept):.0%} of the FLOPs would be accepted"
    if curve.map_drop is not None and curve.lost is not None:
        return f"No budget down from {curve.share(curve.lost):.0%} of the FLOPs would be accepted without training"
    scores = [(point, point.score) for point in curve.points if point.score is not None]
    if not scores:
        return "Nothing to judge by"
    ends = dict.fromkeys((scores[-1], scores[0]))
    return f"{curve.judged_by} " + ", ".join(f"{score:.3f} at {curve.share(p):.0%} of the FLOPs" for p, score in ends)


def judgement(curve: CurveResults) -> str:
    """Where the limit lies, between two budgets that were measured; nothing is interpolated."""
    if curve.map_drop is None:
        return "not judged, there are no labels to measure mAP with" if not curve.labelled else ""
    kept, lost, limit = curve.kept, curve.lost, f"limit ({signed(-curve.map_drop)})"
    if kept is None:
        return f"every budget that was measured ends below the {limit} before training" if lost else ""
    if lost is None:
        return f"every budget that was measured keeps the {limit}, so one could go further"
    return f"before training, the {limit} lies between {KEYS[curve.key]} {kept.budget:g} and {lost.budget:g}"


def notes(curve: CurveResults) -> str:
    """How to read the table."""
    repair = curve.setting.recipe["repair.images"]
    mended = f"in closed form on up to {repair} training images, without labels"
    if curve.setting.steps:
        mended += f", then block by block in {curve.setting.steps} steps each"
    parts = [
        f"After repair: {mended}." if repair else "Nothing was repaired.",
        "Nothing was trained: a run usually ends higher, so the curve is a lower bound.",
    ]
    if not curve.labelled:
        parts.append(
            "Agreement is AP against the teacher's own boxes; accept.map_drop, a limit on mAP, judges nothing here."
        )
    elif curve.map_drop is not None and curve.kept is not None and curve.lost is not None:
        parts.append(
            f"One seed and {curve.images} val images: figures within about 0.005 of each other are not told apart."
        )
        again = [point for point in curve.points if curve.accepts(point) and point.budget not in _kept(curve)]
        if again:
            budgets = ", ".join(f"{point.budget:g}" for point in again)
            parts.append(f"{KEYS[curve.key]} {budgets}: accepted too, below one that is not, so not counted on.")
    return " ".join(parts)


def _kept(curve: CurveResults) -> list[float]:
    """The budgets down to the smallest that keeps what `accept` asks."""
    budgets = [point.budget for point in curve.points]
    return budgets[: budgets.index(curve.kept.budget) + 1] if curve.kept is not None else []


def training(curve: CurveResults, trained: Trained | None) -> str:
    """What a run in the same folder adds: training goes above the curve, or it does not. Empty without such a run."""
    if trained is None:
        return ""
    share = trained.gflops / curve.teacher_gflops
    if trained.after > trained.before:
        return (
            f"The run in this folder was trained from {trained.before:.3f} to {trained.after:.3f} at {share:.0%} of the "
            "FLOPs: the curve is before training, a lower bound."
        )
    return f"Training did not lift the run in this folder: it ended at {trained.after:.3f}, and started at {trained.before:.3f}."


def unreachable(curve: CurveResults) -> str:
    """The budgets that no cut can meet; empty if there are none."""
    if not curve.unreachable:
        return ""
    values = ", ".join(f"{value:g}" for value in curve.unreachable)
    return f"Left out: {KEYS[curve.key]} {values} cannot be met within protect, max_ratio and round_to."


def command(run_dir: Path, results: Results) -> str:
    """What measures the curve of a finished run, into its folder. A run that made its own teacher or data has them there."""
    words = [str(run_dir / "recipe.yaml")]
    if results.model is None:
        words += [f"model={run_dir / 'teacher.pt'}", "teacher.train=null"]
    if results.recipe.get("data") == "shapes":
        words.append(f"data={run_dir / 'data' / 'data.yaml'}")
    return " ".join(["distill plan", *map(shlex.quote, words), "--curve --out", shlex.quote(str(run_dir))])


def setting(curve: CurveResults) -> list[tuple[str, str]]:
    """What all points have in common."""
    shown = [
        (name, value_text(value)) for name, value in curve.setting.recipe.items() if name not in ("data", "budget")
    ]
    points = sum(point.seconds for point in curve.points)
    times = f"{duration(curve.seconds + points)}, of which {duration(curve.seconds)} for what all points share"
    return [*shown, ("checkpoint", f"{curve.model}, SHA-256 {curve.setting.checkpoint}..."), ("time", times)]
