"""The loss that the original YOLOv5 (v7.0) trains its anchor head with.

Each labelled object is matched to a few boxes of the head, by shape and place alone: whatever the network says now.
Those boxes learn the object's place and class; the objectness of every box learns how well it overlaps, else 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Weight of a level's objectness, from the finest: most cells are background, and a fine level has most of them.
BALANCE_OF_THREE = (4.0, 1.0, 0.4)
BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)

# The cell of the object's centre, then its neighbours: left, above, right, below.
NEIGHBOURS = ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1))
REACH = 0.5  # a neighbour shares the object if the centre is nearer to it than this, in cells
FOCAL_ALPHA = 0.25


@dataclass(frozen=True)
class Matches:
    """The n boxes of one level that have an object, and what they should say. A box may be here more than once."""

    where: tuple[Tensor, Tensor, Tensor, Tensor]  # image, box, row, column: (n,) each
    anchor: Tensor  # (n, 2) width and height in cells
    place: Tensor  # (n, 4) the object's centre from the corner of the cell, and its size, in cells
    label: Tensor  # (n,) class


def anchor_loss(
    maps: Sequence[Tensor], targets: Tensor, anchors: Tensor, hyp: Mapping[str, float]
) -> dict[str, Tensor]:
    """The three terms of the loss, in float32 and with their gains: "box", "obj" and "cls", a scalar each.

        box = hyp.box Σ_levels mean(1 - CIoU)        over the matched boxes
        obj = hyp.obj Σ_levels balance · BCE(o, t)   over all boxes; t is the matched box's own CIoU, at least 0, or 0
        cls = hyp.cls Σ_levels BCE(c, label)         over the matched boxes; 0 if there is one class only

    v7.0 minimises their sum times B; its autobalance, which v7.0 leaves off, is not here. If objects share a box,
    t is that of the last match; on a GPU any of them may come last.

    Args:
        maps: per level, at most 5, the finest first: (B, boxes, H, W, 5 + nc) raw outputs, before any sigmoid, of any
            floating type: x y w h, objectness, classes.
        targets: (N, 6) image index, class, box centre x y and size w h as fractions of the image. N may be 0.
        anchors: (levels, boxes, 2) width and height in cells.
        hyp: the gains `box`, `obj` and `cls`; `obj_pw` and `cls_pw`, the weights of positives in each BCE; `anchor_t`,
            the factor by which a side of an object may differ from the anchor's; `fl_gamma`, that of the focal loss (Lin et
            al., ICCV 2017) if above 0; `label_smoothing`, 0 if missing.
    """
    balance = BALANCE_OF_THREE if len(maps) == 3 else BALANCE
    targets, anchors = targets.to(maps[0].device, torch.float32), anchors.to(maps[0].device, torch.float32)
    smoothing, gamma = hyp.get("label_smoothing", 0.0), hyp["fl_gamma"]
    box = obj = cls = torch.zeros((), device=maps[0].device)
    for level, (raw, own) in enumerate(zip(maps, anchors, strict=True)):
        raw = raw.float()
        matches = match(targets, own, raw.shape[2], raw.shape[3], hyp["anchor_t"])
        overlap = torch.zeros_like(raw[..., 4])  # (B, boxes, H, W) what objectness should say
        if len(matches.label):
            predicted = raw[matches.where]  # (n, 5 + nc)
            iou = complete_iou(decode(predicted, matches.anchor), matches.place)  # (n,)
            box = box + (1 - iou).mean()
            overlap[matches.where] = iou.detach().clamp(min=0)
            scores = predicted[:, 5:]
            if scores.shape[1] > 1:
                target = F.one_hot(matches.label, scores.shape[1]) * (1 - smoothing) + 0.5 * smoothing
                cls = cls + cross_entropy(scores, target, hyp["cls_pw"], gamma)
        obj = obj + balance[level] * cross_entropy(raw[..., 4], overlap, hyp["obj_pw"], gamma)
    return {"box": hyp["box"] * box, "obj": hyp["obj"] * obj, "cls": hyp["cls"] * cls}


def match(targets: Tensor, anchors: Tensor, rows: int, columns: int, most: float) -> Matches:
    """The boxes of one level that answer for the objects.

    A box does if neither side of its anchor differs from the object's by the factor `most`, and if its cell holds the
    object's centre, or is one of the two neighbours nearest to it.

    Args:
        targets: as in `anchor_loss`.
        anchors: (boxes, 2) of the level, as there.
        rows: H of the level.
        columns: W of the level.
        most: `anchor_t` of `anchor_loss`.
    """
    grid = targets.new_tensor([columns, rows])
    ratio = targets[:, 4:] * grid / anchors[:, None]  # (boxes, N, 2)
    box, row = torch.where(torch.maximum(ratio, 1 / ratio).amax(2) < most)
    targets = targets[row]  # (m, 6): one to a pair of box and object
    centre = targets[:, 2:4] * grid  # in cells from the image's corner
    # (m, 2) x y: is there a neighbour on this side (c > 1), and is it near?
    before, after = ((c > 1) & (c % 1 < REACH) for c in (centre, grid - centre))
    near = torch.stack((torch.ones_like(before[:, 0]), *before.T, *after.T))  # (5, m) in the order of NEIGHBOURS
    # The order of the matches decides which comes last if they share a box: by neighbour, then anchor, then object.
    neighbour, row = torch.where(near)
    targets, centre, box = targets[row], centre[row], box[row]  # n each
    cell = (centre + REACH * targets.new_tensor(NEIGHBOURS)[neighbour]).long()
    cell = torch.minimum(cell.clamp(min=0), grid.long() - 1)  # a centre on the image's far edge
    return Matches(
        where=(targets[:, 0].long(), box, cell[:, 1], cell[:, 0]),
        anchor=anchors[box],
        place=torch.cat((centre - cell, targets[:, 4:] * grid), 1),
        label=targets[:, 1].long(),
    )


def decode(predicted: Tensor, anchor: Tensor) -> Tensor:
    """(n, 5 + nc) raw outputs -> (n, 4) centre from the corner of the cell and size, in cells."""
    p = predicted[:, :4].sigmoid()
    return torch.cat((p[:, :2] * 2 - 0.5, (p[:, 2:] * 2) ** 2 * anchor), 1)


def complete_iou(boxes: Tensor, others: Tensor, eps: float = 1e-7) -> Tensor:
    """Overlap less the distance of the centres and the difference in aspect, in (-1.5, 1]; 1 for equal boxes.

        CIoU = IoU - d² / c² - α v,   v = 4/π² (atan(w'/h') - atan(w/h))²,   α = v / (1 - IoU + v), taken as constant

    d is the distance of the centres, c the diagonal of the smallest box around both, `eps` keeps the divisions defined.
    Boxes are (n, 4) centre and size. Reference: Zheng et al., Distance-IoU Loss, AAAI 2020.
    """
    (a, a_size), (b, b_size) = boxes.split(2, 1), others.split(2, 1)
    a_low, a_high, b_low, b_high = a - a_size / 2, a + a_size / 2, b - b_size / 2, b + b_size / 2
    shared_w, shared_h = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).unbind(1)
    shared = shared_w * shared_h
    iou = shared / (a_size[:, 0] * a_size[:, 1] + b_size[:, 0] * b_size[:, 1] - shared + eps)
    around = ((torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)) ** 2).sum(1) + eps
    apart = ((a - b) ** 2).sum(1)
    v = 4 / math.pi**2 * (torch.atan(b_size[:, 0] / b_size[:, 1]) - torch.atan(a_size[:, 0] / a_size[:, 1])) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return iou - apart / around - alpha * v


def cross_entropy(logits: Tensor, target: Tensor, positive: float, gamma: float) -> Tensor:
    """Mean binary cross entropy, positives weighted by `positive`; the focal loss if `gamma` is above 0."""
    weight = logits.new_tensor(positive)
    loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")
    if gamma > 0:
        p = logits.sigmoid()
        right = target * p + (1 - target) * (1 - p)
        loss = loss * (target * FOCAL_ALPHA + (1 - target) * (1 - FOCAL_ALPHA)) * (1 - right) ** gamma
    return loss.mean()
