"""The flow of a sweep: every point is a run in a folder of its own, from the stages that it shares with an earlier one."""

from __future__ import annotations

import traceback
from dataclasses import replace

import prune
from distill.comparison.processes import run_ahead
from distill.comparison.runs import Planned, Runs
from distill.comparison.sweep import Point, Sweep, label
from distill.engine import pipeline
from distill.engine.folder import RunFolder
from distill.engine.preflight import Preflight, check_losses, check_network, preflight, trained_network
from distill.engine.size import with_size
from distill.engine.stage import shared_stages
from distill.engine.stages.cut import CUT
from distill.engine.stages.select import SELECT
from distill.engine.teachers import open_teachers
from distill.errors import DistillError, RunError
from distill.machine.console import Console
from distill.machine.faults import machine_fault
from distill.report import sweep as report
from distill.results.results import Results
from distill.results.sweep import FILE, FORMAT, FailedPoint, SweepPoint, SweepResults, SweepSetting


def run(sweep: Sweep, folder: RunFolder, console: Console, *, quiet: bool = False, jobs: int = 1) -> SweepResults:
    """Run every point, and write the page of all.

    Args:
        sweep: the points.
        folder: where everything goes; a resumed one goes on after its last finished run, stage or epoch.
        console: what the user watches.
        quiet: of the runs, show warnings only.
        jobs: how many runs are done side by side, if more than one each in a process of its own.

    Returns:
        The content of sweep.json.

    Raises:
        DistillError, PruneError: bad input, before anything is written. If a run fails later, the others are made and
            the page is written first.
    """
    work = _Work(replace(sweep, points=_checked(sweep.points, folder, console)), folder, console, quiet)
    work.record()
    work.ahead(jobs)
    for point in work.sweep.points:
        work.run(point)
        work.record()
        report.write(folder.path)  # after each point, so that a sweep that is killed has a page too
    console.result("\n" + report.summary(work.content, folder.path))
    if work.failed:
        names = ", ".join(failed.name for failed in work.failed)
        raise DistillError(f"{len(work.failed)} of {len(sweep.points)} runs failed ({names}): {work.failed[0].error}")
    return work.content


def _checked(points: tuple[Point, ...], folder: RunFolder, console: Console) -> tuple[Point, ...]:
    """The points with their image sizes. What they need is opened and checked once for all that agree in it.

    Raises:
        DistillError: the first error, and its point.
    """
    opened: dict[object, Preflight] = {}
    result = []
    for point in points:
        recipe = point.recipe
        key = (
            *(recipe.model, recipe.trust, recipe.code, recipe.teacher, recipe.teachers),
            *(recipe.data, recipe.device, recipe.batch, recipe.export),
        )
        try:
            if key not in opened:
                opened[key] = preflight(recipe, progress=Console(quiet=True).track)
                recipe = opened[key].recipe
            else:
                teacher = opened[key].teacher
                recipe, _ = with_size(recipe, trained_network(recipe, teacher, opened[key].teachers))
                teachers = open_teachers(recipe, teacher)
                check_losses(recipe, teachers)
                check_network(recipe, teacher).run(recipe, teachers, opened[key].data)
        except (DistillError, prune.PruneError) as error:
            raise DistillError(f"{label(point.values)}: {error}") from None
        result.append(replace(point, recipe=recipe))
    next(iter(opened.values())).introduce(console, folder.path)
    return tuple(result)


class _Work:
    """The finished part of a sweep."""

    def __init__(self, sweep: Sweep, folder: RunFolder, console: Console, quiet: bool) -> None:
        self.sweep, self.folder, self.console = sweep, folder, console
        # The student is chosen, exported and timed in each run: these stages leave files beside its folder's records.
        shared = pipeline.STAGES[: pipeline.STAGES.index(SELECT)]
        self.runs = Runs(console, len(sweep.points), quiet=quiet, stages=shared)
        self.points: list[SweepPoint] = []
        self.failed: list[FailedPoint] = []
        self.about: SweepSetting | None = None

    def ahead(self, jobs: int) -> None:
        """Do the runs in several processes; they are then found finished. Those that share a cut follow each other."""
        if jobs == 1:
            return
        chains: list[list[Planned]] = []
        for planned in map(self._planned, self.sweep.points):
            chain = next((each for each in chains if self._share_a_cut(each[0], planned)), None)
            if chain is None:
                chains.append([planned])
            else:
                chain.append(planned)
        if self.sweep.recipe.teacher.train is not None:  # all take over the first one's teacher
            run_ahead(self.runs, [chains[0][:1]], 1, self.console)
        run_ahead(self.runs, chains, jobs, self.console)

    def _planned(self, point: Point) -> Planned:
        return Planned(point.recipe, self.folder.path / point.name, label(point.values))

    def _share_a_cut(self, first: Planned, second: Planned) -> bool:
        return CUT in shared_stages(self.runs.stages, first.recipe, second.recipe)

    def run(self, point: Point) -> None:
        """One point. One that fails is noted, and the next ones are run."""
        path = self.folder.path / point.name
        try:
            results = self.runs.run(self._planned(point))
        except Exception as error:
            fault = machine_fault(error, path)
            if isinstance(error, RunError) or isinstance(error, OSError) and fault is not None:
                raise  # a full disk does not get better with the next point
            if fault is None and not isinstance(error, DistillError | prune.PruneError):
                self.console.record(traceback.format_exc())
            said = str(fault or error) or type(error).__name__
            self.console.warn(f"{label(point.values)}: {said}")
            self.failed.append(FailedPoint(point.name, point.values, said))
        else:
            self.points.append(SweepPoint.of(results, point.name, point.values))
            self.about = self.about or _setting(results)
        self.runs.offer(self._planned(point))

    @property
    def content(self) -> SweepResults:
        """What sweep.json holds."""
        missing = len(self.sweep.points) - len(self.points) - len(self.failed)
        name, axes = self.sweep.recipe.name, self.sweep.axes
        return SweepResults(FORMAT, name, axes, self.about, tuple(self.points), tuple(self.failed), missing)

    def record(self) -> None:
        """Write sweep.json."""
        self.folder.write_json(FILE, self.content.to_dict())


def _setting(results: Results) -> SweepSetting:
    return SweepSetting(results.model, results.data.path, results.imgsz, results.device, results.versions)
