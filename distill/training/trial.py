"""Every loss of a task once forward and back: what would fail in training fails now, with the loss's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.base import WeightedLoss
from distill.machine import plugins
from distill.training.task import NO_GRADIENT, DistillationTask


def try_out(task: DistillationTask, batch: Mapping[str, Any]) -> None:
    """Run each loss once forward and back, whatever its weight and ramp. No weight moves, and no gradient is left.

    Args:
        task: in the mode in which it trains.
        batch: as the task takes it.

    Raises:
        DistillError: a loss that fails either way, gives no finite scalar, or has no finite gradient to the student, or none to
            its own layers. One that is 0 without a gradient passes: it has nothing to say of these images.
    """
    values, student = task.values(batch)
    for loss in task.losses:
        _try_back(loss, values[loss.name], student.tensors())


def _try_back(loss: WeightedLoss, value: Tensor, reachable: Sequence[Tensor]) -> None:
    """Raise for a loss that cannot be trained on. `reachable`: the student's outputs."""
    name = f"loss '{loss.name}'"
    if not torch.isfinite(value):
        raise DistillError(f"{name} is {value.item()}")
    if not value.requires_grad and value == 0:
        return
    call = loss.call
    own = [each for each in call.parameters() if each.requires_grad] if isinstance(call, nn.Module) else []
    gradients: Sequence[Tensor | None] = ()
    if value.requires_grad:
        back = partial(torch.autograd.grad, value, [*reachable, *own], retain_graph=True, allow_unused=True)
        gradients = plugins.call(name, back, passing=(torch.OutOfMemoryError,))
    if all(gradient is None for gradient in gradients[: len(reachable)]):
        raise DistillError(f"{name} {NO_GRADIENT}")
    if not all(gradient.isfinite().all() for gradient in gradients if gradient is not None):
        raise DistillError(f"{name} gives the student a gradient that is not finite")
    if own and all(gradient is None for gradient in gradients[len(reachable) :]):
        raise DistillError(f"{name} has layers of its own, and none of them gets a gradient")
