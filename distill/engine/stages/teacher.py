"""The network that is cut and that teaches: as it was given, or trained from the data first."""

from __future__ import annotations

from dataclasses import dataclass

from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.errors import DistillError
from distill.kinds.opened import Opened, fingerprint
from distill.results import networks
from distill.results.figures import Evaluation
from distill.training import schedule

MIN_TEACHER_MAP = 0.01  # mAP50-95 below which a teacher has nothing to teach


@dataclass(frozen=True)
class TeacherRecord:
    """Epochs of the teacher's own training, and the best of them, None if it was given; and the data of the run."""

    best_epoch: int | None = None
    epochs: int | None = None
    data: str | None = None  # see `check_data`
    model: str | None = None  # fingerprint of the network that was given


def _work(session: Session) -> TeacherRecord:
    if session.teacher is not None:
        session.save(session.teacher, networks.TEACHER)
        return TeacherRecord(data=session.kind.fingerprint(session.data), model=fingerprint(session.teacher.model))
    recipe, names = session.recipe, session.data.names
    options = recipe.teacher.train
    assert options is not None and names is not None  # a recipe without a model has it, and it needs labels
    data = session.data.path
    network = session.kind.build(options.model, names, width=options.width, seed=recipe.seed, data=data)
    plan = schedule.teacher(
        len(session.data.train), options.batch or recipe.batch, options.epochs, lr=options.lr, mosaic=options.mosaic
    )
    trained = session.train(network, plan, "teacher", patience=options.patience)
    path = session.folder.path / networks.TEACHER.file
    session.save(Opened(trained.model, names, recipe.size, path, None), networks.TEACHER)
    return TeacherRecord(trained.best_epoch, len(trained.history), session.kind.fingerprint(session.data))


def check_data(session: Session) -> None:
    """Refuse to go on with other images or labels than the run began with: its networks would not compare."""
    record = TEACHER.recorded(session)
    now = session.kind.fingerprint(session.data)
    if record is None or record.data in (None, now):
        return
    raise DistillError(
        f"{session.data.path}: its images or labels are others than when the run in {session.folder.path} began "
        f"({record.data} then, {now} now): put them back as they were, or start a new run"
    )


def _judge(session: Session, evaluation: Evaluation) -> None:
    """Refuse a network that sees nothing if it is to be cut or to teach, unless labels alone train it on."""
    teaches = any(teacher.network is None and teacher.losses for teacher in session.teachers)
    if teaches or session.recipe.prune:
        refuse_blind(evaluation, session)


def refuse_blind(evaluation: Evaluation, session: Session, source: str = "it") -> None:
    """Refuse a teacher whose evaluation says that it sees nothing. `source`: its file, if there are several networks."""
    name, score = evaluation.yardstick
    if evaluation.measures and score is not None and score < MIN_TEACHER_MAP:
        raise DistillError(
            f"the teacher's {name} on {session.data.path} is {score:.3f}: {source} has nothing to teach. Is it "
            "the right checkpoint, the right data, and imgsz the size it was trained at?"
        )


TEACHER = Stage(
    "teacher",
    TeacherRecord,
    _work,
    reads=(
        "model",
        "weights",
        "trust",
        "code",
        "teacher.train",
        "data",
        "shapes",
        "unlabelled.images",
        "unlabelled.frames",
        "imgsz",
        "batch",
        "device",
    ),
    more_reads=lambda recipe: ("seed",) if recipe.fresh else (),
    makes=networks.TEACHER,
    judge=_judge,
    says=lambda record: f"best of {record.epochs} epochs: {record.best_epoch}" if record.epochs else "",
    distributed=True,
    passes=lambda session: (
        4 * len(session.data.train) * options.epochs if (options := session.recipe.teacher.train) else 0
    ),
)
