"""The module that ultralytics' trainer drives: a network, and what it is taught by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import ModelEMA, unwrap_model

from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.families.outputs import label_terms, run

Penalty = Callable[[nn.Module, float], Tensor]


class Learner(nn.Module):
    """`learner(batch)` gives what the trainer expects: the loss summed over the batch, and its terms by name.

    The terms are means per image; their sum is multiplied by the batch size because that trainer's learning rates and
    gradient clipping are made for sums.

    Args:
        student: the network. ultralytics looks inside a wrapper for `student_model`.
        task: trains it towards its teacher; None: the labels alone teach.
        penalty: (network, progress 0 to 1) -> scalar that joins the terms.
        freeze_bn: BatchNorm normalises by its running statistics, in training too, and leaves them as they are.
    """

    def __init__(
        self,
        student: DetectionModel,
        task: DistillationTask | None,
        penalty: Penalty | None,
        freeze_bn: bool = False,
    ) -> None:
        super().__init__()
        self.freeze_bn = freeze_bn
        self.student_model = student
        self.task = task
        self.penalty = penalty
        self.progress = 0.0
        self.frozen = [weight for weight in self.learned.parameters() if not weight.requires_grad]

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
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
        """What a loss has frozen of its own weights is not trained: the trainer makes everything trainable."""
        for weight in self.frozen:
            weight.requires_grad_(False)

    # What the trainer asks of its model beside a loss.

    @property
    def stride(self) -> Tensor:
        return self.student_model.stride

    @property
    def criterion(self) -> Any:
        return getattr(self.student_model, "criterion", None)

    def set_head_attr(self, **attributes: Any) -> None:
        self.student_model.set_head_attr(**attributes)


class StudentEMA(ModelEMA):
    """Averages the student alone: a plain detector, and no teacher or loss beside it.

    Args:
        model: a Learner, possibly wrapped for several devices.
        tau: steps over which the average's memory grows.
    """

    def __init__(self, model: nn.Module, tau: float) -> None:
        super().__init__(_student(model), tau=tau)

    def update(self, model: nn.Module) -> None:
        super().update(_student(model))

    def update_attr(self, model: nn.Module, include: Any = (), exclude: Any = ()) -> None:
        super().update_attr(_student(model), include, exclude)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the averaged weights, on the CPU."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.ema.state_dict().items()}


def make_learner(
    model: nn.Module, task: DistillationTask | None, penalty: Penalty | None, schedule: Schedule
) -> Learner:
    """A learner on copies of the network and the task; the teacher is shared.

    Args:
        model: the network to train; with a task, its student.
        task, penalty: as for `Learner`.
        schedule: says how BatchNorm trains.
    """
    task = copy.deepcopy(task)
    student = copy.deepcopy(model) if task is None else task.student
    learner = Learner(cast(DetectionModel, student), task, penalty, schedule.freeze_bn)
    # Convolutions take a fifth to a third less time in this format; `python -m tests.bench.step` measures it.
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in learner.student_model.modules():
        if schedule.bn_momentum is not None and isinstance(module, nn.BatchNorm2d):
            module.momentum = schedule.bn_momentum
    return learner


def _student(model: nn.Module) -> nn.Module:
    return cast(Learner, unwrap_model(model)).student_model
