"""Checks losses before anything is done: each runs once forward and back between networks of the training's widths."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import prune
from distill.engine.kinds import kind_of
from distill.engine.planning import budget
from distill.engine.teachers import Teaching, make_task
from distill.kinds.opened import Images
from distill.losses.base import WeightedLoss
from distill.losses.spec import ALWAYS
from distill.recipe.schema import Recipe
from distill.training.task import check_support
from distill.training.trial import try_out

SIDE = 256  # largest side of the images in pixels: shapes are those of any size, and it takes less than a second
IMAGES = 2  # BatchNorm in training needs more than one value to a channel, and a deep feature may have one to an image
NOISE = 0.01  # part by which weights move, so that a network that is not cut differs from itself


class LossCheck:
    """The networks of a recipe as its training will see them, but for their weights.

    Args:
        model: the network that is cut, or one like it if that is trained first.
        graph: its channels; None if nothing is cut.
        recipe: its section `prune` says how far. The widths are like those of the run; which channels stay is drawn.
    """

    def __init__(self, model: nn.Module, graph: prune.ChannelGraph | None, recipe: Recipe) -> None:
        self.model, self._graph, self._cut = model, graph, recipe.prune
        self._kind = kind_of(recipe)
        self._student: tuple[nn.Module, prune.PrunePlan | None] | None = None
        self._done: list[Any] = []

    def run(self, recipe: Recipe, teachers: Sequence[Teaching], data: Images | None) -> None:
        """Run every loss forward and back, as training does on a CPU. The same losses are not run again.

        Args:
            recipe: whose losses these are; its `prune` is that of the constructor's recipe.
            teachers: who teaches, and with which losses.
            data: images to run on; noise if None.

        Raises:
            DistillError: a loss that cannot serve its teacher, fails, or cannot be trained on.
        """
        taught = [each for each in teachers if each.losses]
        labelled = data is None or data.labelled
        key = [
            labelled,
            bool(recipe.unlabelled),
            recipe.size,
            recipe.distill.features,
            *((each.name, each.specs) for each in taught),
        ]
        if not taught or key in self._done:
            return
        student, plan = self._student = self._student or self._make_student()
        for each in taught:
            if each.network is None:
                check_support(each.losses, self.model)
        copies = [replace(each, losses=tuple(map(_copy, each.losses))) for each in taught]
        with torch.random.fork_rng(devices=[]):  # a mask that a loss draws must not move what the run draws
            torch.manual_seed(0)
            task = make_task(recipe, copies, student, self._network, plan, 0.0)
            known = 0 if not labelled else IMAGES if recipe.unlabelled is None else 1
            size = min(recipe.size, SIDE)
            try_out(task.train(), self._kind.trial_batch(data, self.model, count=IMAGES, size=size, known=known))
        self._done.append(key)

    def _network(self, teaching: Teaching) -> nn.Module:
        return self.model if teaching.network is None else teaching.network.model

    def _make_student(self) -> tuple[nn.Module, prune.PrunePlan | None]:
        plan = None
        if self._graph is not None and self._cut is not None:
            # Nearly every layer loses some, as by the sensitivity of outputs; by the size of weights most would stay whole.
            plan = prune.make_plan(self._graph, prune.score(self._graph, "random"), **budget(self._cut))
        adapter = self._kind.adapter
        student = copy.deepcopy(self.model) if plan is None else prune.apply(self.model, plan, adapter=adapter)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in student.parameters():
                weight.mul_(1 + NOISE * torch.randn(weight.shape, generator=random))
        self._kind.ready(student)
        return student, plan


def _copy(loss: WeightedLoss) -> WeightedLoss:
    """The same from the first step to the last, with layers of its own."""
    return replace(loss, call=copy.deepcopy(loss.call), ramp=ALWAYS)
