"""The loss on the angles of oriented boxes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from distill.errors import DistillError
from distill.losses.base import FromContext
from distill.losses.box import FOCUS, weighted_mean, where_sure
from distill.losses.context import LossContext


def angle_sin(student: Tensor, teacher: Tensor, boxes: Tensor, quality: Tensor, *, focus: float = FOCUS) -> Tensor:
    """How far the student's box is turned from the teacher's, if it is longer than wide.

    With the angles θ and the width w and height h of the teacher's box,

        L = Σ_{b,a} q · ((w² − h²) / (w² + h²))² · sin²(θ_student − θ_teacher) / max(1, Σ_{b,a} q),   q = quality^focus

    That is the squared difference of the covariances of the Gaussians that stand for both boxes, by which ultralytics measures
    the overlap of oriented boxes, over twice the squared trace: a half turn changes nothing, nor does any turn of a square.
    The size and the place of the box are for the losses on boxes.

    Reference: Llerena et al., Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for Object Detection,
    [arXiv:2106.06072](https://arxiv.org/abs/2106.06072).

    Args:
        student: in radians.
        teacher: the angles to reach.
        boxes: the teacher's before they are turned, as x1 y1 x2 y2 in pixels.
        quality: how sure the teacher is of each anchor, 0 to 1.
        focus: power of the quality in the weight.

    Shape: (B, A), (B, A), (B, A, 4), (B, A) -> scalar.
    """
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6).square().unbind(-1)
    longer = ((width - height) / (width + height)).square()
    return weighted_mean(longer * (student - teacher).sin().square(), quality, focus)


def _angles(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    if ctx.student.angles is None or ctx.teacher.angles is None:
        raise DistillError("loss 'angle_sin': this head predicts no oriented boxes: take the loss out of the recipe")
    yield ctx.student.angles.float(), ctx.teacher.angles.float(), ctx.teacher.boxes, ctx.quality


LOSSES = {
    "angle_sin": FromContext(
        angle_sin, _angles, ("angles", "boxes", "quality"), needs="angles", narrow=where_sure, selects=True
    )
}
