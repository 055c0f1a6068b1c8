"""The flow of a comparison: shared stages run once per seed, then each arm is trained from them, run by run.

A run is a run folder like any other, and what is finished is not done again: a comparison that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import prune
from distill.comparison.arms import BUILTIN, OURS, Comparison, start_of
from distill.comparison.processes import run_ahead
from distill.comparison.runs import Planned, Runs
from distill.engine.folder import COMPARISON, RunFolder
from distill.engine.preflight import check_losses, check_network, preflight
from distill.engine.size import with_size
from distill.engine.teachers import Teaching, open_model, open_teachers
from distill.errors import DistillError, RunError
from distill.machine.console import Console
from distill.recipe.load import to_yaml
from distill.recipe.schema import Distill, Recipe
from distill.report import compare as report
from distill.results.comparison import Arm, ArmRun, ComparisonResults, FailedRun, Setting


def run(
    comparison: Comparison, folder: RunFolder, console: Console, *, quiet: bool = False, jobs: int = 1
) -> ComparisonResults:
    """Train every arm with every seed, and write the comparison.

    Args:
        comparison: the arms, seeds and learning rates.
        folder: where everything goes; a resumed one goes on after its last finished run, stage or epoch.
        console: what the user watches.
        quiet: of the runs, show warnings only.
        jobs: how many runs are done side by side, if more than one each in a process of its own.

    Returns:
        The content of compare.json.

    Raises:
        DistillError, PruneError: bad input, before anything is written; or a step that cannot be done. If an arm's
            training fails, the other arms are trained and the comparison is written first.
    """
    comparison = possible(comparison, console, folder.path)
    folder.resolve(to_yaml(comparison.recipe))
    work = _Work(comparison, folder, console, quiet)
    first, *others = comparison.seeds
    work.ahead(jobs)
    work.prepare(first)
    for arm in comparison.arms:
        for lr in comparison.lrs or (None,):
            work.train(arm, first, lr)
        work.choose(arm)
    if len(comparison.lrs) > 1:
        work.ahead(jobs)
    for seed in others:
        work.prepare(seed)
        for arm in comparison.arms:
            if arm.name in work.chosen:
                work.train(arm, seed, work.chosen[arm.name])
    work.write()
    report.write(folder.path)
    console.result("\n" + report.summary(work.content(), folder.path))
    work.complain()
    return work.content()


def possible(comparison: Comparison, console: Console, folder: Path | None = None) -> Comparison:
    """Open everything that the runs need; nothing is written. Returns the comparison without arms that are impossible.

    These are arms that the user has not named and that the teacher's head cannot serve. The console says which.

    Raises:
        DistillError: the first error, and its arm.
        PruneError: a budget that cannot be met.
    """
    recipe = comparison.recipe
    untrained = replace(recipe, export=(), sparsify=None, distill=Distill(epochs=0))
    # Each arm's training is checked below, and the runs print their own notes and warnings.
    common = preflight(untrained, progress=console.track)
    recipe = replace(recipe, imgsz=common.recipe.imgsz)
    comparison = replace(comparison, recipe=recipe)
    common.introduce(console, folder)
    arms: list[Arm] = []
    whole = _losses(open_teachers(recipe, common.teacher))
    for arm in comparison.arms:
        variant = comparison.variant(arm, recipe.seed, None)
        try:
            teacher = common.teacher if variant.model == recipe.model else open_model(variant)
            variant, _ = with_size(variant, teacher)
            as_all = (variant.model, variant.prune, variant.imgsz) == (recipe.model, recipe.prune, recipe.imgsz)
            loss_check = common.loss_check if as_all else check_network(variant, teacher)
            teachers = open_teachers(variant, teacher)
            check_losses(variant, teachers)
            _differs(variant, recipe, _losses(teachers) == whole)
            loss_check.run(variant, teachers, common.data)
            arms.append(arm)
        except (DistillError, prune.PruneError) as error:
            if comparison.named or arm.name == OURS or arm not in BUILTIN:  # an arm of the user's own is never left out
                raise DistillError(f"arm {arm.name}: {error}") from None
            console.line(f"arm {arm.name} left out: {error}")
    if common.data is not None and not common.data.labelled:
        raise DistillError(
            f"{common.data.path}: no labels, and arms are compared by mAP or top-1: give data with labels"
        )
    return replace(comparison, arms=tuple(arms))


def _losses(teachers: Sequence[Teaching]) -> int:
    """How many losses there are."""
    return sum(len(each.losses) for each in teachers)


def _differs(variant: Recipe, recipe: Recipe, as_many: bool) -> None:
    """Raise for an arm that leaves out a loss which these heads cannot serve anyway. `as_many`: losses as in the recipe."""
    before, after = recipe.distill.losses, variant.distill.losses
    removed = [spec for spec in before if spec not in after]
    if removed and all(spec in before for spec in after) and as_many:
        raise DistillError(f"this head has no {removed[0].label} anyway: leave the arm out")


class _Work:
    """The finished part of a comparison, and the networks that the next run starts from."""

    def __init__(self, comparison: Comparison, folder: RunFolder, console: Console, quiet: bool) -> None:
        self.comparison, self.folder, self.console = comparison, folder, console
        self.rows: list[ArmRun] = []
        self.failed: list[FailedRun] = []
        self.chosen: dict[str, float | None] = {}
        self.about: Setting | None = None
        self.about_all = False  # whether `about` is of a run whose network is that of the recipe
        recipe = comparison.recipe
        self.starts = _starts([start_of(comparison.variant(arm, recipe.seed, None), recipe) for arm in comparison.arms])
        total = len(comparison.arms) * (max(1, len(comparison.lrs)) + len(comparison.seeds) - 1)
        self.runs = Runs(console, total + len(self.starts) * len(comparison.seeds), quiet=quiet)
        self.write()

    def ahead(self, jobs: int) -> None:
        """Do what can be done by now in several processes; the same runs are then found finished."""
        if jobs == 1:
            return
        first, *others = self.comparison.seeds
        if self.comparison.recipe.teacher.train is not None:
            self.prepare(first)  # the seeds have one teacher in common
        rates = self.comparison.lrs or (None,)
        trainings = [[self._training(arm, first, lr)] for arm in self.comparison.arms for lr in rates]
        known = self.chosen if len(rates) > 1 else dict.fromkeys((arm.name for arm in self.comparison.arms), rates[0])
        trainings += [
            [self._training(arm, seed, known[arm.name])]
            for seed in others
            for arm in self.comparison.arms
            if arm.name in known
        ]
        for chains in ([self._bases(seed) for seed in self.comparison.seeds], trainings):
            run_ahead(self.runs, chains, jobs, self.console)

    def prepare(self, seed: int) -> None:
        """What the arms share with this seed: the networks that their training starts from."""
        for base in self._bases(seed):
            self.runs.run(base)
            self.runs.offer(base)

    def _bases(self, seed: int) -> list[Planned]:
        """The runs that end where a training starts. Each may take over stages of those before it."""
        return [
            Planned(
                replace(start, seed=seed), self.folder.path / f"base-{index}-seed-{seed}", f"base {index}, seed {seed}"
            )
            for index, start in enumerate(self.starts, 1)
        ]

    def _training(self, arm: Arm, seed: int, lr: float | None) -> Planned:
        """One run of an arm."""
        recipe = self.comparison.variant(arm, seed, lr)
        rate = _rate(recipe)
        start = start_of(recipe, self.comparison.recipe)
        return Planned(
            recipe,
            self.folder.path / arm.name / f"seed-{seed}-lr-{rate}",
            f"{arm.name}, seed {seed}, lr {rate}",
            shared_as=replace(start, distill=replace(start.distill, epochs=recipe.distill.epochs)),
            is_last=True,
        )

    def train(self, arm: Arm, seed: int, lr: float | None) -> None:
        """One run of an arm. One that fails is noted, and counts as the worst in a search of rates."""
        planned = self._training(arm, seed, lr)
        recipe, path = planned.recipe, planned.path
        try:
            results = self.runs.run(planned)
        except DistillError as error:
            if isinstance(error, RunError):
                raise
            self.console.warn(f"{planned.title}: {error}")
            self.failed.append(FailedRun(arm.name, seed, lr, str(error), recipe.distill.lr))
            self.write()
            return
        self.rows.append(ArmRun.of(results, arm.name, seed, lr, str(path.relative_to(self.folder.path))))
        recipes = recipe, self.comparison.recipe
        as_all = len({(each.model, each.prune) for each in recipes}) == 1  # an arm may have a network of its own
        if self.about is None or as_all > self.about_all:
            self.about, self.about_all = Setting.of(results), as_all
        self.write()

    def choose(self, arm: Arm) -> None:
        """The learning rate that other seeds get: the best on the val images with the first."""
        rows = [row for row in self.rows if row.arm == arm.name]
        if rows:
            self.chosen[arm.name] = max(rows, key=lambda row: row.map50_95).lr_tried
            self.write()

    def complain(self) -> None:
        """Raise if an arm lacks a seed because its run failed."""
        done = {(row.arm, row.seed) for row in self.rows}
        for failed in self.failed:
            if (failed.arm, failed.seed) not in done:
                raise DistillError(f"arm {failed.arm} has no result with seed {failed.seed}: {failed.error}")

    def content(self) -> ComparisonResults:
        """What compare.json holds: every single figure, and what they were made with."""
        return ComparisonResults(
            recipe_name=self.comparison.recipe.name,
            arms=self.comparison.arms,
            seeds=self.comparison.seeds,
            lrs=self.comparison.lrs,
            about=self.about,
            chosen=dict(self.chosen),
            runs=tuple(self.rows),
            failed=tuple(self.failed),
        )

    def write(self) -> None:
        self.folder.write_json(COMPARISON, self.content().to_dict())


def _rate(recipe: Recipe) -> str:
    return "auto" if recipe.distill.lr is None else f"{recipe.distill.lr:g}"


def _starts(starts: list[Recipe]) -> list[Recipe]:
    """The different ones of recipes up to the start of training; one without repair is a part of the same with it."""
    starts = list(dict.fromkeys(starts))
    repaired = [replace(start, repair=None) for start in starts if start.repair is not None]
    return [start for start in starts if start not in repaired]
