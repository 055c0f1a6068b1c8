"""Losses on boxes. A box counts as much as the teacher is sure of it: where nothing is, boxes mean nothing.

All are averages weighted by w = q^focus, q the teacher's best class probability: thousands of background anchors with q
near 0.01 would together outweigh the few on objects; the power silences them without a threshold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.context import LossContext


def box_iou(ctx: LossContext, focus: float = 2.0) -> Tensor:
    """One minus the overlap of the student's box with the teacher's at the same anchor.

        L = Σ_{b,a} w · (1 − IoU(student, teacher)) / max(1, Σ_{b,a} w),   w = q^focus

    0 for equal boxes, at most 1. Boxes that do not touch have no gradient: it is made for a student near its teacher.

    Args:
        ctx: reads `boxes`, (B, A, 4) as x1 y1 x2 y2 in pixels, and `quality`, (B, A).
        focus: power of the quality in the weight.
    """
    shared, union = _areas(ctx.student.boxes, ctx.teacher.boxes)
    return _weighted_mean(1 - shared / union.clamp(min=1e-6), ctx, focus)


def box_giou(ctx: LossContext, focus: float = 2.0) -> Tensor:
    """One minus the overlap as in `box_iou`, plus the empty share of the smallest box around both.

        L = Σ_{b,a} w · (1 − IoU + (hull − union) / hull) / max(1, Σ_{b,a} w),   w = q^focus

    0 for equal boxes, towards 2 for small ones far apart. Boxes that do not touch are drawn together: it is made for a
    student whose boxes have gone astray, as after a deep cut without repair.

    Args:
        ctx: reads `boxes`, (B, A, 4) as x1 y1 x2 y2 in pixels, and `quality`, (B, A).
        focus: power of the quality in the weight.

    Reference: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    student, teacher = ctx.student.boxes, ctx.teacher.boxes
    shared, union = _areas(student, teacher)
    sides = torch.maximum(student[..., 2:], teacher[..., 2:]) - torch.minimum(student[..., :2], teacher[..., :2])
    hull = sides.clamp(min=0).prod(-1)
    value = 1 - shared / union.clamp(min=1e-6) + (hull - union) / hull.clamp(min=1e-6)
    return _weighted_mean(value, ctx, focus)


def box_l1(ctx: LossContext, focus: float = 2.0) -> Tensor:
    """Distance of the student's box sides from the teacher's, in sizes of the teacher's box.

        L = Σ_{b,a} w · 1/4 Σ_sides |student − teacher| / size / max(1, Σ_{b,a} w),   w = q^focus

    with the teacher's width for the left and right side, its height for top and bottom. A pixel off matters to mAP as
    much as it is of the object, and so it does here: pixels would let large objects rule, and strides would too, for
    one level holds objects of many sizes. Unlike an overlap its gradient is no smaller for a box that is nearly right.

    Args:
        ctx: reads `boxes`, (B, A, 4) as x1 y1 x2 y2 in pixels, and `quality`, (B, A).
        focus: power of the quality in the weight.
    """
    student, teacher = ctx.student.boxes, ctx.teacher.boxes
    # Below a pixel there is no size to measure by, and the gradient stays bounded.
    size = (teacher[..., 2:] - teacher[..., :2]).clamp(min=1).repeat(1, 1, 2)  # (B, A, 4) as w h w h
    return _weighted_mean(((student - teacher).abs() / size).mean(-1), ctx, focus)


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


def _areas(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """What boxes (B, A, 4) share and what they cover together, (B, A) each, in square pixels."""
    overlap = torch.minimum(student[..., 2:], teacher[..., 2:]) - torch.maximum(student[..., :2], teacher[..., :2])
    shared = overlap.clamp(min=0).prod(-1)
    area = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (student, teacher)]
    return shared, area[0] + area[1] - shared


def _weighted_mean(value: Tensor, ctx: LossContext, focus: float) -> Tensor:
    weight = ctx.quality**focus
    return (weight * value).sum() / weight.sum().clamp(min=1)
