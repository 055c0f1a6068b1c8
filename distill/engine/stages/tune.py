"""Choose how to train, by short trials from the starting weights: factors of losses, BatchNorm mode, learning rate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.results.results import Search, Tuning
from distill.yolo.training.forwards import TORCH, choose_forwards
from distill.yolo.training.tuning import balance_losses, example_images, search_lr, tolerates_batch_stats


def _work(session: Session) -> Tuning:
    options, console = session.recipe.distill, session.console
    student, schedule = session.training_start()
    task = session.task(student, session.plan)
    place: dict[str, Any] = {"imgsz": session.recipe.size, "device": session.device, "seed": session.recipe.seed}
    images = example_images(session.data, schedule, **place)
    forwards = choose_forwards(task, images, options.teacher_runtime, schedule.steps)
    for name, forward in forwards.items():
        if forward.runtime != TORCH:
            console.line(f"teacher {'' if len(forwards) == 1 else f'{name} '}{forward}")
    factors: dict[str, float] = {}
    if options.balance and task.losses:
        factors = balance_losses(task, session.data, schedule, **place, batch_stats=session.recipe.fresh)
        console.line("losses times " + ", ".join(f"{name} {factor:.3g}" for name, factor in factors.items()))
        task.scale(factors)
    if session.recipe.fresh:  # trials of a few steps say nothing of a network that has learned nothing
        return Tuning(False, factors, schedule.lr if options.lr is None else options.lr, None, forwards)
    freeze_bn = not tolerates_batch_stats(task, session.data, schedule, **place)
    if options.lr is not None:
        return Tuning(freeze_bn, factors, options.lr, None, forwards)
    trials = search_lr(task, session.data, replace(schedule, freeze_bn=freeze_bn), **place, progress=console.track)
    tried = ", ".join(f"{rate:.0e}: {loss:.3f}" for rate, loss in trials.tried.items())
    console.line(f"loss {trials.start:.3f}; after a trial at {tried} -> {trials.lr:.0e}")
    finite = tuple((rate, loss if math.isfinite(loss) else None) for rate, loss in trials.tried.items())
    return Tuning(freeze_bn, factors, trials.lr, Search(trials.start, trials.limit, finite), forwards)


TUNE = Stage(
    "tune",
    Tuning,
    _work,
    reads=("distill", "teacher", "teachers", "unlabelled", "repair", "seed"),
    says=lambda record: f"lr {record.lr:.1e}",
    when=lambda recipe: recipe.distill.epochs > 0,
    passes=lambda session: session.epoch_images * session.recipe.distill.epochs,
)
