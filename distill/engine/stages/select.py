"""The student is the best of what there is: the trained network, its average with the start, or the start itself."""

from __future__ import annotations

from dataclasses import dataclass

from distill.engine.session import Session
from distill.engine.stage import Stage, evaluation_of
from distill.report.format import apart
from distill.results.networks import AVERAGED, STUDENT, TRAINED
from distill.results.steps import Native


@dataclass(frozen=True)
class SelectRecord:
    """`chosen`: the network that the student is; `native`: its file for the project that the checkpoint came from."""

    chosen: str
    native: Native | None


def _work(session: Session) -> SelectRecord:
    start, console = session.start, session.console
    candidates = (TRAINED, AVERAGED, start) if session.recipe.distill.epochs else (start,)
    evaluations = {network: evaluation_of(network).recorded(session) for network in candidates}
    scores = {
        network: score
        for network, evaluation in evaluations.items()
        if evaluation is not None and (score := evaluation.yardstick[1]) is not None
    }
    chosen = max(scores, key=scores.__getitem__, default=candidates[0])  # the first of equals
    measure = next(evaluation.yardstick[0] for evaluation in evaluations.values() if evaluation is not None)
    if chosen == start and TRAINED in scores:
        ended, started = apart(scores[TRAINED], scores[start])
        console.warn(
            f"training ended at {measure} {ended}, below the {started} it started from: "
            f"{STUDENT.file} is the network before training"
        )
    if chosen == AVERAGED:
        mean, after = apart(scores[AVERAGED], scores[TRAINED])
        console.line(
            f"{STUDENT.file} is the mean of the weights before and after training: {measure} {mean}, after it {after}"
        )
    content = (session.folder.path / chosen.file).read_bytes()
    session.folder.write_with(STUDENT.file, lambda path: path.write_bytes(content))
    student = session.load(STUDENT)
    return SelectRecord(chosen.name, session.kind.native(student, session.folder.path, session.recipe.size))


SELECT = Stage(
    "select",
    SelectRecord,
    _work,
    reads=("distill.epochs",),
    files=(STUDENT.file,),
    says=lambda record: f"{STUDENT.file} is the {record.chosen} network",
    more_files=lambda record: (record.native.file, *record.native.beside) if record.native else (),
)
