"""What a training can bear, found by trying from where it will start: batch statistics, and how high a rate."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import init_seeds

import prune
from distill.errors import DistillError
from distill.losses.spec import ALWAYS
from distill.machine.device import in_bfloat16
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.training.learner import Learner, set_bn_momentum

CANDIDATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
STEPS = 100  # of a trial, at most; a tenth of a run that is shorter than a thousand
HELD = 4 * 2**30  # bytes of images, which are made once for all trials
BACK = 1.05  # times the loss of the start: a trial may end there, for most of the training is still to come
JUDGES = 8  # batches, the same for all
SETTLE = 128  # images that BatchNorm's statistics are taken from
LOST = 4.0  # times the loss of the start: a trial that comes there is not played to its end,
RECENT = 10  # judged by its last batches: a single one may cost many times the mean of an untouched network
# A loss is multiplied by at most this: one next to its minimum hardly pulls, and is not to outdo labels, which are not next
# to theirs. Without labels all start from the same distance.
MOST_BESIDE_LABELS, MOST_ALONE = 4.0, 100.0
NOISY = 1.25  # times the loss with running statistics: with those of the batch the student is another network

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Search:
    """A learning rate and what spoke for it.

    Attributes:
        lr: the one to train with.
        start: the loss before training, a mean per image.
        limit: the loss at which a trial may end.
        tried: rate -> loss after a trial, in the order tried; a rate that diverged has infinity.
    """

    lr: float
    start: float
    limit: float
    tried: Mapping[float, float]


def recentre(
    model: torch.nn.Module, data: DataSet, schedule: Schedule, *, imgsz: int, device: torch.device, seed: int = 0
) -> None:
    """Give BatchNorm the statistics of the images as training will show them, and leave what the network computes: see
    `prune.recentre`, which repair calls with images as validation shows them. In place.

    Args: as for `find_lr`.
    """
    init_seeds(seed)
    batches = islice(_batches(data, schedule, imgsz, augment=True), math.ceil(SETTLE / schedule.batch))
    prune.recentre(model.to(device), [_on(batch, device)["img"] for batch in batches])


def bears_batch_statistics(
    task: DistillationTask, data: DataSet, schedule: Schedule, *, imgsz: int, device: torch.device, seed: int = 0
) -> bool:
    """Whether BatchNorm may normalise by the statistics of each batch, as it commonly does in training.

    It bears higher rates that way, and ends higher. But with some networks and data the statistics of a batch make another
    network of the student: what is trained then is not what will be used.

    Args: as for `find_lr`.
    """
    init_seeds(seed)
    judges = list(islice(_batches(data, schedule, imgsz, augment=True), JUDGES))
    of_batch, running = (
        _judge(_learner(task, replace(schedule, freeze_bn=frozen), imgsz, device), judges, device)
        for frozen in (False, True)
    )
    return of_batch <= NOISY * running  # written so that NaN says no


def find_lr(
    task: DistillationTask,
    data: DataSet,
    schedule: Schedule,
    *,
    imgsz: int,
    device: torch.device,
    seed: int = 0,
    candidates: Sequence[float] = CANDIDATES,
    progress: Progress | None = None,
) -> Search:
    """The highest rate at which a tenth of the training ends where it began, or at most 5 % above.

    High rates first lose what repair gave, and then end far above what low ones reach: which one is best after a few
    steps says little. What a tenth of the steps all but gets back, though, is no loss to the rest. Every trial is a training
    in small: from the same student, on the same batches, augmented as in training, with a rate that rises for half of it
    and falls as a half cosine. It is judged on images without augmentation.

    Args:
        task: the student, its teacher and the losses; copied.
        data: where the images come from.
        schedule: of the training to come; its `lr` is not read.
        imgsz: side of the images in pixels.
        device: where to train.
        seed: of the draw of images and of their augmentation.
        candidates: rates in descending order; the last one is taken where none gets back.
        progress: called as progress(iterable, label, total).
    """
    each = schedule.batch * 3 * imgsz**2  # bytes of a batch
    count = max(5, min(STEPS, schedule.steps // 10, HELD // each))
    trial = replace(schedule, steps=count, warmup_steps=count // 2)  # the schedule's own can be longer than the trial
    init_seeds(seed)
    lessons = list(islice(_batches(data, schedule, imgsz, augment=True), count))
    judges = list(islice(_batches(data, schedule, imgsz, augment=False), JUDGES))
    start = _judge(_learner(task, schedule, imgsz, device), judges, device)
    limit = BACK * start
    tried: dict[float, float] = {}
    rates: Iterable[float] = candidates if progress is None else progress(candidates, "learning rate", len(candidates))
    for lr in rates:
        learner = _learner(task, schedule, imgsz, device)
        trained = _train(learner, lessons, replace(trial, lr=lr), LOST * start, device)
        tried[lr] = _judge(learner, judges, device) if trained else math.inf
        if tried[lr] <= limit:
            break
    return Search(lr, start, limit, tried)


def balance(
    task: DistillationTask, data: DataSet, schedule: Schedule, *, imgsz: int, device: torch.device, seed: int = 0
) -> dict[str, float]:
    """A factor for each loss, by name, with which losses of one weight pull equally hard where the training starts.

    The pull is the norm of a loss's gradient to the student's weights, a mean over batches, with BatchNorm's running
    statistics: of the network as it is used. With labels, a loss of weight 1 pulls as hard as they do, unless it takes
    more than a factor of 4; without, as hard as the one that pulls hardest. Factors equalize once, from the start; Chen
    et al., GradNorm, ICML 2018 (arXiv:1711.02257), go on doing so.

    Args: as for `find_lr`.
    """
    init_seeds(seed)
    learner = _learner(task, replace(schedule, freeze_bn=True), imgsz, device)
    assert learner.task is not None
    weights = [parameter for parameter in learner.student_model.parameters() if parameter.requires_grad]
    norms: dict[str, float] = dict.fromkeys(["labels", *(loss.name for loss in task.losses)], 0.0)
    for batch in islice(_batches(data, schedule, imgsz, augment=True), JUDGES):
        terms = learner.task(_on(batch, device))
        del terms["loss"]
        alone = {loss.name: terms.pop(loss.name) / loss.weight for loss in task.losses}
        if terms:  # what is left is of the labels
            alone["labels"] = torch.stack(list(terms.values())).sum() / task.labels
        for name, value in alone.items():
            gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
            squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
            norms[name] += torch.stack(squares).sum().sqrt().item() / JUDGES
    labels = norms.pop("labels")
    common, most = (labels, MOST_BESIDE_LABELS) if labels else (max(norms.values()), MOST_ALONE)
    return {name: common / max(norm, common / most) if common else 1.0 for name, norm in norms.items()}


def _learner(task: DistillationTask, schedule: Schedule, imgsz: int, device: torch.device) -> Learner:
    """A copy to train, as the training to come will make one."""
    task = copy.deepcopy(task)  # shares the teacher
    task.losses = [replace(loss, span=ALWAYS) for loss in task.losses]  # one that warms up would weigh nothing here
    learner = Learner(cast(DetectionModel, task.student), task, None, schedule.freeze_bn).to(device).train()
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in training
    set_bn_momentum(learner.student_model, schedule.bn_momentum)
    student: Any = learner.student_model
    student.args = get_cfg(overrides={"imgsz": imgsz})
    student.requires_grad_(True)
    return learner


def _train(
    learner: Learner, lessons: list[dict[str, Any]], schedule: Schedule, limit: float, device: torch.device
) -> bool:
    """A few steps; False where the loss is lost on the way.

    Args:
        limit: of the loss, a mean per image over the last `RECENT` batches.
    """
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, betas=(schedule.momentum, 0.999), weight_decay=0.0)
    recent: deque[float] = deque(maxlen=RECENT)
    for step, batch in enumerate(lessons):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step / len(lessons))
        try:
            loss = _loss(learner, batch, device)
        except DistillError:
            if step:  # what a loss says of a network that is lost
                return False
            raise
        recent.append(loss.item() / len(batch["img"]))
        if not math.isfinite(recent[-1]) or (len(recent) == RECENT and sum(recent) > limit * RECENT):
            return False
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)  # as ultralytics' trainer does
        optimizer.step()
    return True


def _judge(learner: Learner, judges: list[dict[str, Any]], device: torch.device) -> float:
    """The loss as a mean per image."""
    with torch.no_grad():
        losses = [_loss(learner, batch, device).item() / len(batch["img"]) for batch in judges]
    return sum(losses) / len(losses)


def _loss(learner: Learner, batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """Of a batch, its sum, in the precision that training has."""
    with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device)):
        return learner(_on(batch, device))[0]


def _batches(data: DataSet, schedule: Schedule, imgsz: int, augment: bool) -> Iterator[dict[str, Any]]:
    """Batches of training images in a random order, again and again."""
    hyp = get_cfg(overrides={"imgsz": imgsz, **schedule.augmentation})
    dataset = build_dataset(data, "train", imgsz=imgsz, batch=schedule.batch, augment=augment, rect=False, hyp=hyp)
    loader = build_dataloader(dataset, min(schedule.batch, len(dataset)), workers=0, shuffle=True)
    while True:
        for batch in loader:
            yield batch if data.labelled else {"img": batch["img"]}


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    return moved | {"img": (moved["img"].float() / 255).contiguous(memory_format=torch.channels_last)}
