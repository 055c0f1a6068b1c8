"""The teachers that are not the network of `model`: copied into the run folder and measured, before anything is cut."""

from __future__ import annotations

from dataclasses import dataclass

from distill.engine.session import Session
from distill.engine.stage import Stage, evaluation_of
from distill.engine.stages.teacher import TEACHER as TEACHER_STAGE
from distill.engine.stages.teacher import refuse_blind
from distill.engine.teachers import trains_towards
from distill.errors import DistillError
from distill.kinds.opened import Opened, fingerprint
from distill.losses.spec import ORIGINAL
from distill.machine import measure
from distill.recipe.schema import Recipe
from distill.report.format import apart
from distill.results.figures import OtherTeacher
from distill.results.networks import TEACHER, foreign


@dataclass(frozen=True)
class TeachersRecord:
    """The teachers, in the order of the recipe."""

    teachers: tuple[OtherTeacher, ...]
    networks: tuple[str, ...] = ()  # the fingerprint of each


def _work(session: Session) -> TeachersRecord:
    given, found, networks = evaluation_of(TEACHER).recorded(session), [], []
    for teacher in session.teachers:
        if teacher.network is None or not teacher.losses:
            continue
        network, source = foreign(teacher.name), str(teacher.network.source)
        session.console.line(f"teacher {teacher.name}: {source}")
        session.save(teacher.network, network)
        networks.append(fingerprint(teacher.network.model))
        evaluation = session.evaluate(network)
        refuse_blind(evaluation, session, source)
        params = measure.count_params(teacher.network.model)
        gflops = measure.count_gflops(teacher.network.model, session.recipe.size)
        size = measure.file_size_mb(session.folder.path / network.file)
        found.append(OtherTeacher(teacher.name, source, network.file, evaluation, params, gflops, size))
        (figure, best), name = evaluation.yardstick, teacher.name
        own = given.yardstick[1] if given and given.measures and not session.recipe.fresh else None
        if best is not None and own is not None and best < own:
            theirs, ours = apart(best, own)
            what = "is cut" if session.recipe.prune else "it teaches"
            session.console.warn(
                f"the teacher {name} has the {figure} {theirs}, below the {ours} of the network that {what}"
            )
    return TeachersRecord(tuple(found), tuple(networks))


def check_networks(session: Session) -> None:
    """Refuse to go on with other networks than the run began with: those in its folder would not compare with them."""
    began, taught = TEACHER_STAGE.recorded(session), TEACHERS.recorded(session)
    known: list[tuple[Opened, str]] = []
    if began is not None and began.model is not None and session.teacher is not None and not session.recipe.fresh:
        known.append((session.teacher, began.model))
    if taught is not None:
        others = [each.network for each in session.teachers if each.network is not None and each.losses]
        known += zip(others, taught.networks, strict=False)
    for network, then in known:
        if fingerprint(network.model) != then:
            raise DistillError(
                f"{network.source}: its weights are others than when the run in {session.folder.path} began: put the file "
                "back as it was, or start a new run"
            )


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
