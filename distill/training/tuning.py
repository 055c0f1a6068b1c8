"""Chooses training settings by short trials from the starting weights: learning rate, BatchNorm mode, loss weights."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import prune
from distill.errors import DistillError
from distill.losses.spec import ALWAYS
from distill.machine.device import in_bfloat16
from distill.machine.progress import ProgressCallback
from distill.training.learning import Learning
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask

_LOG = logging.getLogger(__name__)

CANDIDATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)  # learning rates
TRIAL_STEPS = 100  # of a trial, at most; a run shorter than a thousand steps has trials of a tenth of its length
CACHE_BYTES = 4 * 2**30  # of images, which are loaded once for all trials
LOSS_TOLERANCE = 1.05  # a trial passes up to this times the lowest loss of all: most of the training is still to come
EVAL_BATCHES = 8  # the same ones for all trials
BN_IMAGES = 128  # images that BatchNorm statistics are estimated from
ABORT_FACTOR = 2.0  # a trial is aborted at this times its starting loss,
ABORT_WINDOW = 10  # averaged over so many batches: a single one may cost many times the mean of an untouched network
# Limits of a loss's factor. A loss near its minimum has a small gradient and must not outweigh the labels, which are far
# from theirs. Without labels all losses start equally near.
MAX_FACTOR_WITH_LABELS, MAX_FACTOR_WITHOUT = 4.0, 100.0
BATCH_STATS_TOLERANCE = 1.25  # times the loss with running statistics


@dataclass(frozen=True)
class LRSearch:
    """The result of `Trials.search_lr`. Losses are means per image."""

    lr: float  # the learning rate to train with
    start: float  # the loss before training
    limit: float  # the highest loss that a trial may end at
    tried: Mapping[float, float]  # learning rate -> loss after its trial, in the order tried; infinity if it diverged


class Bench(Protocol):
    """What trials need of the trainer of a kind of network."""

    def batches(self, schedule: Schedule, *, augment: bool) -> Iterator[dict[str, Any]]:
        """Endless batches of training images in random order, as `prepare` takes them."""

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """A batch on the device, as a task takes it."""

    def learner(self, task: DistillationTask, schedule: Schedule) -> Learning:
        """What trains a copy of the task's student."""

    def draw(self, seed: int) -> None:
        """Seed everything that batches are drawn by."""


@dataclass(frozen=True)
class Trials:
    """The trials of one training to come. Each begins from the same weights, draws the same, and leaves no trace.

    Args:
        bench: the training's own trainer.
        schedule: of the training.
        imgsz: side of the images in pixels.
        device: where to train.
        seed: of the choice of images and of their augmentation.
    """

    bench: Bench
    schedule: Schedule
    imgsz: int
    device: torch.device
    seed: int = 0

    def recentre(self, model: nn.Module, adapter: prune.Adapter) -> None:
        """Give BatchNorm the statistics of augmented training images, in place; the network's outputs stay as they are.

        `prune.recentre` does the work. Repair calls it too, with images as validation shows them. The network is moved to
        the device.
        """
        batches = self._first(math.ceil(BN_IMAGES / self.schedule.batch))
        images = [self.bench.prepare(batch, self.device)["img"] for batch in batches]
        prune.recentre(model.to(self.device), images, adapter=adapter)

    def example_images(self) -> Tensor:
        """A batch of augmented training images, (B, 3, H, W)."""
        return self.bench.prepare(self._first(1)[0], self.device)["img"]

    def tolerates_batch_stats(self, task: DistillationTask) -> bool:
        """Whether BatchNorm can use batch statistics, because switching to them barely changes the loss.

        Batch statistics allow higher learning rates and end at a higher mAP. But with some networks and data they change the
        student's outputs so much that another network is trained than the one that will be used.
        """
        batches = self._first(EVAL_BATCHES)
        schedules = (replace(self.schedule, freeze_bn=frozen) for frozen in (False, True))
        batch_loss, running_loss = (self._mean_loss(self._learner(task, each), batches) for each in schedules)
        _LOG.debug("loss %.4g with the batch's BatchNorm statistics, %.4g with the network's", batch_loss, running_loss)
        return batch_loss <= BATCH_STATS_TOLERANCE * running_loss  # False for NaN

    def search_lr(
        self,
        task: DistillationTask,
        *,
        freeze_bn: bool = False,
        candidates: Sequence[float] = CANDIDATES,
        progress: ProgressCallback | None = None,
    ) -> LRSearch:
        """The highest learning rate whose trial, a tenth of the planned steps, ends at most 5 % above the best trial's.

        High rates undo some of the repair first, and have more of the training left to make up for it. So the best rate of a
        trial is too low for the training, and the highest that is nearly as good is taken. All trials start from the same
        student and see the same augmented batches; the rate rises for half of the trial and falls as a half cosine. The loss
        before and after is measured on images without augmentation. The search ends when a lower rate ends at a higher loss.

        Args:
            task: the student, its teacher and the losses; copied.
            freeze_bn: BatchNorm keeps its statistics.
            candidates: rates in descending order; the last one is taken if all trials diverge.
            progress: shows which candidate is tried.

        Raises:
            DistillError: a loss fails on the untrained student.
        """
        schedule = replace(self.schedule, freeze_bn=freeze_bn)
        batch_bytes = schedule.batch * 3 * self.imgsz**2
        steps = max(5, min(TRIAL_STEPS, schedule.steps // 10, CACHE_BYTES // batch_bytes))
        # The schedule's warm-up may be longer than a trial.
        trial = replace(schedule, steps=steps, warmup_steps=steps // 2)
        train_batches = self._first(steps)
        eval_batches = list(islice(self.bench.batches(schedule, augment=False), EVAL_BATCHES))
        start = self._mean_loss(self._learner(task, schedule), eval_batches)
        tried: dict[float, float] = {}
        rates: Iterable[float] = (
            candidates if progress is None else progress(candidates, "learning rate", len(candidates), "trials")
        )
        for lr in rates:
            learner = self._learner(task, schedule)
            finished = self._train(learner, train_batches, replace(trial, lr=lr), ABORT_FACTOR * start)
            tried[lr] = self._mean_loss(learner, eval_batches) if finished else math.inf
            if tried[lr] > min(tried.values()):
                break
        finite = [loss for loss in tried.values() if math.isfinite(loss)]
        limit = LOSS_TOLERANCE * min(finite, default=start)
        _LOG.debug("trials of %d steps: %s; accepted up to %.4g", steps, tried, limit)
        return LRSearch(max((rate for rate, loss in tried.items() if loss <= limit), default=lr), start, limit, tried)

    def balance_losses(self, task: DistillationTask, *, batch_stats: bool = False) -> dict[str, float]:
        """A factor for each loss, by name, that gives losses of equal weight equal gradients at the start of training.

        Compared are norms of each loss's gradient to the student's weights, averaged over batches, with BatchNorm's running
        statistics; or with the batch's, if `batch_stats`, for a network that has none of its own yet. With labels, the factor
        makes a loss's norm equal to that of the labels, up to a factor of 4; without, to the largest norm. The factors stay
        fixed. GradNorm (Chen et al., ICML 2018, arXiv:1711.02257) adapts them in training.
        """
        batches = self._first(EVAL_BATCHES)
        learner = self._learner(task, replace(self.schedule, freeze_bn=not batch_stats))
        assert learner.task is not None
        weights = [parameter for parameter in learner.student_model.parameters() if parameter.requires_grad]
        norms: dict[str, float] = dict.fromkeys(["labels", *(loss.name for loss in task.losses)], 0.0)
        for batch in batches:
            terms = learner.task(self.bench.prepare(batch, self.device))
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

    def _first(self, count: int) -> list[dict[str, Any]]:
        """The first augmented batches."""
        self.bench.draw(self.seed)
        return list(islice(self.bench.batches(self.schedule, augment=True), count))

    def _learner(self, task: DistillationTask, schedule: Schedule) -> Learning:
        """The learner of a trial, made from copies."""
        learner = self.bench.learner(task, schedule).to(self.device).train()
        assert learner.task is not None
        # A loss that warms up would have no weight in a trial.
        learner.task.losses = [replace(loss, ramp=ALWAYS) for loss in learner.task.losses]
        learner.student_model.requires_grad_(True)
        return learner

    def _train(self, learner: Learning, batches: list[dict[str, Any]], schedule: Schedule, limit: float) -> bool:
        """Train for a few steps. False if the loss, a mean per image over the last `ABORT_WINDOW` batches, exceeds `limit`."""
        parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, betas=(schedule.momentum, 0.999), weight_decay=0.0)
        recent: deque[float] = deque(maxlen=ABORT_WINDOW)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(step / len(batches))
            try:
                loss = self._loss(learner, batch)
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

    def _mean_loss(self, learner: Learning, batches: list[dict[str, Any]]) -> float:
        """The loss as a mean per image."""
        with torch.no_grad():
            losses = [self._loss(learner, batch).item() / len(batch["img"]) for batch in batches]
        return sum(losses) / len(losses)

    def _loss(self, learner: Learning, batch: Mapping[str, Any]) -> Tensor:
        """The loss summed over a batch, in the precision of training."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bfloat16(self.device)):
            return learner(self.bench.prepare(batch, self.device))[0]
