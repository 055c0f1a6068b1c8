"""The families of detectors that are supported, and the look-up of a network's own."""

from __future__ import annotations

from torch import nn

from distill.errors import DistillError
from distill.yolo.families.end_to_end import END_TO_END
from distill.yolo.families.family import Family
from distill.yolo.families.obb import ORIENTED, ORIENTED26
from distill.yolo.families.pose import POSE, POSE26
from distill.yolo.families.segment import SEGMENT, SEGMENT26
from distill.yolo.families.ultralytics_dfl import DFL
from distill.yolo.families.yolov5.family import ANCHOR
from distill.yolo.tasks.detect import DETECT

FAMILIES: tuple[Family, ...] = (
    ANCHOR,
    DFL,
    END_TO_END,
    SEGMENT,
    SEGMENT26,
    POSE,
    POSE26,
    ORIENTED,
    ORIENTED26,
)


def family_of(model: nn.Module, source: object = "the network") -> Family:
    """The family whose head a network, which need not be a YOLO, ends in.

    Raises:
        DistillError: the head is of no family. The message names it and what is supported, and calls the network `source`.
    """
    layers = getattr(model, "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) and len(layers) else model
    for family in FAMILIES:
        if family.owns(head):
            return family
    why = " with one of its two branches, as fusing leaves it" if getattr(head, "cv2", head) is None else ""
    raise DistillError(f"{source} ends in the head {type(head).__name__}{why}: {supported()}")


def gives_of(model: nn.Module) -> frozenset[str]:
    """What a detector's head has of what a loss may ask for, as `Family.gives`."""
    return family_of(model).gives(model.model[-1])  # type: ignore[index]


def supported() -> str:
    """What is supported, for the end of a message."""
    *first, last = (family.title for family in FAMILIES if family.task is DETECT)
    others = "".join(f"{family.title}, " for family in FAMILIES if family.task is not DETECT)
    return f"only {others}and detectors of {', of '.join(first)} and of {last} are supported"


def stride_of(model: nn.Module) -> int:
    """The largest stride of a detector: both sides of its input are multiples of it."""
    return int(model.stride.max())  # type: ignore[operator, union-attr]
