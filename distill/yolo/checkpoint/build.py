"""A new network to train: from one of ultralytics' descriptions, or from a checkpoint's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.errors import DistillError, first_line
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.table import family_of
from distill.yolo.tasks.table import task_of
from distill.yolo.upstream import DetectionModel, tasks, yaml_model_load

_MOST_LARGER = 16  # times as many weights; a pruned network is described as it was before
USE = "use yolov5n.yaml, yolov8s.yaml, ..."


def build(
    model: str,
    names: Mapping[int, str],
    *,
    width: float | None = None,
    seed: int = 0,
    key: str = "teacher.train.model",
    kpt_shape: tuple[int, int] | None = None,
) -> DetectionModel:
    """Build a detector of an architecture, on the CPU.

    Args:
        model: `yolov5n.yaml`, `yolov8s.yaml`, ... for random weights; a checkpoint for its weights, all that fit.
        names: class names by id.
        width: width factor in place of the description's own (0.25 for size n); unused with a checkpoint.
        seed: of the random weights.
        key: of the recipe, that messages name.
        kpt_shape: keypoints of an object in the data, and numbers of each; a pose model gets a head for them.

    Raises:
        DistillError: no such description or checkpoint, or it is of no detector that is supported here.
    """
    source: nn.Module | None = None
    description: Any
    if Path(model).suffix == ".pt":
        source = checkpoint.load(model).model
        if reason := family_of(source).untrainable:
            raise DistillError(f"teacher.train.model: {model} {reason}: give it as 'model', or {USE}")
        description = source.yaml
        _check_size(model, description, source)
    else:
        try:
            description = yaml_model_load(model)
        except (FileNotFoundError, AssertionError, AttributeError, TypeError, ValueError) as error:
            raise DistillError(f"{key}: no model '{model}': {USE}") from error
        if width is not None:
            if description.get("scale") not in description.get("scales", {}):
                raise DistillError(
                    f"teacher.train.width: '{model}' names no size, as yolov5n.yaml does: leave width out"
                )
            depth, _, widest = description["scales"][description["scale"]]
            description["scales"] = {description["scale"]: [depth, width, widest]}
    description = {
        **description,
        **({"kpt_shape": list(kpt_shape)} if "kpt_shape" in description and kpt_shape else {}),
    }
    make: Any = task_of(description).network
    try:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            network = make(description, nc=len(names), verbose=False)
    except Exception as error:  # whatever a description of another kind of model leads to
        raise DistillError(f"{key}: no detector comes of '{model}' ({first_line(error)}): {USE}") from error
    checkpoint.check_network(Path(model), network)
    if source is not None:
        network.load(source, verbose=False)
    network.names = dict(names)
    return network


def _check_size(model: str, description: Any, source: nn.Module) -> None:
    """Refuse a checkpoint whose description is of a far larger network than it holds, before memory is taken for that."""
    has = sum(parameter.numel() for parameter in source.parameters())
    try:
        with torch.device("meta"):
            layers, _ = tasks.parse_model(copy.deepcopy(description), 3, verbose=False)
    except Exception as error:  # whatever a damaged description leads to
        raise DistillError(
            f"teacher.train.model: no detector comes of '{model}' ({first_line(error)}): {USE}"
        ) from error
    if (told := sum(parameter.numel() for parameter in layers.parameters())) > _MOST_LARGER * has:
        raise DistillError(
            f"teacher.train.model: '{model}' holds {has:,} weights and describes a network of {told:,}: {USE}"
        )
