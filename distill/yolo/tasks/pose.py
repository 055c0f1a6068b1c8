"""Boxes, and in each the keypoints of its object."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.yolo.data.rows import KEYPOINTS
from distill.yolo.tasks.task import Task
from distill.yolo.upstream import KeypointValidator, PoseModel


def as_labels(predicted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every keypoint that is predicted, as one that is seen."""
    places = predicted["keypoints"][..., :2]
    return {**predicted, "keypoints": torch.cat((places, torch.ones_like(places[..., :1])), -1)}


POSE = Task(
    "pose",
    "a pose model",
    PoseModel,
    KeypointValidator,
    KEYPOINTS,
    beside="pose",
    as_labels=as_labels,
    keys=lambda head: {"kpt_shape": list(head.kpt_shape)},
)
