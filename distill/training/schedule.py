"""How long, how fast and on what a network trains, chosen from the number of optimizer steps there will really be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.losses.spec import half_cosine
from distill.training.mixture import Mixture

SHORT = 1000  # optimizer steps below which a recovery takes smaller batches, to have more steps
TINY = 250  # and below which it takes even smaller ones
FEW = 20  # epochs of a new network below which no image is known by heart, and varying them only makes them harder
LR = 1e-3  # highest learning rate, unless one is given


@dataclass(frozen=True)
class Schedule:
    """A whole training run, apart from its data and losses.

    The learning rate rises in a line over `warmup_steps`, then falls as a half cosine to `lr * lrf`. It changes with
    each step, not each epoch, because a recovery has few epochs.
    """

    epochs: int
    batch: int  # images to a forward pass
    steps: int  # optimizer steps in the whole run
    labelled: int | None = None  # of the images of a batch, so many have labels; None if all images are of one kind
    optimizer: str = "AdamW"
    lr: float = 3e-4  # at its highest
    lrf: float = 0.01  # the last learning rate as a part of the highest
    warmup_steps: int = 0  # optimizer steps
    momentum: float = 0.9  # of SGD, or AdamW's first beta
    weight_decay: float = 5e-4
    bn_momentum: float | None = None  # how fast BatchNorm statistics move; None leaves the network's own
    freeze_bn: bool = False  # BatchNorm keeps its statistics, and does not normalise by those of the batch
    mosaic: float | None = 0.0  # probability that an image is made of four; None if that is not done
    close_mosaic: int = 0  # epochs at the end without mosaic
    scale: float = 0.5  # images are scaled by 1 ± this
    translate: float = 0.1  # and moved by up to this part of their size
    fliplr: float = 0.5  # probability of a left-right flip
    averaged: float = 0.05  # the weights that count are a mean that remembers this share of the steps so far
    val_every: int = 1  # epochs between validations; the last epoch is always validated

    def lr_at(self, progress: float) -> float:
        """The learning rate when a share `progress`, 0 to 1, of the run is done."""
        step = progress * self.steps
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)  # never 0: the first step counts too
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (self.lrf + (1 - self.lrf) * half_cosine(min(1.0, share)))

    @property
    def augmentation(self) -> dict[str, float]:
        """How images are changed in training, by ultralytics' names."""
        return {"mosaic": self.mosaic or 0.0, "scale": self.scale, "translate": self.translate, "fliplr": self.fliplr}

    def describe(self) -> str:
        """One line for the screen and the report."""
        mosaic = f"mosaic {self.mosaic:g}" if self.mosaic else "" if self.mosaic is None else "no mosaic"
        if self.mosaic and self.close_mosaic:
            mosaic += f", none in the last {self.close_mosaic} epochs"
        labelled = "" if self.labelled is None else f", {self.labelled} of them with labels"
        bn = "" if self.bn_momentum is None else f"BatchNorm momentum {self.bn_momentum:g}"
        parts = [
            f"{self.epochs} epochs, {self.steps} steps of {self.batch} images{labelled}",
            f"{self.optimizer}, lr {self.lr:.1e} to {self.lr * self.lrf:.1e} by cosine",
            f"{self.warmup_steps} steps of warm-up" if self.warmup_steps else "no warm-up",
            "BatchNorm statistics frozen" if self.freeze_bn else bn,
            mosaic,
        ]
        return "; ".join(filter(None, parts))


def recovery(
    images: int,
    batch: int,
    epochs: int,
    *,
    lr: float | None = None,
    freeze_bn: bool = False,
    keep_batch: bool = False,
    processes: int = 1,
    mixture: Mixture | None = None,
) -> Schedule:
    """Training a repaired student towards its teacher: a correction, not a new start.

    A run of fewer than 1000 steps takes smaller batches to have more steps, down to 8 images; one of fewer than 250,
    down to 4. No learning rate suits every network and length, and batch statistics do not suit every data set:
    `distill.training.tuning` chooses both.

    Args:
        images: training images.
        batch: images to a step, at most.
        epochs: passes over the images.
        lr: highest learning rate; `LR` if None.
        freeze_bn: BatchNorm keeps its statistics. Otherwise they start as the repaired student's, and move slowly.
        keep_batch: take `batch` as it is.
        processes: number of processes that share a batch, each with the same number of images.
        mixture: images without labels beside them; None if there are none.
    """

    def steps_of(batch: int) -> int:
        return epochs * mixture.steps(batch, processes) if mixture else _steps(images, batch, epochs)

    for least, few in ((8, SHORT), (4, TINY)):
        while not keep_batch and batch > least and steps_of(batch) < few:
            smaller = max(least, batch // 2)
            if smaller % processes:
                break
            batch = smaller
    steps = steps_of(batch)
    short = steps < 2 * SHORT
    return Schedule(
        epochs=epochs,
        batch=batch,
        steps=steps,
        labelled=mixture.split(batch, processes)[0] if mixture else None,
        lr=LR if lr is None else lr,
        warmup_steps=min(100, steps // 20),
        bn_momentum=0.03 if short else 0.01,
        freeze_bn=freeze_bn,
        # A short run stays near what calibration saw: it has no time to get used to other images.
        mosaic=0.0 if short else 0.5,
        close_mosaic=0 if short else max(1, epochs // 5),
        scale=0.1 if short else 0.5,
        translate=0.05 if short else 0.1,
        averaged=0.2,
    )


def teacher(
    images: int,
    batch: int,
    epochs: int,
    *,
    lr: float | None = None,
    mosaic: float = 1.0,
    processes: int = 1,
    mixture: Mixture | None = None,
) -> Schedule:
    """Training a network from scratch, or from someone else's weights, on one's own images.

    Args:
        images: training images.
        batch: images to a step.
        epochs: passes over the images, at most: training ends when validation stops improving.
        lr: highest learning rate; `LR` if None.
        mosaic: probability that an image is made of four; none in the last fifth of the epochs.
        processes: as of `recovery`.
        mixture: as of `recovery`.
    """
    an_epoch = mixture.steps(batch, processes) if mixture else _steps(images, batch)
    steps = epochs * an_epoch
    return Schedule(
        epochs=epochs,
        batch=batch,
        steps=steps,
        labelled=mixture.split(batch, processes)[0] if mixture else None,
        lr=LR if lr is None else lr,
        warmup_steps=min(3 * an_epoch, steps // 10),
        mosaic=mosaic,
        close_mosaic=max(1, epochs // 5) if mosaic else 0,
        scale=0.1 if epochs < FEW else 0.5,
        translate=0.05 if epochs < FEW else 0.1,
    )


def sparsify(images: int, batch: int, epochs: int, *, lr: float | None = None) -> Schedule:
    """Training on under a penalty that pushes channels to zero, at a high rate because the scales have far to go.

    The rate ends at a tenth, so that the penalty works to the end. Args: as for `teacher`.
    """
    steps, lr = _steps(images, batch, epochs), LR if lr is None else lr
    return Schedule(epochs=epochs, batch=batch, steps=steps, lr=lr, lrf=0.1, warmup_steps=min(100, steps // 20))


def _steps(images: int, batch: int, epochs: int = 1) -> int:
    return epochs * max(1, math.ceil(images / batch))
