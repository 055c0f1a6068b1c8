"""Points of features in a detector, and what a plan keeps there: see `distill.training.points`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import prune
from distill.losses.context import NECK
from distill.training.points import feature_at
from distill.training.task import PROBE
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.table import family_of


def image_of(model: nn.Module, size: int = PROBE) -> Tensor:
    """An image of `size` x `size` pixels on the device of a network, (1, 3, size, size)."""
    return torch.zeros(1, 3, size, size, device=next(model.parameters()).device)


def outputs_of(model: nn.Module, size: int = PROBE) -> dict[str, prune.ModuleOutput]:
    """The output of every module of a detector, by path, for an image of `size` x `size` pixels."""
    return prune.trace_outputs(model, image_of(model, size), adapter=YOLO_ADAPTER)


def keep_at(model: nn.Module, plan: prune.PrunePlan, points: Iterable[str]) -> dict[str, list[tuple[int, ...]]]:
    """The teacher's channels that its pruned student still has, by point, and there by level.

    A point is left out if every channel stays.

    Args:
        model: the teacher, BatchNorm not folded in, as it was cut.
        plan: the cut.
        points: "neck", or paths of modules.

    Raises:
        DistillError: a path that names no module, or one whose output losses cannot compare.
    """
    points = list(points)
    keep = {NECK: neck_keep(model, plan.keep_inputs)} if NECK in points else {}
    outputs = outputs_of(model) if set(points) - {NECK} else {}
    for point in points:
        if point != NECK:
            output = feature_at(outputs, point)
            kept = output.kept(plan)
            keep |= {point: [kept]} if len(kept) < output.shape[1] else {}
    return keep


def neck_keep(model: nn.Module, keep_inputs: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
    """Per pyramid level the teacher's channels that the head of its student still reads.

    Args:
        model: the teacher or the student.
        keep_inputs: of the plan, the kept input channels by module path.
    """
    layers: Any = model.model
    entry = f"model.{len(layers) - 1}.{family_of(model).entry}"
    return [tuple(keep_inputs[entry.format(level=level)]) for level in range(layers[-1].nl)]
