"""Chooses training settings by short trials from the starting weights: learning rate, BatchNorm mode, loss weights."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import prune
from distill.errors import DistillError
from distill.kinds.opened import LRSearch
from distill.losses.spec import ALWAYS
from distill.machine.device import in_bfloat16
from distill.machine.progress import ProgressCallback
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.training.batches import mixed_loader
from distill.yolo.training.learner import Learner
from distill.yolo.upstream import build_dataloader, get_cfg, init_seeds

_LOG = logging.getLogger(__name__)

CANDIDATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)  # learning rates
TRIAL_STEPS = 100  # of a trial, at most; a run shorter than a thousand steps has trials of a tenth of its length
CACHE_BYTES = 4 * 2**30  # of images, which are loaded once for all trials
LOSS_TOLERANCE = 1.05  # a trial passes up to this times its starting loss: most of the training is still to come
EVAL_BATCHES = 8  # the same ones for all trials
BN_IMAGES = 128  # images that BatchNorm statistics are estimated from
ABORT_FACTOR = 4.0  # a trial is aborted at this times its starting loss,
ABORT_WINDOW = 10  # averaged over so many batches: a single one may cost many times the mean of an untouched network
# Limits of a loss's factor. A loss near its minimum has a small gradient and must not outweigh the labels, which are far
# from theirs. Without labels all losses start equally near.
MAX_FACTOR_WITH_LABELS, MAX_FACTOR_WITHOUT = 4.0, 100.0
BATCH_STATS_TOLERANCE = 1.25  # times the loss with running statistics


@dataclass(frozen=True)
class Trials:
    """The trials of one training to come: see the functions of this file."""

    data: DataSet
    schedule: Schedule
    imgsz: int
    device: torch.device
    seed: int

    def example_images(self) -> Tensor:
        """See `example_images`."""
        return example_images(self.data, self.schedule, **self._place)

    def balance_losses(self, task: DistillationTask, *, batch_stats: bool) -> dict[str, float]:
        """See `balance_losses`."""
        return balance_losses(task, self.data, self.schedule, **self._place, batch_stats=batch_stats)

    def tolerates_batch_stats(self, task: DistillationTask) -> bool:
        """See `tolerates_batch_stats`."""
        return tolerates_batch_stats(task, self.data, self.schedule, **self._place)

    def search_lr(self, task: DistillationTask, *, freeze_bn: bool, progress: ProgressCallback) -> LRSearch:
        """See `search_lr`."""
        schedule = replace(self.schedule, freeze_bn=freeze_bn)
        return search_lr(task, self.data, schedule, **self._place, progress=progress)

    @property
    def _place(self) -> dict[str, Any]:
        return {"imgsz": self.imgsz, "device": self.device, "seed": self.seed}


def reestimate_batchnorm(
    model: nn.Module, data: DataSet, schedule: Schedule, *, imgsz: int, device: torch.device, seed: int = 0
) -> None:
    """Give BatchNorm the statistics of augmented training images, in place; the network's outputs stay as they are.

    `prune.recentre` does the work. Repair calls it too, with images as validation shows them.

    Args: as for `search_lr`; the network is moved to `device`.
    """
    init_seeds(seed)
    batches = islice(_batches(data, schedule, imgsz, augment=True), math.ceil(BN_IMAGES / schedule.batch))
    prune.recentre(model.to(device), [_prepare(batch, device)["img"] for batch in batches], adapter=YOLO_ADAPTER)


def example_images(data: DataSet, schedule: Schedule, *, imgsz: int, device: torch.device, seed: int = 0) -> Tensor:
    """A batch of augmented training images, (B, 3, H, W) in [0, 1]. Args: as for `search_lr`."""
    init_seeds(seed)
    return _prepare(next(_batches(data, schedule, imgsz, augment=True)), device)["img"]


def tolerates_batch_stats(
    task: DistillationTask, data: DataSet, schedule: Schedule, *, imgsz: int, device: torch.device, seed: int = 0
) -> bool:
    """Whether BatchNorm can use batch statistics, because switching to them barely changes the loss.

    Batch statistics allow higher learning rates and end at a higher mAP. But with some networks and data they change the
    student's outputs so much that another network is trained than the one that will be used.

    Args: as for `search_lr`.
    """
    init_seeds(seed)
    batches = list(islice(_batches(data, schedule, imgsz, augment=True), EVAL_BATCHES))
    learners = (_trial_learner(task, replace(schedule, freeze_bn=frozen), imgsz, device) for frozen in (False, True))
    batch_loss, running_loss = (_mean_loss(learner, batches) for learner in learners)
    _LOG.debug("loss %.4g with the batch's BatchNorm statistics, %.4g with the network's", batch_loss, running_loss)
    return batch_loss <= BATCH_STATS_TOLERANCE * running_loss  # False for NaN


def search_lr(
    task: DistillationTask,
    data: DataSet,
    schedule: Schedule,
    *,
    imgsz: int,
    device: torch.device,
    seed: int = 0,
    candidates: Sequence[float] = CANDIDATES,
    progress: ProgressCallback | None = None,
) -> LRSearch:
    """The highest learning rate whose trial, a tenth of the planned steps, ends at most 5 % above its starting loss.

    High rates undo some of the repair first, but finish better. So a loss after a few steps says little; one that has
    recovered after a tenth of the training costs the rest nothing. All trials start from the same student and see the
    same augmented batches; the rate rises for half of the trial and falls as a half cosine. The loss before and after is
    measured on images without augmentation.

    Args:
        task: the student, its teacher and the losses; copied.
        data: training images.
        schedule: of the training to come; its `lr` is not read.
        imgsz: side of the images in pixels.
        device: where to train.
        seed: of the choice of images and of their augmentation.
        candidates: rates in descending order; the last one is taken if no trial passes.
        progress: shows which candidate is tried.

    Raises:
        DistillError: a loss fails on the untrained student.
    """
    batch_bytes = schedule.batch * 3 * imgsz**2
    steps = max(5, min(TRIAL_STEPS, schedule.steps // 10, CACHE_BYTES // batch_bytes))
    trial = replace(schedule, steps=steps, warmup_steps=steps // 2)  # the schedule's warm-up may be longer than a trial
    init_seeds(seed)
    train_batches = list(islice(_batches(data, schedule, imgsz, augment=True), steps))
    eval_batches = list(islice(_batches(data, schedule, imgsz, augment=False), EVAL_BATCHES))
    start = _mean_loss(_trial_learner(task, schedule, imgsz, device), eval_batches)
    limit = LOSS_TOLERANCE * start
    tried: dict[float, float] = {}
    rates: Iterable[float] = (
        candidates if progress is None else progress(candidates, "learning rate", len(candidates), "trials")
    )
    for lr in rates:
        learner = _trial_learner(task, schedule, imgsz, device)
        finished = _train(learner, train_batches, replace(trial, lr=lr), ABORT_FACTOR * start)
        tried[lr] = _mean_loss(learner, eval_batches) if finished else math.inf
        if tried[lr] <= limit:
            break
    _LOG.debug("trials of %d steps: %s; accepted up to %.4g", steps, tried, limit)
    return LRSearch(lr, start, limit, tried)


def balance_losses(
    task: DistillationTask,
    data: DataSet,
    schedule: Schedule,
    *,
    imgsz: int,
    device: torch.device,
    seed: int = 0,
    batch_stats: bool = False,
) -> dict[str, float]:
    """A factor for each loss, by name, that gives losses of equal weight equal gradients at the start of training.

    Compared are norms of each loss's gradient to the student's weights, averaged over batches, with BatchNorm's running
    statistics; or with the batch's, if `batch_stats`, for a network that has none of its own yet. With labels, the factor makes a loss's norm equal to that of the labels, up to a factor of 4; without, to
    the largest norm. The factors stay fixed. GradNorm (Chen et al., ICML 2018, arXiv:1711.02257) adapts them in training.

    Args: as for `search_lr`.
    """
    init_seeds(seed)
    learner = _trial_learner(task, replace(schedule, freeze_bn=not batch_stats), imgsz, device)
    assert learner.task is not None
    weights = [parameter for parameter in learner.student_model.parameters() if parameter.requires_grad]
    norms: dict[str, float] = dict.fromkeys(["labels", *(loss.name for loss in task.losses)], 0.0)
    for batch in islice(_batches(data, schedule, imgsz, augment=True), EVAL_BATCHES):
        terms = learner.task(_prepare(batch, device))
        del terms["loss"]
        values = {loss.name: terms.pop(loss.name) / loss.weight for loss in task.losses}
        if terms:  # the label loss
            values["labels"] = torch.stack(list(terms.values())).sum() / task.labels
        for name, value in values.items():
            gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
            squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
            norms[name] += torch.stack(squares).sum().sqrt().item() / EVAL_BATCHES
    labels = norms.pop("labels")
    _LOG.debug("norms of the gradients of labels %.3g and of losses %s", labels, norms)
    target, limit = (labels, MAX_FACTOR_WITH_LABELS) if labels else (max(norms.values()), MAX_FACTOR_WITHOUT)
    return {name: target / max(norm, target / limit) if target else 1.0 for name, norm in norms.items()}


def _trial_learner(task: DistillationTask, schedule: Schedule, imgsz: int, device: torch.device) -> Learner:
    """The learner of a trial, made from copies."""
    learner = Learner(task.student, task, None, schedule).to(device).train()
    assert learner.task is not None
    # A loss that warms up would have no weight in a trial.
    learner.task.losses = [replace(loss, ramp=ALWAYS) for loss in learner.task.losses]
    student: Any = learner.student_model
    student.args = get_cfg(overrides={"imgsz": imgsz})
    student.requires_grad_(True)
    return learner


def _train(learner: Learner, batches: list[dict[str, Any]], schedule: Schedule, limit: float) -> bool:
    """Train for a few steps. False if the loss, a mean per image over the last `ABORT_WINDOW` batches, exceeds `limit`."""
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, betas=(schedule.momentum, 0.999), weight_decay=0.0)
    recent: deque[float] = deque(maxlen=ABORT_WINDOW)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step / len(batches))
        try:
            loss = _loss(learner, batch)
        except DistillError:
            if step:  # a loss refuses the outputs of a network that has diverged
                return False
            raise
        recent.append(loss.item() / len(batch["img"]))
        if not math.isfinite(recent[-1]) or (len(recent) == ABORT_WINDOW and sum(recent) > limit * ABORT_WINDOW):
            return False
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)  # as ultralytics' trainer does
        optimizer.step()
    return True


def _mean_loss(learner: Learner, batches: list[dict[str, Any]]) -> float:
    """The loss as a mean per image."""
    with torch.no_grad():
        losses = [_loss(learner, batch).item() / len(batch["img"]) for batch in batches]
    return sum(losses) / len(losses)


def _loss(learner: Learner, batch: Mapping[str, Any]) -> Tensor:
    """The loss summed over a batch, in the precision of training."""
    device = next(learner.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device)):
        return learner(_prepare(batch, device))[0]


def _batches(data: DataSet, schedule: Schedule, imgsz: int, augment: bool) -> Iterator[dict[str, Any]]:
    """Endless batches of training images in random order."""
    hyp = get_cfg(overrides={"imgsz": imgsz, **schedule.augmentation})
    if schedule.labelled is not None:
        seed, device = torch.initial_seed(), torch.device("cpu")  # a batch is moved when it is used
        loader = mixed_loader(data, schedule, imgsz=imgsz, hyp=hyp, device=device, augment=augment, seed=seed)
    else:
        dataset = build_dataset(data, "train", imgsz=imgsz, batch=schedule.batch, augment=augment, rect=False, hyp=hyp)
        loader = build_dataloader(dataset, min(schedule.batch, len(dataset)), workers=0, shuffle=True)
    while True:
        for batch in loader:
            yield batch if data.labelled else {"img": batch["img"]}


def _prepare(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on the device, its images in [0, 1]."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return moved | {"img": (moved["img"].float() / 255).contiguous(memory_format=torch.channels_last)}
