"""What a loss receives: the outputs of both networks for one batch, decoded only when a loss asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.errors import DistillError


@dataclass(frozen=True, eq=False)
class Outputs:
    """One network's raw outputs for a batch of B images with A anchors, nc classes and R bins to a box side.

    The fields are what the network gave, in its own precision; the properties are what losses read, in float32.

    Args:
        neck: the features that enter the head, one (B, C, H, W) per pyramid level.
        class_logits: (B, A, nc).
        side_logits: (B, A, 4, R) for a head that predicts a distribution over distances to each box side.
        decode: gives the boxes, (B, A, 4) as x1 y1 x2 y2 in input pixels.
        strides: (A,) input pixels to a cell of each anchor's level.
        raw: the outputs as the network's own loss takes them.
        objectness_logits: (B, A) for a head that predicts beside the classes whether an anchor holds an object.
    """

    neck: tuple[Tensor, ...]
    class_logits: Tensor
    side_logits: Tensor | None = None
    decode: Callable[[], Tensor] | None = None
    strides: Tensor | None = None
    raw: Any = None
    objectness_logits: Tensor | None = None

    def __repr__(self) -> str:
        batch, anchors, classes = self.class_logits.shape
        return f"Outputs({batch} images, {anchors} anchors, {classes} classes, {len(self.neck)} levels)"

    @cached_property
    def features(self) -> tuple[Tensor, ...]:
        """Features that enter the head, one (B, C, H, W) per level."""
        return tuple(feature.float() for feature in self.neck)

    @cached_property
    def scores(self) -> Tensor:
        """Class logits, (B, A, nc)."""
        return self.class_logits.float()

    @cached_property
    def dist(self) -> Tensor | None:
        """Logits of the distances to the left, top, right and bottom side, (B, A, 4, R), or None without DFL."""
        return None if self.side_logits is None else self.side_logits.float()

    @cached_property
    def objectness(self) -> Tensor | None:
        """Logits of an anchor holding an object, (B, A), or None if class scores say it too."""
        return None if self.objectness_logits is None else self.objectness_logits.float()

    @cached_property
    def boxes(self) -> Tensor:
        """Decoded boxes, (B, A, 4) as x1 y1 x2 y2 in input pixels."""
        if self.decode is None:
            raise DistillError("a loss asks for boxes, but this network predicts none: take the loss out of the recipe")
        return self.decode().float()

    def tensors(self) -> list[Tensor]:
        """Every tensor that a loss can reach the network through."""
        reachable = [*self.neck, self.class_logits, self.side_logits, self.objectness_logits]
        return [tensor for tensor in reachable if tensor is not None and tensor.requires_grad]


@dataclass(frozen=True, eq=False)
class LossContext:
    """Everything a loss may read about one batch. Read-only, and float32 whatever precision the networks run in.

    Args:
        images: (B, 3, H, W) in [0, 1].
        student: outputs of the network in training.
        teacher: outputs of the frozen original, without gradient.
        targets: the batch's labels as its loader gives them, or None if the data has none.
        progress: share of the training that is done, 0 to 1.
        keep: per level the teacher's channels that the student still has; None if it has them all.
    """

    images: Tensor
    student: Outputs
    teacher: Outputs
    targets: Mapping[str, Any] | None = None
    progress: float = 0.0
    keep: tuple[Tensor, ...] | None = None

    def __repr__(self) -> str:
        return f"LossContext(images {tuple(self.images.shape)}, student={self.student!r}, progress {self.progress:.0%})"

    def features(self, level: str = "neck") -> list[tuple[Tensor, Tensor]]:
        """Pairs (student, teacher) of features of equal shape (B, C, H, W), one pair per pyramid level.

        Student channel i was cut from teacher channel keep[i], so the two compare without a projector.
        """
        if level != "neck":
            raise DistillError(f"a loss asks for features at '{level}': there are features at 'neck' only")
        return self._neck

    @cached_property
    def _neck(self) -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for index, (student, teacher) in enumerate(zip(self.student.features, self.teacher.features, strict=True)):
            if self.keep is not None:
                teacher = teacher.index_select(1, self.keep[index])
            if student.shape != teacher.shape:
                raise DistillError(
                    f"features of level {index}: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}; "
                    "the plan that cut this student belongs to another teacher"
                )
            pairs.append((student, teacher))
        return pairs

    @cached_property
    def quality(self) -> Tensor:
        """How sure the teacher is that an anchor holds an object, (B, A)."""
        with torch.no_grad():
            return anchor_quality(self.teacher.scores, self.teacher.objectness)

    @property
    def strides(self) -> Tensor | None:
        """Input pixels to a cell of each anchor's level, (A,)."""
        return self.teacher.strides


def anchor_quality(scores: Tensor, objectness: Tensor | None = None) -> Tensor:
    """How sure a network is that an anchor holds an object: its best class probability, times objectness if it has that.

    Shape: logits (B, A, nc), (B, A) -> (B, A), 0 to 1.
    """
    best = scores.sigmoid().amax(-1)
    return best if objectness is None else best * objectness.sigmoid()
