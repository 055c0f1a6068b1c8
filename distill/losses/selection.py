"""Which anchors a loss looks at: all, or those alone whose boxes a network is left with after non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

ALL, KEPT = "all", "kept"
OVERLAP = 0.6  # of two boxes of a class that overlap by more than this, the surer one counts
MOST = 100  # boxes to an image


def kept(boxes: Tensor, probabilities: Tensor, overlap: float = OVERLAP, most: int = MOST) -> Tensor:
    """The anchors whose boxes are left after non-maximum suppression, each as one of its best class.

    A box goes if a surer one of its class that stays overlaps it. It is the greedy rule, computed for all images at once: which
    boxes stay follows from which stay, and repeating that ends where the greedy rule ends (Zheng et al., Cluster-NMS, IEEE
    Transactions on Cybernetics 2021).

    Args:
        boxes: as x1 y1 x2 y2.
        probabilities: of each class.
        overlap: the intersection over union above which two boxes are of one object.
        most: how many of the surest boxes of an image are looked at; the others go.

    Shape: (B, A, 4), (B, A, nc) -> (B, A) bool.
    """
    quality, label = probabilities.max(-1)  # (B, A)
    order = quality.topk(min(most, quality.shape[1]), 1).indices  # (B, K), the surest first
    chosen = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    labels = label.gather(1, order)
    above = (_overlaps(chosen) > overlap) & (labels[:, :, None] == labels[:, None])
    above = above.triu(1)  # (B, K, K): box i would take out box j
    stays = torch.ones_like(order, dtype=torch.bool)
    for _ in range(order.shape[1]):
        before, stays = stays, ~(above & stays[:, :, None]).any(1)
        if torch.equal(before, stays):
            break
    return torch.zeros_like(quality, dtype=torch.bool).scatter(1, order, stays)


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes of an image. Shape: (B, K, 4) -> (B, K, K)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    shared = (torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])).clamp(
        min=0
    )
    area, both = (high - low).clamp(min=0).prod(-1), shared.prod(-1)
    return both / (area[:, :, None] + area[:, None] - both).clamp(min=1e-6)
