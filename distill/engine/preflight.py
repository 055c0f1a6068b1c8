"""What is opened and checked before anything is done: checkpoint, losses, budget, labels; the first fault ends it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import prune
from distill import losses
from distill.errors import DistillError
from distill.losses.base import LossModule, WeightedLoss
from distill.losses.spec import ALWAYS, LossSpec
from distill.machine.console import Console
from distill.recipe.schema import Prune, Recipe
from distill.training.task import PROBE, check_support
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data.dataset import DataSet
from distill.yolo.families.outputs import distillation
from distill.yolo.families.table import family_of, stride_of
from distill.yolo.families.ultralytics_dfl import DFL


def open_teacher(recipe: Recipe) -> Detector:
    """The checkpoint that a recipe names.

    Raises:
        DistillError: it cannot be opened, or it is no detector that can be pruned.
    """
    if recipe.model is None:
        raise DistillError("model is not set: give model=best.pt")
    return checkpoint.load(recipe.model, trust=recipe.trust)


def warn_of_size(recipe: Recipe, teacher: Detector, console: Console) -> None:
    """A warning where a network is to see images of another size than it was trained on."""
    size = teacher.imgsz
    if size and size != recipe.imgsz:
        mend = f"give imgsz={size} unless that is meant"
        console.warn(f"{teacher.source} was trained at {size} pixels, and imgsz is {recipe.imgsz}: {mend}")


def fitting(specs: Iterable[LossSpec], teacher: Detector | None) -> tuple[list[LossSpec], list[str]]:
    """`losses.fitting` for the head of a teacher; one that is trained here has distributions over box sides."""
    return losses.fitting(specs, (family_of(teacher.model) if teacher is not None else DFL).gives)


def fitting_losses(recipe: Recipe, teacher: Detector | None, console: Console) -> list[WeightedLoss]:
    """The losses of a recipe that the teacher's head can have, made; a line on the screen for each that it cannot.

    Raises:
        DistillError: a loss that is not there or takes other options, or nothing left to train on.
    """
    if not recipe.distill.epochs and not (recipe.sparsify and recipe.sparsify.distill):
        return []
    specs, left_out = fitting(recipe.distill.losses, teacher)
    for line in left_out:
        console.line(line)
    if not any(spec.ramp.lasts for spec in specs) and not recipe.distill.labels:
        which = "none that lasts to the end" if specs else "none of them"
        raise DistillError(f"distill.losses: {which} fits this head, and labels is 0: nothing to train on")
    made = losses.build(specs)
    if teacher is not None:
        check_support(made, teacher.model)
    doubtful = [
        loss
        for loss, spec in zip(made, specs, strict=True)
        if spec.name not in losses.BUILTIN or spec.options or isinstance(loss.call, LossModule)
    ]
    if teacher is not None and doubtful:
        _try(doubtful, teacher)
    return made


def _try(doubtful: list[WeightedLoss], teacher: Detector) -> None:
    """Call each loss of a user's, and each with options, once, on an image of nothing: a slip shows now, and not after
    repair."""
    copies = [replace(loss, call=copy.deepcopy(loss.call), ramp=ALWAYS) for loss in doubtful]
    task = distillation(copy.deepcopy(teacher.model), teacher.model, copies, labels=0.0)
    box = {"batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1), "bboxes": torch.full((1, 4), 0.5)}
    task.try_out({"img": torch.rand(1, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0)), **box})


def check_labels(recipe: Recipe, data: DataSet, teaching: list[WeightedLoss]) -> None:
    """See that what a recipe trains has something to learn from, where the data has no labels.

    Args:
        recipe: what is to be done.
        data: where it is to be done.
        teaching: `fitting_losses` of the recipe.

    Raises:
        DistillError: a training that needs labels.
    """
    if data.labelled:
        return
    if recipe.teacher.train:
        raise DistillError(f"{data.path}: no labels, and teacher.train needs them: give a data.yaml")
    if recipe.sparsify and not recipe.sparsify.distill:
        raise DistillError(f"{data.path}: no labels: give a data.yaml, or sparsify.distill=true")
    trains = recipe.distill.epochs or recipe.sparsify
    if trains and not any(loss.ramp.lasts for loss in teaching):
        which = "each ends before the training does (until)" if teaching else "there is none"
        raise DistillError(
            f"{data.path}: no labels, so the losses of distill.losses must teach, and {which}: give some, or a data.yaml"
        )


def check_network(recipe: Recipe, teacher: Detector | None) -> None:
    """See that the network can be cut as far as the recipe says; where it is trained first, that there is one to train.

    Args:
        recipe: what is to be done.
        teacher: `open_teacher` of the recipe; None where it names no checkpoint.

    Raises:
        DistillError: `teacher.train.model` is no detector that is supported, or `imgsz` is none that the network takes.
        PruneError: a budget that cannot be met, or a pattern of `prune.protect` that names nothing.
    """
    network: nn.Module
    if teacher is not None:
        network = teacher.model
    else:
        wanted = recipe.teacher.train
        assert wanted is not None  # a recipe without a model has it
        network = build(wanted.model, {0: "object"}, width=wanted.width)
    stride = stride_of(network)
    if recipe.imgsz % stride:
        sizes = f"{recipe.imgsz // stride * stride} or {-(-recipe.imgsz // stride) * stride}"
        raise DistillError(f"imgsz is {recipe.imgsz}, and this network takes multiples of {stride}: give {sizes}")
    if recipe.prune is not None:
        graph = prune.trace(network, torch.zeros(1, 3, recipe.imgsz, recipe.imgsz))
        prune.check_budget(graph, **budget(recipe.prune))


def budget(wanted: Prune) -> dict[str, Any]:
    """What the recipe says of how much to cut, as `prune` takes it."""
    names = ("flops", "params", "ratio", "round_to", "protect", "max_ratio")
    return {name: getattr(wanted, name) for name in names}
