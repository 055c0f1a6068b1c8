"""Runs a YOLO to its raw outputs, and gives losses those outputs in their own terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from distill.losses.base import WeightedLoss
from distill.losses.context import Outputs
from distill.training.task import DistillationTask
from distill.yolo.families.table import family_of


def run(model: nn.Module, images: Tensor) -> Outputs:
    """Run a YOLO up to what its head's convolutions compute.

    A head in train mode returns its raw outputs and its inputs. Only the head's flag is switched: every BatchNorm stays
    in its mode. `images` is (B, 3, H, W) in [0, 1].
    """
    head = cast(Any, model).model[-1]
    mode, head.training = head.training, True
    try:
        raw = model(images)
    finally:
        head.training = mode
    return family_of(model).outputs(head, raw)


def label_terms(model: nn.Module, outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The head's own detection loss on the labels of a batch, as terms by name: a mean per image, gains included.

    Args:
        model: the network.
        outputs: what `run` gave for `batch["img"]`.
        batch: the loader's `img`, `batch_idx`, `cls` and `bboxes`.
    """
    return family_of(model).label_terms(model, outputs, batch)


def sensitivity_of(model: nn.Module) -> Callable[[Any], Tensor]:
    """The sensitivity of a detector's family: raw outputs -> the scalar that `prune` back-propagates. It needs no labels."""
    return partial(family_of(model).sensitivity, cast(Any, model).model[-1])


def neck_keep(model: nn.Module, keep_inputs: Mapping[str, Sequence[int]]) -> list[Sequence[int]]:
    """Per pyramid level the teacher's channels that the head of a cut student, `model`, still reads.

    `keep_inputs` is that of the plan: the kept input channels by module path.
    """
    layers = cast(Any, model).model
    entry = f"model.{len(layers) - 1}.{family_of(model).entry}"
    return [keep_inputs[entry.format(level=level)] for level in range(layers[-1].nl)]


def distillation(
    student: nn.Module,
    teacher: nn.Module,
    losses: Sequence[WeightedLoss],
    *,
    keep_inputs: Mapping[str, Sequence[int]] | None = None,
    labels: float = 1.0,
) -> DistillationTask:
    """The task that trains a YOLO from another of the same grid.

    Args:
        student: the network to train, an ultralytics DetectionModel, as the teacher is.
        teacher: the original, best fused (`checkpoint.fused`).
        losses: as `distill.losses.build` makes them.
        keep_inputs: of the plan that cut the student; None if it has all of its teacher's channels.
        labels: weight of the detection loss on the labels.
    """
    keep = None if keep_inputs is None else neck_keep(student, keep_inputs)
    return DistillationTask(student, teacher, losses, run=run, keep=keep, labelled=label_terms, labels=labels)
