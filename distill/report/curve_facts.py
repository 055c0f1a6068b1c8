"""curve.json in words and tables: how far one can go."""

from __future__ import annotations

import shlex
from pathlib import Path

from distill.report.facts import Table
from distill.report.format import difference, digits, signed
from distill.results.curve import CurvePoint, CurveResults

KEYS = {"flops": "FLOPs kept", "params": "parameters kept", "ratio": "channels cut"}


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
    drop = "" if curve.teacher is None or point.score is None else difference(curve.teacher, point.score)
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
    first, last = scores[0], scores[-1]
    return (
        f"{curve.judged_by} {last[1]:.3f} at {curve.share(last[0]):.0%} of the FLOPs, "
        f"{first[1]:.3f} at {curve.share(first[0]):.0%}"
    )


def judgement(curve: CurveResults) -> str:
    """Where the limit lies, between two budgets that were measured; nothing is interpolated."""
    if curve.map_drop is None:
        return "not judged, there are no labels to measure mAP with" if not curve.labelled else ""
    kept, lost, limit = curve.kept, curve.lost, f"the limit ({signed(-curve.map_drop)})"
    if kept is None:
        return f"every budget that was measured ends below {limit} before training" if lost else ""
    if lost is None:
        return f"every budget that was measured keeps {limit}, so one could go further"
    return f"{limit} lies between {KEYS[curve.key]} {kept.budget:g} and {lost.budget:g}, before training"


def advice(curve: CurveResults) -> str:
    """What a run that was not accepted can be told: "58% of the FLOPs would be accepted, by the curve"; may be empty."""
    if curve.map_drop is None or curve.kept is None:
        return ""
    return f"{gain(curve)}, by the curve: prune.{curve.key}={curve.kept.budget:g}"


def command(run_dir: Path) -> str:
    """What measures the curve of a finished run, into its folder."""
    folder = shlex.quote(str(run_dir))
    return f"distill plan {shlex.quote(str(run_dir / 'recipe.yaml'))} --curve --out {folder}"
