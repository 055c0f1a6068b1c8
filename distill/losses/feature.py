"""Losses on the features that enter the head, without parameters: each compares a student's map with its teacher's.

Every one is a mean over pyramid levels. The student's channel i was cut from one channel of the teacher, and is
compared with that one, so nothing need be learned to make the two alike. `feature_pkd` forgives a channel's scale and
shift, `feature_cwd` its shift, `feature_at` all but where the channels together are strong, `feature_fgd` nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.context import LossContext


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


def feature_cwd(ctx: LossContext, temperature: float = 1.0) -> Tensor:
    """Divergence of where each channel is strong from where the teacher's channel is (channel-wise distillation).

    A channel becomes a distribution over its H · W positions, softmax(f / T). Then, per level,

        L = T² · mean over images and channels of KL(softmax(t / T) ‖ softmax(s / T))

    and the mean over levels. A shift of a whole channel changes nothing; its strongest positions count most.

    Args:
        ctx: reads `features("neck")`, pairs of (B, C, H, W).
        temperature: T; above 1 weak positions count more.

    Reference: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021.
    """
    levels = []
    for pair in ctx.features():
        student, teacher = (F.log_softmax(feature.flatten(2) / temperature, dim=-1) for feature in pair)
        levels.append(F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean())
    return temperature**2 * torch.stack(levels).mean()


def feature_at(ctx: LossContext) -> Tensor:
    """Squared distance between the maps of where student and teacher are strong, channels summed (attention transfer).

    The attention of a feature is a(f) = v / ‖v‖, v the sum over channels of f² at each of the H · W positions. Then,
    per level,

        L = mean over images of ‖a(s) − a(t)‖²

    and the mean over levels: 0 for maps equal up to scale, 2 for maps that nowhere overlap. The student is held to the
    channels that it kept, so where the teacher is strong in others is not asked of it.

    Args:
        ctx: reads `features("neck")`, pairs of (B, C, H, W).

    Reference: Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017.
    """
    levels = []
    for pair in ctx.features():
        student, teacher = (F.normalize(feature.square().sum(1).flatten(1), dim=1, eps=1e-6) for feature in pair)
        levels.append((student - teacher).square().sum(1).mean())
    return torch.stack(levels).mean()


def feature_fgd(ctx: LossContext, temperature: float = 0.5, background: float = 0.5, attention: float = 0.5) -> Tensor:
    """Squared difference of features where the teacher looks, objects and background apart (focal distillation).

    A teacher's attention is, at a position, P = H · W · softmax(mean over channels of |t| / T), and for a channel,
    K = C · softmax(mean over positions of |t| / T): both are 1 on average. With its quality q at each position,

        D = P · 1/C Σ_c K · (s − t)²
        L = Σ q · D / max(1, Σ q) + background · Σ (1 − q) · D / max(1, Σ (1 − q))
            + attention · (mean |P(s) − P(t)| + mean |K(s) − K(t)|)

    for each image and level, sums over positions; then the mean over both.

    This is the paper's focal part, but for two things. No label is asked where objects are: q, the best of a cell's
    anchors, says it, so an object counts as much as the teacher sees of it, and it learns from unlabelled images. And
    the sums are means, so that a weight means the same at any size of image or feature. The paper's global part, a
    context block with parameters of its own, is left out.

    Args:
        ctx: reads `features("neck")`, pairs of (B, C, H, W), and `quality`, (B, A), A a multiple of the cells of all
            levels: per level (boxes to a cell, H, W).
        temperature: T; lower sharpens the attention.
        background: weight of the background beside the objects; the paper's ratio.
        attention: weight of the attention's own difference; the paper has it between half and all of the objects'.

    Raises:
        DistillError: anchors that do not lie on the features' grid.

    Reference: Yang et al., Focal and Global Knowledge Distillation for Detectors, CVPR 2022.
    """
    levels = []
    for (student, teacher), quality in zip(ctx.features(), _quality_maps(ctx), strict=True):
        place, channel = _attention(teacher, temperature)
        own_place, own_channel = _attention(student, temperature)
        difference = place * (channel[..., None, None] * (student - teacher).square()).mean(1)  # (B, H, W)
        objects, rest = (
            (where * difference).sum((1, 2)) / where.sum((1, 2)).clamp(min=1) for where in (quality, 1 - quality)
        )
        gaze = (own_place - place).abs().mean((1, 2)) + (own_channel - channel).abs().mean(1)
        levels.append((objects + background * rest + attention * gaze).mean())
    return torch.stack(levels).mean()


def _standardise(feature: Tensor) -> Tensor:
    # The floor keeps the gradient of a channel that is constant in this batch bounded.
    variance, mean = torch.var_mean(feature, dim=(0, 2, 3), keepdim=True, correction=0)
    return (feature - mean) * torch.rsqrt(variance + 1e-6)


def _attention(feature: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention to positions, (B, H, W), and to channels, (B, C); both 1 on average."""
    strength = feature.abs() / temperature
    place = strength.mean(1).flatten(1).softmax(1).view_as(feature[:, 0])
    channel = strength.mean((2, 3)).softmax(1)
    return place * place[0].numel(), channel * channel.shape[1]


def _quality_maps(ctx: LossContext) -> list[Tensor]:
    """The teacher's quality on the grid of each level, (B, H, W): that of the best of a cell's anchors."""
    grids = [tuple(feature.shape[-2:]) for feature in ctx.teacher.features]
    cells, anchors = sum(rows * columns for rows, columns in grids), ctx.quality.shape[1]
    if anchors % cells:
        raise DistillError(
            f"loss 'feature_fgd': {anchors} anchors on {cells} cells: it needs a detector, whose anchors lie on the "
            "grid of its features"
        )
    boxes = anchors // cells  # to a cell
    parts = ctx.quality.split([boxes * rows * columns for rows, columns in grids], dim=1)
    return [part.unflatten(1, (boxes, *grid)).amax(1) for part, grid in zip(parts, grids, strict=True)]
