"""The flow of a comparison: what arms share is made once per seed, then each arm is trained from it, run by run.

A run is a run folder like any other, and what is finished is not done again: a comparison that was killed goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import prune
from distill.comparison.arms import BUILTIN, OURS, Arm, Comparison, start_of
from distill.engine import pipeline
from distill.engine import preflight as inputs
from distill.engine.folder import COMPARISON, LOG, RECIPE, RunFolder
from distill.engine.results import about, figures
from distill.errors import DistillError, RunError
from distill.machine.console import Console
from distill.machine.device import pick_device
from distill.recipe.load import to_yaml
from distill.recipe.schema import SHAPES, Recipe
from distill.report import compare as report
from distill.results.comparison import ComparisonResults
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data import dataset as datasets

FORMAT = 1
# Two runs with the same of this have the same stages up to the first of those: from all of them to the teacher alone,
# which is trained once where a recipe trains it. The first that holds is the best.
_ALIKE: dict[tuple[str, ...], Callable[[Recipe], Recipe]] = {
    ("choose",): lambda start: start,
    ("repair", "choose"): lambda start: replace(start, repair=None),
    ("prune",): lambda start: replace(start, repair=None, prune=None, seed=0),
}
FINISHED = ("results.json", "report.html")  # what a run writes last


class RunConsole(Console):
    """The console of one run of many: its results go into its log, for the comparison has a table of its own."""

    def result(self, text: str) -> None:
        self.record(text)


def run(wanted: Comparison, folder: RunFolder, console: Console, *, quiet: bool = False) -> dict[str, Any]:
    """Train every arm with every seed, and write the comparison.

    Args:
        wanted: what is compared.
        folder: where everything goes; a resumed one goes on after its last finished run, stage or epoch.
        console: what the user watches.
        quiet: of the runs, show warnings only.

    Returns:
        What compare.json holds.

    Raises:
        DistillError, PruneError: bad input, before anything is written; or a step that cannot be done. Where it is an arm's
            training, the other arms are trained and the comparison is written first.
    """
    wanted = possible(wanted, console)
    work = _Work(wanted, folder, console, quiet)
    first, *others = wanted.seeds
    work.prepare(first)
    for arm in wanted.arms:
        for lr in wanted.lrs or (None,):
            work.train(arm, first, lr)
        work.choose(arm)
    for seed in others:
        work.prepare(seed)
        for arm in wanted.arms:
            if arm.name in work.chosen:
                work.train(arm, seed, work.chosen[arm.name])
    work.write()
    report.write(folder.path)
    console.result("\n" + report.summary(ComparisonResults.read(folder.path), folder.path))
    work.complain()
    return work.content()


def possible(wanted: Comparison, console: Console) -> Comparison:
    """Open everything that the runs need. Nothing is written.

    Returns:
        What can be compared: of arms that nobody has named, those that the teacher's head can have.

    Raises:
        DistillError: what is wrong first, and with which arm.
        PruneError: a budget that cannot be met.
    """
    recipe, quiet = wanted.recipe, Console(quiet=True)  # the runs say what there is to say of each
    pick_device(recipe.device)
    teacher = inputs.open_teacher(recipe) if recipe.model else None
    fit: list[Arm] = []
    for arm in wanted.arms:
        variant = wanted.variant(arm, recipe.seed, None)
        try:
            own = teacher
            if (variant.model, variant.prune, variant.imgsz) != (recipe.model, recipe.prune, recipe.imgsz):
                own = inputs.open_teacher(variant) if variant.model else None
                inputs.check_network(variant, own)
            inputs.fitting_losses(variant, own, quiet)
            _differs(variant, recipe, teacher)
            fit.append(arm)
        except (DistillError, prune.PruneError) as error:
            if wanted.named or arm.name == OURS or arm not in BUILTIN:  # an arm of the user's own is never left out
                raise DistillError(f"arm {arm.name}: {error}") from None
            console.line(f"arm {arm.name} left out: {error}")
    inputs.check_network(recipe, teacher)
    if recipe.data != SHAPES:
        data = datasets.load(recipe.data, teacher.names if teacher else None, progress=quiet.track)
        if not data.labelled:
            raise DistillError(f"{data.path}: no labels, and arms are compared by mAP: give a data.yaml with labels")
    return replace(wanted, arms=tuple(fit))


def _differs(variant: Recipe, recipe: Recipe, teacher: Detector | None) -> None:
    """Raise for an arm that leaves out a loss which this head cannot have anyway."""
    before, after = recipe.distill.losses, variant.distill.losses
    lost = [spec for spec in before if spec not in after]
    if lost and all(spec in before for spec in after) and not inputs.fitting(lost, teacher)[0]:
        raise DistillError(f"this head has no {lost[0].label} anyway: leave the arm out")


class _Work:
    """What is done of a comparison, and what the next run is to begin with."""

    def __init__(self, wanted: Comparison, folder: RunFolder, console: Console, quiet: bool) -> None:
        self.wanted, self.folder, self.console, self.quiet = wanted, folder, console, quiet
        self.bases: list[tuple[Recipe, Path]] = []  # finished ones: up to where training starts
        self.rows: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self.chosen: dict[str, float | None] = {}
        self.about: dict[str, Any] = {}
        self.number = 0
        self.starts = _starts(
            [start_of(wanted.variant(arm, wanted.recipe.seed, None), wanted.recipe) for arm in wanted.arms]
        )
        self.total = len(wanted.arms) * (max(1, len(wanted.lrs)) + len(wanted.seeds) - 1)
        self.total += len(self.starts) * len(wanted.seeds)
        self.write()

    def prepare(self, seed: int) -> None:
        """What the arms share with this seed: the networks that their training starts from."""
        for index, start in enumerate(self.starts, 1):
            recipe = replace(start, seed=seed)
            path = self.folder.path / f"base-{index}-seed-{seed}"
            self.run(recipe, path, f"base {index}, seed {seed}")
            self.bases.append((recipe, path))

    def train(self, arm: Arm, seed: int, lr: float | None) -> None:
        """One run of an arm. One that fails is noted, and counts as the worst where rates are searched for."""
        rate = "auto" if lr is None else f"{lr:g}"
        recipe = self.wanted.variant(arm, seed, lr)
        path = self.folder.path / arm.name / f"seed-{seed}-lr-{rate}"
        try:
            results = self.run(recipe, path, f"{arm.name}, seed {seed}, lr {rate}")
        except DistillError as error:
            if isinstance(error, RunError):
                raise
            self.console.warn(f"{arm.name}, seed {seed}, lr {rate}: {error}")
            self.failed.append({"arm": arm.name, "seed": seed, "lr_tried": lr, "error": str(error)})
            self.write()
            return
        _tidy(path)
        place = str(path.relative_to(self.folder.path))
        self.rows.append({"arm": arm.name, "seed": seed, "lr_tried": lr, **figures(results), "folder": place})
        self.about = self.about or about(results)
        self.write()

    def choose(self, arm: Arm) -> None:
        """The learning rate that other seeds get: the best on the val images with the first."""
        rows = [row for row in self.rows if row["arm"] == arm.name]
        if rows:
            self.chosen[arm.name] = max(rows, key=lambda row: row["map50_95"])["lr_tried"]
            self.write()

    def complain(self) -> None:
        """Raise where an arm lacks a seed, for its run failed."""
        done = {(row["arm"], row["seed"]) for row in self.rows}
        for lost in self.failed:
            if (lost["arm"], lost["seed"]) not in done:
                raise DistillError(f"arm {lost['arm']} has no result with seed {lost['seed']}: {lost['error']}")

    def run(self, recipe: Recipe, path: Path, title: str) -> dict[str, Any]:
        """One run in a folder of its own: begun with stages that an earlier one has finished, gone on with, or read."""
        self.number += 1
        self.console.header(f"run {self.number} of {self.total}: {title}")
        begun = (path / RECIPE).is_file()
        with closing(RunFolder.create(path, to_yaml(recipe), resume=begun)) as folder:
            if all((path / name).is_file() for name in FINISHED):
                self.console.line("done before")
                return dict(json.loads((path / FINISHED[0]).read_text(encoding="utf-8")))
            if not folder.stages and (shared := self.shared(recipe)):
                folder.begin_with(*shared, pipeline.FILES)
            with closing(RunConsole(quiet=self.quiet)) as console:
                console.log_to(path / LOG)
                return pipeline.run(recipe, folder, console)

    def shared(self, recipe: Recipe) -> tuple[Path, tuple[str, ...]] | None:
        """The run that has most in common with a recipe, and the first stages that they do not share."""
        start = start_of(recipe, self.wanted.recipe)
        for until, alike in _ALIKE.items():
            for base, path in self.bases:
                if alike(base) == alike(start):
                    return path, until
        return None

    def content(self) -> dict[str, Any]:
        """What compare.json holds: every single figure, and what they were made with."""
        return {
            "format": FORMAT,
            "recipe_name": self.wanted.recipe.name,
            **self.wanted.to_dict(),
            "about": self.about,
            "chosen": self.chosen,
            "runs": self.rows,
            "failed": self.failed,
        }

    def write(self) -> None:
        self.folder.write_json(COMPARISON, self.content())


def _starts(starts: list[Recipe]) -> list[Recipe]:
    """The different ones of recipes up to where training starts; one without repair is a part of the same with it."""
    starts = list(dict.fromkeys(starts))
    repaired = [replace(start, repair=None) for start in starts if start.repair is not None]
    return [start for start in starts if start not in repaired]


def _tidy(path: Path) -> None:
    """Leave of a finished run what is small, and its result."""
    shutil.rmtree(path / "training", ignore_errors=True)
    for file in path.glob("*.pt"):
        if not file.name.startswith("student"):
            file.unlink()
