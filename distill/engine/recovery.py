"""How a cut network comes back: repair without an epoch, then a rehearsal, then training from its teacher."""

from __future__ import annotations

import csv
import io
import math
import warnings
from dataclasses import asdict, replace
from typing import Any

import torch

import prune
from distill.engine.session import AVERAGED, PRUNED, REPAIRED, TRAINED, Session
from distill.machine import parallel
from distill.training import schedule
from distill.training.task import DistillationTask
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.families.outputs import sensitivity_of
from distill.yolo.training.tuning import balance_losses, reestimate_batchnorm, search_lr, tolerates_batch_stats


def repair(session: Session, base: str, plan: prune.PrunePlan) -> dict[str, Any]:
    """Mend the student from unlabelled images: layer by layer in closed form, then block by block."""
    wanted, student = session.recipe.repair, session.load(PRUNED)
    assert wanted is not None
    network, original = student.model.to(session.device), session.load(base).model.to(session.device)
    images, feel = session.images(student, wanted.images), sensitivity_of(original)
    track, seed, steps_each = session.console.track, session.recipe.seed, wanted.steps
    blocks: list[prune.BlockRepair] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layers = prune.repair(network, original, plan, images, sensitivity=feel, seed=seed, progress=track)
        if steps_each:
            blocks = prune.reconstruct(
                network, original, plan, images, sensitivity=feel, steps=steps_each, seed=seed, progress=track
            )
    prune.recentre(network, images)
    for warning in dict.fromkeys(str(warning.message) for warning in caught):
        session.console.warn(warning)
    session.save(student, REPAIRED, plan)
    return {
        "images": len(images),
        "layers": [asdict(layer) for layer in layers],
        "blocks": [asdict(block) for block in blocks],
    }


def rehearse(session: Session, start: str, plan: prune.PrunePlan) -> dict[str, Any]:
    """How strong each loss is, unless the recipe's weights are plain factors; then what a training by them can bear: batch
    statistics or not, and unless the recipe says it, how high a rate."""
    recipe, console = session.recipe, session.console
    where = _where(session)
    _, task, course = _training(session, start, plan)
    factors: dict[str, float] = {}
    if recipe.distill.balance and task.losses:
        factors = balance_losses(task, session.data, course, **where)
        console.line("losses times " + ", ".join(f"{name} {factor:.3g}" for name, factor in factors.items()))
        task.scale(factors)
    freeze_bn = not tolerates_batch_stats(task, session.data, course, **where)
    known = {"freeze_bn": freeze_bn, "factors": factors}
    if recipe.distill.lr is not None:
        return {**known, "lr": recipe.distill.lr, "search": None}
    found = search_lr(task, session.data, replace(course, freeze_bn=freeze_bn), **where, progress=console.track)
    tried = ", ".join(f"{rate:.0e}: {loss:.3f}" for rate, loss in found.tried.items())
    console.line(f"loss {found.start:.3f}; after a trial at {tried} -> {found.lr:.0e}")
    finite = [[rate, loss if math.isfinite(loss) else None] for rate, loss in found.tried.items()]
    return {**known, "lr": found.lr, "search": {"start": found.start, "limit": found.limit, "tried": finite}}


def distill(session: Session, start: str, plan: prune.PrunePlan) -> dict[str, Any]:
    """Train the student towards the teacher, beside the labels where there are labels."""
    rehearsed = session.done("rehearse")
    student, task, course = _training(session, start, plan, rehearsed["lr"], rehearsed["freeze_bn"])
    task.scale(rehearsed.get("factors", {}))
    trained = session.train(student.model, course, "distill", task=task)
    session.save(replace(student, model=trained.model), TRAINED, plan)
    session.folder.write_text("metrics.csv", _csv(trained.history))
    return {
        "schedule": asdict(course),
        "best_epoch": trained.best_epoch,
        "history": trained.history,
        "epoch_seconds": trained.seconds,
    }


def average(session: Session, start: str, plan: prune.PrunePlan) -> dict[str, Any]:
    """The mean of the weights before and after training (WiSE-FT, Wortsman et al., CVPR 2022).

    Where BatchNorm keeps its statistics, a high rate leaves noise in the weights, and the mean has half of it. With batch
    statistics there was nothing to gain, and the mean of two networks' statistics belongs to neither.
    """
    # Training began from other BatchNorm statistics, and weights for them, that compute what `start` does.
    before, after = _beginning(session, start)[0].model.cpu().state_dict(), session.load(TRAINED)
    with torch.no_grad():
        for name, value in after.model.state_dict().items():
            if value.is_floating_point():
                value.lerp_(before[name], 0.5)
    session.save(after, AVERAGED, plan)
    return {}


def _training(
    session: Session, start: str, plan: prune.PrunePlan, lr: float | None = None, freeze_bn: bool = False
) -> tuple[Detector, DistillationTask, schedule.Schedule]:
    """What is trained, what teaches it, and how long."""
    student, course = _beginning(session, start, lr, freeze_bn)
    return student, session.task(student, plan.keep_inputs), course


def _beginning(
    session: Session, start: str, lr: float | None = None, freeze_bn: bool = False
) -> tuple[Detector, schedule.Schedule]:
    """The network as its training begins, recentred, and how long that is."""
    wanted, student = session.recipe.distill, session.load(start)
    batch, keep = wanted.batch or session.recipe.batch, wanted.batch is not None
    images = len(session.data.train)
    course = schedule.recovery(
        images, batch, wanted.epochs, lr=lr, freeze_bn=freeze_bn, keep_batch=keep, processes=parallel.world()
    )
    reestimate_batchnorm(student.model, session.data, course, **_where(session))
    return student, course


def _where(session: Session) -> dict[str, Any]:
    return {"imgsz": session.recipe.imgsz, "device": session.device, "seed": session.recipe.seed}


def _csv(history: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in history for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
