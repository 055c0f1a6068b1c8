"""Inputs for the original YOLOv5's loss and for ours, the same bits on every machine and with every release of torch.

Imports torch only: what is compared must not depend on the environment that it runs in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

IMAGES = 2
ROWS, COLUMNS = 8, 12  # of the finest level: an image of 64x96 pixels
HYP = {"box": 0.5, "obj": 1.5, "cls": 0.75, "cls_pw": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0}
SHAPES = ((1.25, 1.625), (2.0, 3.75), (4.125, 2.875))  # anchors of the finest level, in cells


@dataclass(frozen=True)
class Case:
    """One call of the loss; the arguments are those of `distill.yolo.families.yolov5.loss.anchor_loss`."""

    targets: Tensor
    hyp: Mapping[str, float] = field(default_factory=lambda: HYP)
    nc: int = 3
    sizes: tuple[tuple[int, int], ...] = ((ROWS, COLUMNS), (4, 6), (2, 3))  # rows and columns of each level
    reach: float = 2.0  # raw outputs lie within plus and minus this
    seed: int = 1

    def maps(self) -> list[Tensor]:
        shapes = [(IMAGES, len(SHAPES), *size, 5 + self.nc) for size in self.sizes]
        return [uniform(shape, self.seed + level) * 2 * self.reach - self.reach for level, shape in enumerate(shapes)]

    def anchors(self) -> Tensor:
        return torch.stack([torch.tensor(SHAPES) * (1 + level / 4) for level in range(len(self.sizes))])


def uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    """Multiples of 2^-16 in [0, 1) that look random, from integer arithmetic."""
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.int64) + seed * 1_000_003
    for factor in (0x45D9F3B5, 0x2C1B3C6D, 0x297A2D39):
        x = (x ^ (x >> 15)) * factor & 0x7FFFFFFF
    return ((x >> 15).float() / 65536).view(shape)


def objects(count: int, seed: int, nc: int = 3) -> Tensor:
    """(count, 6) targets anywhere in any image, of every size, small ones more often."""
    u = uniform((count, 6), seed)
    return torch.cat(((u[:, :2] * torch.tensor([IMAGES, nc])).floor(), u[:, 2:4], u[:, 4:] ** 2 + 1 / 64), 1)


def border() -> Tensor:
    """Centres on edges and corners of the image, of cells, and halfway."""
    places = [(x, y) for x in (0.0, 1 / 12, 0.125, 0.5, 1.0) for y in (0.0, 0.1875, 0.25, 1.0)]
    return torch.tensor([[i % IMAGES, i % 3, x, y, 0.25, 0.3125] for i, (x, y) in enumerate(places)])


def crowd() -> Tensor:
    """Objects of one class that share the boxes of a cell and of its neighbours."""
    u = uniform((9, 4), 7) / 16
    return torch.cat((torch.tensor([[1.0, 2.0]]).expand(9, 2), 0.5 + u[:, :2], 0.25 + u[:, 2:]), 1)


def cases() -> dict[str, Case]:
    mixed = objects(16, 3)
    plain = Case(mixed)
    return {
        "plain": plain,
        "one class": Case(objects(16, 4, nc=1), nc=1),
        "many classes": Case(objects(16, 5, nc=20), nc=20, sizes=((4, 6), (2, 3), (1, 2))),
        "four levels": Case(mixed, sizes=((8, 16), (4, 8), (2, 4), (1, 2))),
        "smoothed labels": replace(plain, hyp={**HYP, "label_smoothing": 0.1}),
        "focal": replace(plain, hyp={**HYP, "fl_gamma": 1.5}),
        "focal, weighted, smoothed": replace(
            plain, hyp={**HYP, "fl_gamma": 1.5, "cls_pw": 1.5, "obj_pw": 0.75, "label_smoothing": 0.1}
        ),
        "weighted": replace(plain, hyp={**HYP, "cls_pw": 1.5, "obj_pw": 0.75}),
        "strict shapes": replace(plain, hyp={**HYP, "anchor_t": 2.0}),
        "no targets": Case(torch.zeros(0, 6)),
        "one match": Case(
            torch.tensor([[1.0, 2.0, 0.375, 0.4375, 0.078125, 0.125]]), hyp={**HYP, "anchor_t": 1.75}, reach=0.5
        ),
        "small only": Case(
            torch.tensor([[0.0, 1.0, 0.3, 0.7, 0.03125, 0.046875], [1.0, 0.0, 0.6, 0.2, 0.0625, 0.0625]]), reach=0.5
        ),
        "border": Case(border()),
        "crowd": Case(crowd()),
        "equal boxes": Case(torch.tensor([[0.0, 0.0, 0.375, 0.4375, 2 / 12, 3.75 / 8]]), reach=0.0),
        "far boxes": Case(mixed, reach=16.0),
    }
