"""Losses on class scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distill.context import LossContext
from distill.errors import DistillError


def score_bce(ctx: LossContext, background: float = 0.1) -> Tensor:
    """Binary cross-entropy of the student's scores to the teacher's probabilities, weighted by the teacher's quality.

    With t = σ(teacher logits), q = max over classes of t, and w = background + (1 − background) · q,

        L = Σ_{b,a} w · Σ_c [BCE(student, t) − BCE(t, t)] / max(1, Σ_{b,a} q)

    The teacher's own entropy is taken off, which changes no gradient and makes 0 mean equal. The sum is divided by
    the number of anchors on objects, as ultralytics divides its own class loss, so the value does not depend on how
    many anchors see background.

    A head with objectness tells false alarms by that, and its class scores mean something where an object is: w = q then.

    Args:
        ctx: reads `scores`, logits (B, A, nc), and `quality`, (B, A).
        background: weight of an anchor where the teacher sees nothing, 0 to 1. With 0 the student is never told
            about its false alarms; with 1 all anchors weigh the same.
    """
    teacher = ctx.teacher.scores
    target = teacher.sigmoid()
    weight = ctx.quality if ctx.teacher.objectness is not None else background + (1 - background) * ctx.quality
    divergence = F.binary_cross_entropy_with_logits(ctx.student.scores, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return (weight[..., None] * (divergence - entropy)).sum() / ctx.quality.sum().clamp(min=1)


def objectness_bce(ctx: LossContext, background: float = 0.1) -> Tensor:
    """Binary cross-entropy of the student's objectness to the teacher's, for heads that have one.

    With t = σ(teacher's objectness) and w = background + (1 − background) · t,

        L = Σ_{b,a} w · [BCE(student, t) − BCE(t, t)] / max(1, Σ_{b,a} t)

    Args:
        ctx: reads `objectness`, logits (B, A).
        background: weight of an anchor where the teacher sees nothing, 0 to 1.

    Raises:
        DistillError: the head has no objectness.
    """
    if ctx.student.objectness is None or ctx.teacher.objectness is None:
        raise DistillError("loss 'objectness_bce': this head has no objectness; use 'score_bce' instead")
    teacher = ctx.teacher.objectness
    target = teacher.sigmoid()
    weight = background + (1 - background) * target
    divergence = F.binary_cross_entropy_with_logits(ctx.student.objectness, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return (weight * (divergence - entropy)).sum() / target.sum().clamp(min=1)
