"""A run, a comparison and a sweep in their folders: begun or resumed, watched, and ended with a line on how to go on."""

from __future__ import annotations

import logging
import shlex
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distill.engine.folder import (
    COMPARISON,
    LOG,
    RECIPE,
    SWEEP,
    RunFolder,
    last_path,
    next_path,
    recipe_of,
    require_kind,
)
from distill.errors import DistillError, Interrupted, RunError
from distill.machine import parallel
from distill.machine.console import Console
from distill.recipe.load import load, to_yaml
from distill.recipe.schema import Recipe
from distill.recipe.section import Overrides
from distill.results.comparison import Arm, ComparisonResults
from distill.results.sweep import SweepResults

if TYPE_CHECKING:
    from distill.comparison.arms import Comparison
    from distill.comparison.sweep import Sweep
    from distill.machine.progress import EpochCallback
    from distill.results.results import Results

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


def recipe_and_folder(
    recipe: str | Path, overrides: Overrides, *, out: str | Path | None, resume: bool = False, prefix: str = ""
) -> tuple[Recipe, Path]:
    """The recipe of a run or a comparison, and its folder.

    Args:
        recipe: a file, the name of a shipped recipe or, to resume it, the folder of a run.
        overrides: as of `distill.recipe.load.load`.
        out: the folder; by default the next one under runs/, or the last one if it is resumed.
        resume: go on with an earlier one.
        prefix: of the default folder's name.

    Raises:
        DistillError: a bad recipe, or no run to go on with.
    """
    earlier = Path(recipe) if resume and Path(recipe).is_dir() else None
    if earlier is not None and out is not None:
        raise DistillError("--resume with the folder of a run takes no --out: the run stays in its folder")
    read = load(recipe_of(earlier) if earlier else recipe, overrides, files=True)
    choose = last_path if resume else next_path
    path = earlier or (Path(out) if out else choose(f"{prefix}{read.name}"))
    path = parallel.broadcast(path)
    if resume and read.imgsz is None and (path / RECIPE).is_file():  # the size that its checkpoint had then
        read = replace(read, imgsz=load(path / RECIPE).imgsz)
    return read, path


def run(
    recipe: Recipe, path: Path, console: Console, *, resume: bool = False, on_epoch: EpochCallback | None = None
) -> Results | None:
    """Do a run in a folder, from the start or from where it was; see `distill.engine.pipeline.run`."""
    if resume:
        require_kind(path, "run")
    make = RunFolder.create if parallel.is_leader() else RunFolder.follow
    with closing(make(path, to_yaml(recipe), resume=resume)) as folder:
        from distill.engine import pipeline

        parallel.broadcast()  # followers start only if the leader could take its folder
        results = _watch(lambda: pipeline.run(recipe, folder, console, on_epoch=on_epoch), folder, console, "run")
        return replace(results, folder=path) if results else None


def compare(
    plan: Callable[[ComparisonResults | None], Comparison],
    recipe: Recipe,
    path: Path,
    console: Console,
    *,
    resume: bool = False,
    quiet: bool = False,
    jobs: int | None = None,
) -> ComparisonResults:
    """Do a comparison in a folder, from the start or from where it was; see `distill.comparison.runner.run`.

    Args:
        plan: makes the comparison, of what an earlier one in the folder says, if there is one.
        recipe: what the arms have in common.
        path: the folder.
        console: what the user watches.
        resume: go on with the comparison in the folder.
        quiet: of the runs, show warnings only.
        jobs: runs side by side, each in a process of its own; 1 if None.
    """
    jobs = _at_least_one(jobs)
    if resume:
        require_kind(path, "compare")
    comparison = plan(ComparisonResults.read(path) if resume and (path / COMPARISON).is_file() else None)
    with closing(RunFolder.create(path, to_yaml(recipe), resume=resume)) as folder:
        from distill.comparison import runner

        return _watch(
            lambda: runner.run(comparison, folder, console, quiet=quiet, jobs=jobs), folder, console, "compare"
        )


def _at_least_one(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise DistillError(f"--jobs {jobs}: give at least 1, the number of runs side by side")
    return jobs or 1


def sweep(
    plan: Callable[[Recipe, Mapping[str, Sequence[str]] | None], Sweep],
    recipe: Recipe,
    path: Path,
    console: Console,
    *,
    resume: bool = False,
    quiet: bool = False,
    jobs: int | None = None,
) -> SweepResults:
    """Do a sweep in a folder, from the start or from where it was; see `distill.comparison.sweeper.run`.

    Args:
        plan: makes the sweep, of the recipe and of the axes of an earlier one in the folder, if there is one.
        recipe: with the first value of each key that is varied.
        path: the folder.
        console: what the user watches.
        resume: go on with the sweep in the folder.
        quiet: of the runs, show warnings only.
        jobs: runs side by side, each in a process of its own; 1 if None.
    """
    jobs = _at_least_one(jobs)
    if resume:
        require_kind(path, "sweep")
    begun = resume and (path / SWEEP).is_file()
    points = plan(recipe, SweepResults.read(path).axes if begun else None)
    with closing(RunFolder.create(path, to_yaml(points.recipe), resume=resume)) as folder:
        from distill.comparison import sweeper

        return _watch(lambda: sweeper.run(points, folder, console, quiet=quiet, jobs=jobs), folder, console, "sweep")


def resume(
    folder: Path, console: Console, *, quiet: bool = False, on_epoch: EpochCallback | None = None
) -> Results | ComparisonResults | SweepResults:
    """Go on with the run, the comparison or the sweep in a folder."""
    recipe, path = load(recipe_of(folder), files=True), folder
    if (path / SWEEP).is_file():
        from distill.comparison import sweep as sweeps

        return sweep(partial(sweeps.plan, several={}), recipe, path, console, resume=True, quiet=quiet)
    if (path / COMPARISON).is_file():
        return compare(arms_of(recipe), recipe, path, console, resume=True, quiet=quiet)
    results = run(recipe, path, console, resume=True, on_epoch=on_epoch)
    assert results is not None  # there is one process, and it leads
    return results


def arms_of(
    recipe: Recipe,
    names: Sequence[str] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: int | None = None,
    lrs: Iterable[float] | None = None,
) -> Callable[[ComparisonResults | None], Comparison]:
    """What makes the comparison for `compare`, of Python values; see `distill.comparison.arms.plan`."""
    from distill.comparison import arms

    chosen = names if names is None or isinstance(names, str) else ",".join(names)
    mine = [Arm(name, f"{name}, of the caller's own.", dict(keys)) for name, keys in (own or {}).items()]
    rates = None if lrs is None else ",".join(map(str, lrs))
    return partial(arms.plan, recipe, chosen, mine, seeds, rates)


def _watch(work: Callable[[], T], folder: RunFolder, console: Console, command: str) -> T:
    """Do the work of a run. However it ends, the log says why and the user reads how to resume."""
    from distill.machine.faults import machine_fault

    resume = f"distill {command} --resume {shlex.quote(str(folder.path))}"
    if parallel.is_leader():
        folder.when_open(lambda: console.log_to(folder.path / LOG))
    try:
        return work()
    except KeyboardInterrupt:
        end = f"to resume: {resume}" if folder.started else "nothing was written"
        raise Interrupted(f"interrupted; {end}") from None
    except Exception as error:
        if isinstance(error, DistillError):
            _LOG.debug("where this ended", exc_info=True)
        place = Path(getattr(error, "filename", None) or folder.path)
        fault = error if isinstance(error, RunError) else machine_fault(error, place)
        if fault is None:
            console.record(str(error) if isinstance(error, DistillError) else traceback.format_exc())
            raise
        raise RunError(f"{fault}; after fixing that, resume: {resume}" if folder.started else str(fault)) from None
