"""curve.json → curve.md, curve.html and plots/: how far a network can be cut."""

from __future__ import annotations

from pathlib import Path

from distill.errors import DistillError
from distill.machine.files import write_files
from distill.report import canvas
from distill.report import curve_facts as facts
from distill.report.canvas import COLOURS, HALF, Plot, draw, label_lines, new_axes
from distill.report.curve_facts import Trained
from distill.report.plain import plain, plain_table, report_line
from distill.results.curve import CurveResults
from distill.results.results import FILE as RUN
from distill.results.results import Results

LABELS = {"pruned": "after cut", "repaired": "after repair"}
MARGIN = 4.0  # the plot of the limit shows so many times its drop below the teacher


def summary(curve: CurveResults, folder: Path | None) -> str:
    """The last screen. Plain ASCII."""
    lines = [*plain_table(facts.table(curve)), ""]
    lines.append(facts.notes(curve))
    lines += ["", f"{': '.join(filter(None, (facts.gain(curve), facts.judgement(curve))))}."]
    if folder is not None:
        lines.append(report_line(folder / "curve.html"))
    return plain("\n".join(lines))


def write(folder: Path) -> None:
    """Write curve.md, curve.html and plots/*.png from the curve.json in the same folder.

    Raises:
        DistillError: there is no curve.json, or it is not one of ours.
        RunError: the disk is full, or not writable.
    """
    from distill.report.render import report_files

    curve = CurveResults.read(folder)
    if curve is None:
        raise DistillError(f"{folder} holds no curve.json: distill plan RECIPE --curve --out {folder}")
    trained = trained_by(folder, curve)
    plots = curve_plots(curve, trained)
    write_files(folder, report_files("curve", plots, curve=curve, facts=facts, trained=trained, folder=folder))


def trained_by(folder: Path, curve: CurveResults) -> Trained | None:
    """What training came to in the run of the same folder; None if that is no run that has finished, or trained."""
    if not (folder / RUN).is_file():
        return None
    results = Results.read(folder)
    start = results.models.get("repaired") or results.models.get("pruned")
    if results.trained is None or start is None or results.data.labelled != curve.labelled:
        return None
    scores = [model.score if curve.labelled else model.agreed for model in (start, results.student)]
    if scores[0] is None or scores[1] is None:
        return None
    return Trained(results.student.gflops, scores[0], scores[1])


def curve_plots(curve: CurveResults, trained: Trained | None) -> dict[str, Plot]:
    """Every plot there is data for, by file name."""
    return draw({"budgets": lambda: _curve(curve, trained), "limit": lambda: _limit(curve, trained)})


def _lines(curve: CurveResults) -> dict[str, list[tuple[float, float]]]:
    """Share of the FLOPs in percent and score, for each network that there is."""
    lines = {}
    for name in ("pruned", "repaired"):
        line = [(100 * curve.share(p), score) for p in curve.points if (score := getattr(p, name)) is not None]
        if line:
            lines[name] = line
    return lines


def _curve(curve: CurveResults, trained: Trained | None) -> canvas.Drawing | None:
    """The whole range, from nothing cut to the smallest budget."""
    lines = _lines(curve)
    if not lines:
        return None
    figure, axes = new_axes(HALF, "FLOPs kept (%)", curve.judged_by)
    for name, line in lines.items():
        points = [(100.0, curve.teacher), *line] if curve.teacher is not None else line
        axes.plot(*zip(*points, strict=True), color=COLOURS[name], linewidth=1.6, marker="o", markersize=4)
    axes.set_xlim(103, 0)  # the teacher on the left: one reads how far one can go
    top = max(score for line in lines.values() for _, score in line)
    axes.set_ylim(-0.02, 1.12 * max(top, curve.teacher or 0.0))
    if curve.teacher is not None:
        axes.axhline(curve.teacher, color=COLOURS["teacher"], linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    _mark(axes, curve, trained)
    ends = [(LABELS[name], line[-1][1], COLOURS[name]) for name, line in lines.items()]
    if curve.teacher is not None:
        ends.append((f"teacher {curve.teacher:.3f}", curve.teacher, COLOURS["teacher"]))
    label_lines(axes, ends)
    return figure, f"{curve.judged_by} over the FLOPs kept: " + "; ".join(
        f"{LABELS[name]} " + ", ".join(f"{score:.3f} at {share:.0f}%" for share, score in line)
        for name, line in lines.items()
    )


def _mark(axes: canvas.Axes, curve: CurveResults, trained: Trained | None) -> None:
    """The student of the run in the same folder."""
    if trained is not None:
        share = 100 * trained.gflops / curve.teacher_gflops
        axes.scatter([share], [trained.after], s=40, color=COLOURS["student"], zorder=3)
        axes.annotate(
            f"trained {trained.after:.3f}",
            (share, trained.after),
            (0, 7),
            textcoords="offset points",
            color=COLOURS["student"],
            ha="center",
        )


def _limit(curve: CurveResults, trained: Trained | None) -> canvas.Drawing | None:
    """The same near the limit of `accept`, where a few thousandths count."""
    if curve.map_drop is None or curve.teacher is None or not any(point.score is not None for point in curve.points):
        return None
    floor, name = curve.teacher - curve.map_drop, "pruned" if "repaired" not in _lines(curve) else "repaired"
    points = [(100 * curve.share(p), p.score, bool(curve.accepts(p))) for p in curve.points if p.score is not None]
    figure, axes = new_axes(HALF, "FLOPs kept (%)", f"{curve.judged_by}, near the limit")
    axes.plot([x for x, *_ in points], [y for _, y, _ in points], color=COLOURS["line"], linewidth=1.2, zorder=1)
    for accepted, face in ((True, COLOURS[name]), (False, "none")):
        x, y = [x for x, _, kept in points if kept == accepted], [y for _, y, kept in points if kept == accepted]
        axes.scatter(x, y, s=34, facecolors=face, edgecolors=COLOURS[name], zorder=3)
    reach = max(MARGIN * curve.map_drop, 0.02)
    scores = [y for _, y, _ in points] + ([trained.after] if trained else [])
    axes.set_ylim(curve.teacher - reach, max(curve.teacher, *scores) + 0.35 * reach)
    axes.set_xlim(103, 0)
    for level, role in ((curve.teacher, "teacher"), (floor, "pruned")):
        axes.axhline(level, color=COLOURS[role], linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    _mark(axes, curve, trained)
    label_lines(
        axes,
        [
            (f"teacher {curve.teacher:.3f}", curve.teacher, COLOURS["teacher"]),
            (f"limit {floor:.3f}", floor, COLOURS["pruned"]),
        ],
    )
    kept = [f"{x:.0f}%" for x, _, accepted in points if accepted]
    return figure, f"Near the limit of {floor:.3f}: kept at {', '.join(kept) or 'no budget'}; below it at the others"
