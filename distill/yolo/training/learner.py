"""The module that ultralytics' training loop drives: a network and its losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.families.outputs import label_terms, run
from distill.yolo.upstream import DetectionModel, TrainedModule

Penalty = Callable[[nn.Module, float], Tensor]


class Learner(TrainedModule):
    """A student and its losses; `learner(batch)` gives the loss summed over the batch, and its terms, means per image.

    Args:
        model: the network to train, copied; with a task, its student.
        task: trains it towards its teacher, copied except for the teacher; None trains on the labels alone.
        penalty: (network, progress 0 to 1) -> scalar, added to the loss.
        schedule: how BatchNorm trains. With `freeze_bn` it uses its running statistics and does not update them.
    """

    def __init__(
        self, model: nn.Module, task: DistillationTask | None, penalty: Penalty | None, schedule: Schedule
    ) -> None:
        super().__init__()
        task = copy.deepcopy(task)
        student = copy.deepcopy(model) if task is None else task.student
        self.student_model = cast(DetectionModel, student)
        self.task = task
        self.penalty, self.freeze_bn = penalty, schedule.freeze_bn
        self.progress = 0.0  # share of the training that is over, set before each batch
        self.frozen = [weight for weight in self.learned.parameters() if not weight.requires_grad]
        # Convolutions take a fifth to a third less time in this format; `python -m tests.bench.step` measures it.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in student.modules():
            if schedule.bn_momentum is not None and isinstance(module, nn.BatchNorm2d):
                module.momentum = schedule.bn_momentum

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss summed over the batch, and its detached terms by name.

        Args:
            batch: `img` (B, 3, H, W) in [0, 1] and, unless it is unlabelled, the loader's keys for labels.
        """
        if self.task is not None:
            terms = self.task(batch, self.progress)
            loss = terms.pop("loss")
        else:
            terms = label_terms(self.student_model, run(self.student_model, batch["img"]), batch)
            loss = torch.stack(list(terms.values())).sum()
        if self.penalty is not None:
            terms["penalty"] = self.penalty(self.student_model, self.progress)
            loss = loss + terms["penalty"]
        return loss * len(batch["img"]), {name: term.detach() for name, term in terms.items()}

    def train(self, mode: bool = True) -> Learner:
        """Switch to training, except for frozen BatchNorm layers."""
        super().train(mode)
        if self.freeze_bn:
            for module in self.student_model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    @property
    def learned(self) -> nn.ModuleList:
        """Losses with parameters, which train beside the student."""
        return self.task.learned if self.task is not None else nn.ModuleList()

    def refreeze(self) -> None:
        """Freeze the weights again that a loss has frozen of its own; ultralytics makes all of them trainable."""
        for weight in self.frozen:
            weight.requires_grad_(False)
