"""The detection heads there are, and what differs between them. Everything else is the same for every YOLO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from distill.losses.context import Outputs
from distill.yolo.heads import anchor_head, dfl_head
from distill.yolo.heads.anchor_head import AnchorDetect


@dataclass(frozen=True)
class Head:
    """How to read, teach and judge a kind of head.

    Attributes:
        outputs: (head, what the network returned in train mode) -> what losses read.
        label_terms: (model, its outputs, batch) -> the head's own loss on labels by name, means per image.
        sensitivity: (head, what the network returned in train mode) -> the scalar that `prune` back-propagates.
        entry: path in the head of the convolution that reads level {level}.
        gives: what it has of what a loss may ask for: "dist", "objectness", "softmax".
        original: whether it is of the original YOLOv5, which measures mAP a little differently than ultralytics (see
            `distill.yolo.evaluation.evaluate`) and has a checkpoint format of its own.
    """

    outputs: Callable[[nn.Module, Any], Outputs]
    label_terms: Callable[[nn.Module, Outputs, Mapping[str, Any]], dict[str, Tensor]]
    sensitivity: Callable[[nn.Module, Any], Tensor]
    entry: str
    gives: frozenset[str]
    original: bool


DFL = Head(
    dfl_head.outputs,
    dfl_head.label_terms,
    dfl_head.sensitivity,
    "cv2.{level}.0.conv",
    frozenset({"dist"}),
    original=False,
)
ANCHOR = Head(
    anchor_head.outputs,
    anchor_head.label_terms,
    anchor_head.sensitivity,
    "m.{level}",
    frozenset({"objectness"}),
    original=True,
)


def stride_of(model: nn.Module) -> int:
    """The largest stride of a detector: what both sides of its input are multiples of."""
    return int(model.stride.max())  # type: ignore[operator, union-attr]


def head_of(model: nn.Module) -> Head:
    """The kind of head that a network ends in."""
    return ANCHOR if isinstance(model.model[-1], AnchorDetect) else DFL  # type: ignore[index]
