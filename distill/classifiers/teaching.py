"""Students and teachers: how two classifiers compare, what a cut keeps of their features, and the task of a training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import prune
from distill.classifiers import upstream
from distill.classifiers.checkpoint import numbered
from distill.classifiers.network import GIVES, head_of, label_terms, run, run_as
from distill.errors import DistillError
from distill.kinds.opened import Opened, Pairing, Taught
from distill.losses.base import points_of
from distill.machine.words import abridge
from distill.training.points import check_alike, image_of
from distill.training.points import keep_at as points_kept
from distill.training.task import DistillationTask
from distill.training.teacher import Teacher

_BOXES = "a classifier predicts no boxes"
# What a loss may read -> why it cannot be read from classifiers.
LACKS: Mapping[str, str] = {
    "boxes": _BOXES,
    "dist": _BOXES,
    "objectness": _BOXES,
    "quality": "it weighs the anchors of a detector",
}


def pair(student: Opened, teacher: Opened) -> Pairing:
    """A teacher with its classes in the order of the student's, matched by name if both have names.

    Raises:
        DistillError: a class that only one of them has.
    """
    wanted, known = list(student.names.values()), list(teacher.names.values())
    if len(wanted) != len(known):
        raise DistillError(
            f"teacher {teacher.source} has {len(known)} classes and {student.source} {len(wanted)}: give a teacher of the "
            "same classes"
        )
    unnamed = list(numbered(len(wanted)).values())
    if wanted == known or unnamed in (wanted, known):
        return Pairing(teacher, GIVES, LACKS)
    if sorted(wanted) != sorted(known):
        only = [name for name in known if name not in wanted]
        raise DistillError(
            f"teacher {teacher.source} has other classes than {student.source} ({abridge(only[:3], ', ')}): give a teacher of "
            "the same classes, in any order"
        )
    network = copy.deepcopy(teacher.model)
    last: Any = network.get_submodule(head_of(network))
    order = [known.index(name) for name in wanted]
    with torch.no_grad():
        for parameter in last.parameters():  # weight and bias, a row to a class
            parameter.copy_(parameter[order].clone())
    return Pairing(replace(teacher, model=network, names=dict(student.names)), GIVES, LACKS)


def make_task(
    student: nn.Module,
    teachers: Sequence[Taught],
    plan: prune.PrunePlan | None,
    *,
    size: int,
    labels: float,
    unlabelled: float,
    features: Sequence[str],
) -> DistillationTask:
    """The task that trains a classifier.

    Args:
        student: the network to train.
        teachers: those with losses.
        plan: what the student was cut by; None if nothing was cut.
        size: of images, in pixels.
        labels: weight of the labels' cross-entropy.
        unlabelled: weight of the teachers' losses on images without labels beside others.
        features: where losses read features, unless they have their own: "neck", or paths of modules.

    Raises:
        DistillError: a path that one of the networks lacks.
    """
    shown, taught = upstream.input_of(student), []
    for each in teachers:
        points = points_of(each.losses, features)
        check_alike(student, each.network, points)
        runner = run_as(upstream.input_of(each.network), shown)
        if each.original:
            keep = {} if plan is None else keep_at(each.network, plan, points, size)
            taught.append(Teacher(each.network, each.losses, runner, keep=keep))
        else:
            taught.append(Teacher(each.network, each.losses, runner, name=each.name, projects=True))
    weights = {"labels": labels, "unlabelled": unlabelled}
    return DistillationTask(student, taught, run=run, labelled=label_terms, features=features, probe=size, **weights)


def neck(model: nn.Module, size: int) -> list[tuple[int, ...]]:
    """The shape of the features before the last layer, for an image of `size` pixels."""
    return [tuple(feature.shape) for feature in run(model, image_of(model, size)).neck]


def neck_keep(model: nn.Module, plan: prune.PrunePlan) -> list[tuple[int, ...]]:
    """The channels of those that a plan keeps."""
    last: Any = model.get_submodule(head_of(model))
    width = last.in_features if isinstance(last, nn.Linear) else last.in_channels
    return [tuple(plan.keep_inputs.get(head_of(model), range(width)))]


def keep_at(
    model: nn.Module, plan: prune.PrunePlan, points: Iterable[str], size: int
) -> dict[str, list[tuple[int, ...]]]:
    """The teacher's channels that its student still has, by point; a point is left out if every channel stays."""

    def outputs() -> dict[str, prune.ModuleOutput]:
        return prune.trace_outputs(model, image_of(model, size))

    return points_kept(plan, points, lambda: neck_keep(model, plan), outputs)
