"""Trains a classifier in a loop made of timm's parts: its loader, transforms, optimizer, scheduler and average of weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.classifiers import upstream
from distill.classifiers.data import TRAIN, VAL, ImageSet
from distill.classifiers.judge import measured, predict
from distill.classifiers.network import label_terms, run
from distill.errors import DistillError
from distill.machine.console import Console
from distill.machine.device import in_bfloat16, loaders, pick_device
from distill.machine.progress import EpochCallback
from distill.results.records import Brief
from distill.training.learning import Learning, Penalty
from distill.training.schedule import Schedule
from distill.training.state import TrainingState
from distill.training.task import DistillationTask

CLIP = 10.0  # largest norm of the gradient of the loss, summed over a batch, as in the trials
_GENTLE = 0.5  # a schedule that scales images by less varies them less in every way


@dataclass(frozen=True, repr=False)
class Trained(Brief):
    """The result of `train`."""

    model: nn.Module  # with the averaged weights of its best epoch; float32, eval, on the CPU
    history: list[dict[str, Any]]  # per epoch `epoch` (from 1), `lr`, every loss by name, `top1` and `top5`
    best_epoch: int  # of the weights: the best on the val images; the last without labels or with a penalty
    top1: float | None  # of those weights on the val images; None without labels
    seconds: list[float]  # per epoch, duration of its steps


@dataclass(frozen=True)
class Bench:
    """Training images of a data set as a network takes them: see `distill.training.tuning.Bench`."""

    data: ImageSet
    config: Mapping[str, Any]  # from `upstream.input_of`

    def batches(self, schedule: Schedule, *, augment: bool) -> Iterator[dict[str, Any]]:
        """Endless batches of training images in random order."""
        loader = train_loader(self.data, schedule, self.config, augment=augment)
        while True:
            for batch in loader:
                yield _named(batch, self.data.labelled)

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """A batch on the device."""
        moved = {key: value.to(device) for key, value in batch.items()}
        return moved | {"img": moved["img"].contiguous(memory_format=torch.channels_last)}

    def learner(self, task: DistillationTask, schedule: Schedule) -> Learning:
        """What the loop would train."""
        return Learning(task.student, task, None, schedule, own_loss)

    def draw(self, seed: int) -> None:
        """Seed everything that batches are drawn by."""
        upstream.random_seed(seed)


def own_loss(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The cross-entropy of a network without teachers."""
    return label_terms(model, run(model, batch["img"]), batch)


def train_loader(
    data: ImageSet, schedule: Schedule, config: Mapping[str, Any], *, augment: bool = True, workers: int = 0
) -> Any:
    """The loader that timm makes of the training images, in random order and in whole batches.

    A schedule that scales images by `s` crops at least `(1 - s)^2` of them (timm's own 0.08 if s is 0.5 or more), and
    one that changes them little leaves their colours nearly as they are.

    Args:
        data: the images.
        schedule: its batch, scaling and flips.
        config: how images are shown to the network.
        augment: vary them; else they are shown as in validation.
        workers: processes that load images.
    """
    gentle = schedule.scale < _GENTLE
    stretch = 1 + 2 * schedule.translate if gentle else 4 / 3
    return upstream.create_loader(
        data.dataset(TRAIN),
        batch_size=min(schedule.batch, len(data.train)),
        is_training=True,
        no_aug=not augment,
        scale=((1 - schedule.scale) ** 2 if gentle else 0.08, 1.0),
        ratio=(1 / stretch, stretch),
        hflip=schedule.fliplr,
        color_jitter=0.1 if gentle else 0.4,
        use_prefetcher=False,
        num_workers=workers,
        persistent_workers=False,
        **config,
    )


def _named(batch: Any, labelled: bool) -> dict[str, Any]:
    images, targets = batch
    return {"img": images, "cls": targets} if labelled else {"img": images}


def train(
    model: nn.Module,
    data: ImageSet,
    schedule: Schedule,
    *,
    folder: Path,
    console: Console,
    imgsz: int,
    device: str = "",
    seed: int = 0,
    workers: int | None = None,
    resume: bool = False,
    val_batch: int = 16,
    task: DistillationTask | None = None,
    penalty: Penalty | None = None,
    patience: int | None = None,
    on_epoch: EpochCallback | None = None,
) -> Trained:
    """Train a classifier of any structure.

    Args:
        model: the network; it is copied and not changed. With a task, its student.
        data: images and classes. Without classes there is no validation, and the last epoch is the result.
        schedule: length, learning rate, augmentation.
        folder: `last.pt` and `best.pt` are written here after each epoch.
        console: shows a bar for each epoch.
        imgsz: side of the images in pixels.
        device: cpu, 0, cuda:1; empty takes a GPU if there is one.
        seed: of shuffling and augmentation. On a CPU the same seed gives the same weights, even if the run was resumed.
        workers: processes that load images; None chooses.
        resume: go on after the last finished epoch in `folder`; begin if there is none.
        val_batch: images in a batch of validation.
        task: trains towards teachers; None trains on the labels alone.
        penalty: (network, progress 0 to 1) -> scalar added to the loss, which is a mean per image.
        patience: end after so many epochs without a better top-1; None never does.
        on_epoch: called after each epoch with its row of `Trained.history`.

    Raises:
        DistillError: a loss without effect, training that diverged, a folder of another run.
        RunError: the disk is full.
    """
    if task is None and not data.labelled:
        raise DistillError(f"{data.path}: no classes, and training without a teacher needs them")
    folder.mkdir(parents=True, exist_ok=True)
    state, states = (TrainingState.read(folder) if resume else None) or (TrainingState(), None)
    if not state.stopped:
        place = pick_device(device)
        learner = Learning(model, task, penalty, schedule, own_loss).to(place)
        bench = Bench(data, upstream.input_of(model, imgsz))
        count = (loaders() if place.type == "cuda" else 0) if workers is None else workers
        loader = train_loader(data, schedule, bench.config, workers=count)
        loop = _Loop(learner, bench, schedule, loader, folder, state, console, place, seed)
        loop.go(states, imgsz=imgsz, val_batch=val_batch, patience=patience, on_epoch=on_epoch)
    result = copy.deepcopy(model).cpu().float().eval()
    result.load_state_dict(state.best_weights)
    return Trained(result, state.history, state.best_epoch, state.best_score, state.seconds)


class _Loop:
    """A training in progress."""

    def __init__(
        self,
        learner: Learning,
        bench: Bench,
        schedule: Schedule,
        loader: Any,
        folder: Path,
        state: TrainingState,
        console: Console,
        device: torch.device,
        seed: int,
    ) -> None:
        self.learner, self.bench, self.data, self.loader, self.folder = learner, bench, bench.data, loader, folder
        self.state, self.console, self.device, self.seed = state, console, device, seed
        # Batches are whole, so there may be fewer steps than there were planned.
        self.schedule = replace(schedule, steps=schedule.epochs * len(loader))
        learner.student_model.requires_grad_(True)
        learner.refreeze()
        self.optimizer = upstream.create_optimizer_v2(
            learner,
            schedule.optimizer.lower(),
            lr=schedule.lr,
            weight_decay=schedule.weight_decay,
            betas=(schedule.momentum, 0.999),
        )
        warmup = min(schedule.warmup_steps, self.schedule.steps - 1)
        self.scheduler = upstream.CosineLRScheduler(
            self.optimizer,
            t_initial=max(1, self.schedule.steps - warmup),
            lr_min=schedule.lr * schedule.lrf,
            warmup_t=warmup,
            warmup_lr_init=schedule.lr / (warmup + 1),
            warmup_prefix=True,
            t_in_epochs=False,
        )
        decay = 1 - 1 / max(2.0, schedule.averaged * self.schedule.steps)
        self.average = upstream.ModelEmaV3(learner.student_model, decay=decay, use_warmup=True)

    def go(
        self,
        states: dict[str, Any] | None,
        *,
        imgsz: int,
        val_batch: int,
        patience: int | None,
        on_epoch: EpochCallback | None,
    ) -> None:
        """Train to the end; the result is in the state and in its files. `states`: of an earlier run."""
        if states is not None:
            self._restore(states)
        epochs, state = self.schedule.epochs, self.state
        with self.console.bar("training", epochs - state.epoch, "epochs") as whole:
            for epoch in range(state.epoch, epochs):
                row = self._epoch(epoch)
                validate = self.data.labelled and ((epoch + 1) % self.schedule.val_every == 0 or epoch + 1 == epochs)
                score = self._validate(row, imgsz, val_batch) if validate else None
                state.history.append(row)
                self._keep(epoch, score)
                waited = state.epoch - state.best_epoch
                state.stopped = state.epoch == epochs or bool(patience and waited >= patience)
                self._write()
                whole.advance(note="" if score is None else f"top-1 {score:.3f}")
                if on_epoch is not None:
                    on_epoch(dict(row))
                if state.stopped:
                    break

    def _epoch(self, epoch: int) -> dict[str, Any]:
        """Train for an epoch; its row without figures of validation."""
        upstream.random_seed(
            (self.seed * 100_003 + epoch) % 2**32
        )  # a resumed run draws what an unbroken one would have
        steps, sums, start = len(self.loader), dict[str, Tensor](), time.monotonic()
        self.learner.train()
        with self.console.bar(f"epoch {epoch + 1}/{self.schedule.epochs}", steps, "batches") as bar:
            for index, batch in enumerate(self.loader):
                step = epoch * steps + index
                terms = self._step(batch, step)
                for name, value in terms.items():
                    sums[name] = sums.get(name, value.new_zeros(())) + value
                bar.advance(note=" ".join(f"{name} {float(value):.3g}" for name, value in terms.items()))
        self.state.seconds.append(time.monotonic() - start)
        means = {name: float(value) / steps for name, value in sums.items()}
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise DistillError(f"loss '{name}' became {mean} in epoch {epoch + 1}: choose a smaller lr")
        return {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], **means}

    def _step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """One step of the optimizer; the terms of the loss."""
        self.learner.progress = step / self.schedule.steps
        self.scheduler.step_update(step)
        prepared = self.bench.prepare(_named(batch, self.data.labelled), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bfloat16(self.device)):
            loss, terms = self.learner(prepared)
        self.optimizer.zero_grad()
        loss.backward()
        upstream.dispatch_clip_grad(self.learner.parameters(), CLIP)
        self.optimizer.step()
        self.average.update(self.learner.student_model, step=step + 1)
        return terms

    def _validate(self, row: dict[str, Any], imgsz: int, batch: int) -> float:
        """Measure the averaged weights; the figures join the row."""
        top = predict(self.average.module, self.data, imgsz, batch, self.device)
        names = list((self.data.names or {}).values())
        found = measured(top, torch.tensor(self.data.classes[VAL]), names)
        row |= {"top1": found.top1, "top5": found.top5}
        assert found.top1 is not None
        return found.top1

    def _keep(self, epoch: int, score: float | None) -> None:
        """Keep the weights if they are the best, or the last of a training that has no best."""
        state = self.state
        state.epoch = epoch + 1
        better = score is not None and (state.best_score is None or score > state.best_score)
        # A penalty has its effect at the end only, and the score is best before.
        if better or not self.data.labelled or self.learner.penalty is not None or not state.best_epoch:
            state.best_epoch, state.best_score = epoch + 1, score
            weights = self.average.module.state_dict()
            state.best_weights = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}

    def _write(self) -> None:
        self.state.write(
            self.folder,
            {
                "student": self.learner.student_model.state_dict(),
                "average": self.average.module.state_dict(),
                "learned": self.learner.learned.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def _restore(self, states: dict[str, Any]) -> None:
        try:
            self.learner.student_model.load_state_dict(states["student"])
            self.average.module.load_state_dict(states["average"])
            self.learner.learned.load_state_dict(states["learned"])
            self.optimizer.load_state_dict(states["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            what = f"{self.folder}: the state of another network or other losses"
            raise DistillError(f"{what}; delete the folder to start anew") from error
