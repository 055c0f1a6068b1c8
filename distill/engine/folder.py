"""The run folder: what a run leaves behind, how it goes on after a kill, and that no other run is in its way."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from distill.errors import DistillError, RunError
from distill.machine import env
from distill.machine.faults import write_fault
from distill.machine.files import (
    LOCK,
    UNFINISHED,
    check_place,
    lock_folder,
    read_json,
    remove,
    write_atomically,
)
from distill.recipe.yaml import flatten

_LOG = logging.getLogger(__name__)

FORMAT = 2  # of stages.json
RECIPE, STAGES, ENV, LOG = "recipe.yaml", "stages.json", "env.json", "log.txt"
PLAN = "plan.json"  # what the cut has kept
TRAINING = "training"  # a folder for each stage that trains, by its name
COMPARISON, SWEEP = "compare.json", "sweep.json"  # instead of stages, in the folders of commands of many runs
_KINDS = {SWEEP: ("sweep", "a sweep"), COMPARISON: ("compare", "a comparison"), STAGES: ("run", "a run")}


class RunFolder:
    """One run's folder. Nothing is on the disk before the first write, so a run that cannot start leaves no trace.

    A file is written under another name and renamed when it is complete: what is there is whole, at every moment.
    """

    def __init__(self, path: Path, recipe_yaml: str, *, resumed: bool) -> None:
        self.path, self.resumed = path, resumed
        self._recipe = recipe_yaml
        self.stages: dict[str, dict[str, Any]] = {}  # what every finished one left, in the order they finished
        self.discarded: tuple[str, ...] = ()  # files of finished stages that were removed on purpose
        self._lock: TextIO | None = None
        self._follows = False
        self._when_open: list[Callable[[], Any]] = []

    @classmethod
    def create(cls, path: Path, recipe_yaml: str, *, resume: bool = False) -> RunFolder:
        """Choose the folder of a run. One that goes on is taken at once, a new one by its first write.

        Args:
            path: the folder; new or empty, but for `resume`.
            recipe_yaml: the resolved recipe.
            resume: go on with the run in the folder.

        Raises:
            DistillError: the folder is there already or in use; or it holds no run to go on with, or another recipe's.
            RunError: it cannot be made or written.
        """
        if not resume:
            if os.path.exists(path) and (not path.is_dir() or any(_is_content(file.name) for file in path.iterdir())):
                command = kind_of(path) or "run"
                goes_on = f", or go on with it: distill {command} --resume {path}" if (path / RECIPE).is_file() else ""
                raise DistillError(f"{path} is there already: choose another --out{goes_on}")
            check_place(path)
            return cls(path, recipe_yaml, resumed=False)
        recipe = recipe_of(path)
        old, new = flatten(recipe.read_text(encoding="utf-8"), str(recipe)), flatten(recipe_yaml, "the recipe now")
        lines = difflib.unified_diff(old, new, n=0, lineterm="")
        changed = "\n".join(f"  {line}" for line in lines if line[0] in "+-" and line[:3] not in ("---", "+++"))
        if changed:
            mend = "take the change back, or start a new run"
            raise DistillError(f"{path} was started with another recipe: {mend}\n{changed}")
        folder = cls(path, recipe_yaml, resumed=True)
        folder.open()
        folder.refresh()
        _LOG.debug("%s goes on; finished: %s", path, ", ".join(folder.stages) or "nothing")
        return folder

    @classmethod
    def follow(cls, path: Path, recipe_yaml: str, *, resume: bool) -> RunFolder:
        """The folder of a run that another process leads (see `distill.machine.parallel`): what is written here goes nowhere."""
        folder = cls(path, recipe_yaml, resumed=resume)
        folder._follows = True
        if resume:
            folder.refresh()
        return folder

    def resolve(self, recipe_yaml: str) -> None:
        """Replace the recipe by the same one in which what was `auto` is known, before the first stage."""
        changed, self._recipe = recipe_yaml != self._recipe, recipe_yaml
        if changed and self.started:
            self.write_text(RECIPE, recipe_yaml)

    @property
    def started(self) -> bool:
        """Whether there is something to go on with."""
        return (self.path / RECIPE).is_file()

    def refresh(self) -> None:
        """Read what is recorded of stages, by the leader or an earlier run."""
        self.stages, self.discarded = _read_stages(self.path / STAGES)

    def finish(self, stage: str, payload: dict[str, Any]) -> None:
        """Record that a stage is finished, with what those after it need."""
        self._write_stages(self.stages | {stage: to_json(payload)})

    def forget(self, stages: Sequence[str]) -> None:
        """Forget stages, so that they are done again: the first from what its training has left, the others anew.

        Args:
            stages: all from some stage to the last, finished or not.
        """
        for name in stages[1:]:  # first: a kill in here leaves the records, and the same is found again
            remove(self.path / TRAINING / name)
        self._write_stages({name: record for name, record in self.stages.items() if name not in stages})

    def discard(self, names: Sequence[str]) -> None:
        """Remove files of finished stages that are not needed any more, and what trainings have left.

        Args:
            names: the files.
        """
        self._write_stages(self.stages, (*self.discarded, *names))
        for name in (*names, TRAINING):
            remove(self.path / name)

    def seed_from(self, source: Path, files: Mapping[str, Iterable[str]]) -> None:
        """Take over stages that another run has finished, as if they had been done here.

        Args:
            source: the folder of that run, which stays as it is.
            files: the stages to take, each with the files that it left beside its record.
        """
        stages = {name: record for name, record in _read_stages(source / STAGES)[0].items() if name in files}
        for name in chain.from_iterable(files[stage] for stage in stages):
            self.write_with(name, partial(shutil.copyfile, source / name))
        self._write_stages(stages)

    def _write_stages(self, stages: dict[str, Any], discarded: Sequence[str] = ()) -> None:
        self.write_json(STAGES, {"format": FORMAT, "stages": stages, "discarded": discarded})
        self.stages, self.discarded = stages, tuple(discarded)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the folder; `name` may be in a folder of it. Returns its path."""
        return self.write_with(name, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))

    def write_json(self, name: str, data: Any) -> Path:
        """Write plain data. NumPy's numbers are numbers, NaN and infinity are null, paths are text."""
        return self.write_text(name, json.dumps(to_json(data), indent=2) + "\n")

    def write_with(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Let `write(path)` make a file; it gets its name in the folder when it is complete.

        Raises:
            RunError: the disk is full or cannot be written, or the folder is gone; nothing is left of the file.
        """
        file = self.path / name
        if self._follows:
            return file
        self.open()
        self.check()
        write_atomically(file, write)
        return file

    def open(self) -> None:
        """Make the folder and take it. Every write does this; call it where something else is to write in there."""
        if self._lock is not None or self._follows:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.path)
            for left in list(self.path.rglob(f"{UNFINISHED}*")):  # by a run that was killed
                remove(left)
        except OSError as error:
            raise write_fault(error, self.path) from error
        if not self.resumed:
            if self.started:
                self.close()
                raise DistillError(f"{self.path} was taken by another run in the meantime: start again")
            self.write_text(RECIPE, self._recipe)
        # One entry for each time that it was started.
        self.write_json(ENV, [*_read_env(self.path / ENV), env.collect()])
        while self._when_open:
            self._when_open.pop(0)()

    def when_open(self, act: Callable[[], Any]) -> None:
        """Do something as soon as the folder is this run's, and no other's."""
        self._when_open.append(act)
        if self._lock is not None:
            self._when_open.pop()()

    def check(self) -> None:
        """Make sure that the folder is still the one that was opened.

        Raises:
            RunError: it was removed, moved or replaced since.
        """
        if self._lock is None:
            return
        try:
            same = os.path.samestat(os.fstat(self._lock.fileno()), (self.path / LOCK).stat())
        except OSError:
            same = False
        if not same:
            raise RunError(
                f"{self.path} was removed or moved while the run was writing into it: nothing more is written"
            )

    def close(self) -> None:
        """Let another run have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def to_json(data: Any) -> Any:
    """Data as JSON gives it back: tuples are lists, NumPy's numbers are numbers, NaN and infinity are None."""
    text = json.dumps(data, default=lambda value: value.item() if hasattr(value, "item") else str(value))
    return json.loads(text, parse_constant=lambda _: None)


def recipe_of(path: Path) -> Path:
    """The resolved recipe of the run in a folder, or a DistillError."""
    if not (path / RECIPE).is_file():
        raise DistillError(f"{path} holds no run to go on with: there is no {path / RECIPE}")
    return path / RECIPE


def kind_of(path: Path) -> str | None:
    """The command that a folder belongs to: run, compare or sweep. None if nothing in it says."""
    return next((command for file, (command, _) in _KINDS.items() if (path / file).is_file()), None)


def require_kind(path: Path, command: str) -> None:
    """Raise a DistillError for the folder of another command."""
    kinds, found = dict(_KINDS.values()), kind_of(path)
    if found not in (None, command):
        other = f" and no {kinds[command].removeprefix('a ')}" if command != "run" else ""
        raise DistillError(f"{path} is {kinds[found]}{other}: distill {found} --resume {path}")


def finished_stages(path: Path) -> Mapping[str, Any]:
    """What the stages that the run in a folder has finished have recorded, by name."""
    return _read_stages(path / STAGES)[0]


def next_path(name: str, root: Path = Path("runs")) -> Path:
    """Where a new run of the recipe `name` goes: `runs/<name>-<n>`, one above the highest there is."""
    return root / f"{name}-{max(_numbers(name, root), default=0) + 1}"


def last_path(name: str, root: Path = Path("runs")) -> Path:
    """The latest run of the recipe `name`, or a DistillError."""
    numbers = _numbers(name, root)
    if not numbers:
        raise DistillError(f"nothing to go on with: there is no {root / name}-1 here; --out names another folder")
    return root / f"{name}-{max(numbers)}"


def _read_stages(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is recorded of stages, and the files that were discarded."""
    if not file.exists():
        return {}, ()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        data = read_json(file)
        stages, discarded = dict(data["stages"]), tuple(map(str, data.get("discarded", ())))
        if data["format"] == FORMAT and all(isinstance(record, dict) for record in stages.values()):
            return stages, discarded
    raise DistillError(
        f"{file} was not written by this version or is damaged: start a new run; or remove it, and all stages are done again"
    )


def _read_env(file: Path) -> list[Any]:
    if not file.exists():
        return []
    with contextlib.suppress(OSError, ValueError):
        entries = read_json(file)
        if isinstance(entries, list):
            return entries
    raise DistillError(f"{file} is damaged, so what the run was started on before is lost: remove it, then resume")


def _numbers(name: str, root: Path) -> list[int]:
    matches = (re.fullmatch(rf"{re.escape(name)}-([0-9]+)", folder.name) for folder in root.glob(f"{name}-*"))
    return [int(match[1]) for match in matches if match]


def _is_content(name: str) -> bool:
    return name != LOCK and not name.startswith(UNFINISHED)
