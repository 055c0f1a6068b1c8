"""sweep.json in words and tables: which of the runs are worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, median

from distill.report.compare_facts import with_spread
from distill.report.facts import Table
from distill.report.format import digits, signed, speed
from distill.results.sweep import SEED, SweepPoint, SweepResults

Cost = Callable[["Choice"], float]


@dataclass(frozen=True)
class Choice:
    """The runs that differ in nothing but the seed."""

    number: int  # its place in the table, which marks it in the plots
    name: str  # the values that make it, "flops=0.7"
    runs: Sequence[SweepPoint]  # at least one

    @cached_property
    def scores(self) -> list[float]:
        """Of each run that has one."""
        return [run.score for run in self.runs if run.score is not None]

    @property
    def score(self) -> float | None:
        """Mean over the seeds."""
        return fmean(self.scores) if self.scores else None

    @property
    def gflops(self) -> float:
        """Mean over the seeds: the cut of each may be a little different."""
        return fmean(run.gflops for run in self.runs)

    @property
    def latency_ms(self) -> float:
        """Median over the seeds."""
        return median(run.latency_ms for run in self.runs)


SCORE, FRONT = "score", "front"
COSTS: dict[str, Cost] = {"GFLOPs": lambda choice: choice.gflops, "latency": lambda choice: choice.latency_ms}


def choices(sweep: SweepResults) -> list[Choice]:
    """What the sweep chose between, the most expensive first."""
    varied = [key for key, values in sweep.axes.items() if key != SEED and len(values) > 1]
    last = [key.rpartition(".")[2] for key in varied]
    shown = last if len(set(last)) == len(last) else varied
    groups: dict[str, list[SweepPoint]] = {}
    for point in sweep.points:
        name = " ".join(f"{word}={point.values[key]}" for key, word in zip(varied, shown, strict=True))
        groups.setdefault(name or "the recipe", []).append(point)
    made = sorted((Choice(0, *each) for each in groups.items()), key=lambda each: (-each.gflops, -(each.score or 0.0)))
    return [replace(choice, number=number) for number, choice in enumerate(made, 1)]


def front(made: Sequence[Choice], cost: Cost) -> list[Choice]:
    """The Pareto front: no other choice is at least as good and as cheap, and better in one of the two."""
    scored = [(choice, cost(choice), choice.score) for choice in made if choice.score is not None]
    return [
        choice
        for choice, price, score in scored
        if not any(p <= price and s >= score and (p, s) != (price, score) for _, p, s in scored)
    ]


def table(sweep: SweepResults, *, brief: bool = False) -> Table | None:
    """A row for each choice, the most expensive first. `brief`: what fits a terminal of 80 columns."""
    made = choices(sweep)
    if not made:
        return None
    fronts = {name: front(made, cost) for name, cost in COSTS.items()}
    rows = [_row(choice, [name for name, some in fronts.items() if choice in some]) for choice in made]
    named = [{"choice": f"{choice.number} {choice.name}", **row} for choice, row in zip(made, rows, strict=True)]
    shown = ("choice", SCORE, "GFLOPs", "latency (ms)", "accepted", FRONT) if brief else tuple(named[0])
    header = tuple(judged_by(sweep) if column == SCORE else column for column in shown)
    return Table(header, tuple(tuple(row[column] for column in shown) for row in named), strong=judged_by(sweep))


def _row(choice: Choice, fronts: Sequence[str]) -> dict[str, str]:
    runs = choice.runs
    changes = [run.score - run.teacher for run in runs if run.score is not None and run.teacher is not None]
    accepted = [run.accepted for run in runs if run.accepted is not None]
    some = f"{sum(accepted)} of {len(accepted)}" if any(accepted) else "no"
    return {
        SCORE: with_spread(f"{choice.score:.3f}", choice.scores) if choice.score is not None else "",
        "change": signed(fmean(changes)) if changes else "",
        "GFLOPs": digits(choice.gflops),
        "latency (ms)": digits(choice.latency_ms),
        "": speed(median(run.teacher_latency_ms for run in runs), choice.latency_ms),
        "accepted": "" if not accepted else "yes" if all(accepted) else some,
        FRONT: "both" if len(fronts) == len(COSTS) else ", ".join(fronts),
    }


def judged_by(sweep: SweepResults) -> str:
    """What the runs are judged by."""
    return sweep.points[0].judged_by if sweep.points else "score"


def gain(sweep: SweepResults) -> str:
    """The sweep in one sentence: the cheapest choice that is accepted, or else the best one."""
    made = [choice for choice in choices(sweep) if choice.score is not None]
    accepted = [choice for choice in made if all(run.accepted for run in choice.runs)]
    if accepted:
        best = min(accepted, key=lambda choice: choice.gflops)
        share = best.gflops / fmean(run.teacher_gflops for run in best.runs)
        return f"{best.name} is the smallest that is accepted: {share:.0%} of the FLOPs, {judged_by(sweep)} {best.score:.3f}"
    if made:
        best = max(made, key=lambda choice: choice.score or 0.0)
        return f"{best.name} ends highest: {judged_by(sweep)} {best.score:.3f}"
    return "No run has finished"


def judgement(sweep: SweepResults) -> str:
    """How many of the choices are on the front."""
    made = choices(sweep)
    if len(made) < 2:
        return ""
    return f"{len(front(made, COSTS['GFLOPs']))} of {len(made)} choices are on the Pareto front of accuracy and GFLOPs"


def findings(sweep: SweepResults) -> list[str]:
    """What the reader must know before believing the table."""
    lines = [f"{failed.name} failed: {failed.error}" for failed in sweep.failed]
    if sweep.missing:
        lines.append(f"{sweep.missing} runs are missing: the sweep was not finished.")
    if len({(run.data, run.judged_by) for run in sweep.points}) > 1:
        lines.append("The runs were measured on different data: their accuracies do not compare.")
    if len({run.timed_in for run in sweep.points}) > 1:
        lines.append("The runs were timed in different runtimes: their latencies do not compare.")
    return lines


def notes(sweep: SweepResults) -> list[str]:
    """How to read the table."""
    seeds = sweep.axes.get(SEED, ())
    several = f"± is the standard deviation over {len(seeds)} seeds. " if len(seeds) > 1 else ""
    noise = "" if len(seeds) > 1 else "One seed says nothing about noise: --seeds 3 does. "
    timed = sweep.points[0].timed_in if sweep.points else ""
    front = (
        "Front: the Pareto front, where no other choice is at least as good and as cheap, and better in one of the two"
    )
    return [
        f"{several}{noise}{front}; both: by GFLOPs and by latency.",
        f"Latency: median at batch 1 in {timed}, on the machine of each run; a few per cent between two runs are noise.",
    ]


def reports(sweep: SweepResults) -> list[tuple[str, str]]:
    """Name and page of every run."""
    return [(point.name, f"{point.name}/report.html") for point in sweep.points]


def axes(sweep: SweepResults) -> list[tuple[str, str]]:
    """The keys that were varied."""
    return [(key, ", ".join(values)) for key, values in sweep.axes.items()]
