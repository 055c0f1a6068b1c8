"""The module that a training loop drives: a network and its losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.training.schedule import Schedule
from distill.training.task import DistillationTask

Penalty = Callable[[nn.Module, float], Tensor]
# (network, batch) -> its own loss on labels, by name, means per image
OwnLoss = Callable[[nn.Module, Mapping[str, Any]], Mapping[str, Tensor]]


class Learning(nn.Module):
    """A student and its losses; `learner(batch)` gives the loss summed over the batch, and its terms, means per image.

    Args:
        model: the network to train, copied; with a task, its student.
        task: trains it towards its teacher, copied except for the teacher; None trains on the labels alone.
        penalty: (network, progress 0 to 1) -> scalar, added to the loss.
        schedule: how BatchNorm trains. With `freeze_bn` it uses its running statistics and does not update them.
        own: the loss on labels, without a task.
    """

    student_model: Any

    def __init__(
        self,
        model: nn.Module,
        task: DistillationTask | None,
        penalty: Penalty | None,
        schedule: Schedule,
        own: OwnLoss,
    ) -> None:
        super().__init__()
        task = copy.deepcopy(task)
        student = copy.deepcopy(model) if task is None else task.student
        self.student_model = student
        self.task = task
        self.penalty, self.own, self.freeze_bn = penalty, own, schedule.freeze_bn
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
            batch: `img` (B, 3, H, W) and, unless it is unlabelled, the loader's keys for labels.
        """
        if self.task is not None:
            terms = self.task(batch, self.progress)
            loss = terms.pop("loss")
        else:
            terms = dict(self.own(self.student_model, batch))
            loss = torch.stack(list(terms.values())).sum()
        if self.penalty is not None:
            terms["penalty"] = self.penalty(self.student_model, self.progress)
            loss = loss + terms["penalty"]
        return loss * len(batch["img"]), {name: term.detach() for name, term in terms.items()}

    def train(self, mode: bool = True) -> Learning:
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
        """Freeze the weights again that a loss has frozen of its own, if the loop has made all of them trainable."""
        for weight in self.frozen:
            weight.requires_grad_(False)
