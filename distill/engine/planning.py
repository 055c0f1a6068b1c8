"""What to cut: calibration images, the plan, and the plan in a line."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

import prune
from distill.machine import plugins
from distill.machine.console import Console
from distill.recipe.schema import Prune, Recipe
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import calibration
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import sensitivity_of
from distill.yolo.families.points import image_of
from distill.yolo.families.table import family_of, stride_of


def calibration_images(recipe: Recipe, teacher: Detector, data: DataSet, count: int) -> Tensor:
    """Training images as the network sees them in validation, framed in grey; the same ones at every call.

    Validators pad even a square image by half a stride. A network that was repaired without that border sees things in it.

    Args:
        recipe: its `size` and `seed` count.
        teacher: the network that will see them.
        data: the training images are taken from it, those with and without labels as many as there are of each.
        count: of images, at most.

    Returns:
        (count, 3, imgsz + stride, imgsz + stride) in [0, 1].
    """
    by_area = family_of(teacher.model).area_resize
    frame = stride_of(teacher.model) // 2
    return calibration(
        (*data.train, *data.unlabelled), count, recipe.size, seed=recipe.seed, by_area=by_area, frame=frame
    )


def trace(model: nn.Module, size: int) -> prune.ChannelGraph:
    """The channels of a detector, followed at an image size in pixels, on the device that it is on."""
    return prune.trace(model, image_of(model, size), adapter=YOLO_ADAPTER)


def make_plan(
    recipe: Recipe, teacher: Detector, data: DataSet, device: torch.device, console: Console
) -> prune.PrunePlan:
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
    graph = trace(model, recipe.size)
    if options is None:
        return prune.keep_all(graph)
    plan = prune.plan_in_rounds(
        graph,
        importance_of(options.importance),
        images=images,
        rounds=options.rounds,
        sensitivity=sensitivity_of(model),
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
