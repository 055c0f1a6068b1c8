"""Runs a YOLO to its raw outputs, and gives losses those outputs in their own terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from distill.losses.base import WeightedLoss
from distill.losses.context import NECK, Outputs
from distill.training.points import capturing, check_alike
from distill.training.task import DistillationTask
from distill.training.teacher import Teacher
from distill.yolo.families.match import match
from distill.yolo.families.table import family_of


def run(model: nn.Module, images: Tensor, points: Sequence[str] = ()) -> Outputs:
    """Run a YOLO up to what its head's convolutions compute.

    `images` is (B, 3, H, W) in [0, 1]; `points` are paths of modules whose outputs are captured beside the neck's.
    """
    return named(model, *raw_outputs(model, images, points))


def raw_outputs(model: nn.Module, images: Tensor, points: Sequence[str] = ()) -> tuple[Any, dict[str, Tensor]]:
    """What a YOLO's head returns in train mode, its raw outputs and its inputs; and what was captured, by path.

    Only the head's flag is switched: every BatchNorm stays in its mode. Args: as for `run`.
    """
    head = cast(Any, model).model[-1]
    mode, head.training = head.training, True
    try:
        with capturing(model, [point for point in points if point != NECK]) as captured:
            return model(images), captured
    finally:
        head.training = mode


def named(model: nn.Module, raw: Any, captured: Mapping[str, Tensor]) -> Outputs:
    """What `raw_outputs` gave, in a loss's terms."""
    outputs = family_of(model).outputs(cast(Any, model).model[-1], raw)
    return replace(outputs, at=captured) if captured else outputs


def label_terms(model: nn.Module, outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The head's own detection loss on the labels of a batch, as terms by name: a mean per image, gains included.

    Args:
        model: the network.
        outputs: what `run` gave for `batch["img"]`.
        batch: the loader's `img`, `batch_idx`, `cls` and `bboxes`.
    """
    # If only the first images have labels, the loader gives masks of the others too, without an object.
    masks = {key: batch[key][: len(batch["img"])] for key in ("masks", "sem_masks") if key in batch}
    return family_of(model).label_terms(model, outputs, {**batch, **masks})


def sensitivity_of(model: nn.Module) -> Callable[[Any], Tensor]:
    """The sensitivity of a detector's family: raw outputs -> the scalar that `prune` back-propagates. It needs no labels."""
    return partial(family_of(model).sensitivity, cast(Any, model).model[-1])


def teacher_of(
    network: nn.Module,
    losses: Sequence[WeightedLoss],
    keep: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> Teacher:
    """A YOLO as the teacher of a student that was cut from it.

    Args:
        network: the original, best fused (`checkpoint.fused`).
        losses: as `distill.losses.build` makes them.
        keep: which of its channels the student still has, by point of features (`points.keep_at`); None: all of them.
    """
    return Teacher(network, losses, run, keep=keep or {})


def foreign_teacher(network: nn.Module, losses: Sequence[WeightedLoss], student: nn.Module, name: str) -> Teacher:
    """A YOLO as the teacher of a student that was not cut from it: of any family, width and depth.

    Args:
        network: of the student's strides and classes, in the student's order; best fused (`checkpoint.fused`).
        losses: as `distill.losses.build` makes them, of those that the heads of both can serve.
        student: the network to train.
        name: in the names of losses, beside other teachers.
    """
    return Teacher(network, losses, run, name=name, projects=True, view=match(student, network).view)


def distillation(
    student: nn.Module,
    teachers: Sequence[Teacher],
    *,
    labels: float = 1.0,
    unlabelled: float = 1.0,
    features: Sequence[str] = (NECK,),
) -> DistillationTask:
    """The task that trains a YOLO from teachers of the same grid.

    Args:
        student: the network to train, an ultralytics DetectionModel.
        teachers: as `teacher_of` makes them.
        labels: weight of the detection loss on the labels.
        unlabelled: weight of the teachers' losses on images without labels, beside others with labels.
        features: where losses read features, unless they have their own: "neck", or paths of modules.

    Raises:
        DistillError: a path that one of the networks lacks, or that means something else in the other.
    """
    for teacher in teachers:
        check_alike(student, teacher.network, {point for loss in teacher.losses for point in loss.points(features)})
    weights: dict[str, Any] = {"labels": labels, "unlabelled": unlabelled}
    return DistillationTask(student, teachers, run=run, labelled=label_terms, features=features, **weights)
