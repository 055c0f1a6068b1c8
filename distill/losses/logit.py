"""Losses on class scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distill.context import LossContext


def score_bce(ctx: LossContext, background: float = 0.1) -> Tensor:
    """Binary cross-entropy of the student's scores to the teacher's probabilities, weighted by the teacher's quality.

    With t = σ(teacher logits), q = max over classes of t, and w = background + (1 − background) · q,

        L = Σ_{b,a} w · Σ_c [BCE(student, t) − BCE(t, t)] / max(1, Σ_{b,a} q)

    The teacher's own entropy is taken off, which changes no gradient and makes 0 mean equal. The sum is divided by
    the number of anchors on objects, as ultralytics divides its own class loss, so the value does not depend on how
    many anchors see background.

    Args:
        ctx: reads `scores`, logits (B, A, nc), and `quality`, (B, A).
        background: weight of an anchor where the teacher sees nothing, 0 to 1. With 0 the student is never told
            about its false alarms; with 1 all anchors weigh the same.
    """
    teacher = ctx.teacher.scores
    target = teacher.sigmoid()
    weight = background + (1 - background) * ctx.quality
    divergence = F.binary_cross_entropy_with_logits(ctx.student.scores, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return (weight[..., None] * (divergence - entropy)).sum() / ctx.quality.sum().clamp(min=1)
