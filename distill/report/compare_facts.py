"""compare.json in words and tables: every number that a comparison shows is made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from statistics import mean, median, stdev
from typing import Any

from distill.report.facts import Table
from distill.report.format import digits, signed

Content = Mapping[str, Any]
OURS = "ours"
# What a mean may be away from 0 by chance, in its standard errors: Student's t at 95 %, for 1, 2, ... degrees of freedom.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


@dataclass(frozen=True)
class Standing:
    """How an arm did: its runs with the learning rate that was chosen for it, in the order of their seeds.

    Attributes:
        name: of the arm.
        runs: rows of compare.json, at least one.
        others: those of the arm that it is compared with; None for that one itself.
    """

    name: str
    runs: Sequence[Mapping[str, Any]]
    others: Sequence[Mapping[str, Any]] | None

    def values(self, key: str = "map50_95") -> list[float]:
        return [run[key] for run in self.runs]

    @cached_property
    def differences(self) -> list[float]:
        """Seed by seed, what both have in common cancels out."""
        other = {run["seed"]: run["map50_95"] for run in self.others or ()}
        return [run["map50_95"] - other[run["seed"]] for run in self.runs if run["seed"] in other]

    @property
    def within_noise(self) -> bool | None:
        """Whether a paired t-test takes the difference for none; None where that is not known."""
        spread, count = deviation(self.differences), len(self.differences)
        if spread is None:
            return None
        limit = STUDENT[min(count - 2, len(STUDENT) - 1)]
        return abs(mean(self.differences)) <= limit * spread / sqrt(count)


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of fewer than two."""
    return stdev(values) if len(values) > 1 else None


def standings(content: Content) -> list[Standing]:
    """The arms that have finished a run, in the order they were named."""
    chosen = content["chosen"]
    runs = {
        arm["name"]: sorted(
            (row for row in content["runs"] if row["arm"] == arm["name"] and row["lr_tried"] == chosen[arm["name"]]),
            key=lambda row: row["seed"],
        )
        for arm in content["arms"]
        if arm["name"] in chosen
    }
    base = _base(runs)
    return [Standing(name, rows, None if name == base else runs[base]) for name, rows in runs.items() if rows]


def table(content: Content) -> Table | None:
    """A row for each arm."""
    found = standings(content)
    if not found:
        return None
    rows = tuple(_row(standing) for standing in found)
    columns = ("arm", "start", "mAP50-95", "seeds", f"against {compared_with(found)}", "", "lr", "s/step", "labels")
    return Table(columns, rows, strong="mAP50-95")


def _row(standing: Standing) -> tuple[str, ...]:
    rates = dict.fromkeys(map(rate_text, standing.values("lr")))
    noise = {True: "within noise", False: "beyond noise", None: ""}[standing.within_noise]
    return (
        standing.name,
        f"{mean(standing.values('start')):.3f}",
        with_spread(f"{mean(standing.values()):.3f}", standing.values()),
        str(len(standing.runs)),
        with_spread(signed(mean(standing.differences)), standing.differences) if standing.differences else "",
        noise,
        ", ".join(rates),
        digits(median(standing.values("seconds_per_step"))),
        "yes" if standing.runs[0]["labels"] else "no",
    )


def notes(content: Content) -> list[str]:
    """How to read the table: what the columns are, what is noise, and where the learning rates come from."""
    seeds, lrs = content["seeds"], content["lrs"]
    spread = f"± is the standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))})."
    noise = (
        "A difference is taken seed by seed; within noise is what a paired t-test (95 %) takes for none."
        if len(seeds) > 1
        else "One seed says nothing about noise: give --seeds 3 before you believe a difference."
    )
    rates = (
        f"lr: the best of {', '.join(map(rate_text, lrs))} on the val images with seed {seeds[0]}, chosen in this "
        "way for all arms alike."
        if len(lrs) > 1
        else "lr: there was no search; it is what was given, or what a few steps at several rates showed to be best for each run by itself."
    )
    return [
        "start: the network before training. mAP50-95: the best epoch of training, or the mean of the weights before and "
        "after it where that was measured and is higher; also where it is below the start. "
        + (spread if len(seeds) > 1 else ""),
        noise,
        rates,
    ]


def findings(content: Content) -> list[str]:
    """What the reader must know before believing the table."""
    found = [
        f"{row['arm']} failed with seed {row['seed']}, lr {row['lr_tried'] or 'auto'}: {row['error']}"
        for row in content["failed"]
    ]
    missing = len(content["arms"]) * len(content["seeds"]) - sum(len(each.runs) for each in standings(content))
    if missing > 0:
        found.append(f"{missing} runs are missing: the comparison was not finished.")
    courses = {tuple(row["schedule"].items()) for row in content["runs"]}
    if len(courses) > 1:
        found.append("The arms did not train for the same epochs, steps and batch: their own keys say otherwise.")
    return found


def gain(content: Content) -> str:
    """The comparison in one sentence."""
    found = standings(content)
    if not found:
        return "Nothing to compare yet"
    best = max(found, key=lambda each: mean(each.values()))
    return f"{best.name} ends highest of {len(found)} ways: mAP50-95 {with_spread(f'{mean(best.values()):.3f}', best.values())}"


def judgement(content: Content) -> str:
    """How the best one stands to the one that all are compared with, or that one to the best of the others."""
    found = standings(content)
    others = [each for each in found if each.differences]
    if not others:
        return ""
    best = max(others, key=lambda each: mean(each.differences))
    noise = {True: ", within noise", False: ", beyond noise", None: ""}[best.within_noise]
    difference = with_spread(signed(mean(best.differences)), best.differences)
    return f"{best.name} against {compared_with(found)}: {difference}{noise}"


def search(content: Content) -> Table | None:
    """What each learning rate gave with the first seed; None where there was nothing to choose."""
    lrs, seed = content["lrs"], content["seeds"][0]
    if len(lrs) < 2:
        return None
    found = {
        (row["arm"], row["lr_tried"]): f"{row['map50_95']:.3f}" for row in content["runs"] if row["seed"] == seed
    } | {(row["arm"], row["lr_tried"]): "failed" for row in content["failed"] if row["seed"] == seed}
    names = [arm["name"] for arm in content["arms"]]
    rows = tuple((name, *(found.get((name, rate), "") for rate in lrs)) for name in names)
    return Table(("arm", *map(rate_text, lrs)), rows)


def every_run(content: Content) -> Table | None:
    """All runs, those of the search too."""
    rows = tuple(
        (
            row["arm"],
            str(row["seed"]),
            rate_text(row["lr"]),
            f"{row['start']:.3f}",
            f"{row['map50_95']:.3f}",
            f"{row['map50']:.3f}",
            digits(row["seconds_per_step"]),
            row["folder"],
        )
        for row in content["runs"]
    )
    return Table(("arm", "seed", "lr", "start", "mAP50-95", "mAP50", "s/step", "folder"), rows) if rows else None


def compared_with(found: Sequence[Standing]) -> str:
    """Name of the arm that the others are compared with."""
    return next((each.name for each in found if each.others is None), OURS)


def rate_text(rate: float) -> str:
    """A learning rate, "1e-4" or "2.5e-3"."""
    digits, _, power = f"{rate:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def with_spread(text: str, values: Sequence[float]) -> str:
    """A mean with its standard deviation, where there is one."""
    spread = deviation(values)
    return text if spread is None else f"{text} ± {spread:.3f}"


def _base(runs: Mapping[str, Sequence[Any]]) -> str:
    """`ours` where it is among the arms, else the first of them."""
    return OURS if runs.get(OURS) else next((name for name, rows in runs.items() if rows), OURS)
