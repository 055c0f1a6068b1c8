"""The teachers that are not the network of `model`: copied into the run folder and measured, before anything is cut."""

from __future__ import annotations

from dataclasses import dataclass

from distill.engine.session import Session
from distill.engine.stage import Stage, evaluation_of
from distill.engine.stages.teacher import refuse_blind
from distill.engine.teachers import trains_towards
from distill.losses.spec import ORIGINAL
from distill.machine import measure
from distill.recipe.schema import Recipe
from distill.report.format import apart
from distill.results.networks import TEACHER, foreign
from distill.results.results import OtherTeacher


@dataclass(frozen=True)
class TeachersRecord:
    """The teachers, in the order of the recipe."""

    teachers: tuple[OtherTeacher, ...]


def _work(session: Session) -> TeachersRecord:
    given, found = evaluation_of(TEACHER).recorded(session), []
    for teacher in session.teachers:
        if teacher.network is None or not teacher.losses:
            continue
        network, source = foreign(teacher.name), str(teacher.network.source)
        session.console.line(f"teacher {teacher.name}: {source}")
        session.save(teacher.network, network)
        evaluation = session.evaluate(network)
        refuse_blind(evaluation, session, source)
        params = measure.count_params(teacher.network.model)
        gflops = measure.count_gflops(teacher.network.model, session.recipe.size)
        size = measure.file_size_mb(session.folder.path / network.file)
        found.append(OtherTeacher(teacher.name, source, network.file, evaluation, params, gflops, size))
        best, name = evaluation.map50_95, teacher.name
        own = given.map50_95 if given and not session.recipe.fresh else None
        if best is not None and own is not None and best < own:
            theirs, ours = apart(best, own)
            what = "is cut" if session.recipe.prune else "it teaches"
            session.console.warn(
                f"the teacher {name} has an mAP50-95 of {theirs}, below the {ours} of the network that {what}"
            )
    return TeachersRecord(tuple(found))


def _when(recipe: Recipe) -> bool:
    taught = any(spec.network != ORIGINAL and recipe.losses_of(spec) for spec in recipe.taught_by)
    return taught and trains_towards(recipe)


TEACHERS = Stage(
    "teachers",
    TeachersRecord,
    _work,
    reads=("model", "teacher", "teachers", "distill.losses"),
    when=_when,
    more_files=lambda record: [teacher.copy for teacher in record.teachers],
    says=lambda record: ", ".join(f"{each.name}: {each.evaluation.figures}" for each in record.teachers),
    aside=True,
    passes=lambda session: len(session.data.val) * len(session.recipe.foreign),
)
