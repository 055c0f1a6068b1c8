"""A student, its frozen teachers and the losses between them, as one module that turns a batch into scalars."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from distill.errors import DistillError
from distill.losses.base import LossModule, Networks, WeightedLoss
from distill.losses.context import NECK, Channels, LossContext, Outputs
from distill.machine import plugins
from distill.training.teacher import Runner, Teacher

LabelLoss = Callable[[nn.Module, Outputs, Mapping[str, Any]], Mapping[str, Tensor]]

CHECKED_BATCHES = 3
PROBE = 64  # side in pixels of an image that every detector takes, one of stride 64 too
NO_GRADIENT = "has no gradient to the student: it detaches it, or does not use it"
LABELLED = "labelled"  # key of a batch: how many of its images, the first ones, have labels


class DistillationTask(nn.Module):
    """`task(batch)` runs all networks and gives every weighted loss by name, and their sum as `loss`.

    A teacher is no submodule: `parameters()`, `state_dict()` and `train()` do not see it, so it joins no optimizer,
    no checkpoint and no BatchNorm update. It still moves with `.to(device)`, and copies of the task share it. Losses
    that are Modules, and projectors, are in `learned`: their parameters train, and stay behind when the student is taken
    out.

    A loss of the only teacher has its own name; with several teachers it is called `teacher/loss`. If the heads of both have
    several branches, a loss on what these predict is the mean over the branches.

    The first three batches check each loss: one that is not a finite scalar, stays zero, or has no gradient to the
    student ends the run with its name, instead of being a silent column of the report. The check looks at the value
    without its weight, so it covers a loss that is warming up. A loss that has ended is not called.

    Args:
        student: the network to train.
        teachers: what pulls it; each network is copied and frozen.
        run: runs the student on images and gives its raw outputs.
        labelled: the student's own loss on labels, by name, given (student, its outputs, batch).
        labels: weight of `labelled`; 0, or a batch without `cls`, trains from the teachers alone.
        unlabelled: weight of the teachers' losses on the images without labels in a batch that mixes both.
        features: points where losses read features, unless they have their own: "neck", or paths of modules.
        probe: side in pixels of an image that shows the shapes of features.

    Raises:
        DistillError: nothing to train on, or a loss that fails.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[Teacher],
        *,
        run: Runner,
        labelled: LabelLoss | None = None,
        labels: float = 1.0,
        unlabelled: float = 1.0,
        features: Sequence[str] = (NECK,),
        probe: int = PROBE,
    ) -> None:
        super().__init__()
        self.probe = probe
        self.losses = list(_named(teachers))
        if not (labelled and labels):
            _refuse_idle(self.losses, "distill.labels is 0")
        self.student = student
        self.run, self.labelled, self.labels, self.unlabelled = run, labelled, labels, unlabelled
        self.features = tuple(features)
        # In a tuple, because a Module assigned to an attribute would become a submodule.
        self.teachers = tuple(replace(each, network=_frozen(each.network)) for each in teachers)
        self.learned = nn.ModuleList(loss.call for loss in self.losses if isinstance(loss.call, nn.Module))
        # By teacher and point, how channels meet at each level. The modules are in `learned`.
        self._channels = {each.name: self._meet(each) for each in self.teachers if each.losses}
        for by_point in self._channels.values():
            self.learned.extend(channels for levels in by_point.values() for channels in levels)
        self._set_up()
        self._checked = 0
        self._silent = {loss.name for loss in self.losses}

    def __repr__(self) -> str:
        losses = ", ".join(loss.name for loss in self.losses)
        return f"DistillationTask({type(self.student).__name__} by {losses or 'its labels alone'})"

    def scale(self, factors: Mapping[str, float]) -> None:
        """Multiply the weights of losses, by name; the others stay as they are."""
        self.losses = [replace(loss, weight=loss.weight * factors.get(loss.name, 1.0)) for loss in self.losses]

    def points_of(self, teacher: Teacher) -> tuple[str, ...]:
        """Where the losses of a teacher read features."""
        return self._points(loss for loss in self.losses if loss.teacher == teacher.name)

    def run_teachers(self, runners: Mapping[str, Runner]) -> None:
        """Have teachers run by other means, by name; the others stay as they are."""
        self.teachers = tuple(replace(each, run=runners.get(each.name, each.run)) for each in self.teachers)

    def forward(self, batch: Mapping[str, Any], progress: float = 0.0) -> dict[str, Tensor]:
        """Every term times its weight, by name, and their sum as `loss`.

        The label loss is a mean per labelled image, and a teacher's loss a mean per image, whatever the batch size. A
        loss that has ended is still there, as 0: the terms are the same from the first batch to the last.

        Args:
            batch: `img`, (B, 3, H, W) in [0, 1]; the loader's keys for labels if there are any; and `labelled` if only
                so many of the images, the first ones, have labels.
            progress: share of the training that is done, 0 to 1.
        """
        active = [loss for loss in self.losses if not loss.ramp.over(progress)]
        student = self.run(self.student, batch["img"], self._points(active))
        terms = self._label_terms(student, *_split(batch))
        values = self._values(active, student, *_split(batch), progress)
        if torch.is_grad_enabled() and self._checked < CHECKED_BATCHES:
            self._check(values, student)
        zero = torch.zeros((), device=batch["img"].device)
        terms |= {loss.name: loss.weight_at(progress) * values.get(loss.name, zero) for loss in self.losses}
        return terms | {"loss": torch.stack([term.float() for term in terms.values()]).sum()}

    def values(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Outputs]:
        """Every loss by name, whatever its weight and ramp, and the student's outputs that they look at.

        Args:
            batch: as of `forward`.
        """
        student = self.run(self.student, batch["img"], self._points(self.losses))
        return self._values(self.losses, student, *_split(batch), 0.0), student

    def _values(
        self,
        active: Sequence[WeightedLoss],
        student: Outputs,
        images: Tensor,
        targets: Mapping[str, Any] | None,
        known: int,
        progress: float,
    ) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for teacher in self.teachers:
            own = [loss for loss in active if loss.teacher == teacher.name]
            if not own:  # it rests
                continue
            with torch.no_grad():  # not inference_mode: what a loss makes of its tensors must allow a backward pass
                outputs = teacher.run(teacher.network, images, self._points(own))
            # Divergences between near-equal outputs vanish in half precision.
            with torch.autocast(images.device.type, enabled=False):
                ours, theirs = teacher.view(student, outputs)
                channels = self._channels[teacher.name]
                for points, losses in self._by_points(own).items():
                    wholes = (
                        LossContext(images, *pair, targets, progress, points, channels)
                        for pair in zip(ours.branches, theirs.branches, strict=False)  # those that both have
                    )
                    branches = [list(self._parts(whole, known)) for whole in wholes]
                    for loss in losses:
                        seen = branches if loss.by_branch else branches[:1]
                        terms = (share * _evaluate(loss, ctx) for parts in seen for share, ctx in parts)
                        values[loss.name] = sum(terms, images.new_zeros(())) / len(seen)
        return values

    def _points(self, losses: Iterable[WeightedLoss]) -> tuple[str, ...]:
        """Where these losses read features."""
        return tuple(dict.fromkeys(point for loss in losses for point in loss.points(self.features)))

    def _by_points(self, losses: Iterable[WeightedLoss]) -> dict[tuple[str, ...], list[WeightedLoss]]:
        """Losses that can share a context: those that read features at the same points, with those that read none."""
        groups: dict[tuple[str, ...], list[WeightedLoss]] = {}
        for loss in losses:
            groups.setdefault(loss.points(self.features) or self.features, []).append(loss)
        return groups

    def _label_terms(
        self, student: Outputs, images: Tensor, targets: Mapping[str, Any] | None, known: int
    ) -> dict[str, Tensor]:
        if not (self.labelled and self.labels and targets is not None):
            _refuse_idle(self.losses, "the data has no labels")
            return {}
        if known < len(images):
            student, images = student.part(slice(known)), images[:known]
        terms = self.labelled(self.student, student, {"img": images, **targets})
        return {name: self.labels * term for name, term in terms.items()}

    def _parts(self, ctx: LossContext, known: int) -> Iterator[tuple[float, LossContext]]:
        """The images with labels and those without, each with their share in the mean over the batch."""
        count = len(ctx.images)
        if known in (0, count):
            yield 1.0, ctx
            return
        for part, weight in ((slice(known), 1.0), (slice(known, None), self.unlabelled)):
            images, student, teacher = ctx.images[part], ctx.student.part(part), ctx.teacher.part(part)
            targets = ctx.targets if part.stop else None
            yield (
                weight * len(images) / count,
                replace(ctx, images=images, student=student, teacher=teacher, targets=targets),
            )

    def _meet(self, teacher: Teacher) -> dict[str, list[Channels]]:
        """How the channels of the student and a teacher meet, by point."""
        points = self.points_of(teacher)
        if not teacher.projects:
            return {
                point: [Channels(kept) for kept in teacher.keep[point]] for point in points if point in teacher.keep
            }
        if not points:
            return {}
        random = torch.Generator().manual_seed(0)  # of its own: a resumed run did not draw what came before
        ours = self._probe(self.student, self.run, points)
        theirs = self._probe(teacher.network, teacher.run, points)
        meet: dict[str, list[Channels]] = {}
        for point in points:
            pairs = list(zip(ours.feature(point), theirs.feature(point), strict=True))
            for student, feature in pairs:
                if student.shape[2:] != feature.shape[2:]:
                    grids = " and ".join(f"{each.shape[2]}x{each.shape[3]}" for each in (student, feature))
                    raise DistillError(
                        f"features at '{point}' have grids of {grids} cells in the student and in teacher {teacher.name}, of "
                        "the same image: name a module that has the same in both"
                    )
            widths = [(student.shape[1], feature.shape[1]) for student, feature in pairs]
            meet[point] = [Channels(project=_projector(*width, random)) for width in widths]
        return meet

    def _set_up(self) -> None:
        """Let losses make their layers: now, because an optimizer may be made of the task's parameters next."""
        for teacher in self.teachers:
            own = [each for each in self.losses if each.teacher == teacher.name and isinstance(each.call, LossModule)]
            widths = self._widths(teacher, self._points(own))
            for loss in own:
                counts = tuple(count for point in loss.points(self.features) for count in widths[point])
                networks = Networks(self.student, teacher.network, counts)
                setup = cast(LossModule, loss.call).setup
                plugins.call(f"loss '{loss.name}'", setup, networks, passing=(torch.OutOfMemoryError,))

    def _widths(self, teacher: Teacher, points: Sequence[str]) -> dict[str, list[int]]:
        """The channels of each pair of features, by point."""
        widths = {point: [len(kept) for kept in teacher.keep[point]] for point in points if point in teacher.keep}
        if rest := [point for point in points if point not in widths]:
            probe = self._probe(teacher.network, teacher.run, rest)
            widths |= {point: [feature.shape[1] for feature in probe.feature(point)] for point in rest}
        return widths

    def _probe(self, network: nn.Module, run: Runner, points: Sequence[str]) -> Outputs:
        """The outputs of a network for a small image. It leaves no trace in the network."""
        if network.training:  # which would move BatchNorm's statistics
            network = copy.deepcopy(network).eval()
        image = next(network.parameters()).new_zeros(1, 3, self.probe, self.probe)
        with torch.no_grad():
            return run(network, image, points)

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
                raise DistillError(f"loss '{name}' {NO_GRADIENT}")
            if any(gradient is not None and gradient.any() for gradient in gradients):
                self._silent.discard(name)
        silent = self._silent & values.keys()  # a resumed run may start after some losses have ended
        if self._checked == CHECKED_BATCHES and silent:
            name = min(silent)
            state = "is zero" if values[name] == 0 else "gives the student a gradient of zero"
            raise DistillError(f"loss '{name}' {state} in each of the first {CHECKED_BATCHES} batches")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistillationTask:
        for teacher in self.teachers:
            teacher.network._apply(fn)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> DistillationTask:
        for teacher in self.teachers:  # frozen, and often the larger half
            memo[id(teacher)] = teacher
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


def _split(batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any] | None, int]:
    """The images, the labels of those that have some, and how many have: the first ones."""
    images = batch["img"]
    known = int(batch.get(LABELLED, len(images))) if "cls" in batch else 0
    targets = {key: value for key, value in batch.items() if key not in ("img", LABELLED)} if known else None
    return images, targets, known


def _frozen(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).eval().requires_grad_(False)


def _named(teachers: Sequence[Teacher]) -> Iterator[WeightedLoss]:
    """The losses of all teachers, each with its teacher and a name of its own."""
    for teacher in teachers:
        for loss in teacher.losses:
            name = loss.name if len(teachers) == 1 else f"{teacher.name}/{loss.name}"
            yield replace(loss, name=name, teacher=teacher.name)


def _projector(student: int, teacher: int, random: torch.Generator) -> nn.Module:
    """A 1x1 convolution to a teacher's channels, drawn as torch draws one."""
    layer = skip_init(nn.Conv2d, student, teacher, 1, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=random)
    return layer


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
