"""Losses on class scores that are independent sigmoids, as detectors have them, and on objectness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.base import FromContext
from distill.losses.context import LossContext


def score_bce(
    student: Tensor,
    teacher: Tensor,
    quality: Tensor,
    has_objectness: bool = False,
    *,
    background: float = 0.1,
    weighting: str = "quality",
    gamma: float = 2.0,
) -> Tensor:
    """Binary cross-entropy of the student's scores to the teacher's probabilities, weighted by the teacher's quality.

    With t = σ(teacher), q the quality, and w = background + (1 − background) · q,

        L = Σ_{b,a} w · Σ_c [BCE(student, t) − BCE(t, t)] / max(1, Σ_{b,a} q)

    The teacher's own entropy is taken off, which changes no gradient and makes 0 mean equal. The sum is divided by the
    number of anchors on objects, as ultralytics divides its own class loss, so the value does not depend on how many
    anchors see background. If the head has objectness, that reports false alarms and w = q: class scores only mean
    something on objects.

    Weighting "difference" weighs each class by how far the student is off, without a gradient: w_c = |t − σ(s)|^gamma,
    times q if the head has objectness. A false alarm then counts whatever the teacher's quality, and the many anchors
    that are right already count for nothing. Reference: Li et al., Generalized Focal Loss, NeurIPS 2020.

    Args:
        student: logits of each class.
        teacher: the logits to reach.
        quality: how sure the teacher is of each anchor, 0 to 1.
        has_objectness: whether the head predicts objectness beside the classes.
        background: weight of an anchor on which the teacher sees nothing, 0 to 1. With 0 the student never hears of
            its false alarms; with 1 all anchors weigh the same. Weighting "difference" does not use it.
        weighting: "quality" or "difference".
        gamma: power of the difference; 2 as in the paper, 0 is the plain cross-entropy.

    Shape: (B, A, nc), (B, A, nc), (B, A) -> scalar, for B images with A anchors.

    Raises:
        DistillError: another weighting.
    """
    if weighting not in ("quality", "difference"):
        raise DistillError(f"loss 'score_bce': weighting is 'quality' or 'difference', not {weighting!r}")
    target = teacher.sigmoid()
    by_quality = weighting == "quality"
    floor = 0.0 if has_objectness else background if by_quality else 1.0
    weight = (floor + (1 - floor) * quality)[..., None]
    if not by_quality:
        weight = weight * (target - student.detach().sigmoid()).abs() ** gamma
    return (weight * excess(student, teacher, target)).sum() / quality.sum().clamp(min=1)


def score_dist(
    student: Tensor, teacher: Tensor, quality: Tensor, *, focus: float = 2.0, inter: float = 1.0, intra: float = 1.0
) -> Tensor:
    """How badly the student's class probabilities correlate with the teacher's: within anchors, and within classes.

    With the probabilities s and t, σ of the logits, of every anchor of the batch, and w = quality^focus,

        L = inter · Σ_{b,a} w · (1 − r_{ba}) / max(1, Σ_{b,a} w) + intra · 1/nc Σ_c (1 − r_c)

    r_{ba} is Pearson's correlation of s and t over the classes of an anchor; r_c is their correlation over the anchors
    of the batch, weighted by w because an anchor on background ranks classes by chance. Each term is 0 for probabilities
    equal up to scale and shift, 1 for unrelated ones, 2 for opposite ones. The loss compares relations between scores,
    not their level, and does not ask for silence on background: use labels or `score_bce` beside it. With one class
    the first term is 0. If Σ w is below 1 the second term shrinks with it, as the first does.

    Reference: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022; there with a softmax.

    Args:
        student: logits of each class.
        teacher: the logits to compare with.
        quality: how sure the teacher is of each anchor, 0 to 1.
        focus: power of the quality in the weight.
        inter: weight of the relations between the classes of an anchor.
        intra: weight of the relations between the anchors in a class.

    Shape: (B, A, nc), (B, A, nc), (B, A) -> scalar, for B images with A anchors.
    """
    student, teacher = (logits.sigmoid().flatten(0, 1) for logits in (student, teacher))  # (B * A, nc)
    weight = (quality**focus).view(-1, 1)
    total = weight.sum()
    even, share = torch.full_like(student, 1 / student.shape[1]), weight / total.clamp(min=1e-6)
    # Half the mean squared difference of standardised values is 1 − r, and unlike that exactly 0 for equal ones.
    rows = (_standardise(student, even, 1) - _standardise(teacher, even, 1)).square().mean(1)
    columns = (_standardise(student, share, 0) - _standardise(teacher, share, 0)).square().mean(1)
    return (weight[:, 0] * (inter * rows + intra * columns)).sum() / (2 * total.clamp(min=1))


def objectness_bce(student: Tensor, teacher: Tensor, *, background: float = 0.1) -> Tensor:
    """Binary cross-entropy of the student's objectness to the teacher's, for heads that have one.

    With t = σ(teacher) and w = background + (1 − background) · t,

        L = Σ_{b,a} w · [BCE(student, t) − BCE(t, t)] / max(1, Σ_{b,a} t)

    Args:
        student: logits of an anchor holding an object.
        teacher: the logits to reach.
        background: weight of an anchor on which the teacher sees nothing, 0 to 1.

    Shape: (B, A), (B, A) -> scalar.
    """
    target = teacher.sigmoid()
    weight = background + (1 - background) * target
    return (weight * excess(student, teacher, target)).sum() / target.sum().clamp(min=1)


def excess(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the student's logits to the target, above that of the teacher's."""
    entropy = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return F.binary_cross_entropy_with_logits(student, target, reduction="none") - entropy


def _standardise(value: Tensor, share: Tensor, dim: int) -> Tensor:
    """Zero mean and unit variance along a dimension in which the entries have shares of 1."""
    mean = (share * value).sum(dim, keepdim=True)
    variance = (share * (value - mean).square()).sum(dim, keepdim=True)
    # The floor: probabilities that differ by less than 0.001 say nothing, and the gradient stays bounded.
    return (value - mean) * torch.rsqrt(variance + 1e-6)


def _scores(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    yield ctx.student.scores, ctx.teacher.scores, ctx.quality


def _scores_beside_objectness(ctx: LossContext) -> Iterator[tuple[Tensor | bool, ...]]:
    yield ctx.student.scores, ctx.teacher.scores, ctx.quality, ctx.teacher.objectness is not None


def _where_objects_are(ctx: LossContext, options: Mapping[str, Any]) -> LossContext:
    """Beside objectness, an anchor weighs as much as its quality."""
    return ctx if ctx.teacher.objectness is None else ctx.focused(1.0)


def _objectness(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    if ctx.student.objectness is None or ctx.teacher.objectness is None:
        raise DistillError("loss 'objectness_bce': this head has no objectness; use 'score_bce' instead")
    yield ctx.student.objectness, ctx.teacher.objectness


LOSSES = {
    "score_bce": FromContext(
        score_bce, _scores_beside_objectness, ("scores", "quality"), narrow=_where_objects_are, selects=True
    ),
    "score_dist": FromContext(score_dist, _scores, ("scores", "quality"), selects=True),
    "objectness_bce": FromContext(objectness_bce, _objectness, ("objectness",), needs="objectness"),
}
