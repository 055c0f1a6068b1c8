"""What a student has lost: its mAP with the boxes, or with the scores, that the teacher gives at the same places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.evaluation.evaluate import Swap

PARTS = {"boxes": slice(0, 4), "scores": slice(4, None)}  # rows of a prediction (B, 4 + nc, A)


def swap_with_teacher(teacher: nn.Module, part: str, device: torch.device) -> Swap:
    """For `evaluate`: replaces the boxes, or the scores, of a student's predictions by the teacher's.

    Args:
        teacher: an ultralytics DetectionModel that predicts at the same places, as the student's own teacher does; copied.
        part: "boxes" or "scores".
        device: where the student is measured.

    Returns:
        A function that raises `DistillError` if the two do not predict at the same places.
    """
    network: Any = checkpoint.fused(teacher).to(device)

    def swap(images: Tensor, predicted: Tensor) -> Tensor:
        from_teacher = network(images)
        from_teacher = from_teacher[0] if isinstance(from_teacher, tuple) else from_teacher
        if from_teacher.shape != predicted.shape:
            sizes = f"{tuple(from_teacher.shape[1:])} and {tuple(predicted.shape[1:])} values an image"
            raise DistillError(f"teacher and student do not predict at the same places ({sizes}): is it its teacher?")
        mixed = predicted.clone()
        mixed[:, PARTS[part]] = from_teacher[:, PARTS[part]]
        return mixed

    return swap
