"""What to cut: calibration images, the plan, and the plan in a line."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

import prune
from distill.engine.kinds import kind_of
from distill.kinds.kind import Kind
from distill.kinds.opened import Images, Opened
from distill.machine import plugins
from distill.machine.console import Console
from distill.recipe.schema import Prune, Recipe
from distill.training.points import image_of


def calibration_images(recipe: Recipe, teacher: Opened, data: Images, count: int) -> Tensor:
    """Training images as the network sees them in validation; the same ones at every call.

    Args:
        recipe: its `size` and `seed` count.
        teacher: the network that will see them.
        data: the training images are taken from it, those with and without labels as many as there are of each.
        count: of images, at most.

    Returns:
        (count, 3, side, side), normalised as the network takes them.
    """
    return kind_of(recipe).calibration(teacher.model, data, count, recipe.size, recipe.seed)


def trace(kind: Kind, model: nn.Module, size: int) -> prune.ChannelGraph:
    """The channels of a network of a kind, followed at an image size in pixels, on the device that it is on."""
    return prune.trace(model, image_of(model, size), adapter=kind.adapter)


def make_plan(recipe: Recipe, teacher: Opened, data: Images, device: torch.device, console: Console) -> prune.PrunePlan:
    """Decide what to cut, from the weights or from the sensitivity of the outputs on training images. No labels are used.

    Args:
        recipe: its section `prune`; null keeps every channel.
        teacher: the network to cut.
        data: images to measure importance on.
        device: where to compute.
        console: shows progress, and the plan in a line.

    Raises:
        PruneError: the budget cannot be met.
    """
    options = recipe.prune
    model = teacher.model.to(device)
    images = calibration_images(recipe, teacher, data, options.images if options else 1)
    kind = kind_of(recipe)
    graph = trace(kind, model, recipe.size)
    if options is None:
        return prune.keep_all(graph)
    plan = prune.plan_in_rounds(
        graph,
        importance_of(options.importance),
        images=images,
        rounds=options.rounds,
        sensitivity=kind.sensitivity(model),
        seed=recipe.seed,
        progress=console.track,
        **budget(options),
    )
    model.cpu()
    console.line(plan.describe())
    return plan


def importance_of(name: str) -> str | Callable[..., Any]:
    """What `prune.score` takes for `prune.importance`: a name of its own, or a user's function, failing in one line."""
    if name in prune.IMPORTANCES:
        return name
    function = plugins.load("importance", name, prune.IMPORTANCES)

    @wraps(function)
    def importance(*args: Any) -> Any:
        return plugins.call(f"importance '{name}'", function, *args, passing=(prune.PruneError, torch.OutOfMemoryError))

    return importance


def budget(options: Prune) -> dict[str, Any]:
    """How much a recipe says to cut, as arguments of `prune.make_plan`."""
    names = ("flops", "params", "ratio", "round_to", "protect", "max_ratio")
    return {name: getattr(options, name) for name in names}
