"""ultralytics' heads for poses: at each anchor the keypoints of its object."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from distill.losses.context import Outputs
from distill.losses.keypoint import AREA
from distill.yolo.families import ultralytics_dfl as boxes
from distill.yolo.families.end_to_end import SECOND, two_branches
from distill.yolo.families.ultralytics_dfl import DFL
from distill.yolo.tasks.pose import POSE as TASK
from distill.yolo.upstream import OKS_SIGMA, Pose, Pose26


def outputs(head: Any, raw: Any) -> Outputs:
    """What losses read, of what a network with this head returned in train mode."""
    cells, strides = boxes.grid(raw["feats"], head.stride)
    points = rearrange(raw["kpts"].float(), "b (k n) a -> b a k n", n=head.kpt_shape[1])
    unit, shift = _units(head)
    places = (points[..., :2] * unit + (cells + shift)[:, None]) * strides[:, None]
    keypoints = torch.cat((places, points[..., 2:]), -1)
    return replace(boxes.outputs(head, raw), keypoints=keypoints, spreads=spreads(head).to(places.device))


def _units(head: Any) -> tuple[float, float]:
    """By how many cells a point moves for each unit of an output, and where it lies from its anchor at 0."""
    return (1.0, 0.0) if isinstance(head, Pose26) else (2.0, -0.5)


def spreads(head: Any) -> Tensor:
    """σ of each keypoint, as ultralytics' own loss takes them: those of people for 17 points, and else alike."""
    count = head.kpt_shape[0]
    if list(head.kpt_shape) == [17, 3]:
        return torch.tensor(OKS_SIGMA, dtype=torch.float32)
    return torch.full((count,), 1 / count)


def sensitivity(head: Any, raw: Any) -> Tensor:
    """That of boxes and scores, and noise on keypoints, shaped by their own metric.

    Its squared gradient is, in expectation, the Gauss-Newton diagonal of that of boxes + best score * mean over keypoints of
    (probability of being seen * -log OKS + KL(original visibility || changed)).
    """
    points = rearrange(raw["kpts"].float(), "b (k n) a -> b a k n", n=head.kpt_shape[1])
    with torch.no_grad():
        best = raw["scores"].float().sigmoid().amax(1)[..., None, None] / head.kpt_shape[0]  # (B, A, 1, 1)
        width, height = boxes.sizes(head, raw)
        seen = points[..., 2:].sigmoid()  # (B, A, K, 0 or 1)
        trust = seen if seen.shape[-1] else torch.ones_like(points[..., :1])
        # -log OKS = d^2 / (2 area (2 spread)^2), with the distance and the area in cells.
        allowed = AREA * (width * height)[..., None] * (2 * spreads(head).to(points.device)).square()  # (B, A, K)
        place = best * trust * _units(head)[0] ** 2 / allowed[..., None]
        scale = torch.cat((place.expand(-1, -1, -1, 2), best * seen * (1 - seen)), -1).sqrt()
    return boxes.sensitivity(head, raw) + (points * scale * torch.randn_like(scale)).sum()


POSE = replace(
    DFL,
    title="ultralytics' pose models YOLOv8 and YOLO11",
    task=TASK,
    owns=boxes.single(Pose),
    outputs=outputs,
    sensitivity=sensitivity,
    gives=lambda head: DFL.gives(head) | {"keypoints"},
    alike=lambda head, other: DFL.alike(head, other) and list(head.kpt_shape) == list(other.kpt_shape),
)

# What training alone uses is put back after fusing, as the second branch is: a teacher gives its outputs as in training.
_IN_TRAINING = ("cv4_sigma", "one2one_cv4_sigma", "flow_model")
POSE26 = two_branches(
    POSE, (Pose26,), "ultralytics' pose models YOLO26", (*SECOND, "one2one_cv4", "one2one_cv4_kpts", *_IN_TRAINING)
)
