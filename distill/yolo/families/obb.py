"""ultralytics' heads for oriented boxes: at each anchor the sides of a box and the angle that it is turned by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distill.losses.context import Decode, Outputs
from distill.yolo.families import ultralytics_dfl as boxes
from distill.yolo.families.end_to_end import SECOND, two_branches
from distill.yolo.families.ultralytics_dfl import DFL
from distill.yolo.families.yolov5.head import BOX
from distill.yolo.tasks.obb import ORIENTED as TASK
from distill.yolo.upstream import OBB, OBB26

LONGEST = 10.0  # times as long as wide: a longer box weighs its angle as this one


def outputs(head: Any, raw: Any) -> Outputs:
    """What losses read, of what a network with this head returned in train mode."""
    found, angles = boxes.outputs(head, raw), raw["angle"][:, 0]
    cells, strides = boxes.grid(raw["feats"], head.stride)
    sides = raw["boxes"].transpose(1, 2)
    predicted = torch.cat((sides.float(), angles[..., None].float()), -1)  # (B, A, 4 R + 1)

    def make(some: Tensor, anchor: Any) -> Tensor:
        upright = boxes.decode(some[..., :-1].unflatten(-1, (4, head.reg_max)), cells[anchor], strides[anchor])
        return about_centre(upright, some[..., -1:], (cells * strides)[anchor])

    return replace(found, decode=Decode(predicted, make), angles=angles)


def about_centre(corners: Tensor, angles: Tensor, anchors: Tensor) -> Tensor:
    """Boxes of which the sides lie around an anchor along axes that are turned, before they are turned about their own centre.

    Args:
        corners: (..., A, 4) as x1 y1 x2 y2, if the axes were not turned.
        angles: (..., A, 1) of the axes.
        anchors: (A, 2) x and y, about which the centre of each box turns.

    Returns:
        (..., A, 4) as x1 y1 x2 y2.
    """
    half, centre = (corners[..., 2:] - corners[..., :2]) / 2, (corners[..., 2:] + corners[..., :2]) / 2
    (x, y), cos, sin = (centre - anchors).split(1, -1), angles.cos(), angles.sin()
    turned = torch.cat((x * cos - y * sin, x * sin + y * cos), -1) + anchors
    return torch.cat((turned - half, turned + half), -1)


def sensitivity(head: Any, raw: Any) -> Tensor:
    """That of boxes and scores, and noise on angles.

    Its squared gradient is, in expectation, the Gauss-Newton diagonal of that of boxes + best score * BOX^2 *
    |change of the angle|^2 * ((w/h - h/w) / 2)^2, with the box's width w and height h: it moves the ends of a long box by that,
    in widths.
    """
    angles = raw["angle"][:, 0].float()
    with torch.no_grad():
        best = raw["scores"].float().sigmoid().amax(1)  # (B, A)
        width, height = boxes.sizes(head, raw)
        ratio = (width / height).clamp(1 / LONGEST, LONGEST)
        scale = BOX * best.sqrt() * (ratio - 1 / ratio).abs() / 2
    return boxes.sensitivity(head, raw) + (angles * scale * torch.randn_like(scale)).sum()


ORIENTED = replace(
    DFL,
    title="ultralytics' models for oriented boxes YOLOv8 and YOLO11",
    task=TASK,
    owns=boxes.single(OBB),
    outputs=outputs,
    sensitivity=sensitivity,
    gives=lambda head: DFL.gives(head) | {"angles"},
)

ORIENTED26 = two_branches(ORIENTED, (OBB26,), "ultralytics' models for oriented boxes YOLO26", (*SECOND, "one2one_cv4"))
