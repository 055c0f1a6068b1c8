"""results.json, put together from what the stages of a run have recorded."""

from __future__ import annotations

from typing import Any

import yaml

from distill.engine.session import Session
from distill.engine.stage import evaluation_of
from distill.engine.stages.cut import CUT
from distill.engine.stages.export import EXPORT
from distill.engine.stages.measure import MEASURE
from distill.engine.stages.pictures import PICTURES
from distill.engine.stages.repair import REPAIR
from distill.engine.stages.select import SELECT
from distill.engine.stages.teachers import TEACHERS
from distill.engine.stages.train import TRAIN
from distill.engine.stages.tune import TUNE
from distill.machine import env
from distill.recipe.load import to_yaml
from distill.results.figures import Cost, Evaluation, ModelResult
from distill.results.networks import AVERAGED, PRUNED, REPAIRED, STUDENT, TEACHER, TRAINED, Network, network_of
from distill.results.results import FORMAT, Results
from distill.results.steps import Accept, Agreement, Average, Cut, DataFacts, Group


def assemble(session: Session) -> Results:
    """The results of a finished run."""
    recipe, data, plan, stages = session.recipe, session.data, session.plan, session.folder.stages
    cut, selection, exported = CUT.recorded(session), SELECT.recorded(session), EXPORT.recorded(session)
    teacher = evaluation_of(TEACHER).recorded(session)
    assert cut and selection and exported and teacher  # every run has these stages
    training, others = TRAIN.recorded(session), TEACHERS.recorded(session)
    models = _models(session, network_of(selection.chosen), trained=training is not None)
    chosen = list(models)[-1]
    before, after = models[TEACHER.name], models[chosen]
    return Results(
        format=FORMAT,
        recipe=yaml.safe_load(to_yaml(recipe)),
        recipe_name=recipe.name,
        model=recipe.model,
        imgsz=recipe.size,
        seed=recipe.seed,
        data=DataFacts(
            str(data.path),
            len(data.train),
            len(data.val),
            tuple((data.names or {}).values()),
            data.labelled,
            len(data.unlabelled),
        ),
        agreement=None if data.labelled else _agreement(session, teacher),
        device=env.device_name(str(session.device)),
        versions=env.versions(),
        models=models,
        chosen=chosen,
        student_is=selection.chosen,
        native=selection.native,
        accept=Accept(recipe.accept.map_drop),
        accepted=_accepted(before, after, recipe.accept.map_drop),
        trained=evaluation_of(TRAINED).recorded(session),
        average=_average(session, selection.chosen),
        schedule=training.schedule if training else None,
        history=training.history if training else (),
        epoch_seconds=training.epoch_seconds if training else (),
        plan=Cut(
            flops_before=plan.flops_before,
            flops_after=plan.flops_after,
            params_before=plan.params_before,
            params_after=plan.params_after,
            verify=cut.verify,
            groups=tuple(Group(group.name, group.before, group.after) for group in plan.groups),
        ),
        repair=REPAIR.recorded(session),
        tuning=TUNE.recorded(session),
        exports=exported.exports,
        warnings=(*session.warnings, *(warning for stage in stages.values() for warning in stage["warnings"])),
        seconds={name: stage["seconds"] for name, stage in stages.items()},
        pictures=PICTURES.recorded(session),
        teachers=others.teachers if others else (),
    )


def _models(session: Session, chosen: Network, *, trained: bool) -> dict[str, ModelResult]:
    """A row per network. The student's is that of student.pt, whichever network that is."""
    costs = MEASURE.recorded(session)
    assert costs is not None  # every run has it
    models = {}
    for network in (TEACHER, PRUNED, REPAIRED):
        evaluation = evaluation_of(network).recorded(session)
        if evaluation is not None:
            cost = costs.teacher if network == TEACHER else costs.student
            models[network.name] = _row(evaluation, cost, network)
    evaluation = evaluation_of(chosen).recorded(session)
    if trained and evaluation is not None:
        models[STUDENT.name] = _row(evaluation, costs.student, STUDENT)
    return models


def _accepted(before: ModelResult, after: ModelResult, drop: float) -> bool | None:
    """Whether no figure has lost more than `drop`: top-1, or mAP50-95 of boxes and of masks or poses; None without labels."""
    if before.score is None or after.score is None:
        return None
    pairs = [(before.score, after.score)]
    if before.beside is not None and after.beside is not None:
        pairs.append((before.beside.map50_95, after.beside.map50_95))
    return all(now >= then - drop for then, now in pairs)


def _row(evaluation: Evaluation, cost: Cost, network: Network) -> ModelResult:
    quality = ["map50_95", "map50", "top1", "top5", "agreement", "map50_95_without_nms", "per_class", "agreement50_95"]
    quality += ["agreement50", "agreement_per_class", "curves", "beside"]
    fields: dict[str, Any] = {name: getattr(evaluation, name) for name in quality} | vars(cost)
    return ModelResult(**fields, file=network.file)


def _agreement(session: Session, teacher: Evaluation) -> Agreement:
    """What agreement was measured on and against."""
    data = session.data
    held_back = not set(data.train) & set(data.val)
    return Agreement(len(data.val), held_back, teacher.confidence, teacher.teacher_boxes or {})


def _average(session: Session, chosen: str) -> Average | None:
    """The mean of the weights before and after training; None if it has no figure."""
    averaged, trained = (evaluation_of(network).recorded(session) for network in (AVERAGED, TRAINED))
    measure, score = averaged.yardstick if averaged is not None else ("", None)
    if averaged is None or trained is None or score is None:
        return None
    return Average(measure, score, averaged.second, trained.yardstick[1], chosen == AVERAGED.name)
