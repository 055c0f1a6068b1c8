"""The module that ultralytics' training loop drives: a network and its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from distill.training.learning import Learning, Penalty
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.families.outputs import label_terms, run
from distill.yolo.upstream import TrainedModule


class Learner(Learning, TrainedModule):
    """See `Learning`; what it is called with is the batch of ultralytics' loader, images in [0, 1]."""

    def __init__(
        self, model: nn.Module, task: DistillationTask | None, penalty: Penalty | None, schedule: Schedule
    ) -> None:
        super().__init__(model, task, penalty, schedule, _own)


def _own(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return label_terms(model, run(model, batch["img"]), batch)
