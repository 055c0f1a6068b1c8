"""ultralytics' Detect head with NMS (YOLOv3 to YOLO12): one box to a cell, its sides as distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from distill.losses.context import Decode, Outputs
from distill.yolo.families.family import Family
from distill.yolo.families.views import without_distributions
from distill.yolo.families.yolov5.head import BOX
from distill.yolo.upstream import Detect

DIST = frozenset({"dist"})  # what a head with distributions over box sides gives; with `reg_max: 1` it has none
ENTRY = "cv2.{level}.0.conv"  # one of the convolutions that read a level
SMALLEST = 0.5  # cells: a box whose sides are predicted closer together, or the wrong way round, is taken as this large


def single(kind: type[nn.Module]) -> Callable[[nn.Module], bool]:
    """Whether a last layer is a head of a class. The same class can have a second branch, which works without NMS."""

    def owns(head: nn.Module) -> bool:
        both = [getattr(head, name, None) for name in ("cv2", "one2one_cv2")]
        return type(head) is kind and both[0] is not None and both[1] is None

    return owns


def outputs(head: nn.Module, raw: Any) -> Outputs:
    """What losses read, of what a network with this head returned in train mode."""
    cells, strides = grid(raw["feats"], cast(Any, head).stride)
    sides = rearrange(raw["boxes"], "b (side bin) a -> b a side bin", bin=cast(Any, head).reg_max)
    return Outputs(
        neck=tuple(raw["feats"]),
        class_logits=raw["scores"].transpose(1, 2),
        side_logits=sides if sides.shape[-1] > 1 else None,
        decode=Decode(sides, lambda predicted, anchor: decode(predicted, cells[anchor], strides[anchor])),
        strides=strides.squeeze(-1),
        raw=raw,
    )


def decode(sides: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """Boxes in pixels from what a head predicts of their sides.

    Args:
        sides: (..., A, 4, R), logits over the distances 0, 1, …, R − 1 cells to the left, top, right and bottom side;
            with R = 1 the distance itself.
        cells: (A, 2) centre of each anchor in cells.
        strides: (A, 1) pixels to a cell.

    Returns:
        (..., A, 4) as x1 y1 x2 y2 in input pixels.
    """
    sides = sides.float()
    bins = sides.shape[-1]
    values = torch.arange(bins, device=sides.device, dtype=sides.dtype)
    distance = (sides.softmax(-1) * values).sum(-1) if bins > 1 else sides.squeeze(-1)
    return torch.cat((cells - distance[..., :2], cells + distance[..., 2:]), -1) * strides


def distances(head: Any, raw: Any) -> Tensor:
    """How far the sides of a box are from its anchor, without gradient: (B, 4, A), left, top, right and bottom in cells."""
    logits = raw["boxes"].detach().float().unflatten(1, (4, head.reg_max))  # (B, 4, R, A)
    if head.reg_max == 1:
        return logits[:, :, 0]
    return torch.einsum("bsra,r->bsa", logits.softmax(2), torch.arange(head.reg_max, device=logits.device).float())


def sizes(head: Any, raw: Any) -> tuple[Tensor, Tensor]:
    """Width and height of the boxes in cells, at least SMALLEST, without gradient: (B, A) each."""
    sides = distances(head, raw)
    width, height = (sides[:, :2] + sides[:, 2:]).clamp(min=SMALLEST).unbind(1)
    return width, height


def grid(levels: Sequence[Tensor], strides: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of every cell in cells, (A, 2) as x y, and its stride, (A, 1): in float32, for bfloat16 ends at 256."""
    cells, pixels = [], []
    for feature, stride in zip(levels, strides.tolist(), strict=True):
        rows, columns = (torch.arange(n, device=feature.device) + 0.5 for n in feature.shape[-2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        cells.append(torch.stack((x, y), -1).flatten(0, 1))
        pixels.append(torch.full_like(cells[-1][:, :1], stride))
    return torch.cat(cells), torch.cat(pixels)


def label_terms(model: nn.Module, outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The loss of ultralytics on labels; its gains are in the model's `args`, as its trainer sets them."""
    terms, parts = cast(Any, model).loss(batch, outputs.raw)  # summed over the batch; and detached, by name
    return dict(zip(parts, terms / len(batch["img"]), strict=True))


def sensitivity(head: nn.Module, raw: Any) -> Tensor:
    """Noise on scores (B, nc, A) and boxes (B, 4 * R, A), shaped by the outputs' own metric.

    Its squared gradient is, in expectation, the Gauss-Newton diagonal of
    KL(original scores || changed) + best score * KL(original box distributions || changed), summed over anchors. Without
    distributions (`reg_max: 1`) the latter is BOX^2 * |change of the box's sides in box sizes|^2.
    """
    scores, boxes = raw["scores"].float(), raw["boxes"].float()
    p = scores.detach().sigmoid()
    total = (scores * (p * (1 - p)).sqrt() * torch.randn_like(scores)).sum()
    best = p.amax(1)[:, None]  # (B, 1, A): a box matters as much as its anchor is believed
    if cast(Any, head).reg_max == 1:
        across = BOX / torch.stack(sizes(head, raw) * 2, 1)  # by how much a cell more at a side weighs, (B, 4, A)
        return total + (boxes * across * best.sqrt() * torch.randn_like(boxes)).sum()
    logits = boxes.unflatten(1, (4, cast(Any, head).reg_max))  # (B, 4, R, A)
    root = logits.detach().softmax(2).sqrt()
    noise = torch.randn_like(logits)
    # A square root of diag(q) - q q^T, which is the metric of a softmax.
    shaped = root * (noise - root * (root * noise).sum(2, keepdim=True))
    return total + (logits * shaped * best[:, None].sqrt()).sum()


def reorder(head: nn.Module, order: Sequence[int]) -> None:
    """Put the classes of a head into another order: class i is what was class order[i]."""
    reorder_classes(cast(Any, head).cv3, order)


def reorder_classes(branches: Iterable[Any], order: Sequence[int]) -> None:
    """The same of the parts of a head that give its scores, one for a level."""
    with torch.no_grad():
        for branch in branches:
            for parameter in branch[-1].parameters():  # weight and bias of the last convolution, a row to a class
                parameter.copy_(parameter[list(order)])


def gives(head: Any) -> frozenset[str]:
    """What the head has of what a loss may ask for."""
    return DIST if head.reg_max > 1 else frozenset()


def alike(head: Any, other: Any) -> bool:
    """Whether two heads predict box sides in as many bins."""
    return head.reg_max == other.reg_max


DFL = Family(
    title="ultralytics' YOLOv3, v5, v6, v8, v9, YOLO11 and YOLO12",
    owns=single(Detect),
    outputs=outputs,
    label_terms=label_terms,
    sensitivity=sensitivity,
    entry=ENTRY,
    gives=gives,
    alike=alike,
    by_cell=without_distributions,
    reorder=reorder,
)
