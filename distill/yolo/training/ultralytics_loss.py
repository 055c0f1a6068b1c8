"""ultralytics' own distillation as a loss among ours, to compare with."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.errors import DistillError, first_line
from distill.losses.base import LossModule, Networks
from distill.losses.context import LossContext
from distill.training.task import PROBE
from distill.yolo.upstream import DistillationModel, get_cfg


class Ultralytics(LossModule):
    """Squared error of the teacher's features where it sees something, by ultralytics' own distillation.

    What `yolo train distill_model=teacher.pt` adds to the loss on labels: the student's feature s goes through two 1x1
    convolutions that train beside it and end with all of the teacher's channels. Per level, with the teacher's
    best class probability q at each of the positions,

        L = dis · sum q (conv(relu(conv(s))) − t)² / (C sum q)

    and the sum over levels; `dis` is ultralytics' default. Convolutions, factor and error are those of its
    `DistillationModel`, not a copy; only the source of features and q is ours, and arithmetic is in float32. It is not 0
    for a student that equals its teacher. In a recipe: `ultralytics: 1.0`, with labels: 1.
    """

    reads = ("neck", "quality")

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.ModuleList()
        self.dis = 0.0

    def supports(self, teacher: nn.Module) -> str | None:
        """Only a Detect layer gives ultralytics the features and scores that it distills."""
        try:
            DistillationModel.get_distill_layers(cast(Any, teacher))
        except ValueError as error:
            return (
                "ultralytics' own distillation cannot train an anchor head: it takes features and scores from a Detect "
                f"layer ({first_line(error)}); use losses of `distill ls losses`"
            )
        return None

    def setup(self, networks: Networks) -> None:
        """Have ultralytics make the convolutions, from what either network returns."""
        if reason := self.supports(networks.student):
            raise DistillError(f"loss 'ultralytics': {reason}")
        # Copies, because it freezes the teacher and leaves hooks in both.
        pair: Any = [copy.deepcopy(network) for network in (networks.teacher, networks.student)]
        pair[1].args = get_cfg(overrides={"imgsz": PROBE})
        with torch.random.fork_rng(devices=[]):  # they start the same in every run, a resumed one too
            torch.manual_seed(0)
            distiller: Any = DistillationModel(*pair)
        self.projector, self.dis = distiller.projector, float(distiller.dis)

    def forward(self, ctx: LossContext) -> Tensor:
        """The loss of a batch; reads the features (B, C, H, W) of both networks, all of the teacher's channels."""
        students, teachers = ctx.student.features, ctx.teacher.features
        if len(self.projector) != len(students):
            raise DistillError(f"loss 'ultralytics' is set up for {len(self.projector)} levels, not {len(students)}")
        quality = ctx.quality[:, None].split([feature.shape[-2:].numel() for feature in teachers], -1)  # (B, 1, H * W)
        error: Any = DistillationModel.loss_sl2
        levels = [
            error(self, project(student), teacher, level, quality)
            for level, (project, student, teacher) in enumerate(zip(self.projector, students, teachers, strict=True))
        ]
        return self.dis * torch.stack(levels).sum()


LOSSES = {"ultralytics": Ultralytics}
