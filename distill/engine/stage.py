"""A stage of a run says what it is: its name, record, work, the recipe keys it reads, the network it makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from distill.engine.folder import RunFolder
from distill.engine.session import Session
from distill.errors import DistillError
from distill.machine import parallel
from distill.machine.files import has_content
from distill.machine.words import abridge
from distill.recipe.schema import Recipe
from distill.results.figures import Evaluation
from distill.results.networks import Network
from distill.results.records import RecordError, from_plain

R = TypeVar("R")


@dataclass(frozen=True)
class Nothing:
    """The record of a stage that leaves nothing but a file."""


@dataclass(frozen=True)
class Outcome:
    """What is recorded of every stage beside its own record."""

    seconds: float  # that it took
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One stage. `distill.engine.pipeline.STAGES` has them in order."""

    name: str  # its key in stages.json and its header on the screen
    record: type[R]  # frozen dataclass that goes to stages.json; a resumed run reads it back
    work: Callable[[Session], R]
    reads: tuple[str, ...]  # recipe keys: two runs that agree on those of all stages up to it share its outcome
    more_reads: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()  # the same, of keys that count in some recipes
    makes: Network | None = None  # the network that it saves; the run evaluates it next
    files: tuple[str, ...] = ()  # what it leaves in the run folder beside that network
    more_files: Callable[[R], Iterable[str]] = lambda record: ()  # the same, of names that only its record knows
    when: Callable[[Recipe], bool] = lambda recipe: True  # whether it is part of the run
    applies: Callable[[Session], bool] = lambda session: True  # the same, by what is recorded when its turn comes
    judge: Callable[[Session, Evaluation], None] = lambda session, evaluation: None  # of what it makes; warns or raises
    says: Callable[[R], str] = lambda record: ""  # its figures, for who resumes a run in which it is finished
    passes: Callable[[Session], float] = lambda session: 0.0  # of images, forward or back: estimates the time left
    aside: bool = False  # no stage's outcome depends on it, but of those that read its keys too
    distributed: bool = False  # all processes of `torchrun` do its work together; otherwise the leader alone

    @property
    def leaves(self) -> tuple[str, ...]:
        """Every file that it leaves in the run folder, but for those that only its record knows."""
        return (*((self.makes.file,) if self.makes else ()), *self.files)

    def missing(self, session: Session) -> list[str]:
        """The files that it has left in this run and that are not there any more; none if it is still to come."""
        left = self.left(session.folder.path, session.folder.stages)
        return [name for name in left if not has_content(session.folder.path / name)]

    def left(self, path: Path, records: Mapping[str, Any]) -> list[str]:
        """The files that it has left in the run of a folder, by what the run's stages have recorded; none if it is to come."""
        record = self.read(path, records)
        return [] if record is None else [*self.leaves, *self.more_files(record)]

    def recorded(self, session: Session) -> R | None:
        """What the stage left in this run; None if it was not part of it, or is still to come."""
        return self.read(session.folder.path, session.folder.stages)

    def read(self, path: Path, records: Mapping[str, Any]) -> R | None:
        """Its record among those of a run in a folder; None if it is not there. Raises `DistillError`: it is damaged."""
        plain = records.get(self.name)
        if plain is None:
            return None
        try:
            from_plain(Outcome, plain)
            return from_plain(self.record, plain)
        except RecordError as error:
            raise DistillError(f"{path}: stage {self.name} is damaged: {error}: start a new run") from error


def evaluation_of(network: Network, maker: Stage[Any] | None = None) -> Stage[Evaluation]:
    """The stage that measures a network of the run folder, after the stage that makes it."""

    def evaluate(session: Session) -> Evaluation:
        evaluation = session.evaluate(network)
        if maker is not None:
            maker.judge(session, evaluation)
        return evaluation

    return Stage(
        f"evaluate {network.name}",
        Evaluation,
        evaluate,
        reads=(),
        applies=maker.applies if maker is not None else lambda session: True,
        passes=lambda session: len(session.data.val),
    )


def with_evaluations(stages: Iterable[Stage[Any]]) -> Iterator[Stage[Any]]:
    """The stages, each that makes a network followed by the evaluation of it."""
    for stage in stages:
        yield stage
        if stage.makes is not None:
            yield evaluation_of(stage.makes, stage)


def run_stage(stage: Stage[Any], session: Session, index: int, total: int, after: float) -> None:
    """Do the work of a stage once and record what it returns. A resumed run takes the record instead.

    Args:
        stage: the stage.
        session: of the run.
        index: its number, from 1.
        total: how many stages there are.
        after: the passes of all later stages.
    """
    folder, console = session.folder, session.console
    if (record := folder.stages.get(stage.name)) is not None:
        if stage.record is not Evaluation:  # that is in the line of the stage whose network it measured
            console.line(_done_before(stage, session))
        console.calibrate(stage.passes(session), record.get("seconds", 0.0))
    elif parallel.is_leader():
        console.stage(stage.name, index, total, work=stage.passes(session), after=after)
        start, warned = time.monotonic(), len(console.warnings)
        record = asdict(stage.work(session))
        outcome = Outcome(time.monotonic() - start, tuple(console.warnings[warned:]))
        folder.finish(stage.name, {**record, **asdict(outcome)})
    elif stage.distributed:
        stage.work(session)
    _catch_up(folder)


def forget_incomplete(stages: Sequence[Stage[Any]], session: Session) -> None:
    """Have a stage whose files are gone done again, and all after it, which made theirs from those.

    Files that were discarded are missed only if there is something left to do.

    Args:
        stages: those of the run, in order.
        session: of the run.
    """
    folder = session.folder
    if parallel.is_leader():
        missing = [stage.missing(session) for stage in stages]
        finished = all(stage.name in folder.stages for stage in stages if stage.applies(session))
        known = set(folder.discarded) if finished else set()
        if not set(chain(*missing)) <= known:
            first = next(index for index, names in enumerate(missing) if names)
            names = [stage.name for stage in stages[first:]]
            after = sum(name in folder.stages for name in names[1:])
            more = f", and {after} {'stage' if after == 1 else 'stages'} after it, are" if after else " is"
            what = abridge(missing[first], ", ")
            session.console.warn(f"{what} missing in {folder.path}: {names[0]}{more} done again")
            folder.forget(names)
    _catch_up(folder)


def _catch_up(folder: RunFolder) -> None:
    """Wait for the leader, and learn what it has recorded."""
    parallel.broadcast()
    if not parallel.is_leader():
        folder.refresh()


def _done_before(stage: Stage[Any], session: Session) -> str:
    evaluation = evaluation_of(stage.makes).recorded(session) if stage.makes else None
    figures = [evaluation.figures if evaluation else "", stage.says(stage.recorded(session))]
    return ", ".join([f"{stage.name}: done before", *filter(None, figures)])


def shared_stages(stages: Iterable[Stage[Any]], first: Recipe, second: Recipe) -> list[Stage[Any]]:
    """The stages whose outcome two runs have in common: up to the first that one lacks, or that reads differing keys.

    Args:
        stages: in order.
        first: the recipe of one run.
        second: the recipe of the other.
    """
    shared = []
    for stage in stages:
        parts = stage.when(first), stage.when(second)
        keys = {*stage.reads, *stage.more_reads(first), *stage.more_reads(second)}
        differ = parts != (True, True) or any(key_of(first, key) != key_of(second, key) for key in keys)
        if parts == (False, False) or differ and stage.aside:
            continue
        if differ:
            break
        shared.append(stage)
    return shared


def key_of(recipe: Recipe, key: str) -> Any:
    """The value of a dotted key; None in a section that is null."""
    return reduce(lambda section, name: None if section is None else getattr(section, name), key.split("."), recipe)  # type: ignore[arg-type, return-value]
