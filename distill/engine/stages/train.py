"""Train the student towards the teacher, and on the labels if there are labels."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, replace
from typing import Any

from distill.engine.session import METRICS, Session
from distill.engine.stage import Stage
from distill.engine.stages.tune import TUNE
from distill.results import networks


@dataclass(frozen=True)
class TrainRecord:
    """The schedule, the best epoch, one row per epoch, and the seconds of those that this process trained."""

    schedule: dict[str, Any]
    best_epoch: int
    history: tuple[dict[str, Any], ...]
    epoch_seconds: tuple[float, ...]


def _work(session: Session) -> TrainRecord:
    tuning = TUNE.recorded(session)
    assert tuning is not None
    student, schedule = session.training_start(tuning.lr, tuning.freeze_bn)
    task = session.task(student, session.plan)
    task.scale(tuning.factors)
    session.kind.use_forwards(task, tuning.forwards, session.recipe.size)
    trained = session.train(student.model, schedule, "train", task=task)
    session.save(replace(student, model=trained.model), networks.TRAINED, session.plan)
    session.folder.write_text(METRICS, _csv(trained.history))
    return TrainRecord(asdict(schedule), trained.best_epoch, tuple(trained.history), tuple(trained.seconds))


def _csv(history: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in history for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


TRAIN = Stage(
    "train",
    TrainRecord,
    _work,
    reads=("distill", "teacher", "teachers", "unlabelled", "workers", "seed"),
    makes=networks.TRAINED,
    files=(METRICS,),
    says=lambda record: f"best of {len(record.history)} epochs: {record.best_epoch}",
    when=lambda recipe: recipe.distill.epochs > 0,
    distributed=True,
    passes=lambda session: session.recipe.distill.epochs * (4 * session.epoch_images + len(session.data.val)),
)
