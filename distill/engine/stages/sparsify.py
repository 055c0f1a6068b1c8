"""Sparsity training: an L1 penalty on the teacher's BatchNorm scales before the cut (network slimming, Liu et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import prune
from distill.engine.session import Session
from distill.engine.stage import Stage, evaluation_of
from distill.results import networks
from distill.results.figures import Evaluation
from distill.training import schedule


@dataclass(frozen=True)
class SparsifyRecord:
    """How many of the BatchNorm scales came near zero."""

    near_zero: int
    channels: int


def _work(session: Session) -> SparsifyRecord:
    options, teacher = session.recipe.sparsify, session.load(networks.TEACHER)
    assert options is not None
    graph = prune.trace(teacher.model, session.images(teacher, 1), adapter=session.kind.adapter)
    plan = schedule.sparsify(len(session.data.train), session.recipe.batch, options.epochs, lr=options.lr)
    penalty = prune.sparsity.Penalty(graph, options.strength)
    task = session.task(teacher) if options.distill else None
    trained = session.train(teacher.model, plan, "sparsify", task=task, penalty=penalty)
    session.save(replace(teacher, model=trained.model), networks.SPARSE)
    record = SparsifyRecord(**prune.sparsity.near_zero(graph, trained.model))
    session.console.line(f"{record.near_zero} of {record.channels} scales came near zero")
    if not record.near_zero:
        session.console.warn("sparsify: no scale came near zero: raise sparsify.strength or sparsify.epochs")
    return record


def _judge(session: Session, evaluation: Evaluation) -> None:
    """Warn if the penalty has cost more accuracy than the verdict allows."""
    teacher = evaluation_of(networks.TEACHER).recorded(session)
    name, after = evaluation.yardstick
    before = teacher.yardstick[1] if teacher else None
    if before is not None and after is not None and after < before - session.recipe.accept.map_drop:
        session.console.warn(f"sparsify took {name} from {before:.3f} to {after:.3f}: lower sparsify.strength")


SPARSIFY = Stage(
    "sparsify",
    SparsifyRecord,
    _work,
    reads=("sparsify", "distill.losses", "distill.labels", "teacher", "teachers"),
    makes=networks.SPARSE,
    when=lambda recipe: recipe.sparsify is not None,
    judge=_judge,
    says=lambda record: f"{record.near_zero} of {record.channels} scales near zero",
    distributed=True,
    passes=lambda session: 4 * len(session.data.train) * options.epochs if (options := session.recipe.sparsify) else 0,
)
