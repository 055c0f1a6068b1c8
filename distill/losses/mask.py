"""The loss on masks, which a head makes of prototypes and of coefficients at each anchor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.losses.base import FromContext
from distill.losses.box import FOCUS, weighted_mean
from distill.losses.context import LossContext
from distill.losses.logit import excess

MOST = 32  # objects of an image whose masks are compared: those that the teacher is surest of


def mask_bce(student: Tensor, teacher: Tensor, inside: Tensor, quality: Tensor, *, focus: float = FOCUS) -> Tensor:
    """Binary cross-entropy of the student's masks to the teacher's, inside the teacher's boxes.

    With t = σ(teacher) and the n pixels of an anchor's box,

        L = Σ_{b,k} w · 1/n Σ_pixels [BCE(student, t) − BCE(t, t)] / max(1, Σ_{b,k} w),   w = quality^focus

    The teacher's own entropy is taken off, so that 0 means equal. A small object counts as much as a large one, and what a
    mask says outside of its box, where nobody looks, does not count. A run compares the masks of the 32 surest boxes of an
    image that the teacher's non-maximum suppression keeps: those of others are of the same objects.

    Args:
        student: logits of each pixel of each mask.
        teacher: the logits to reach.
        inside: 1 in the teacher's box of an anchor, and 0 outside.
        quality: how sure the teacher is of each anchor, 0 to 1.
        focus: power of the quality in the weight.

    Shape: (B, K, h, w), (B, K, h, w), (B, K, h, w), (B, K) -> scalar, for K anchors of each of B images.
    """
    error = excess(student, teacher, teacher.sigmoid()) * inside
    return weighted_mean(error.sum((2, 3)) / inside.sum((2, 3)).clamp(min=1), quality, focus)


def inside_boxes(boxes: Tensor, image: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Which cells of a grid over the image have their centre in a box.

    Args:
        boxes: (..., 4) as x1 y1 x2 y2 in pixels.
        image: height and width in pixels.
        grid: height and width in cells.

    Returns:
        (..., h, w) of 0 and 1.
    """
    rows, columns = (
        (torch.arange(n, device=boxes.device) + 0.5) * size / n for n, size in zip(grid, image, strict=True)
    )
    left, top, right, bottom = boxes[..., None].unbind(-2)  # (..., 1)
    across, down = (columns > left) & (columns < right), (rows > top) & (rows < bottom)
    return (down[..., :, None] & across[..., None, :]).float()


def _masks(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    if ctx.student.prototypes is None or ctx.teacher.prototypes is None:
        raise DistillError("loss 'mask_bce': this head predicts no masks: take the loss out of the recipe")
    with torch.no_grad():
        quality = ctx.quality * ctx.teacher.kept
        quality, anchor = quality.topk(min(MOST, quality.shape[1]), 1)  # (B, K)
        boxes = ctx.teacher.boxes.gather(1, anchor[..., None].expand(-1, -1, 4))
        height, width = ctx.images.shape[-2:]
        rows, columns = ctx.teacher.prototypes.shape[-2:]
        inside = inside_boxes(boxes, (height, width), (rows, columns))
    yield ctx.student.mask_logits(anchor), ctx.teacher.mask_logits(anchor), inside, quality


LOSSES = {"mask_bce": FromContext(mask_bce, _masks, ("masks", "boxes", "quality"), needs="masks")}
