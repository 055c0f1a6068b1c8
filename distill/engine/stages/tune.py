"""Choose how to train, by short trials from the starting weights: factors of losses, BatchNorm mode, learning rate."""

from __future__ import annotations

import math
from typing import Any

from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.results.steps import Search, TeacherForward, Tuning

IN_TORCH = TeacherForward()


def _work(session: Session) -> Tuning:
    options, console = session.recipe.distill, session.console
    student, schedule = session.training_start()
    task = session.task(student, session.plan)
    place: dict[str, Any] = {
        "network": student.model,
        "imgsz": session.recipe.size,
        "device": session.device,
        "seed": session.recipe.seed,
    }
    trials = session.kind.trials(session.data, schedule, **place)
    images = trials.example_images()
    forwards = session.kind.choose_forwards(task, images, options.teacher_runtime, schedule.steps)
    for name, forward in forwards.items():
        if forward != IN_TORCH:
            console.line(f"teacher {'' if len(forwards) == 1 else f'{name} '}{forward}")
    factors: dict[str, float] = {}
    if options.balance and task.losses:
        factors = trials.balance_losses(task, batch_stats=session.recipe.fresh)
        console.line("losses times " + ", ".join(f"{name} {factor:.3g}" for name, factor in factors.items()))
        task.scale(factors)
    if session.recipe.fresh:  # trials of a few steps say nothing of a network that has learned nothing
        return Tuning(False, factors, schedule.lr if options.lr is None else options.lr, None, forwards)
    freeze_bn = not trials.tolerates_batch_stats(task)
    if options.lr is not None:
        return Tuning(freeze_bn, factors, options.lr, None, forwards)
    search = trials.search_lr(task, freeze_bn=freeze_bn, progress=console.track)
    tried = ", ".join(f"{rate:.0e}: {loss:.3f}" for rate, loss in search.tried.items())
    console.line(f"loss {search.start:.3f}; after a trial at {tried} -> {search.lr:.0e}")
    finite = tuple((rate, loss if math.isfinite(loss) else None) for rate, loss in search.tried.items())
    return Tuning(freeze_bn, factors, search.lr, Search(search.start, search.limit, finite), forwards)


TUNE = Stage(
    "tune",
    Tuning,
    _work,
    reads=("distill", "teacher", "teachers", "unlabelled", "repair", "seed"),
    says=lambda record: f"lr {record.lr:.1e}",
    when=lambda recipe: recipe.distill.epochs > 0,
    passes=lambda session: session.epoch_images * session.recipe.distill.epochs,
)
