"""Outputs of a detector as one box to a cell, in which heads of every kind can be compared."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.context import Outputs


def without_distributions(outputs: Outputs) -> Outputs:
    """The same boxes and scores, without the distributions over box sides. For a head of one box to a cell."""
    return replace(outputs, side_logits=None, beside=tuple(map(without_distributions, outputs.beside)))


def best_of_cell(outputs: Outputs) -> Outputs:
    """Of each cell the box whose objectness times best class probability is highest. Differentiable for that box.

    Its class logits are those of objectness o times class probability c: log p - log (1 - p), p = sigmoid(o) sigmoid(c).

    Args:
        outputs: of a head with objectness, whose A anchors lie as (box, row, column) on each level of its neck.

    Returns:
        Outputs with as many anchors as there are cells, in the order (row, column), and without objectness.
    """
    scores, objectness = outputs.scores, outputs.objectness
    assert objectness is not None
    cells = [feature.shape[-2:].numel() for feature in outputs.neck]
    boxes = scores.shape[1] // sum(cells)  # to a cell
    with torch.no_grad():
        quality = F.logsigmoid(objectness) + F.logsigmoid(scores).amax(-1)  # (B, A)
        chosen, first = [], 0
        for part, count in zip(quality.split([boxes * count for count in cells], 1), cells, strict=True):
            best = part.unflatten(1, (boxes, count)).argmax(1)  # (B, count) which box
            chosen.append(first + best * count + torch.arange(count, device=best.device))
            first += boxes * count
        index = torch.cat(chosen, 1)  # (B, cells) the anchors

    def of(values: Tensor) -> Tensor:
        return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))

    there, classes = of(objectness[..., None]), of(scores)
    log_p = F.logsigmoid(there) + F.logsigmoid(classes)
    log_rest = torch.logaddexp(F.logsigmoid(-there), F.logsigmoid(there) + F.logsigmoid(-classes))
    strides = outputs.strides
    return replace(
        outputs,
        class_logits=log_p - log_rest,
        objectness_logits=None,
        decode=None if outputs.decode is None else lambda: of(outputs.boxes),
        strides=None if strides is None else strides[index[0]],
    )
