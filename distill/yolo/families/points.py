"""Points of features in a detector, and what a plan keeps there: see `distill.training.points`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

import prune
from distill.training.points import image_of
from distill.training.points import keep_at as points_kept
from distill.training.task import PROBE
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.table import family_of


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
    return points_kept(plan, points, lambda: neck_keep(model, plan.keep_inputs), lambda: outputs_of(model))


def neck_keep(model: nn.Module, keep_inputs: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
    """Per pyramid level the teacher's channels that the head of its student still reads.

    Args:
        model: the teacher or the student.
        keep_inputs: of the plan, the kept input channels by module path.
    """
    layers: Any = model.model
    entry = f"model.{len(layers) - 1}.{family_of(model).entry}"
    return [tuple(keep_inputs[entry.format(level=level)]) for level in range(layers[-1].nl)]
