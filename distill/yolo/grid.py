"""Where the anchors of a pyramid stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cells_of(levels: Sequence[Tensor], strides: Tensor, boxes: int = 1) -> tuple[Tensor, Tensor]:
    """Centre of every anchor's cell and its stride, in the order level, box, row, column.

    Args:
        levels: one (..., H, W) to a level.
        strides: (levels,) pixels to a cell.
        boxes: anchors to a cell.

    Returns:
        (A, 2) as x y in cells and (A, 1) in pixels: in float32, for bfloat16 ends at 256.
    """
    cells, pixels = [], []
    for feature, stride in zip(levels, strides.tolist(), strict=True):
        rows, columns = (torch.arange(n, device=feature.device) + 0.5 for n in feature.shape[-2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        cells.append(torch.stack((x, y), -1).flatten(0, 1).repeat(boxes, 1))
        pixels.append(torch.full_like(cells[-1][:, :1], stride))
    return torch.cat(cells), torch.cat(pixels)
