"""Losses on class scores that are independent sigmoids, as detectors have them, and on objectness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.context import LossContext


def score_bce(ctx: LossContext, background: float = 0.1, weighting: str = "quality", gamma: float = 2.0) -> Tensor:
    """Binary cross-entropy of the student's scores to the teacher's probabilities, weighted by the teacher's quality.

    With t = σ(teacher logits), q = max over classes of t, and w = background + (1 − background) · q,

        L = Σ_{b,a} w · Σ_c [BCE(student, t) − BCE(t, t)] / max(1, Σ_{b,a} q)

    The teacher's own entropy is taken off, which changes no gradient and makes 0 mean equal. The sum is divided by
    the number of anchors on objects, as ultralytics divides its own class loss, so the value does not depend on how
    many anchors see background.

    A head with objectness tells false alarms by that, and its class scores mean something where an object is: w = q then.

    With weighting "difference" the weight is how far the student is off, class by class and without a gradient of its
    own: w_c = |t − σ(student)|^gamma in place of w, and q · |t − σ(student)|^gamma where there is objectness. A false
    alarm then counts whatever the teacher's quality, and the many anchors that are right already count for nothing.

    Args:
        ctx: reads `scores`, logits (B, A, nc), and `quality`, (B, A).
        background: weight of an anchor where the teacher sees nothing, 0 to 1. With 0 the student is never told
            about its false alarms; with 1 all anchors weigh the same. Has no part in weighting "difference".
        weighting: "quality" or "difference".
        gamma: power of the difference; 2 as in the paper, and 0 is the plain cross-entropy.

    Raises:
        DistillError: another weighting.

    Reference, for the difference: Li et al., Generalized Focal Loss, NeurIPS 2020.
    """
    if weighting not in ("quality", "difference"):
        raise DistillError(f"loss 'score_bce': weighting is 'quality' or 'difference', not {weighting!r}")
    student, teacher = ctx.student.scores, ctx.teacher.scores
    target = teacher.sigmoid()
    by_quality = weighting == "quality"
    floor = 0.0 if ctx.teacher.objectness is not None else background if by_quality else 1.0
    weight = (floor + (1 - floor) * ctx.quality)[..., None]
    if not by_quality:
        weight = weight * (target - student.detach().sigmoid()).abs() ** gamma
    divergence = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return (weight * (divergence - entropy)).sum() / ctx.quality.sum().clamp(min=1)


def score_dist(ctx: LossContext, focus: float = 2.0, inter: float = 1.0, intra: float = 1.0) -> Tensor:
    """How badly the student's class probabilities correlate with the teacher's: within anchors, and within classes.

    With the probabilities s and t, σ of the logits, of every anchor of the batch,

        L = inter · Σ_{b,a} w · (1 − r_{ba}) / max(1, Σ_{b,a} w) + intra · 1/nc Σ_c (1 − r_c),   w = q^focus

    r_{ba} is Pearson's correlation of s and t over the classes of an anchor, r_c over the anchors of the batch and
    weighted by w, for an anchor on background ranks classes by chance. Each term is 0 for probabilities equal up to
    scale and shift, 1 for unrelated ones, 2 for opposite ones. It asks for relations between scores and not for how
    high they are, nor for silence where nothing is, so it wants labels or `score_bce` beside it. With one class there
    is nothing to rank within an anchor, and the first term is 0. Where Σ w is below 1 the second shrinks with it, as
    the first does.

    Args:
        ctx: reads `scores`, logits (B, A, nc), and `quality`, (B, A).
        focus: power of the quality in the weight.
        inter: weight of the relations between the classes of an anchor.
        intra: weight of the relations between the anchors in a class.

    Reference: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022; there with a softmax.
    """
    student, teacher = (outputs.scores.sigmoid().flatten(0, 1) for outputs in (ctx.student, ctx.teacher))  # (B * A, nc)
    weight = (ctx.quality**focus).view(-1, 1)
    total = weight.sum()
    even, share = torch.full_like(student, 1 / student.shape[1]), weight / total.clamp(min=1e-6)
    # Half the mean squared difference of standardised values is 1 − r, and unlike that exactly 0 for equal ones.
    rows = (_standardise(student, even, 1) - _standardise(teacher, even, 1)).square().mean(1)
    columns = (_standardise(student, share, 0) - _standardise(teacher, share, 0)).square().mean(1)
    return (weight[:, 0] * (inter * rows + intra * columns)).sum() / (2 * total.clamp(min=1))


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


def _standardise(value: Tensor, share: Tensor, dim: int) -> Tensor:
    """Zero mean and unit variance along a dimension, where each entry has its share of 1."""
    mean = (share * value).sum(dim, keepdim=True)
    variance = (share * (value - mean).square()).sum(dim, keepdim=True)
    # The floor: probabilities that differ by less than 0.001 say nothing, and the gradient stays bounded.
    return (value - mean) * torch.rsqrt(variance + 1e-6)
