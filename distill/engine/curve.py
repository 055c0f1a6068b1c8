"""How far can I go? Accuracy after the cut and after repair over a range of budgets, from one set of statistics.

The importance is measured once, on the uncut network; each budget is a plan made of it, as a run with that budget would
make it. Repair weighs the positions on the images once too, and runs in closed form, for nearly all of its gain is there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import prune
from distill.engine.kinds import kind_of
from distill.engine.planning import budget as budget_of
from distill.engine.preflight import Preflight, preflight
from distill.engine.stages.repair import mend
from distill.engine.statistics import Statistics
from distill.engine.unlabelled import scratch_frames
from distill.errors import DistillError
from distill.machine import env, measure
from distill.machine.console import Console
from distill.recipe.keys import Key
from distill.recipe.schema import Distill, Prune, Recipe
from distill.recipe.section import write as plain
from distill.results.curve import FORMAT, CurvePoint, CurveResults, CurveSetting, in_order

BUDGETS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
RESOLUTION = 0.04  # between the last budget that is accepted and the first that is not
DIGITS = 12  # of the checkpoint's SHA-256
_LIMITS = ("importance", "round_to", "protect", "max_ratio", "images")  # keys of `prune` that move a point


@dataclass(frozen=True)
class CurveOptions:
    """What a curve takes beside a recipe."""

    budgets: tuple[float, ...] = ()  # values of the recipe's budget key; BUDGETS, and some around the limit, by default
    full_repair: bool = False  # repair block by block too, as a run does


def trace_curve(
    recipe: Recipe,
    options: CurveOptions,
    console: Console,
    *,
    before: Callable[[], CurveResults | None] = lambda: None,
    save: Callable[[CurveResults], object] = lambda results: None,
) -> CurveResults:
    """Measure the points of a curve.

    Args:
        recipe: its model, data, `prune` and `repair` count; its own budget says which key is varied.
        options: the budgets, and how much is repaired.
        console: what the user watches.
        before: reads a curve that was begun; its points are not measured again.
        save: called with the curve after each point.

    Raises:
        DistillError: bad input, before any work; or the earlier curve is of another recipe.
        PruneError: no budget can be met.
    """
    if recipe.prune is None:
        raise DistillError("prune is null, so there is nothing to cut: give prune.flops=0.5")
    untrained = replace(recipe, sparsify=None, distill=Distill(epochs=0), export=())
    checked = preflight(untrained, frames=scratch_frames, progress=console.track)
    checked.introduce(console)
    checked.show(console)
    for note in _notes(recipe, options):
        console.line(note)
    work = _Curve(checked, options, console, before(), save)
    work.measure_all()
    return work.results


def _notes(recipe: Recipe, options: CurveOptions) -> list[str]:
    """What a run of this recipe would do that the curve does not."""
    notes = []
    if recipe.sparsify is not None:
        notes.append("sparsify is left out: the network is cut as it was given")
    if recipe.prune is not None and recipe.prune.rounds > 1:
        notes.append("every budget is cut in one round, from one set of statistics")
    if recipe.repair is not None and recipe.repair.steps and not options.full_repair:
        notes.append(
            "repair in closed form alone; --full-repair goes on block by block, as a run does, and takes longer"
        )
    return notes


class _Curve:
    """A curve in progress."""

    def __init__(
        self,
        checked: Preflight,
        options: CurveOptions,
        console: Console,
        before: CurveResults | None,
        save: Callable[[CurveResults], object],
    ) -> None:
        assert checked.teacher is not None and checked.data is not None  # a curve is of a checkpoint and its images
        self.recipe, self.device, self.console, self.save = checked.recipe, checked.device, console, save
        self.options, self.data, self.teacher = options, checked.data, checked.teacher
        self.kind = kind_of(checked.recipe)
        self.shared = Statistics(checked, console)
        settings: dict[str, Any] = {"imgsz": self.recipe.size, "batch": self.recipe.batch, "device": self.device}
        self.judge = self.kind.judge(lambda: self.shared.model, self.data, console, **settings)
        self.results = self._begin(before)

    @property
    def cut(self) -> Prune:
        """The section of the recipe."""
        assert self.recipe.prune is not None  # checked before
        return self.recipe.prune

    def _begin(self, before: CurveResults | None) -> CurveResults:
        """The curve without new points: what an earlier one has, or the teacher alone."""
        setting = self._setting()
        if before is not None:
            changed = [key for key, value in setting.recipe.items() if before.setting.recipe.get(key) != value]
            changed += [
                name for name in ("checkpoint", "steps") if getattr(before.setting, name) != getattr(setting, name)
            ]
            if changed:
                raise DistillError(
                    f"the curve that is there already is of another recipe ({', '.join(changed)}): give another --out"
                )
            return replace(before, map_drop=self._limit, recipe_name=self.recipe.name)
        start = time.monotonic()
        evaluation = self.judge.evaluate(self.shared.model)
        judged_by, score = evaluation.yardstick
        gflops, params = self._cost(self.shared.model)
        return CurveResults(
            format=FORMAT,
            recipe_name=self.recipe.name,
            key=str(setting.recipe["budget"]),
            setting=setting,
            model=str(self.recipe.model),
            data=str(self.data.path),
            imgsz=self.recipe.size,
            device=env.device_name(str(self.device)),
            labelled=self.data.labelled,
            judged_by=judged_by,
            images=len(self.data.val),
            teacher=score,
            teacher_gflops=gflops,
            teacher_params=params,
            map_drop=self._limit,
            points=(),
            unreachable=(),
            seconds=time.monotonic() - start,
        )

    @property
    def _limit(self) -> float | None:
        return self.recipe.accept.map_drop if self.data.labelled else None

    def _setting(self) -> CurveSetting:
        recipe, repair, data = self.recipe, self.recipe.repair, Path(self.recipe.data).resolve()
        limits = {f"prune.{key}": value for key, value in plain(Key(Prune), self.cut).items() if key in _LIMITS}
        keys: dict[str, Any] = {"data": str(data), "imgsz": recipe.size, "batch": recipe.batch, "seed": recipe.seed}
        keys |= {"budget": next(key for key in Prune.EXACTLY_ONE if getattr(self.cut, key) is not None), **limits}
        keys["repair.images"] = repair.images if repair else None
        if recipe.unlabelled is not None:
            keys |= {"unlabelled.images": list(recipe.unlabelled.images), "unlabelled.frames": recipe.unlabelled.frames}
        digest = hashlib.sha256(Path(self.teacher.source).read_bytes()).hexdigest()
        return CurveSetting(keys, digest[:DIGITS], repair.steps if repair and self.options.full_repair else 0)

    def measure_all(self) -> None:
        """Every budget that was asked for; by default also some around the limit of `accept`."""
        self._measure(self.options.budgets or BUDGETS)
        if not self.results.points:
            self._check(self.results.unreachable[0])  # raises, with the reason
        while not self.options.budgets and (middle := self._middle()) is not None:
            self._measure([middle])

    def _middle(self) -> float | None:
        """The budget between the last that is accepted and the first that is not; None if they are close, or not known."""
        kept, lost = self.results.kept, self.results.lost
        if kept is None or lost is None or abs(kept.budget - lost.budget) <= RESOLUTION:
            return None
        return round((kept.budget + lost.budget) / 2, 4)

    def _measure(self, budgets: Sequence[float]) -> None:
        have = {point.budget for point in self.results.points}
        for budget in sorted({*budgets} - have, reverse=self.results.key != "ratio"):
            try:
                self._check(budget)
            except prune.PruneError as error:
                self.console.line(f"left out: {error}")
                self.results = replace(self.results, unreachable=(*{*self.results.unreachable, budget},))
                continue
            points = in_order((*self.results.points, self._point(budget)), self.results.key)
            self.results = replace(self.results, points=points)
            self.save(self.results)

    def _check(self, budget: float) -> None:
        """Raise a PruneError for a budget that cannot be met."""
        prune.check_budget(self.shared.graph, **self._budget(budget))

    def _budget(self, value: float) -> dict[str, Any]:
        return budget_of(self.cut) | {self.results.key: value}

    def _point(self, budget: float) -> CurvePoint:
        shared, before = self.shared, self.shared.seconds
        scores, images, weights = shared.scores, shared.images, shared.weights  # before the clock of the first point
        self.results = replace(self.results, seconds=self.results.seconds + shared.seconds - before)
        start = time.monotonic()
        self.console.header(f"{self.results.key} {budget:g}")
        plan = prune.make_plan(shared.graph, scores, progress=self.console.track, **self._budget(budget))
        student = prune.apply(shared.model, plan, adapter=self.kind.adapter)
        pruned, repaired = self.judge.evaluate(student).yardstick[1], None
        if images is not None:
            steps = self.results.setting.steps
            mend(self.kind, student, shared.model, plan, images, steps, self.recipe.seed, self.console, weights)
            repaired = self.judge.evaluate(student).yardstick[1]
        return CurvePoint(budget, *self._cost(student), pruned, repaired, time.monotonic() - start)

    def _cost(self, network: nn.Module) -> tuple[float, int]:
        """GFLOPs and parameters as they are deployed, with BatchNorm in the convolutions."""
        folded = self.kind.deployed(network)
        return measure.count_gflops(folded, self.recipe.size), measure.count_params(folded)
