"""The student's features through the teacher's head: CrossKD, as a loss."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.losses.base import LossModule, Networks
from distill.losses.box import box_giou, dfl_kl
from distill.losses.context import NECK, LossContext, Outputs, anchor_quality
from distill.losses.logit import objectness_bce, score_bce
from distill.yolo.families.table import family_of


class CrossKD(LossModule):
    """What the teacher's frozen head makes of the student's features, against what it makes of its own.

    In a feature of the teacher that enters its head, the student's channels take the place of those that they were cut from;
    of a teacher that the student was not cut from, the projected feature takes the place of all. With the head's outputs s for
    that and t for the teacher's own feature,

        L = score_bce(s, t; weighting "difference", gamma 1) + box · (dfl_kl(s, t), or box_giou(s, t) without distributions)

    and objectness_bce(s, t) if the head has that. The student's own head is not in it, so labels and teacher do not pull
    the same outputs in two directions. Unlike a loss on features it asks for what the head reads of them, and unlike one on
    outputs it is 0 once the kept channels are the teacher's, whatever was cut. Of a head with two branches it is their mean.

    The paper hands over a feature from inside the head, whose width is the same for both networks there. Here both have the
    neck's output in common, which is the paper's variant i = 0.

    Args:
        box: weight of the boxes beside the scores.

    Reference: Wang et al., CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024.
    """

    reads = (NECK,)
    head: Any

    def __init__(self, box: float = 1.0) -> None:
        super().__init__()
        self.box, self.head = box, None

    def setup(self, networks: Networks) -> None:
        """Copy the teacher's head, which stays as it is."""
        self.head = copy.deepcopy(cast(Any, networks.teacher).model[-1]).requires_grad_(False)
        self._family = family_of(networks.teacher)
        self.train(self.training)

    def train(self, mode: bool = True) -> CrossKD:
        """Nothing in the head changes; it only says that it gives its raw outputs."""
        super().train(mode)
        if self.head is not None:
            self.head.eval()
            self.head.training = True
        return self

    def forward(self, ctx: LossContext) -> Tensor:
        """The loss of a batch; reads the features that enter the heads, (B, C, H, W) each."""
        own = ctx.teacher.features
        with torch.no_grad():
            teacher = self._through(own)
        student = self._through([self._in_place(ctx, level, feature) for level, feature in enumerate(own)])
        values = [self._compare(*pair) for pair in zip(student.branches, teacher.branches, strict=True)]
        return torch.stack(values).mean()

    def _compare(self, student: Outputs, teacher: Outputs) -> Tensor:
        quality, there = anchor_quality(teacher.scores, teacher.objectness), teacher.objectness
        weighting: dict[str, Any] = {"weighting": "difference", "gamma": 1.0}
        value = score_bce(student.scores, teacher.scores, quality, there is not None, **weighting)
        if there is not None and student.objectness is not None:
            value = value + objectness_bce(student.objectness, there)
        if student.dist is not None and teacher.dist is not None:
            return value + self.box * dfl_kl(student.dist, teacher.dist, quality)
        return value + self.box * box_giou(student.boxes, teacher.boxes, quality)

    def _through(self, features: Any) -> Outputs:
        return self._family.outputs(self.head, self._family.through(self.head, features))

    @staticmethod
    def _in_place(ctx: LossContext, level: int, teacher: Tensor) -> Tensor:
        """The teacher's feature with the student's channels in it."""
        student, _ = ctx.features(NECK)[level]
        meet = ctx.channels.get(NECK)
        keep = meet[level].keep if meet else None
        return student if keep is None else teacher.index_copy(1, keep, student)


LOSSES: dict[str, type[nn.Module]] = {"crosskd": CrossKD}
