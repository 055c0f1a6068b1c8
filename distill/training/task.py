"""A student, its frozen teacher and the losses between them, as one module that turns a batch into scalars."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.base import LossModule, Networks, WeightedLoss
from distill.losses.context import LossContext, Outputs
from distill.machine import plugins

Runner = Callable[[nn.Module, Tensor], Outputs]
LabelLoss = Callable[[nn.Module, Outputs, Mapping[str, Any]], Mapping[str, Tensor]]

CHECKED_BATCHES = 3
PROBE = 64  # side in pixels of an image that every detector takes, one of stride 64 too


class DistillationTask(nn.Module):
    """`task(batch)` runs both networks and gives every weighted loss by name, and their sum as `loss`.

    The teacher is no submodule: `parameters()`, `state_dict()` and `train()` do not see it, so it joins no optimizer,
    no checkpoint and no BatchNorm update. It still moves with `.to(device)`, and copies of the task share it. Losses
    that are Modules are submodules: their parameters train, and stay behind when the student is taken out.

    The first three batches check each loss: one that is not a finite scalar, stays zero, or has no gradient to the
    student ends the run with its name, instead of being a silent column of the report. The check looks at the value
    without its weight, so it covers a loss that is warming up. A loss that has ended is not called.

    Args:
        student: the network to train.
        teacher: the original, best with BatchNorm folded in; copied and frozen.
        losses: what pulls the student to the teacher.
        run: runs either network on images and gives its raw outputs.
        keep: per pyramid level the teacher's channels that the student still has; None if it has them all.
        labelled: the student's own loss on labels, by name, given (student, its outputs, batch).
        labels: weight of `labelled`; 0, or a batch without `cls`, trains from the teacher alone.

    Raises:
        DistillError: nothing to train on, or a loss that fails.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        losses: Sequence[WeightedLoss],
        *,
        run: Runner,
        keep: Sequence[Sequence[int]] | None = None,
        labelled: LabelLoss | None = None,
        labels: float = 1.0,
    ) -> None:
        super().__init__()
        if not (labelled and labels):
            _refuse_idle(losses, "distill.labels is 0")
        self.student = student
        self.losses = list(losses)
        self.learned = nn.ModuleList(loss.call for loss in losses if isinstance(loss.call, nn.Module))
        self.run, self.labelled, self.labels = run, labelled, labels
        # In a list, because a Module assigned to an attribute would become a submodule.
        self._teacher = [copy.deepcopy(teacher).eval().requires_grad_(False)]
        for level, channels in enumerate(keep or ()):
            self.register_buffer(f"keep{level}", torch.as_tensor(channels, dtype=torch.long), persistent=False)
        self._set_up()
        self._checked = 0
        self._silent = {loss.name for loss in losses}

    def __repr__(self) -> str:
        losses = ", ".join(loss.name for loss in self.losses)
        return f"DistillationTask({type(self.student).__name__} by {losses or 'its labels alone'})"

    @property
    def teacher(self) -> nn.Module:
        """The frozen original, in eval mode."""
        return self._teacher[0]

    @property
    def keep(self) -> tuple[Tensor, ...] | None:
        """Per level the teacher's channels that the student still has, or None if it has them all."""
        return tuple(buffer for _, buffer in self.named_buffers(recurse=False, remove_duplicate=False)) or None

    def scale(self, factors: Mapping[str, float]) -> None:
        """Multiply the weights of losses, by name; the others stay as they are."""
        self.losses = [replace(loss, weight=loss.weight * factors.get(loss.name, 1.0)) for loss in self.losses]

    def try_out(self, batch: Mapping[str, Any]) -> None:
        """Call each loss once. One that fails or gives no scalar raises; the values are not checked."""
        self._checked = CHECKED_BATCHES
        self(batch)

    def forward(self, batch: Mapping[str, Any], progress: float = 0.0) -> dict[str, Tensor]:
        """Every term times its weight, by name, and their sum as `loss`: a mean per image, whatever the batch size.

        A loss that has ended is still there, as 0: the terms are the same from the first batch to the last.

        Args:
            batch: `img`, (B, 3, H, W) in [0, 1], and the loader's keys for labels if there are any.
            progress: share of the training that is done, 0 to 1.
        """
        images = batch["img"]
        active = [loss for loss in self.losses if not loss.ramp.over(progress)]
        student = self.run(self.student, images)
        with torch.no_grad():  # not inference_mode: what a loss makes of its tensors must allow a backward pass
            teacher = self.run(self.teacher, images) if active else student  # unused: no loss is active
        targets = {key: value for key, value in batch.items() if key != "img"} if "cls" in batch else None
        terms: dict[str, Tensor] = {}
        if self.labelled and self.labels and targets is not None:
            terms = {name: self.labels * term for name, term in self.labelled(self.student, student, batch).items()}
        else:
            _refuse_idle(self.losses, "the data has no labels")
        # Divergences between near-equal outputs vanish in half precision.
        with torch.autocast(images.device.type, enabled=False):
            ctx = LossContext(images, student, teacher, targets, progress, self.keep)
            values = {loss.name: _evaluate(loss, ctx) for loss in active}
        if torch.is_grad_enabled() and self._checked < CHECKED_BATCHES:
            self._check(values, student)
        zero = torch.zeros((), device=images.device)
        terms |= {loss.name: loss.weight_at(progress) * values.get(loss.name, zero) for loss in self.losses}
        return terms | {"loss": torch.stack([term.float() for term in terms.values()]).sum()}

    def _set_up(self) -> None:
        """Let losses make their layers: now, because an optimizer may be made of the task's parameters next."""
        modules = {loss.name: loss.call for loss in self.losses if isinstance(loss.call, LossModule)}
        if not modules:
            return
        if self.keep is not None:
            channels = tuple(map(len, self.keep))
        else:  # they are the teacher's, and running it leaves no trace: it is in eval mode
            probe = next(self.teacher.parameters()).new_zeros(1, 3, PROBE, PROBE)
            with torch.no_grad():
                channels = tuple(feature.shape[1] for feature in self.run(self.teacher, probe).neck)
        networks = Networks(self.student, self.teacher, channels)
        for name, module in modules.items():
            plugins.call(f"loss '{name}'", module.setup, networks, passing=(torch.OutOfMemoryError,))

    def _check(self, values: Mapping[str, Tensor], student: Outputs) -> None:
        """Raise for a loss that cannot teach the student anything."""
        self._checked += 1
        reachable = student.tensors()
        for name, value in values.items():
            if not torch.isfinite(value):
                raise DistillError(f"loss '{name}' is {value.item()} in batch {self._checked}")
            gradients: Sequence[Tensor | None] = ()
            if value.requires_grad and reachable:
                gradients = torch.autograd.grad(value, reachable, retain_graph=True, allow_unused=True)
            if all(gradient is None for gradient in gradients):
                raise DistillError(f"loss '{name}' has no gradient to the student: it detaches it, or does not use it")
            if any(gradient is not None and gradient.any() for gradient in gradients):
                self._silent.discard(name)
        silent = self._silent & values.keys()  # a resumed run may start after some losses have ended
        if self._checked == CHECKED_BATCHES and silent:
            name = min(silent)
            state = "is zero" if values[name] == 0 else "gives the student a gradient of zero"
            raise DistillError(f"loss '{name}' {state} in each of the first {CHECKED_BATCHES} batches")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistillationTask:
        self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> DistillationTask:
        memo[id(self.teacher)] = self.teacher  # frozen, and often the larger half
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


def check_support(losses: Iterable[WeightedLoss], teacher: nn.Module) -> None:
    """Raise for a loss that cannot serve a teacher, with its name and its reason."""
    for loss in losses:
        if isinstance(loss.call, LossModule):
            reason = plugins.call(f"loss '{loss.name}'", loss.call.supports, teacher)
            if reason:
                raise DistillError(f"loss '{loss.name}': {reason}")


def _refuse_idle(losses: Sequence[WeightedLoss], why: str) -> None:
    """Raise if, without labels, nothing teaches the student, or nothing does at the end."""
    if not losses:
        raise DistillError(f"nothing to train on: {why} and distill.losses is empty")
    if not any(loss.ramp.lasts for loss in losses):
        raise DistillError(
            f"nothing to train on at the end: {why} and every loss of distill.losses ends before (until)"
        )


def _evaluate(loss: WeightedLoss, ctx: LossContext) -> Tensor:
    value = plugins.call(f"loss '{loss.name}'", loss.call, ctx, passing=(torch.OutOfMemoryError,))
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DistillError(f"loss '{loss.name}' must return a scalar tensor, not {shape}")
    return value.reshape(())
