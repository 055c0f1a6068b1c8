"""Losses on the features that enter the head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.context import LossContext


def feature_pkd(ctx: LossContext) -> Tensor:
    """How badly each kept channel correlates with the teacher's channel that it was cut from.

    Every channel is brought to zero mean and unit variance over batch and space, s' and t'. Then, per level,

        L = 1/2 · mean (s' − t')² = 1 − mean over channels of Pearson's r(s, t)

    and the mean over levels: 0 for channels equal up to scale and shift, 1 for unrelated ones, 2 for opposite ones.
    Scale and shift are free because the next convolution may undo them.

    Args:
        ctx: reads `features("neck")`, pairs of (B, C, H, W).

    Reference: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient, NeurIPS 2022.
    """
    levels = [0.5 * F.mse_loss(_standardise(student), _standardise(teacher)) for student, teacher in ctx.features()]
    return torch.stack(levels).mean()


def _standardise(feature: Tensor) -> Tensor:
    # The floor keeps the gradient of a channel that is constant in this batch bounded.
    variance, mean = torch.var_mean(feature, dim=(0, 2, 3), keepdim=True, correction=0)
    return (feature - mean) * torch.rsqrt(variance + 1e-6)
