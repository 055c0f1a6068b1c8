"""compare.json in words and tables: every number that a comparison shows is made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import mean, median, stdev

from distill.report.facts import Table
from distill.report.format import apart, digits, signed
from distill.results.comparison import ArmNetwork, ArmRun, ComparisonResults

OURS = "ours"
# How many standard errors a mean may be away from 0 by chance: Student's t at 95 %, for 1, 2, ... degrees of freedom.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
ALIKE = 1.05  # networks whose GFLOPs differ by less than this factor cost the same: cuts end a little off their budget
NOISE = {True: "within noise", False: "beyond noise", None: ""}


@dataclass(frozen=True)
class Standing:
    """How an arm did: its runs with the learning rate that was chosen for it, in the order of their seeds."""

    name: str
    runs: Sequence[ArmRun]  # at least one
    others: Sequence[ArmRun] | None  # those of the arm that it is compared with; None for that arm itself

    @property
    def values(self) -> list[float]:
        """mAP50-95 of each run."""
        return [run.map50_95 for run in self.runs]

    @property
    def score(self) -> str:
        """Mean mAP50-95 with its standard deviation."""
        return with_spread(f"{mean(self.values):.3f}", self.values)

    @cached_property
    def differences(self) -> list[float]:
        """Seed by seed: what both have in common cancels out."""
        other = {run.seed: run.map50_95 for run in self.others or ()}
        return [run.map50_95 - other[run.seed] for run in self.runs if run.seed in other]

    @property
    def difference(self) -> str:
        """Mean difference with its standard deviation; empty if there is none."""
        return with_spread(signed(mean(self.differences)), self.differences) if self.differences else ""

    @property
    def start(self) -> float:
        """Mean mAP50-95 of the networks before training."""
        return mean(run.start for run in self.runs)

    @property
    def network(self) -> ArmNetwork | None:
        """What it trains: that of the first seed, for seeds cut alike."""
        return self.runs[0].network

    @property
    def within_noise(self) -> bool | None:
        """Whether a paired t-test finds no difference; None with fewer than two pairs."""
        deviation, count = standard_deviation(self.differences), len(self.differences)
        if deviation is None:
            return None
        limit = STUDENT[min(count - 2, len(STUDENT) - 1)]
        return abs(mean(self.differences)) <= limit * deviation / sqrt(count)


def standard_deviation(values: Sequence[float]) -> float | None:
    """Of a sample; None if it has fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def with_spread(text: str, values: Sequence[float]) -> str:
    """A mean with its standard deviation, if there is one."""
    deviation = standard_deviation(values)
    return text if deviation is None else f"{text} ± {deviation:.3f}"


def standings(results: ComparisonResults) -> list[Standing]:
    """The arms that have finished a run, in the order of `results.arms`."""
    runs: dict[str, list[ArmRun]] = {}
    for arm in results.arms:
        finished = [run for run in results.runs if run.arm == arm.name and arm.name in results.chosen]
        chosen = [run for run in finished if run.lr_tried == results.chosen[arm.name]]
        if chosen:
            runs[arm.name] = sorted(chosen, key=lambda run: run.seed)
    base = OURS if OURS in runs else next(iter(runs), OURS)
    return [Standing(name, rows, None if name == base else runs[base]) for name, rows in runs.items()]


def base_name(arms: Sequence[Standing]) -> str:
    """Name of the arm that the others are compared with."""
    return next((arm.name for arm in arms if arm.others is None), OURS)


def differ_in_cost(arms: Sequence[Standing]) -> bool:
    """Whether the arms train networks of different cost, so that their figures are not won at the same price."""
    gflops = [arm.network.gflops for arm in arms if arm.network is not None]
    return bool(gflops) and max(gflops) > ALIKE * min(gflops)


def network_text(arm: Standing) -> str:
    """What an arm trains, in words; empty if nobody noted it."""
    network = arm.network
    if network is None:
        return ""
    size = f"{digits(network.params / 1e6)} M parameters, {digits(network.gflops)} GFLOPs"
    return f"{Path(network.model).name}: {size}" if network.model else size


def comparison(results: ComparisonResults) -> Table | None:
    """A row for each arm."""
    arms = standings(results)
    if not arms:
        return None
    known = all(arm.network is not None for arm in arms)
    columns = (
        "arm",
        "start",
        results.measure,
        *(("GFLOPs",) if known else ()),
        "seeds",
        f"against {base_name(arms)}",
        "",
    )
    return Table((*columns, "lr", "s/step", "labels"), tuple(map(_row, arms)), strong=results.measure)


def _row(arm: Standing) -> tuple[str, ...]:
    return (
        arm.name,
        f"{arm.start:.3f}",
        arm.score,
        *((digits(arm.network.gflops),) if arm.network else ()),
        str(len(arm.runs)),
        arm.difference,
        NOISE[arm.within_noise],
        ", ".join(dict.fromkeys(rate_text(run.lr) for run in arm.runs)),
        digits(median(run.seconds_per_step for run in arm.runs)),
        "yes" if arm.runs[0].labels else "no",
    )


def notes(results: ComparisonResults) -> list[str]:
    """How to read the table: what the columns are, what is noise, and who chose the learning rates."""
    seeds, several = results.seeds, len(results.seeds) > 1
    deviation = f" ± is the standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))})."
    noise = (
        "A difference is taken seed by seed; within noise is what a paired t-test (95 %) takes for none."
        if several
        else "One seed says nothing about noise: give --seeds 3 before you believe a difference."
    )
    rates = (
        f"lr: the best of {', '.join(map(rate_text, results.lrs))} on the val images with seed {seeds[0]}, chosen in this "
        "way for all arms alike."
        if len(results.lrs) > 1
        else "lr: there was no search; it was given, or each run chose the best of several in a few steps."
    )
    columns = (
        f"start: the network before training. {results.measure}: the best epoch of training, or the mean of the weights before and "
        "after it if that was measured and is higher; also if it is below the start."
    )
    notes = [columns + (deviation if several else ""), noise, rates]
    if differ_in_cost(standings(results)):
        notes.append("The arms train networks of different cost: compare those of about the same GFLOPs.")
    return notes


def findings(results: ComparisonResults) -> list[str]:
    """What the reader must know before believing the table."""
    lines = [
        f"{run.arm} failed with seed {run.seed}, lr {'auto' if run.lr is None else rate_text(run.lr)}: {run.error}"
        for run in results.failed
    ]
    for arm in standings(results):
        ended, started = apart(mean(arm.values), arm.start)
        if mean(arm.values) < arm.start:
            lines.append(
                f"{arm.name} ends at {ended}, below the {started} that it starts from: without training is better."
            )
    missing = len(results.arms) * len(results.seeds) - sum(len(arm.runs) for arm in standings(results))
    if missing > 0:
        lines.append(f"{missing} runs are missing: the comparison was not finished.")
    if len({run.schedule for run in results.runs}) > 1:
        lines.append("The arms did not train for the same epochs, steps and batch: their own keys say otherwise.")
    return lines


def gain(results: ComparisonResults) -> str:
    """The comparison in one sentence, which names no winner where noise could have chosen another one."""
    arms = standings(results)
    if not arms:
        return "Nothing to compare yet"
    names = _names(arms)
    best = max(arms, key=lambda arm: mean(arm.values))
    below = ", and below its start" if mean(best.values) < best.start else ""
    ends = f"{names[best.name]} ends highest of {len(arms)} ways: {results.measure} {best.score}{below}"
    if len(arms) == 1:
        return f"{best.name} ends at {results.measure} {best.score}{below}"
    if len(best.runs) < 2:
        return f"{ends}, with one seed"
    near = [
        arm.name
        for arm in arms
        if arm is not best and Standing(arm.name, arm.runs, best.runs).within_noise is not False
    ]
    if not near:
        return f"{ends}, beyond noise"
    all_others = len(near) == len(arms) - 1 > 1 and not differ_in_cost(arms)
    others = "all others" if all_others else ", ".join(names[name] for name in near)
    return f"{ends}, but {others} within noise of it"


def _names(arms: Sequence[Standing]) -> dict[str, str]:
    """What sentences call the arms: by name, and with the cost of their networks if these differ in it."""
    costs = differ_in_cost(arms)
    return {
        arm.name: f"{arm.name} ({digits(arm.network.gflops)} GFLOPs)" if costs and arm.network else arm.name
        for arm in arms
    }


def judgement(results: ComparisonResults) -> str:
    """The best of the other arms against the one that all are compared with."""
    others = [arm for arm in standings(results) if arm.differences]
    if not others:
        return ""
    best = max(others, key=lambda arm: mean(arm.differences))
    names = _names(standings(results))
    against = f"{names[best.name]} against {names[base_name(standings(results))]}"
    words = f"{against}: {best.difference}", NOISE[best.within_noise]
    return ", ".join(filter(None, words))


def search(results: ComparisonResults) -> Table | None:
    """What each learning rate gave with the first seed; None if there was nothing to choose."""
    if len(results.lrs) < 2:
        return None
    first = results.seeds[0]
    cells = {(run.arm, run.lr_tried): f"{run.map50_95:.3f}" for run in results.runs if run.seed == first}
    cells |= {(run.arm, run.lr_tried): "failed" for run in results.failed if run.seed == first}
    rows = tuple((arm.name, *(cells.get((arm.name, rate), "") for rate in results.lrs)) for arm in results.arms)
    return Table(("arm", *map(rate_text, results.lrs)), rows)


def every_run(results: ComparisonResults) -> Table | None:
    """All runs, those of the search too."""
    rows = []
    for run in results.runs:
        scores = ("" if score is None else f"{score:.3f}" for score in (run.start, run.map50_95, run.map50))
        rows.append((run.arm, str(run.seed), rate_text(run.lr), *scores, digits(run.seconds_per_step), run.folder))
    return Table(("arm", "seed", "lr", "start", *_figures(results), "s/step", "folder"), tuple(rows)) if rows else None


def _figures(results: ComparisonResults) -> tuple[str, str]:
    return ("mAP50-95", "mAP50") if results.measure == "mAP50-95" else ("top-1", "top-5")


def rate_text(rate: float) -> str:
    """A learning rate, "1e-4" or "2.5e-3"."""
    mantissa, _, power = f"{rate:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"
