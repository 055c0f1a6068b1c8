"""The teacher's boxes as labels: the student's own loss on labels, on images that need have none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.base import LossModule, Networks
from distill.losses.context import LossContext, probabilities
from distill.losses.selection import OVERLAP, kept
from distill.yolo.families.outputs import label_terms
from distill.yolo.families.table import family_of


class PseudoLabels(LossModule):
    """The student's own loss on labels, with the boxes that the teacher is sure of for labels.

    A box counts if it is left after non-maximum suppression and its best class probability, times objectness if the
    teacher has that, is at least `threshold`. The head's own assigner matches it to anchors, as it does with a
    person's labels. Meant for images without labels; beside labels it repeats them where the teacher is right. It is not 0
    for a student that equals its teacher. Its terms are those of the labels, gains included, in one sum.

    Args:
        threshold: probability from which a box is a label, above 0 and at most 1.
        overlap: intersection over union above which two boxes of a class are one.

    Raises:
        DistillError: a threshold out of range.

    Reference: Lee, Pseudo-Label, ICML Workshops 2013; for detectors, Sohn et al., STAC,
    [arXiv:2005.04757](https://arxiv.org/abs/2005.04757).
    """

    reads = ("boxes", "scores", "objectness", "images")

    def __init__(self, threshold: float = 0.5, overlap: float = OVERLAP) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise DistillError(f"loss 'pseudo_labels': threshold is above 0 and at most 1, not {threshold}")
        self.threshold, self.overlap = threshold, overlap
        self._student: list[nn.Module] = []

    def supports(self, teacher: nn.Module) -> str | None:
        """A head that learns more than boxes from labels would get none of that."""
        task = family_of(teacher).task
        if task.rows.strict:
            return f"its labels are boxes, and {task.title} learns from {task.rows.line} too: take it out of the recipe"
        return None

    def setup(self, networks: Networks) -> None:
        """Keep the student, whose loss on labels it is."""
        if reason := self.supports(networks.student):
            raise DistillError(f"loss 'pseudo_labels': {reason}")
        self._student = [networks.student]  # in a list, because a Module in an attribute would become a submodule

    def forward(self, ctx: LossContext) -> Tensor:
        """The loss of a batch; reads the teacher's boxes and scores, and the student's raw outputs."""
        batch = {"img": ctx.images, **self.labels(ctx)}
        return torch.stack([*label_terms(self._student[0], ctx.student, batch).values()]).sum()

    @torch.no_grad()
    def labels(self, ctx: LossContext) -> dict[str, Tensor]:
        """What the teacher is sure of, as a loader gives labels.

        Returns:
            `batch_idx` (n,), `cls` (n, 1) and `bboxes` (n, 4), centre and size as parts of the image.
        """
        scores = probabilities(ctx.teacher.scores, ctx.teacher.objectness)
        boxes = ctx.teacher.boxes
        quality, label = scores.max(-1)
        image, anchor = torch.where(kept(boxes, scores, self.overlap) & (quality >= self.threshold))
        height, width = ctx.images.shape[-2:]
        size = boxes.new_tensor([width, height])
        low, high = (corner.clamp(min=0).minimum(size) for corner in boxes[image, anchor].split(2, -1))
        seen = ((high - low) > 0).all(-1)
        places = torch.cat(((low + high) / 2, high - low), -1) / size.repeat(2)
        return {
            "batch_idx": image[seen].float(),
            "cls": label[image, anchor][seen, None].float(),
            "bboxes": places[seen],
        }


LOSSES: dict[str, type[nn.Module]] = {"pseudo_labels": PseudoLabels}
