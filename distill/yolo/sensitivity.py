"""How much a YOLO's outputs feel a change, without labels: the scalar that `prune.score` and `prune.repair` back-propagate.

Its squared gradient is, in expectation over the noise, the Gauss-Newton diagonal of
KL(original scores || changed) + best score * KL(original box distributions || changed), summed over anchors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def sensitivity_of(model: nn.Module) -> Callable[[Any], Tensor]:
    """The sensitivity of a detector whose head predicts box distributions (DFL): YOLOv5u, YOLOv8 and their kin."""
    bins = int(model.model[-1].reg_max)  # type: ignore[index, union-attr, arg-type]
    return lambda outputs: _detect_sensitivity(outputs, bins)


def _detect_sensitivity(outputs: dict[str, Tensor], bins: int) -> Tensor:
    """Noise on scores (B, nc, A) and boxes (B, 4 * bins, A), shaped by the outputs' own metric."""
    scores, boxes = outputs["scores"].float(), outputs["boxes"].float()
    p = scores.detach().sigmoid()
    total = (scores * (p * (1 - p)).sqrt() * torch.randn_like(scores)).sum()
    logits = boxes.unflatten(1, (4, bins))  # (B, 4, R, A)
    root = logits.detach().softmax(2).sqrt()
    noise = torch.randn_like(logits)
    # A square root of diag(q) - q q^T, which is the metric of a softmax.
    shaped = root * (noise - root * (root * noise).sum(2, keepdim=True))
    best = p.amax(1)[:, None, None]  # (B, 1, 1, A): a box matters as much as its anchor is believed
    return total + (logits * shaped * best.sqrt()).sum()
