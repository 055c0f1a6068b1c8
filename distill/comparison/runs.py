"""Many runs: each in a folder of its own, from the stages that an earlier one has finished."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from distill.engine import pipeline
from distill.engine.folder import LOG, RECIPE, RunFolder, finished_stages
from distill.engine.stage import Stage, shared_stages, with_evaluations
from distill.engine.stages.teachers import TEACHERS
from distill.machine.console import Console
from distill.machine.files import has_content
from distill.recipe.load import to_yaml
from distill.recipe.schema import Recipe
from distill.results.networks import STUDENT
from distill.results.results import FILE, Results

FINISHED = (FILE, "report.html")  # what a run writes last


@dataclass(frozen=True)
class Planned:
    """A run that is to be done.

    Attributes:
        recipe: of the run.
        path: its folder.
        title: what the screen calls it.
        shared_as: what decides which stages are shared, if that is not the recipe itself.
        is_last: no other run starts from it. When it is finished, only what is small is kept, and the student.
    """

    recipe: Recipe
    path: Path
    title: str
    shared_as: Recipe | None = None
    is_last: bool = False


class Runs:
    """Runs that take over stages from each other: see `distill.engine.stage.shared_stages`.

    Args:
        console: what the user watches.
        total: how many runs there will be.
        quiet: of the runs, show warnings only.
        stages: those that may be taken over.

    Attributes:
        sources: Recipe and folder of each run whose finished stages a later one may take over.
    """

    def __init__(
        self, console: Console, total: int, *, quiet: bool, stages: Sequence[Stage[Any]] = pipeline.STAGES
    ) -> None:
        self.console, self.total, self.quiet, self.stages = console, total, quiet, stages
        self.sources: list[tuple[Recipe, Path]] = []
        self._number = 0

    def run(self, planned: Planned) -> Results:
        """One run: seeded with stages of an earlier one, resumed, or read if it is finished."""
        self._number += 1
        path = planned.path
        self.console.header(f"run {self._number} of {self.total}: {planned.title}")
        with closing(self._folder(planned)) as folder:
            if self._is_finished(planned, folder):
                self.console.line("done before")
                results: Results | None = Results.read(path)
            else:
                self._seed(folder, planned)
                with closing(self.console.for_run(quiet=self.quiet)) as console:
                    console.log_to(path / LOG)
                    results = pipeline.run(planned.recipe, folder, console)
            assert results is not None  # there is one process, and it leads
            if planned.is_last:
                networks = [file.name for file in path.glob("*.pt") if not file.name.startswith(STUDENT.name)]
                folder.discard([*networks, *TEACHERS.left(path, folder.stages)])
            return results

    def offer(self, planned: Planned) -> None:
        """Let later runs take over the stages of one that is finished."""
        if (planned.recipe, planned.path) not in self.sources:
            self.sources.append((planned.recipe, planned.path))

    def begin(self, planned: Planned) -> bool:
        """Leave a run in its folder for another process to resume, with the stages that it shares. False if it is finished."""
        with closing(self._folder(planned)) as folder:
            if self._is_finished(planned, folder):
                return False
            folder.open()
            self._seed(folder, planned)
        return True

    @staticmethod
    def _folder(planned: Planned) -> RunFolder:
        begun = (planned.path / RECIPE).is_file()
        return RunFolder.create(planned.path, to_yaml(planned.recipe), resume=begun)

    @staticmethod
    def _is_finished(planned: Planned, folder: RunFolder) -> bool:
        there = all((planned.path / name).is_file() for name in FINISHED)
        return there and (planned.is_last or not _lacks_files(folder))

    def _seed(self, folder: RunFolder, planned: Planned) -> None:
        """Give a run the stages that it shares with the source that has most of them, unless it has as many itself."""
        if folder.stages and not _lacks_files(folder):
            return
        recipe = planned.shared_as or planned.recipe
        shared, source = max(
            ((_finished(shared_stages(self.stages, base, recipe), path), path) for base, path in self.sources),
            key=lambda each: len(each[0]),
            default=([], folder.path),
        )
        own = _finished([stage for stage in self.stages if stage.when(recipe)], folder.path)
        if len(shared) > len(own):
            records = finished_stages(source)
            folder.seed_from(source, {stage.name: stage.left(source, records) for stage in with_evaluations(shared)})


def _lacks_files(folder: RunFolder) -> bool:
    """Whether a file of a finished stage is gone, and was not discarded."""
    left = {name for stage in with_evaluations(pipeline.STAGES) for name in stage.left(folder.path, folder.stages)}
    return not all(has_content(folder.path / name) for name in left - {*folder.discarded})


def _finished(stages: Sequence[Stage[Any]], path: Path) -> list[Stage[Any]]:
    """Those of the stages, from the first on, whose record and files a run has: one that failed has a part of them."""
    recorded = finished_stages(path)

    def is_there(stage: Stage[Any]) -> bool:
        return stage.name in recorded and all(has_content(path / name) for name in stage.left(path, recorded))

    return list(takewhile(is_there, stages))
