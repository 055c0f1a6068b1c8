"""Losses on boxes, each an average over anchors weighted by how sure the teacher is.

The weight of an anchor is w = q^focus, with q the teacher's best class probability there (`anchor_quality`). Thousands
of background anchors with q near 0.01 would together outweigh the few on objects; the power silences them without a
threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.base import FromContext
from distill.losses.context import LossContext, probabilities

FOCUS = 2.0  # power of the quality in an anchor's weight


def box_iou(student: Tensor, teacher: Tensor, quality: Tensor, *, focus: float = FOCUS) -> Tensor:
    """One minus the overlap of the student's box with the teacher's at the same anchor.

        L = Σ_{b,a} w · (1 − IoU(student, teacher)) / max(1, Σ_{b,a} w),   w = quality^focus

    0 for equal boxes, at most 1. Boxes that do not touch have no gradient, so it suits a student near its teacher.

    Args:
        student: boxes as x1 y1 x2 y2, in pixels.
        teacher: the boxes to reach.
        quality: how sure the teacher is of each anchor, 0 to 1.
        focus: power of the quality in the weight.

    Shape: (B, A, 4), (B, A, 4), (B, A) -> scalar, for B images with A anchors.
    """
    shared, union = _areas(student, teacher)
    return weighted_mean(1 - shared / union.clamp(min=1e-6), quality, focus)


def box_giou(student: Tensor, teacher: Tensor, quality: Tensor, *, focus: float = FOCUS) -> Tensor:
    """One minus the overlap as in `box_iou`, plus the empty share of the smallest box around both.

        L = Σ_{b,a} w · (1 − IoU + (hull − union) / hull) / max(1, Σ_{b,a} w),   w = quality^focus

    0 for equal boxes, towards 2 for small ones far apart. Boxes that do not touch attract each other, so it suits a
    student whose boxes have gone astray, as after a deep cut without repair.

    Reference: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.

    Args, Shape: as for `box_iou`.
    """
    shared, union = _areas(student, teacher)
    sides = torch.maximum(student[..., 2:], teacher[..., 2:]) - torch.minimum(student[..., :2], teacher[..., :2])
    hull = sides.clamp(min=0).prod(-1)
    value = 1 - shared / union.clamp(min=1e-6) + (hull - union) / hull.clamp(min=1e-6)
    return weighted_mean(value, quality, focus)


def box_l1(student: Tensor, teacher: Tensor, quality: Tensor, *, focus: float = FOCUS) -> Tensor:
    """Distance of the student's box sides from the teacher's, in sizes of the teacher's box.

        L = Σ_{b,a} w · 1/4 Σ_sides |student − teacher| / size / max(1, Σ_{b,a} w),   w = quality^focus

    with the teacher's width for the left and right side, its height for top and bottom. An error of a pixel matters to
    mAP in proportion to the object's size, so pixels would let large objects rule, and so would strides, for one level
    holds objects of many sizes. Unlike an overlap, its gradient is no smaller for a box that is nearly right.

    Args, Shape: as for `box_iou`.
    """
    # Below a pixel there is no size to measure by, and the gradient stays bounded.
    size = (teacher[..., 2:] - teacher[..., :2]).clamp(min=1)
    size = torch.cat((size, size), -1)  # w h w h
    return weighted_mean(((student - teacher).abs() / size).mean(-1), quality, focus)


def dfl_kl(
    student: Tensor, teacher: Tensor, quality: Tensor, *, focus: float = FOCUS, temperature: float = 1.0
) -> Tensor:
    """Divergence of the student's distributions over box sides from the teacher's (localisation distillation).

        L = Σ_{b,a} w · T² · 1/4 Σ_sides KL(softmax(t / T) ‖ softmax(s / T)) / max(1, Σ_{b,a} w),   w = quality^focus

    Reference: Zheng et al., Localization Distillation for Dense Object Detection, CVPR 2022.

    Args:
        student: logits of the distances to the four sides.
        teacher: the logits to reach.
        quality: how sure the teacher is of each anchor, 0 to 1.
        focus: power of the quality in the weight.
        temperature: T; above 1 the shape of the tails counts more (the paper uses 10 between unlike networks).

    Shape: (B, A, 4, R), (B, A, 4, R), (B, A) -> scalar, for R bins to a side.
    """
    log_student, log_teacher = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1).mean(-1)  # (B, A)
    return weighted_mean(temperature**2 * divergence, quality, focus)


def box_bckd(student: Tensor, teacher: Tensor, difference: Tensor, quality: Tensor, *, gamma: float = 1.0) -> Tensor:
    """One minus the overlap of the boxes where the student's scores are off (localisation of BCKD).

        L = Σ_{b,a} d^gamma · (1 − IoU(student, teacher)) / max(1, Σ_{b,a} quality),   d = max_c |σ(teacher) − σ(student)|

    d, which has no gradient, is the largest difference of the class probabilities, each times objectness if the head has that.
    It replaces the teacher's quality as a weight: an anchor on which the student has lost or invented an object counts, and
    one whose scores agree does not, however good or bad its box. For an ablation, beside `score_bce` with weighting
    "difference" and gamma 1, which is the paper's loss on scores but for the gradient through its weight; the paper gives
    this one 4 times the weight of that.

    Reference: Yang et al., Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection, ICCV 2023.

    Args:
        student: boxes as x1 y1 x2 y2, in pixels.
        teacher: the boxes to reach.
        difference: d of each anchor, 0 to 1.
        quality: how sure the teacher is of each anchor, 0 to 1.
        gamma: power of the difference; 1 is the paper's.

    Shape: (B, A, 4), (B, A, 4), (B, A), (B, A) -> scalar.
    """
    shared, union = _areas(student, teacher)
    value = difference**gamma * (1 - shared / union.clamp(min=1e-6))
    return value.sum() / quality.sum().clamp(min=1)


def _areas(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The areas that boxes (B, A, 4) share and cover together, (B, A) each, in square pixels."""
    overlap = torch.minimum(student[..., 2:], teacher[..., 2:]) - torch.maximum(student[..., :2], teacher[..., :2])
    shared = overlap.clamp(min=0).prod(-1)
    area = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (student, teacher)]
    return shared, area[0] + area[1] - shared


def weighted_mean(value: Tensor, quality: Tensor, focus: float) -> Tensor:
    """Mean over anchors with weights quality^focus; their sum counts as 1 at least. Shape: (B, A), (B, A) -> scalar."""
    weight = quality**focus
    return (weight * value).sum() / weight.sum().clamp(min=1)


def where_sure(ctx: LossContext, options: Mapping[str, Any]) -> LossContext:
    """Those anchors alone that count in a weighted mean."""
    return ctx.focused(options.get("focus", FOCUS))


def _boxes(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    yield ctx.student.boxes, ctx.teacher.boxes, ctx.quality


def _boxes_and_difference(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    with torch.no_grad():
        student, teacher = (probabilities(each.scores, each.objectness) for each in (ctx.student, ctx.teacher))
        difference = (teacher - student).abs().amax(-1)
    yield ctx.student.boxes, ctx.teacher.boxes, difference, ctx.quality


def _distributions(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    if ctx.student.dist is None or ctx.teacher.dist is None:
        raise DistillError("loss 'dfl_kl': this head predicts no distributions over box sides; use 'box_iou' instead")
    yield ctx.student.dist, ctx.teacher.dist, ctx.quality


_READS = ("boxes", "quality")
LOSSES = {
    "box_iou": FromContext(box_iou, _boxes, _READS, narrow=where_sure, selects=True),
    "box_giou": FromContext(box_giou, _boxes, _READS, narrow=where_sure, selects=True),
    "box_l1": FromContext(box_l1, _boxes, _READS, narrow=where_sure, selects=True),
    "box_bckd": FromContext(box_bckd, _boxes_and_difference, ("scores", "objectness", *_READS)),
    "dfl_kl": FromContext(dfl_kl, _distributions, ("dist", "quality"), needs="dist", narrow=where_sure, selects=True),
}
