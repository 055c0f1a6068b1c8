"""Features judged by what the teacher's head makes of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from distill.context import LossContext
from distill.errors import DistillError
from distill.losses.box import box_iou, dfl_kl
from distill.losses.logit import objectness_bce, score_bce
from distill.yolo.heads import head_of


class FeatureHead(nn.Module):
    """The student's features, in the place of the channels that they were cut from, run through the teacher's head.

    What comes out is compared with the teacher's own outputs, by the sum of `score_bce` and `box_iou`, and of `dfl_kl`
    and `objectness_bce` where the head has what they read. A difference in features counts as much as the head feels
    of it. Channels that were cut are the teacher's own. 0 for features that equal the teacher's.

    After Wang et al., CrossKD, CVPR 2024 (arXiv:2306.11369), which sends features from inside the student's head through
    the rest of the teacher's.

    Raises:
        DistillError: it is called before it has met the networks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._head: list[nn.Module] = []  # in a list: as a submodule it would be trained
        self._losses: list[Any] = [score_bce, box_iou]

    def meet(self, student: nn.Module, teacher: nn.Module) -> None:
        """Take a frozen copy of the teacher's head."""
        kind = head_of(teacher)
        self._outputs = kind.outputs
        self._head = [copy.deepcopy(cast(Any, teacher).model[-1]).requires_grad_(False).eval()]
        self._head[0].training = True  # raw outputs; its BatchNorm, where it has one, stays in eval mode
        needs = {"dist": dfl_kl, "objectness": objectness_bce}
        self._losses = [score_bce, box_iou, *(loss for what, loss in needs.items() if what in kind.gives)]

    def forward(self, ctx: LossContext) -> Tensor:
        """The loss of a batch; reads the features (B, C, H, W) of both networks and the teacher's outputs."""
        if not self._head:
            raise DistillError("loss 'feature_head' is for detectors: it has met no head")
        features = []
        for level, (ours, theirs) in enumerate(zip(ctx.student.features, ctx.teacher.features, strict=True)):
            features.append(ours if ctx.keep is None else theirs.index_copy(1, ctx.keep[level], ours))
        head = self._head[0].to(features[0].device)
        seen = replace(ctx, student=self._outputs(head, head(features)), keep=None)
        return sum(loss(seen) for loss in self._losses)  # type: ignore[return-value]
