"""The families of detectors that are supported, and the look-up of a network's own."""

from __future__ import annotations

from torch import nn

from distill.errors import DistillError
from distill.yolo.families.family import Family
from distill.yolo.families.ultralytics_dfl import DFL
from distill.yolo.families.yolov5.family import ANCHOR

FAMILIES: tuple[Family, ...] = (ANCHOR, DFL)


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
    end_to_end = getattr(head, "one2one_cv2", None) is not None or getattr(head, "end2end", False)
    why = ", which works without NMS (YOLOv10, YOLO26)" if end_to_end else ""
    raise DistillError(f"{source} ends in the head {type(head).__name__}{why}: {supported()}")


def gives_of(model: nn.Module) -> frozenset[str]:
    """What a detector's head has of what a loss may ask for, as `Family.gives`."""
    return family_of(model).gives(model.model[-1])  # type: ignore[index]


def supported() -> str:
    """What is supported, for the end of a message."""
    return f"only detectors of {' and of '.join(family.title for family in FAMILIES)} are supported"


def stride_of(model: nn.Module) -> int:
    """The largest stride of a detector: both sides of its input are multiples of it."""
    return int(model.stride.max())  # type: ignore[operator, union-attr]
