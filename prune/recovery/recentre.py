"""BatchNorm statistics of a repaired student, so that it can be trained as any other network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prune.adapter import Adapter, adapter_for
from prune.importance.statistics import as_batches, device_of
from prune.keywords import public
from prune.program.raw import emitting_raw

FLOOR = 1e-3  # of the old variance: a channel that hardly varies here may vary elsewhere


@public()
def recentre(student: nn.Module, images: Tensor | Iterable[Tensor], *, adapter: Adapter | None = None) -> None:
    """Set every BatchNorm's statistics to the mean and variance of its inputs; its scale and shift make up for that.

    In place. In eval mode the outputs stay as they are, up to rounding. After surgery and repair the statistics are still
    the full model's, with repair's constants in them. Train mode uses a batch's own statistics instead, so the student
    would be another network than the repaired one. Re-estimating the statistics alone would change it too.

    Args:
        student: The repaired student.
        images: (N, C, H, W) tensor, or an iterable of batches.
        adapter: As for `prune.trace`.

    Raises:
        PruneError: No images, or weights that are not float32.
    """
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.affine]
    sums: dict[nn.BatchNorm2d, Tensor] = {}

    def add(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double() - norm.running_mean.double()[:, None, None]
        count = torch.full_like(x[0, :, 0, 0], x.numel() / x.shape[1])
        moments = torch.stack([count, x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
        sums[norm] = sums[norm] + moments if norm in sums else moments

    device = device_of(student)
    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    try:
        with emitting_raw(student, adapter or adapter_for(student)), torch.no_grad():
            for batch in as_batches(images):
                student(batch.to(device, torch.float32, copy=True))  # a model may change its input in place
            for norm, moments in sums.items():
                _move(norm, *moments)
    finally:
        for hook in hooks:
            hook.remove()


def _move(norm: nn.BatchNorm2d, count: Tensor, first: Tensor, second: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    offset = first / count
    old = norm.running_var.double() + norm.eps
    new = torch.maximum(second / count - offset.square(), FLOOR * old) + norm.eps
    norm.bias.add_((norm.weight.double() * offset / old.sqrt()).to(norm.bias.dtype))
    norm.weight.mul_((new / old).sqrt().to(norm.weight.dtype))
    norm.running_mean += offset.to(norm.running_mean.dtype)
    norm.running_var.copy_(new - norm.eps)
