"""Losses on boxes. A box counts as much as the teacher is sure of it: where nothing is, boxes mean nothing.

Both losses are averages weighted by w = q^focus, q the teacher's best class probability: thousands of background
anchors with q near 0.01 would together outweigh the few on objects; the power silences them without a threshold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.context import LossContext
from distill.errors import DistillError


def box_iou(ctx: LossContext, focus: float = 2.0) -> Tensor:
    """One minus the overlap of the student's box with the teacher's at the same anchor.

        L = Σ_{b,a} w · (1 − IoU(student, teacher)) / max(1, Σ_{b,a} w),   w = q^focus

    0 for equal boxes, at most 1. Boxes that do not touch have no gradient: it is made for a student near its teacher.

    Args:
        ctx: reads `boxes`, (B, A, 4) as x1 y1 x2 y2 in pixels, and `quality`, (B, A).
        focus: power of the quality in the weight.
    """
    student, teacher = ctx.student.boxes, ctx.teacher.boxes
    overlap = torch.minimum(student[..., 2:], teacher[..., 2:]) - torch.maximum(student[..., :2], teacher[..., :2])
    shared = overlap.clamp(min=0).prod(-1)
    area = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (student, teacher)]
    iou = shared / (area[0] + area[1] - shared).clamp(min=1e-6)
    return _weighted_mean(1 - iou, ctx, focus)


def dfl_kl(ctx: LossContext, focus: float = 2.0, temperature: float = 1.0) -> Tensor:
    """Divergence of the student's distributions over box sides from the teacher's (localisation distillation).

        L = Σ_{b,a} w · T² · 1/4 Σ_sides KL(softmax(t / T) ‖ softmax(s / T)) / max(1, Σ_{b,a} w),   w = q^focus

    Args:
        ctx: reads `dist`, logits (B, A, 4, R), and `quality`, (B, A).
        focus: power of the quality in the weight.
        temperature: T; above 1 the shape of the tails counts more (the paper uses 10 between unlike networks).

    Raises:
        DistillError: the head predicts no distributions.

    Reference: Zheng et al., Localization Distillation for Dense Object Detection, CVPR 2022.
    """
    if ctx.student.dist is None or ctx.teacher.dist is None:
        raise DistillError("loss 'dfl_kl': this head predicts no distributions over box sides; use 'box_iou' instead")
    student = F.log_softmax(ctx.student.dist / temperature, dim=-1)
    teacher = F.log_softmax(ctx.teacher.dist / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean(-1)  # (B, A)
    return _weighted_mean(temperature**2 * divergence, ctx, focus)


def _weighted_mean(value: Tensor, ctx: LossContext, focus: float) -> Tensor:
    weight = ctx.quality**focus
    return (weight * value).sum() / weight.sum().clamp(min=1)
