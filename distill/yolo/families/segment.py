"""ultralytics' heads for segmentation: a mask is a sum of prototypes, which an image has, by coefficients, which an anchor has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.context import Outputs
from distill.losses.mask import inside_boxes
from distill.yolo.families import ultralytics_dfl as boxes
from distill.yolo.families.end_to_end import SECOND, two_branches
from distill.yolo.families.ultralytics_dfl import DFL
from distill.yolo.tasks.segment import SEGMENT as TASK
from distill.yolo.upstream import Segment, Segment26

MASK = 1.0  # weight of a mask's change beside scores and boxes
SMALL = 0.1  # a logit below is 0, for its divergence is lost in rounding
SCALE = 4  # input pixels to a cell of the prototypes
MOST = 32  # anchors of an image whose masks are changed: those that count most


def outputs(head: Any, raw: Any) -> Outputs:
    """What losses read, of what a network with this head returned in train mode."""
    coefficients = raw["mask_coefficient"].transpose(1, 2)
    return replace(boxes.outputs(head, raw), mask_coefficients=coefficients, prototypes=_prototypes(raw)[0])


def _prototypes(raw: Any) -> tuple[Tensor | None, Tensor | None]:
    """The prototypes (B, M, h, w), and what YOLO26 has beside them in training: a map of classes (B, nc, h', w')."""
    given = raw.get("proto")  # not there if the head's branches were run by themselves
    return given if isinstance(given, tuple) else (given, None)


def label_terms(model: nn.Module, outputs: Outputs, batch: Any) -> dict[str, Tensor]:
    """The loss of ultralytics on labels, without its term for a map of classes, which is 0 for this head."""
    terms = boxes.label_terms(model, outputs, batch)
    return {name: term for name, term in terms.items() if name != "sem_loss"}


def sensitivity(head: Any, raw: Any) -> Tensor:
    """That of boxes and scores, and noise on masks, shaped by their own metric.

    Its squared gradient is, in expectation, the diagonal of that of boxes + best score * MASK * mean over the pixels in the box of
    KL(original mask || changed), as a parabola: see `_curvature`. The surest anchors stand for all: the others hardly count, or
    are of the same objects.
    """
    coefficients, (prototypes, classes) = raw["mask_coefficient"].float(), _prototypes(raw)
    assert prototypes is not None
    prototypes = prototypes.float()
    with torch.no_grad():
        best = raw["scores"].float().sigmoid().amax(1)  # (B, A)
        top, anchor = best.topk(min(MOST, best.shape[1]), 1)
        inside = _inside(head, raw, anchor)
        weight = MASK * top * (best.sum(1, keepdim=True) / top.sum(1, keepdim=True))
        weight = weight / inside.sum((2, 3)).clamp(min=1)
    chosen = coefficients.gather(2, anchor[:, None].expand(-1, coefficients.shape[1], -1))
    logits = torch.einsum("bmk,bmhw->bkhw", chosen, prototypes)
    scale = (weight[..., None, None] * inside * _curvature(logits.detach())).sqrt()
    total = boxes.sensitivity(head, raw) + (logits * scale * torch.randn_like(logits)).sum()
    if classes is None:
        return total
    # It serves training alone, so it weighs as much as one object's mask: what it reads is not cut as if nobody did.
    p = classes.detach().float().sigmoid()
    return total + (classes.float() * (p * (1 - p) / p[0].numel()).sqrt() * torch.randn_like(p)).sum()


def _curvature(logits: Tensor) -> Tensor:
    """Twice KL(original pixel || undecided pixel) over the squared logit between them.

    The curvature at the original, p (1 - p), takes a pixel for safe that is sure: a change as large as its logit costs hundreds of
    times as much as that says. At a logit of 0 both are 1/4.
    """
    p = logits.sigmoid()
    entropy = F.softplus(logits) - logits * p
    secant = 2 * (math.log(2) - entropy) / logits.square().clamp(min=SMALL**2)
    return torch.where(logits.abs() < SMALL, 0.25, secant)


def _inside(head: Any, raw: Any, anchor: Tensor) -> Tensor:
    """Which cells of the prototypes' grid lie in the boxes of anchors (B, K): (B, K, h, w). It has a cell to SCALE pixels."""
    prototypes = _prototypes(raw)[0]
    assert prototypes is not None
    rows, columns = prototypes.shape[-2:]
    levels = [prototypes.new_empty(rows * SCALE // int(s), columns * SCALE // int(s)) for s in head.stride]
    cells, strides = boxes.grid(levels, head.stride)
    left, right = boxes.distances(head, raw).transpose(1, 2).split(2, -1)
    corners = torch.cat((cells - left, cells + right), -1) * strides  # (B, A, 4)
    corners = corners.gather(1, anchor[..., None].expand(-1, -1, 4))
    return inside_boxes(corners, (rows * SCALE, columns * SCALE), (rows, columns))


SEGMENT = replace(
    DFL,
    title="ultralytics' segmentation models YOLOv8 and YOLO11",
    task=TASK,
    owns=boxes.single(Segment),
    outputs=outputs,
    label_terms=label_terms,
    sensitivity=sensitivity,
    gives=lambda head: DFL.gives(head) | {"masks"},
)

SEGMENT26 = two_branches(SEGMENT, (Segment26,), "ultralytics' segmentation models YOLO26", (*SECOND, "one2one_cv4"))
