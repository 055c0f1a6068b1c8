"""The loss on keypoints."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from distill.errors import DistillError
from distill.losses.base import FromContext
from distill.losses.box import FOCUS, weighted_mean, where_sure
from distill.losses.context import LossContext
from distill.losses.logit import excess

AREA = 0.53  # of an object in its box, as ultralytics' validator estimates it for OKS


def keypoint_oks(
    student: Tensor, teacher: Tensor, spreads: Tensor, boxes: Tensor, quality: Tensor, *, focus: float = FOCUS
) -> Tensor:
    """One minus the similarity of the student's keypoints to the teacher's (OKS), and their visibility.

    With the distance d of a keypoint, the object's area s² = 0.53 of that of its box, σ the keypoint's spread, v the teacher's
    probability that it is seen, 1 if it does not say, and [excess] the cross-entropy of the student's v above the teacher's own,

        L = Σ_{b,a} w · (Σ_k v (1 − exp(−d² / (2 s² (2σ)²))) / Σ_k v + 1/K Σ_k [excess]) / max(1, Σ_{b,a} w),   w = quality^focus

    The first part is what pose mAP is made of: an error counts by the object's size, and a point that people place exactly,
    such as an eye, counts more than a hip. 0 for equal keypoints.

    Reference: the keypoint evaluation of COCO, Lin et al., ECCV 2014; as a loss, Maji et al., YOLO-Pose, CVPR Workshops 2022.

    Args:
        student: x and y in pixels, then a logit of being seen if the head has that.
        teacher: the keypoints to reach.
        spreads: σ of each keypoint, in object sizes.
        boxes: the teacher's, as x1 y1 x2 y2 in pixels.
        quality: how sure the teacher is of each anchor, 0 to 1.
        focus: power of the quality in the weight.

    Shape: (B, A, K, 3), (B, A, K, 3), (K,), (B, A, 4), (B, A) -> scalar, for K keypoints of an object; 2 in place of 3 without
    visibility.
    """
    area = AREA * (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).prod(-1)  # (B, A) in square pixels
    squares = (student[..., :2] - teacher[..., :2]).square().sum(-1)  # (B, A, K)
    apart = 1 - (-squares / (2 * area[..., None] * (2 * spreads).square()).clamp(min=1e-6)).exp()
    if teacher.shape[-1] == 2:
        return weighted_mean(apart.mean(-1), quality, focus)
    seen = teacher[..., 2].sigmoid()
    place = (seen * apart).sum(-1) / seen.sum(-1).clamp(min=1e-6)
    return weighted_mean(place + excess(student[..., 2], teacher[..., 2], seen).mean(-1), quality, focus)


def _keypoints(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    ours, theirs, spreads = ctx.student.keypoints, ctx.teacher.keypoints, ctx.teacher.spreads
    if ours is None or theirs is None or spreads is None:
        raise DistillError("loss 'keypoint_oks': this head predicts no keypoints: take the loss out of the recipe")
    yield ours.float(), theirs.float(), spreads, ctx.teacher.boxes, ctx.quality


LOSSES = {
    "keypoint_oks": FromContext(
        keypoint_oks, _keypoints, ("keypoints", "boxes", "quality"), needs="keypoints", narrow=where_sure, selects=True
    )
}
