"""What a loss must do to be trained on: found by running it once forward and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses import LossModule, WeightedLoss
from distill.losses.spec import Ramp
from distill.training.task import DistillationTask
from distill.training.teacher import Teacher
from distill.training.trial import try_out
from tests.distill.test_task import Net, run

BATCH = {"img": torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), "cls": torch.zeros(2, 1)}


def tried(*calls: Any, batch: dict[str, Any] = BATCH, **options: Any) -> DistillationTask:
    torch.manual_seed(0)
    student, teacher = Net(4), Net(4)
    losses = [WeightedLoss(f"loss{number}", 1.0, call, **options) for number, call in enumerate(calls)]
    labelled = lambda student, outputs, batch: {"labels": outputs.class_logits.mean()}  # noqa: E731
    task = DistillationTask(student, [Teacher(teacher, losses, run)], run=run, labelled=labelled)
    try_out(task, batch)
    return task


def difference(ctx: Any) -> Tensor:
    return (ctx.student.scores - ctx.teacher.scores).abs().mean()


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient + {}["none"]


class Idle(LossModule):
    def setup(self, networks: Any) -> None:
        self.layer = nn.Linear(2, 2)

    def forward(self, ctx: Any) -> Tensor:
        return self.layer(ctx.student.scores).detach().mean() * difference(ctx)


class Busy(Idle):
    def forward(self, ctx: Any) -> Tensor:
        return self.layer(ctx.student.scores).square().mean()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda ctx: difference(ctx).detach(),
            "loss 'loss1' has no gradient to the student: it detaches it, or does not",
        ),
        (lambda ctx: ctx.teacher.scores.mean(), "loss 'loss1' has no gradient to the student"),
        (lambda ctx: difference(ctx) / 0, "loss 'loss1' is inf"),
        (
            lambda ctx: (0 * ctx.student.scores).sqrt().mean(),
            "loss 'loss1' gives the student a gradient that is not finite",
        ),
        (lambda ctx: ctx.student.scores @ ctx.teacher.scores, "loss 'loss1' failed at test_trial.py:"),
        (lambda ctx: Backward.apply(difference(ctx)), "loss 'loss1' failed at test_trial.py:"),
        (Idle(), "loss 'loss1' has layers of its own, and none of them gets a gradient"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_named(call: Any, says: str) -> None:
    with pytest.raises(DistillError) as caught:
        tried(difference, call)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


def test_a_loss_passes_that_has_nothing_to_say_now_or_whose_time_is_to_come_or_over() -> None:
    tried(lambda ctx: torch.zeros(()))
    with pytest.raises(DistillError, match="has no gradient"):
        tried(lambda ctx: difference(ctx).detach(), ramp=Ramp(until=0.0))


def test_images_without_labels_are_tried_beside_those_with() -> None:
    def of_labels(ctx: Any) -> Tensor:
        return difference(ctx) * (1 + len(ctx.targets["cls"]))

    tried(of_labels)
    with pytest.raises(DistillError, match=r"^loss 'loss0' failed at test_trial\.py:\d+: TypeError: 'NoneType'"):
        tried(of_labels, batch={**BATCH, "labelled": 1})


def test_nothing_is_left_of_it() -> None:
    torch.manual_seed(0)
    untouched = list(Net(4).parameters())
    task = tried(difference, Busy())
    assert all(each.grad is None for each in task.parameters())
    assert all(map(torch.equal, untouched, task.student.parameters()))
    task.losses = [replace(task.losses[0], call=lambda ctx: 0 * ctx.student.scores.sum())]
    with pytest.raises(DistillError, match="is zero in each of the first 3 batches"):  # training watches as ever
        for _ in range(3):
            task(BATCH)
