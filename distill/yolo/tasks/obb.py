"""Oriented boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.yolo.data.rows import CORNERS
from distill.yolo.tasks.task import Task
from distill.yolo.upstream import OBBModel, OrientedValidator


def around(predicted: dict[str, Tensor]) -> Tensor:
    """The upright boxes around oriented ones, (n, 4) as x1 y1 x2 y2, from `bboxes` (n, 5): centre, size, angle in radians."""
    centre, size, angle = predicted["bboxes"].split((2, 2, 1), 1)
    cos, sin = angle.cos().abs(), angle.sin().abs()
    width, height = size.split(1, 1)
    half = torch.cat((width * cos + height * sin, width * sin + height * cos), 1) / 2
    return torch.cat((centre - half, centre + half), 1)


ORIENTED = Task("obb", "a model for oriented boxes", OBBModel, OrientedValidator, CORNERS, corners=around)
