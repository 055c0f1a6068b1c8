"""What a student has lost: its mAP with the boxes, and with the scores, that the teacher gives at the same places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.evaluation.evaluate import Exchange

PARTS = {"boxes": slice(0, 4), "scores": slice(4, None)}  # rows of a prediction (B, 4 + nc, A)


def of_teacher(teacher: nn.Module, part: str, device: torch.device) -> Exchange:
    """For `evaluate`: a student keeps its predictions, but for the boxes or the scores, which are the teacher's.

    The two must predict at the same places, as a network and its pruned copy do.

    Args:
        teacher: an ultralytics DetectionModel, or an original YOLOv5 as `checkpoint.load` gives it; copied.
        part: "boxes" or "scores".
        device: where the student is measured.
    """
    network: Any = checkpoint.fused(teacher).to(device)

    def exchange(images: Tensor, predicted: Tensor) -> Tensor:
        theirs = network(images)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        if theirs.shape != predicted.shape:
            sizes = f"{tuple(theirs.shape[1:])} and {tuple(predicted.shape[1:])} values an image"
            raise DistillError(f"teacher and student do not predict at the same places ({sizes}): is it its teacher?")
        mixed = predicted.clone()
        mixed[:, PARTS[part]] = theirs[:, PARTS[part]]
        return mixed

    return exchange
