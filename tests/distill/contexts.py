"""What the tests of losses give a loss: outputs of a small head, random or chosen by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distill.losses.context import Channels, LossContext, Outputs

CENTRES = torch.rand(20, 2, generator=torch.Generator().manual_seed(9)) * 32


def leaves(seed: int, objectness: bool = False) -> dict[str, Tensor]:
    """What a head with levels of 4x4 and 2x2 cells gives for two images: 3 classes, 8 bins to a side, and all of every task."""
    make = torch.Generator().manual_seed(seed)
    shapes = {"near": (2, 6, 4, 4), "far": (2, 6, 2, 2), "scores": (2, 20, 3), "sides": (2, 20, 4, 8)}
    if objectness:
        shapes["objectness"] = (2, 20)
    shapes |= {"coefficients": (2, 20, 4), "prototypes": (2, 4, 8, 8), "points": (2, 20, 5, 3), "angles": (2, 20)}
    return {name: torch.randn(shape, generator=make) for name, shape in shapes.items()}


def outputs(tensors: Mapping[str, Tensor]) -> Outputs:
    def decode() -> Tensor:
        distance = (tensors["sides"].softmax(-1) * torch.arange(8)).sum(-1)
        return torch.cat((CENTRES - distance[..., :2], CENTRES + distance[..., 2:]), -1)

    neck = (tensors["near"], tensors["far"])
    strides = torch.tensor([8.0] * 16 + [16.0] * 4)
    return Outputs(
        neck,
        tensors["scores"],
        tensors["sides"],
        decode,
        strides,
        objectness_logits=tensors.get("objectness"),
        mask_coefficients=tensors["coefficients"],
        prototypes=tensors["prototypes"],
        keypoints=tensors["points"],
        spreads=torch.full((5,), 0.2),
        angles=tensors["angles"],
    )


def context(
    student: Outputs,
    teacher: Outputs,
    keep: list[list[int]] | None = None,
    targets: Mapping[str, Any] | None = None,
) -> LossContext:
    channels = {} if keep is None else {"neck": [Channels(level) for level in keep]}
    return LossContext(torch.zeros(2, 3, 32, 32), student, teacher, targets, channels=channels)


def anchors(
    probabilities: list[float], boxes: list[list[float]] | None = None, objectness: list[float] | None = None
) -> Outputs:
    """One image, one class, an anchor for each probability."""
    logits = torch.logit(torch.tensor(probabilities))[None, :, None]
    sides, there = torch.zeros(1, len(probabilities), 4, 2), None
    if objectness is not None:
        there = torch.logit(torch.tensor(objectness))[None]
    return Outputs((), logits, sides, lambda: torch.tensor(boxes)[None], objectness_logits=there)


def classes(rows: list[list[float]]) -> Outputs:
    """A classifier's: for each image a row with the probability of each class."""
    return Outputs((), torch.tensor(rows).log()[:, None])


def maps(*levels: Tensor, scores: Tensor | None = None) -> Outputs:
    """Features (B, C, H, W), and class logits (B, A, 1) where a loss reads them."""
    return Outputs(levels, torch.zeros(1, 1, 1) if scores is None else scores)
